"""Training in this process, or in ranks that it starts and that each end up here again."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core.envfile import give
from luthier.core.progress import Advance, Progress, Silent, Told, follow
from luthier.core.signals import Interrupted, ending_at_once
from luthier.flow.planning import SILENT, facts_of
from luthier.flow.reinforcing import rewarded

if TYPE_CHECKING:
    from torch import nn

    from luthier.data.store import Prepared
    from luthier.data.tokenizer import ChatTokenizer
    from luthier.launch.group import Starts
    from luthier.launch.nodes import Call, Node
    from luthier.plan.plan import Plan
    from luthier.recipe.schema import Recipe
    from luthier.runs.heartbeat import Heart
    from luthier.runs.store import RunFolder
    from luthier.train.ranks import Ranks

SECONDS_BETWEEN_LOOKS = 0.1


def train_here(run: RunFolder, planned: Plan, prepared: Prepared, progress: Progress) -> None:
    """Train a run in this process alone."""
    from luthier.launch.attempt import forget
    from luthier.runs.heartbeat import Heartbeat
    from luthier.train.ranks import ALONE

    forget(run)  # of ranks that an earlier start had
    with Heartbeat(run, 0) as heart:
        _train(run, planned, prepared, ALONE, heart, progress)


def train_in_ranks(run: RunFolder, planned: Plan, node: Node, progress: Progress) -> None:
    """Train a run in as many processes as its plan has ranks; raises what one of them raised, or Interrupted.

    What rank 0 says is shown here; what the ranks, their libraries and torchrun print is in log.txt. On several nodes this is the first.
    """
    from luthier.launch.group import Here, supervise
    from luthier.launch.nodes import Leading
    from luthier.launch.ray import ray_words, require
    from luthier.launch.torchrun import start_words

    recipe, num_ranks, free_bytes = planned.facts.task.recipe, planned.setup.layout.devices, planned.facts.task.place.free_bytes
    each = num_ranks // node.count
    if recipe.launch.on == "ray":
        require()
    start = ray_words(num_ranks, recipe.launch) if recipe.launch.on == "ray" else start_words(each, node)
    command = rank_command("train", run, free_bytes, start)
    starts: Starts = Here(command=command, run=run, ranks=num_ranks)
    if node.count > 1:
        starts = Leading(command=command, run=run, node=node, ranks=each, free_bytes=free_bytes, progress=progress)
    with shown(run.progress, progress):
        ended = supervise(starts, run, restarts=recipe.launch.restarts, progress=progress)
    if ended.code:
        raise Interrupted(ended.code - 128)


def train_on_node(run: RunFolder, node: Node, progress: Progress) -> None:
    """Train this node's ranks of a run that the first node has opened, for as long as that one calls for them."""
    from luthier.launch.follow import follow
    from luthier.launch.nodes import Following
    from luthier.launch.torchrun import start_words

    def command(call: Call) -> list[str]:
        return rank_command("train", run, call.free_bytes, start_words(call.ranks, node))

    progress.say(f"node {node.number} of {node.count}: the first shows how far the run is, {run.log.name} what the ranks here print")
    ended = follow(Following(command=command, run=run, node=node), progress)
    if ended.code:
        raise Interrupted(ended.code - 128)


def rank_command(verb: Literal["train", "evaluate"], run: RunFolder, free_bytes: int, start: Sequence[str]) -> list[str]:
    """What starts the ranks of a run, and becomes torchrun or a driver of Ray (`luthier.cli.rank`)."""
    return [sys.executable, "-P", "-m", "luthier.cli.rank", verb, str(run.path), str(free_bytes), *start]


def train_rank(folder: Path, free_bytes: int) -> None:
    """Train the run in `folder` as one of the ranks that torchrun or Ray started; `free_bytes` are what its plan may count on.

    All ranks make the same plan from the same facts. The rows have been prepared, and the folder is held by who started them.
    """
    from luthier.data.store import Prepared
    from luthier.plan.layout import layout_of
    from luthier.plan.plan import make
    from luthier.recipe.load import load
    from luthier.runs.heartbeat import Heartbeat, listen
    from luthier.runs.store import RunFolder, prepared_root
    from luthier.runs.summary import DataSummary

    rank = int(os.environ["RANK"])
    run = RunFolder(folder, read_only=rank > 0)
    listen(run, rank)
    with ending_at_once(), Heartbeat(run, rank) as heart, run.progress.open("a", encoding="utf-8") as told:
        recipe = load(run.recipe).recipe
        give(recipe.launch.env_file)
        from luthier.train.ranks import join, part  # libraries find the env file's variables when they load

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
    from luthier.train.source import FromPrepared

    recipe = planned.facts.task.recipe
    tokenizer = load_tokenizer(recipe.model)
    score = _Scoring(run=run, prepared=prepared, tokenizer=tokenizer, recipe=recipe, ranks=ranks, progress=Alive(heart))
    with rewarded(
        TrainingJob(
            plan=planned,
            prepared=prepared,
            source=FromPrepared(prepared=prepared, seed=recipe.seed),
            tokenizer=tokenizer,
            folder=run,
            progress=progress,
            score=score,
            ranks=ranks,
            heart=heart,
        )
    ) as job:
        run_training(job)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scoring:
    """The task that `checkpoints.best_by` names, asked of validation rows; ranks that each have the whole model share them."""

    run: RunFolder
    prepared: Prepared
    tokenizer: ChatTokenizer
    recipe: Recipe
    ranks: Ranks
    progress: Progress

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """`TASK.metric`; the answers are kept beside the validation's losses, by which two runs are compared row by row."""
        from luthier.evaluate.report import Report, Scores
        from luthier.evaluate.shared import SharedCompleter
        from luthier.evaluate.task import evaluate_task
        from luthier.model.generate import LocalCompleter

        name = self.recipe.best_by.partition(".")[0]
        task = next(task for task in self.recipe.evaluation.tasks if task.name == name).model_copy(update={"split": "validation"})
        own = LocalCompleter(model, self.tokenizer)
        completer = SharedCompleter(own=own, ranks=self.ranks) if self.ranks.each_whole else own
        found = evaluate_task(task, self.prepared.examples("validation"), completer, self.recipe.seed, self.progress)
        if not self.run.read_only:
            scores = Scores(subject=f"{self.run.path} after step {step}", data_hash=self.prepared.summary.hash, tasks={name: found.scores})
            Report(scores=scores, predictions={name: found.predictions}).write(self.run.answers(step))
        return {f"{name}.{found.scores.metric}": found.scores.value}
