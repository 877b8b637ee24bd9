"""What every evaluation asks of whoever answers: the recipe's tasks, and single answers to the first of them."""

from collections.abc import Mapping

from luthier.core.chat import Chooser, Completer
from luthier.core.errors import ModelError
from luthier.core.progress import Progress
from luthier.data.questions import asked_hash, questions
from luthier.data.rows import Example
from luthier.data.store import Prepared
from luthier.evaluate.measure import latency_rows, measure_latency
from luthier.evaluate.report import Latency, Report, Scores
from luthier.evaluate.task import TaskResult, evaluate_task
from luthier.recipe.proof import Task
from luthier.recipe.schema import Recipe


def evaluate_elsewhere(name: str, completer: Chooser, recipe: Recipe, prepared: Prepared, progress: Progress) -> Report:
    """Scores and predictions of one that only answers: it tells neither loss nor memory, which are null, nor what the harness asks."""
    if strange := [task.scorer for task in recipe.evaluation.tasks if task.of_harness]:
        change = "ask a model in this process, or leave the task out"
        raise ModelError(f"{strange[0]} asks for probabilities of texts, which a server does not tell", change=change)
    results = answered(recipe, prepared, completer, progress)
    return reported(name, recipe, prepared, results, first_latency(recipe, prepared, completer, progress))


def answered(recipe: Recipe, prepared: Prepared, completer: Chooser, progress: Progress) -> dict[str, TaskResult]:
    """Every task that the harness does not ask, by its name."""
    tasks = [task for task in recipe.evaluation.tasks if not task.of_harness]
    return {task.name: evaluate_task(task, asked(task, prepared), completer, recipe.seed, progress) for task in tasks}


def asked(task: Task, prepared: Prepared) -> list[Example]:
    """The rows of a task: its own file's, or a split's."""
    return questions(task.data) if task.data else prepared.examples(task.split)


def first_latency(recipe: Recipe, prepared: Prepared, completer: Completer, progress: Progress) -> Latency | None:
    """By rows and answer length of the task that is timed."""
    if (task := recipe.evaluation.timed) is None:
        return None
    return measure_latency(
        asked(task, prepared),
        completer,
        num_rows=latency_rows(recipe.decision),
        max_new_tokens=task.max_new_tokens,
        seed=recipe.seed,
        progress=progress,
    )


def reported(name: str, recipe: Recipe, prepared: Prepared, results: Mapping[str, TaskResult], latency: Latency | None) -> Report:
    """The report on answers; where a server does not count its tokens, no rate is told. What was only weighed took no time to write."""
    results = {task.name: results[task.name] for task in recipe.evaluation.tasks}
    seconds = sum(result.seconds for result in results.values())
    counted = all(row.tokens for result in results.values() if result.seconds for row in result.predictions if row.answer)
    scores = Scores(
        subject=name,
        data_hash=asked_hash(prepared.summary.hash, recipe.evaluation.tasks),
        tasks={task: result.scores for task, result in results.items()},
        latency=latency,
        tokens_per_second=sum(result.tokens for result in results.values()) / seconds if seconds and counted else None,
    )
    return Report(scores=scores, predictions={task: result.predictions for task, result in results.items()})
