"""Reinforcement: a recipe with `rl`, wired for the same loop that trains by rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from luthier.core.errors import UsageError
from luthier.core.progress import Progress
from luthier.flow.planning import SILENT

if TYPE_CHECKING:
    from luthier.data.completions import LongestCompletions
    from luthier.data.store import Prepared
    from luthier.flow import Trained
    from luthier.recipe.load import LoadedRecipe
    from luthier.recipe.rl import Rl
    from luthier.rl.sampler import Sampler
    from luthier.train.run import TrainingJob
    from luthier.train.source import Ready


def rl(loaded: LoadedRecipe, progress: Progress = SILENT, force: Sequence[str] = ()) -> Trained:
    """A finished run of a recipe with `rl`, as `train` makes it of any; raises UsageError for one without."""
    from luthier.flow import train

    if loaded.recipe.rl == "none":
        change = "give it `rl: {rewards: {exact: 1.0}}`, or train it: luthier train"
        raise UsageError("the recipe has no `rl`: nothing says what to reward", where=str(loaded.source), change=change)
    return train(loaded, progress, force)


def rows_at_most(rl: Rl, prepared: Prepared) -> LongestCompletions:
    """What the answers to the training prompts may be at most; raises RecipeError for a reward that there is not."""
    from luthier.data.completions import longest_completions
    from luthier.rl.rewards import check

    check(rl)
    return longest_completions(prepared.rows("train"), rl.group_size * rl.updates, rl.max_new_tokens)


@contextmanager
def rewarded(job: TrainingJob) -> Iterator[TrainingJob]:
    """The job with answers in place of rows, where its recipe has `rl`; what rewards them is there while it is open."""
    from luthier.recipe.rl import REWARD
    from luthier.rl.held_out import HeldOut
    from luthier.rl.rewards import Rewarding
    from luthier.rl.source import FromRollouts
    from luthier.train.passes import Stopped

    rl = job.recipe.rl
    if rl == "none":
        yield job
        return

    def look() -> None:
        if job.stops() and job.ranks.size == 1:  # of several, the others wait for what this one is told
            raise Stopped

    ranks = replace(job.ranks, stop=job.stops)
    with Rewarding(rl, look=look) if ranks.first else nullcontext(Rewarding(rl)) as rewarding:  # the others never ask it
        held_out = HeldOut(
            rl=rl,
            examples=job.prepared.examples("validation"),
            tokenizer=job.tokenizer,
            rewarding=rewarding,
            ranks=ranks,
            folder=job.folder,
        )
        source = FromRollouts(
            rl=rl,
            seed=job.recipe.seed,
            examples=job.prepared.examples("train"),
            rows=rows_at_most(rl, job.prepared),
            tokenizer=job.tokenizer,
            rewarding=rewarding,
            sampler=_sampler(job, rl),
            measure=held_out,
            folder=job.folder,
            heart=job.heart,
        )
        yield replace(job, source=source, score=held_out if job.recipe.best_by == REWARD else job.score)


def _sampler(job: TrainingJob, rl: Rl) -> Callable[[Ready], Sampler]:
    """Who draws the answers, once the model is there."""
    from luthier.rl.sampler import ByServer, Embedded

    if not rl.by_server:
        return lambda ready: Embedded(model=ready.placed.model, tokenizer=job.tokenizer, ranks=ready.precision.ranks)
    from luthier.flow.evaluating import Elsewhere
    from luthier.serve.sampler import RemoteSampler

    server: RemoteSampler | Literal["asked by the first rank"] = "asked by the first rank"
    if job.ranks.first:
        server = RemoteSampler.at(rl.sampler, Elsewhere(name=rl.sampler).token, job.tokenizer.stop_ids)
    return lambda ready: ByServer(
        server=server,
        placed=ready.placed,
        tokenizer=job.tokenizer,
        ranks=ready.precision.ranks,
        folder=job.folder.path / "policy",
    )
