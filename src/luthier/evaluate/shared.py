"""Answers made by several ranks, each of which has the whole model."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from luthier.core.chat import Chooser, Completion, Conversation
from luthier.core.signals import Interrupted, ending_at_once
from luthier.train.ranks import Ranks

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCompleter:
    """A Completer that all ranks ask the same at the same time: each answers its share, and all have every answer."""

    own: Chooser
    ranks: Ranks

    def complete(self, conversations: Sequence[Conversation], *, max_new_tokens: int) -> list[Completion]:
        """One answer per conversation, in order."""
        return self._shared(conversations, lambda mine: self.own.complete(mine, max_new_tokens=max_new_tokens))

    def choose(self, conversations: Sequence[Conversation], *, labels: Sequence[str]) -> list[Completion]:
        """One of the labels for each, in order."""
        return self._shared(conversations, lambda mine: self.own.choose(mine, labels=labels))

    def _shared(
        self, conversations: Sequence[Conversation], answer: Callable[[Sequence[Conversation]], list[Completion]]
    ) -> list[Completion]:
        return [Completion(**told) for told in shared(self.ranks, conversations, lambda mine: [asdict(each) for each in answer(mine)])]


def shared(ranks: Ranks, items: Sequence[Item], work: Callable[[Sequence[Item]], list[Any]]) -> list[Any]:
    """What `work` tells of each item, in JSON's words, each told by one rank. Every `size`-th is a rank's, so that shares are alike where
    neighbours are.

    Raises Interrupted on all ranks where a signal comes to one that works.
    """
    mine = items[ranks.rank :: ranks.size]
    told: list[Any] | int
    try:
        with ending_at_once():
            told = work(mine) if mine else []
    except Interrupted as ended:  # which the others do not know of, who wait for this
        told = ended.signal
    shares = ranks.every(told)
    if signals := [share for share in shares if isinstance(share, int)]:
        raise Interrupted(signals[0])
    parts = [share for share in shares if not isinstance(share, int)]
    return [parts[place % ranks.size][place // ranks.size] for place in range(len(items))]
