"""Rollouts: prompts are answered several times, in one turn or, where an environment replies, in several; and the answers rewarded.

R = rows to learn from, of which every turn of every answer is one: its prompt and what was written, so that what is learned from is to the
token what was read and written.
"""

import functools
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from luthier.core.chat import Conversation, Message
from luthier.core.generation import Drawn
from luthier.data.rows import Example
from luthier.data.store import TokenRow
from luthier.data.tokenizer import ChatTokenizer
from luthier.model.dropout import seed_of
from luthier.rl.rewards import NO_EPISODE, Answered, Rewarded, Rewarding
from luthier.rl.sampler import How, Sampler
from luthier.train.ranks import Ranks

MOST_TURNS = 32
"""Of an episode, after which it is over whatever its environment says."""
LEAST_SPREAD = 1e-4
"""Added to a group's spread, as TRL does: rewards that differ by less are not told apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What was read, and what was written to it."""

    prompt: tuple[int, ...]
    drawn: Drawn

    @property
    def row(self) -> TokenRow:
        """The tokens, of which those that were written are learned from."""
        ids = np.array((*self.prompt, *self.drawn.ids), np.int32)
        return TokenRow(ids=ids, supervised=np.arange(len(ids)) >= len(self.prompt))


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """One answer to a prompt, or the whole dialogue with an environment."""

    prompt: int
    """Its number among the training prompts; the episodes of one are a group."""
    turns: tuple[Turn, ...]
    answers: tuple[str, ...]
    """As text."""
    rewarded: Rewarded
    advantage: float | None = None
    """How much better than its group it was, in the group's spread; None where it tells nothing: it was not rewarded, or all were alike."""

    @property
    def num_tokens(self) -> int:
        """That were written."""
        return sum(len(turn.drawn.ids) for turn in self.turns)

    @property
    def cut(self) -> bool:
        """Whether a turn had no room to end."""
        return not all(turn.drawn.stopped for turn in self.turns)


@dataclass(frozen=True, slots=True, kw_only=True)
class Player:
    """Lets a sampler answer, and has the answers rewarded. All ranks have all episodes; the first one rewards."""

    sampler: Sampler
    rewarding: Rewarding
    tokenizer: ChatTokenizer
    ranks: Ranks
    how: How
    with_environment: bool

    def play(self, asked: Sequence[tuple[int, Example]], seeds: Sequence[str]) -> list[Episode]:
        """An episode for each prompt, in order, without advantages; each draws by a seed that follows from its text and the turn."""
        opened = self._opened([example for _, example in asked])
        games = [
            _Game(conversation=example.prompt, episode=episode, over=self.with_environment and episode == NO_EPISODE)
            for (_, example), episode in zip(asked, opened, strict=True)
        ]
        for turn in range(MOST_TURNS if self.with_environment else 1):
            going = [place for place, game in enumerate(games) if not game.over]
            prompts = [tuple(self.tokenizer.prompt_ids(games[place].conversation)) for place in going]
            drawn = self.sampler.draw(prompts, [seed_of(f"{seeds[place]}/{turn}") for place in going], self.how) if going else []
            for place, prompt, each in zip(going, prompts, drawn, strict=True):
                games[place].say(Turn(prompt=prompt, drawn=each), self.tokenizer.said(each.before_stop))
            if self.with_environment:
                whole = [place for place, each in zip(going, drawn, strict=True) if each.stopped]
                said = [(games[place].episode, games[place].answers[-1]) for place in whole]
                replies = dict(zip(whole, self.ranks.by_first(functools.partial(self.rewarding.reply, said)), strict=True))
                for place in going:  # what is cut cannot be replied to
                    games[place].hear(replies.get(place) or "")
        answered = [game.answered(example.reference) for game, (_, example) in zip(games, asked, strict=True)]
        rewarded = self.ranks.by_first(lambda: [asdict(each) for each in self.rewarding.reward(answered)])
        return [
            Episode(prompt=number, turns=tuple(game.turns), answers=tuple(game.answers), rewarded=Rewarded(**each))
            for game, (number, _), each in zip(games, asked, rewarded, strict=True)
        ]

    def _opened(self, examples: Sequence[Example]) -> list[int]:
        if not self.with_environment:
            return [NO_EPISODE] * len(examples)
        questions = [([message.to_template() for message in example.prompt.messages], example.reference) for example in examples]
        return self.ranks.by_first(lambda: self.rewarding.open(questions))


def compared(episodes: Sequence[Episode]) -> list[Episode]:
    """The episodes with their advantages: (reward - mean) / (spread + 1e-4) over those of the same prompt, the spread with n - 1.

    Of a group whose rewards are all alike, or with less than two, nothing can be learned. Rewards 1, 0, 0, 1: 0.87, -0.87, -0.87, 0.87.
    """
    groups = defaultdict[int, list[float]](list)
    for episode in episodes:
        if episode.rewarded.total is not None:
            groups[episode.prompt].append(episode.rewarded.total)
    return [replace(episode, advantage=_advantage(episode.rewarded.total, groups[episode.prompt])) for episode in episodes]


def _advantage(reward: float | None, group: Sequence[float]) -> float | None:
    if reward is None or len(group) < 2 or max(group) == min(group):
        return None
    return (reward - statistics.fmean(group)) / (statistics.stdev(group) + LEAST_SPREAD)


@dataclass(slots=True, kw_only=True)
class _Game:
    """An episode while it is played."""

    conversation: Conversation
    episode: int
    """By which its environment is known."""
    turns: list[Turn] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    over: bool = False

    def say(self, turn: Turn, text: str) -> None:
        """One more answer."""
        self.turns.append(turn)
        self.answers.append(text)

    def hear(self, reply: str) -> None:
        """What is said to it; empty: nothing more."""
        said = Message(role="assistant", content=self.answers[-1]), Message(role="user", content=reply)
        self.conversation = replace(self.conversation, messages=(*self.conversation.messages, *said))
        self.over = not reply

    def answered(self, reference: str) -> Answered:
        """What is to be rewarded."""
        tokens = sum(len(turn.drawn.ids) for turn in self.turns[-1:])
        return Answered(answer="".join(self.answers[-1:]), reference=reference, num_tokens=tokens, episode=self.episode)
