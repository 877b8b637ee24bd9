"""What is kept of rollouts: numbers in the step's line of metrics.jsonl, and every answer with its reward in rollouts/step-000012.jsonl."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from luthier.core import files, jsonl
from luthier.core.errors import RunError
from luthier.data.rows import Example
from luthier.rl.rollout import Episode
from luthier.runs.store import RunFolder

EPISODES = TypeAdapter(list[Episode])


def drawn(episodes: Sequence[Episode]) -> dict[str, float]:
    """Of a step's answers; NaN where there is nothing to tell of.

    `reward`, and of several each by itself (`reward/exact`); tokens written; shares that were cut (`cut`), that belong to groups without
    a signal (`silent`), and of answers that could not be rewarded (`failed`); `entropy`, in nats a token, by what was drawn.
    """
    prompts = {episode.prompt for episode in episodes}
    heard = {episode.prompt for episode in episodes if episode.advantage is not None}
    names = list(dict.fromkeys(name for episode in episodes for name in episode.rewarded.parts))
    parts = {f"reward/{name}": _mean(each.rewarded.parts[name] for each in episodes if name in each.rewarded.parts) for name in names}
    return {
        "reward": reward(episodes),
        **(parts if len(parts) > 1 else {}),
        "answer_tokens": _mean(episode.num_tokens for episode in episodes),
        "cut": _mean(episode.cut for episode in episodes),
        "silent": _mean(prompt not in heard for prompt in prompts),
        "failed": _mean(episode.rewarded.total is None for episode in episodes),
        "entropy": _mean(-logprob for episode in episodes for turn in episode.turns for logprob in turn.drawn.logprobs),
    }


def reward(episodes: Sequence[Episode]) -> float:
    """The mean of those that could be rewarded; NaN where none could."""
    return _mean(episode.rewarded.total for episode in episodes if episode.rewarded.total is not None)


def learned(sums: Sequence[float], *, fresh: bool, kl: bool) -> dict[str, float]:
    """Of a step's tokens, by the sums of `luthier.rl.objective.Tally`: divergence from the beginning, and the share that was clipped.

    `drift`: mean |log ρ| where nothing was learned between drawing and learning (`fresh`): how differently the sampler computes.
    """
    tokens, apart, moved, clipped = sums
    of_all = tokens or math.nan
    return {
        "kl": apart / of_all if kl else math.nan,
        "drift": moved / of_all if fresh else math.nan,
        "clipped": clipped / of_all,
    }


def keep(run: RunFolder, step: int, episodes: Sequence[Episode], examples: Sequence[Example]) -> None:
    """A line for each answer, with its prompt's place in the data, for people to read; raises DiskError where it cannot be written."""
    with files.told(run.rollouts.name, run.path):
        write(run.rollout(step), episodes, examples)


def write(path: Path, episodes: Sequence[Episode], examples: Sequence[Example]) -> None:
    """A line for each answer; the folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, "".join(jsonl.dumps(_line(episode, examples[episode.prompt])) + "\n" for episode in episodes))


def keep_tokens(run: RunFolder, step: int, episodes: list[Episode], needed: Iterable[int]) -> None:
    """The answers as they were drawn, to the bit, for a run that is ended between two updates by them.

    Others are forgotten, but for those of `needed` steps, in whose middle a checkpoint may have the run go on.
    """
    kept = {run.tokens(each) for each in (step, *needed)}
    with files.told("the answers as tokens", run.path):
        files.write(run.tokens(step), EPISODES.dump_json(episodes).decode())
        for path in run.rollouts.glob("tokens-*.json"):
            if path not in kept:
                path.unlink()


def kept_tokens(run: RunFolder, step: int) -> str:
    """What `keep_tokens` wrote for this step; raises RunError where it is not there any more."""
    path = run.tokens(step)
    if not path.exists():
        change = "remove the newest checkpoint: the run goes on from the one before"
        raise RunError(f"the answers that were drawn for step {step} are gone", where=str(path), change=change)
    return path.read_text(encoding="utf-8")


def read_tokens(text: str) -> list[Episode]:
    """The answers; raises RunError where the text is damaged."""
    try:
        return EPISODES.validate_json(text)
    except ValidationError as error:
        change = "remove the newest checkpoint: the run goes on from the one before"
        raise RunError("the answers that were drawn are damaged", where="rollouts/", change=change) from error


def _line(episode: Episode, example: Example) -> Mapping[str, object]:
    return {
        "origin": example.origin,
        "group": example.group,
        "asked": example.prompt.messages[-1].content if example.prompt.messages else "",
        "reference": example.reference,
        "answers": list(episode.answers),
        "reward": episode.rewarded.total,
        "rewards": dict(episode.rewarded.parts),
        "failure": episode.rewarded.failure,
        "advantage": episode.advantage,
        "tokens": episode.num_tokens,
        "cut": episode.cut,
    }


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return statistics.fmean(found) if found else math.nan
