"""Training in this process, or in ranks that it starts and that each end up here again."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core.progress import Advance, Progress, Silent, Told, follow
from luthier.core.signals import Interrupted, ending_at_once
from luthier.flow.planning import SILENT, facts_of

if TYPE_CHECKING:
    from torch import nn

    from luthier.data.store import Prepared
    from luthier.data.tokenizer import ChatTokenizer
    from luthier.plan.plan import Plan
    from luthier.recipe.schema import Recipe
    from luthier.runs.heartbeat import Heart
    from luthier.runs.store import RunFolder
    from luthier.train.ranks import Ranks

SECONDS_BETWEEN_LOOKS = 0.1


def train_here(run: RunFolder, planned: Plan, prepared: Prepared, progress: Progress) -> None:
    """Train a run in this process alone."""
    from luthier.runs.heartbeat import Heartbeat
    from luthier.train.ranks import ALONE

    with Heartbeat(run, 0) as heart:
        _train(run, planned, prepared, ALONE, heart, progress)


def train_in_ranks(run: RunFolder, planned: Plan, progress: Progress) -> None:
    """Train a run in as many processes as its plan has ranks; raises what one of them raised, or Interrupted.

    What rank 0 says is shown here; what the ranks, their libraries and torchrun print is in log.txt.
    """
    from luthier.launch.group import run_group

    num_ranks, restarts = planned.setup.layout.devices, planned.facts.task.recipe.launch.restarts
    command = rank_command("train", run, num_ranks, planned.facts.task.place.free_bytes)
    with shown(run.progress, progress):
        ended = run_group(command, run, ranks=num_ranks, restarts=restarts, progress=progress)
    if ended.code:
        raise Interrupted(ended.code - 128)


def rank_command(verb: Literal["train", "evaluate"], run: RunFolder, num_ranks: int, free_bytes: int) -> list[str]:
    """What starts the ranks of a run on this machine, and becomes torchrun (`luthier.cli.rank`)."""
    return [sys.executable, "-P", "-m", "luthier.cli.rank", verb, str(run.path), str(free_bytes), str(num_ranks)]


def train_rank(folder: Path, free_bytes: int) -> None:
    """Train the run in `folder` as one of the ranks that torchrun started; `free_bytes` are what its plan may count on.

    All ranks make the same plan from the same facts. The rows have been prepared, and the folder is held by who started them.
    """
    from luthier.data.store import Prepared
    from luthier.plan.layout import layout_of
    from luthier.plan.plan import make
    from luthier.recipe.load import load
    from luthier.runs.heartbeat import Heartbeat, listen
    from luthier.runs.store import RunFolder, prepared_root
    from luthier.runs.summary import DataSummary
    from luthier.train.ranks import join, part

    rank = int(os.environ["RANK"])
    run = RunFolder(folder, read_only=rank > 0)
    listen(run, rank)
    with ending_at_once(), Heartbeat(run, rank) as heart, run.progress.open("a", encoding="utf-8") as told:
        recipe = load(run.recipe).recipe
        ranks = join(layout_of(recipe), heart.waiting)
        progress = Told(told) if ranks.first else Silent()
        prepared = Prepared(prepared_root() / DataSummary.read(run.data).hash)
        facts = facts_of(recipe, prepared, progress, probe=False)
        place = replace(facts.task.place, free_bytes=free_bytes)
        planned = make(replace(facts, task=replace(facts.task, place=place)))
        _train(run, planned, prepared, ranks, heart, progress)
        part(ranks)


def _train(run: RunFolder, planned: Plan, prepared: Prepared, ranks: Ranks, heart: Heart, progress: Progress) -> None:
    from luthier.data.tokenizer import load_tokenizer
    from luthier.train.run import TrainingJob
    from luthier.train.run import train as run_training

    recipe = planned.facts.task.recipe
    tokenizer = load_tokenizer(recipe.model)
    score = functools.partial(_validation_scores, prepared, tokenizer, recipe, Alive(heart))
    run_training(
        TrainingJob(
            plan=planned,
            prepared=prepared,
            tokenizer=tokenizer,
            folder=run,
            progress=progress,
            score=score,
            ranks=ranks,
            heart=heart,
        )
    )


@contextmanager
def shown(path: Path, progress: Progress) -> Iterator[None]:
    """While it is open, what is told in the file is shown."""
    over = threading.Event()
    path.write_text("", encoding="utf-8")
    showing = threading.Thread(target=lambda: follow(_lines(path, over), progress), name="progress of rank 0")
    showing.start()
    try:
        yield
    finally:
        over.set()
        showing.join()
        path.unlink()


def _lines(path: Path, over: threading.Event) -> Iterator[str]:
    """The file's lines as they are written, until it is over; a torn one, of a process that was killed, is left out."""
    torn = ""
    with path.open(encoding="utf-8") as file:
        while True:
            last = over.is_set()
            *whole, torn = (torn + file.read()).split("\n")
            yield from whole
            if last:
                return
            over.wait(SECONDS_BETWEEN_LOOKS)


class Alive:
    """Progress that also says, with each part, that the rank lives; shown elsewhere, or nowhere."""

    def __init__(self, heart: Heart, progress: Progress = SILENT) -> None:
        self._heart, self._progress = heart, progress

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """A beat for each part."""
        with self._progress.task(name, total) as advance:

            def beat(done: int, text: str) -> None:
                self._heart.again()
                advance(done, text)

            yield beat

    def say(self, line: str) -> None:
        """Says it where the rest is shown."""
        self._progress.say(line)


def _validation_scores(
    prepared: Prepared, tokenizer: ChatTokenizer, recipe: Recipe, progress: Progress, model: nn.Module
) -> dict[str, float]:
    """`TASK.metric` of the task that `checkpoints.best_by` names, on validation rows."""
    from luthier.evaluate.task import evaluate_task
    from luthier.model.generate import LocalCompleter

    name = recipe.checkpoints.best_by.partition(".")[0]
    task = next(task for task in recipe.evaluation.tasks if task.name == name).model_copy(update={"split": "validation"})
    scores = evaluate_task(task, prepared.examples("validation"), LocalCompleter(model, tokenizer), recipe.seed, progress).scores
    return {f"{name}.{scores.metric}": scores.value}
