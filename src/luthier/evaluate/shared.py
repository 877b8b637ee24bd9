"""Answers made by several ranks, each of which has the whole model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from luthier.core.chat import Completer, Completion, Conversation
from luthier.train.ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCompleter:
    """A Completer that all ranks ask the same at the same time: each answers its share, and all have every answer."""

    own: Completer
    ranks: Ranks

    def complete(self, conversations: Sequence[Conversation], *, max_new_tokens: int) -> list[Completion]:
        """One answer per conversation, in order. Every `size`-th is this rank's, so that shares are alike where neighbours are."""
        mine = conversations[self.ranks.rank :: self.ranks.size]
        told = [asdict(answer) for answer in self.own.complete(mine, max_new_tokens=max_new_tokens)] if mine else []
        shares = self.ranks.every(told)
        return [Completion(**shares[place % self.ranks.size][place // self.ranks.size]) for place in range(len(conversations))]
