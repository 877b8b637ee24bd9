"""One task: ask the rows of a split, score the answers, say how sure the score is."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from luthier.core import jsonl
from luthier.core.chat import Chooser, Completion, Conversation
from luthier.core.errors import DataError, LuthierError
from luthier.core.progress import Progress
from luthier.data.rows import Example
from luthier.evaluate.report import Prediction, TaskScores
from luthier.plan.asked import ROWS_AT_A_TIME
from luthier.recipe.proof import Task
from luthier.score import intervals
from luthier.score.intervals import Interval
from luthier.score.scorers import Scorer, final, metric_name, scorer

Ask = Callable[[Sequence[Conversation]], list[Completion]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """Scores, the predictions behind them, and what it took: generated tokens and seconds of generation."""

    scores: TaskScores
    predictions: tuple[Prediction, ...]
    tokens: int
    seconds: float


def evaluate_task(task: Task, examples: Sequence[Example], completer: Chooser, seed: int, progress: Progress) -> TaskResult:
    """Ask `task` of its rows; raises DataError where there are none, or where a reference cannot be scored."""
    score = scorer(task.scorer)
    rows = choose(examples, task.limit, seed)
    if not rows:
        raise DataError(
            f"there are no rows to ask task {task.name!r}", where=f"split {task.split!r}", change="give the split a share of the rows"
        )
    for row in rows:  # before hours of generation: the scorer must bear every reference, and an empty answer
        _score(score, "", row, task)
    completions, seconds = _answers(task, rows, _asking(task, examples, completer), progress)
    predictions = tuple(
        Prediction(
            task=task.name,
            origin=row.origin,
            group=row.group,
            messages=tuple(message.to_template() for message in row.prompt.messages),
            reference=row.reference,
            answer=completion.text,
            score=_score(score, completion.text, row, task),
            tokens=completion.num_tokens,
            stopped=completion.stopped,
            seconds=completion.seconds,
            key=digest(row.key),
        )
        for row, completion in zip(rows, completions, strict=True)
    )
    tokens = sum(completion.num_tokens for completion in completions)
    return TaskResult(scores=summarise(metric_name(task.scorer), predictions), predictions=predictions, tokens=tokens, seconds=seconds)


def choose(examples: Sequence[Example], limit: int | Literal["all"], seed: int) -> list[Example]:
    """At most `limit` rows, in their order: those with the smallest hash of seed and row, so that new rows displace few old ones."""
    if limit == "all" or limit >= len(examples):
        return list(examples)
    places = sorted(range(len(examples)), key=lambda place: (_hash(examples[place], seed), place))
    return [examples[place] for place in sorted(places[:limit])]


def digest(key: str) -> str:
    """What a row's key is told as: the key itself may be anybody's name."""
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:16]


def summarise(metric: str, predictions: Sequence[Prediction]) -> TaskScores:
    """The mean score with its interval, overall and per group; groups are left out where there is only one."""
    whole = _score_of(predictions)
    groups = sorted({row.group for row in predictions})
    by_group = {group: _score_of([row for row in predictions if row.group == group]) for group in groups}
    return TaskScores(
        metric=metric,
        value=whole.value,
        low=whole.low,
        high=whole.high,
        n=whole.n,
        groups=by_group if len(groups) > 1 else {},
        cut=sum(not row.stopped for row in predictions),
    )


def _score_of(rows: Sequence[Prediction]) -> Interval:
    return intervals.scores([row.score for row in rows], keys=[row.key for row in rows])


def _asking(task: Task, examples: Sequence[Example], completer: Chooser) -> Ask:
    """Free answers; or, of all labels that the references have, the one that the model would write if it could write no other."""
    if task.scorer != "choice":
        return lambda conversations: completer.complete(conversations, max_new_tokens=task.max_new_tokens)
    labels = sorted({final(example.reference) for example in examples})
    if len(labels) < 2:
        change = "let the scorer be `label`, or ask rows with several"
        raise DataError(f"there is nothing to choose: every reference is {labels[0]!r:.80}", where=f"task {task.name}", change=change)
    return lambda conversations: completer.choose(conversations, labels=labels)


def _answers(task: Task, rows: Sequence[Example], ask: Ask, progress: Progress) -> tuple[list[Completion], float]:
    """Every row's answer, and the seconds of generation."""
    completions: list[Completion] = []
    start = time.perf_counter()
    with progress.task(f"evaluate {task.name}", len(rows)) as advance:
        while len(completions) < len(rows):
            part = rows[len(completions) : len(completions) + ROWS_AT_A_TIME]
            completions += ask([row.prompt for row in part])
            advance(len(completions), f"{sum(item.num_tokens for item in completions) / (time.perf_counter() - start):,.0f} tokens/s")
    return completions, time.perf_counter() - start


def _score(score: Scorer, answer: str, row: Example, task: Task) -> float:
    try:
        return score(answer, row.reference)
    except LuthierError as error:
        raise type(error)(error.what, where=f"{row.origin}, task {task.name}", change=error.change) from error


def _hash(example: Example, seed: int) -> bytes:
    turns = [message.to_template() for message in example.conversation.messages]
    return hashlib.sha256(f"{seed}\0{jsonl.dumps(turns)}".encode()).digest()
