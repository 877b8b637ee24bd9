"""Rollouts as the source of a run's rows: each step's answers are drawn with the weights that the step before left, and rewarded.

What is drawn is a function of the seed, the step and the weights, so that a run that is resumed draws the same again; only of answers that
several updates learn from, those that were drawn are kept for it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from luthier.data.completions import LongestCompletions
from luthier.data.order import Indices, rows_of_step
from luthier.data.rows import Example
from luthier.data.store import HeldRows
from luthier.data.tokenizer import ChatTokenizer
from luthier.model.pipeline import as_one
from luthier.model.place import Trained
from luthier.recipe.rl import Rl
from luthier.rl import record
from luthier.rl.objective import Floats, PolicyLoss, runs
from luthier.rl.rewards import Rewarding
from luthier.rl.rollout import Episode, Player, Turn, compared
from luthier.rl.sampler import How, Sampler
from luthier.runs.heartbeat import Heart
from luthier.runs.store import RunFolder
from luthier.train.batch import MicroBatch, micro_batches
from luthier.train.passes import forward
from luthier.train.source import Ready
from luthier.train.step import evened


@dataclass(frozen=True, slots=True, kw_only=True)
class FromRollouts:
    """The prompts of training examples, to be answered (`luthier.train.source.Source`)."""

    rl: Rl
    seed: int
    examples: Sequence[Example]
    rows: LongestCompletions
    """What the answers can be at most."""
    tokenizer: ChatTokenizer
    rewarding: Rewarding
    sampler: Callable[[Ready], Sampler]
    measure: Callable[[nn.Module, int], object]
    """Asked of the model before its first step, so that what it gains can be told."""
    folder: RunFolder
    heart: Heart

    def batches(self, ready: Ready) -> "Rollouts":
        """Of a model as it begins: what the divergence is from."""
        player = Player(
            sampler=self.sampler(ready),
            rewarding=self.rewarding,
            tokenizer=self.tokenizer,
            ranks=ready.precision.ranks,
            how=How(max_new_tokens=self.rl.max_new_tokens, temperature=self.rl.temperature),
            with_environment=bool(self.rl.environment),
        )
        begun = {name: weight.detach().clone() for name, weight in ready.placed.trained.items()} if self.rl.kl else {}
        return Rollouts(source=self, ready=ready, player=player, begun=begun)

    def prompts(self, step: int, per_step: int) -> list[int]:
        """The numbers of the examples that are asked for a step's answers; several updates ask once."""
        taken = rows_of_step(1 + (step - 1) // self.rl.updates, per_step, self.seed, self.rows.prompts)
        return [int(self.rows.prompts.example_index[row]) for row in taken]

    def drawn_in(self, step: int) -> int:
        """The step in which the answers were drawn that this one learns from."""
        return 1 + (step - 1) // self.rl.updates * self.rl.updates

    def origins(self, rows: Sequence[int]) -> list[str]:
        """File and line of each example."""
        return [self.examples[row].origin for row in rows]


@dataclass(slots=True, kw_only=True)
class Rollouts:
    """Draws, rewards and compares answers, and makes micro batches of them (`luthier.train.source.Batches`)."""

    source: FromRollouts
    ready: Ready
    player: Player
    begun: Mapping[str, Tensor]
    """The trained weights that the run begins with."""
    _step: int = 0
    _drawn: "_Drawn" = field(default_factory=lambda: _Drawn(step=0, episodes=[]))
    _loss: PolicyLoss | None = None

    def take(self, step: int) -> tuple[Indices, list[MicroBatch]]:
        """The examples whose prompts are answered, and the micro batches, each with its loss."""
        rl = self.source.rl
        first = self.source.drawn_in(step)
        numbers = self.source.prompts(step, self.ready.steps.global_batch_size // rl.group_size)
        if self._drawn.step != first:
            self._drawn = self._play(first, numbers) if step == first else _Drawn(step=first, episodes=self._kept(first))
        self._step = step
        return np.array(numbers, np.int64), self._micro_batches(self._drawn)

    def told(self) -> Mapping[str, float]:
        """Of the answers, and of what was learned from them."""
        sums = self.ready.precision.ranks.sum(self._loss.tally.read() if self._loss else [0.0] * 4)
        learned = record.learned(sums, fresh=self._step == self._drawn.step, kl=bool(self.source.rl.kl))
        return {**record.drawn(self._drawn.episodes), **learned}

    def reached(self, loss: float) -> str:
        """The reward: the loss is about 0 whatever was learned."""
        return f"reward {record.reward(self._drawn.episodes):.3f}"

    def _play(self, step: int, numbers: Sequence[int]) -> "_Drawn":
        source = self.source
        source.heart.beat("scoring", step)
        self.player.sampler.renew(step - 1)
        asked = [(number, member) for number in numbers for member in range(source.rl.group_size)]
        seeds = [f"{source.seed}/{step}/{number}/{member}" for number, member in asked]
        with as_one(self.ready.placed.model):
            if step == 1:
                source.measure(self.ready.placed.model, 0)
            episodes = compared(self.player.play([(number, source.examples[number]) for number, _ in asked], seeds))
        if not source.folder.read_only:
            record.keep(source.folder, step, episodes, source.examples)
            if source.rl.updates > 1:
                needed = [source.drawn_in(saved + 1) for saved in source.folder.saved_steps]
                record.keep_tokens(source.folder, step, episodes, needed)
            if failures := [episode.rewarded.failure for episode in episodes if episode.rewarded.total is None]:
                source.folder.event("unrewarded", step=step, answers=len(failures), of=len(episodes), first=failures[0])
        source.heart.beat("computing", step)
        return _Drawn(step=step, episodes=episodes)

    def _kept(self, step: int) -> list[Episode]:
        """What was drawn before the run was ended between two updates."""
        ranks, folder = self.ready.precision.ranks, self.source.folder
        return record.read_tokens(ranks.by_first(lambda: record.kept_tokens(folder, step)))

    def _micro_batches(self, drawn: "_Drawn") -> list[MicroBatch]:
        rl, precision, size = self.source.rl, self.ready.precision, self.ready.micro_batch
        learned = drawn.learned(always=rl.kl > 0)
        if not learned:
            self._loss = None
            return []
        rows = HeldRows([turn.row for _, turn in learned], np.array([episode.prompt for episode, _ in learned], np.int64))
        mine = precision.ranks.share(rows, np.arange(len(rows)))
        made = micro_batches(rows, mine, size, precision.device) if len(mine) else []
        batches = [replace(batch, temperature=rl.temperature) for batch in made]
        self._loss = PolicyLoss(
            algorithm=rl.algorithm,
            clip=rl.clipped_at,
            kl=rl.kl,
            advantages_R=np.array([episode.advantage or 0.0 for episode, _ in learned], np.float32),
            drawn_R=[np.array(turn.drawn.logprobs, np.float32) for _, turn in learned],
            begun_R=self._as_begun(batches, len(rows)) if rl.kl else [],
        )
        return [replace(batch, objective=self._loss) for batch in batches]

    def _as_begun(self, batches: Sequence[MicroBatch], num_rows: int) -> list[Floats]:
        """How probable the model that the run began with finds each row's tokens; nothing for rows of other ranks."""
        found: list[Floats] = [np.zeros(0, np.float32)] * num_rows
        precision = self.ready.precision
        with _with_weights(self.ready.placed.trained, self.begun):
            seen = forward(self.ready.placed.model, evened(batches, self.ready.micro_batch, precision), precision)
        for each in seen:
            logp_M = -each.nll_N.float().cpu().numpy()[each.targets_M]
            rows_S, begins_S = runs(each.rows_M)
            for row, logps in zip(rows_S, np.split(logp_M, begins_S)[1:], strict=True):
                found[int(row)] = logps
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawn:
    """The answers that were drawn for a step, from which it learns, and maybe those after it."""

    step: int
    episodes: list[Episode]

    def learned(self, *, always: bool) -> list[tuple[Episode, Turn]]:
        """What is learned from: turns that ended, of episodes that tell something; `always`: that were rewarded at all."""
        return [
            (episode, turn)
            for episode in self.episodes
            if episode.advantage is not None or (always and episode.rewarded.total is not None)
            for turn in episode.turns
            if turn.drawn.stopped
        ]


@contextmanager
def _with_weights(trained: Trained, others: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, the model has these in place of its trained weights: one base, whose adapter is another."""
    now = {name: weight.detach().clone() for name, weight in trained.items()}
    _put(trained, others)
    try:
        yield
    finally:
        _put(trained, now)


@torch.no_grad()
def _put(trained: Trained, values: Mapping[str, Tensor]) -> None:
    for name, weight in trained.items():
        weight.copy_(values[name])
