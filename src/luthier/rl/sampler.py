"""Who draws answers: the model that is trained, in this process; or a server, which is given each step's adapter."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import luthier.model  # noqa: F401  # isort: skip  # before PEFT: it imports bitsandbytes in silence, and without code of the hub
from peft import PeftModel
from transformers import PreTrainedModel

from luthier.core import files
from luthier.core.generation import Asked, Drawn, Sampling
from luthier.data.tokenizer import ChatTokenizer
from luthier.model.decode import active_adapter
from luthier.model.dropout import seed_of
from luthier.model.generate import written
from luthier.model.pipeline import in_form
from luthier.model.place import Placed
from luthier.train.final import write_adapter
from luthier.train.gather import gathered
from luthier.train.passes import Stopped
from luthier.train.ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How answers are drawn; at temperature 0 they are the likeliest."""

    max_new_tokens: int
    temperature: float


class Sampler(Protocol):
    """Draws answers with the newest weights. Every rank calls every method, in the same order, and gets the same."""

    def renew(self, step: int) -> None:
        """The weights are those after this step from now on."""
        ...

    def draw(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], how: How) -> list[Drawn]:
        """An answer to each prompt, in order; raises Stopped where a signal asks to end."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """A model in this process, as it is when it is asked. Ranks that each have all of it share the prompts."""

    model: PreTrainedModel | PeftModel
    tokenizer: ChatTokenizer
    ranks: Ranks

    def renew(self, step: int) -> None:
        """Nothing is to be done: they are the same weights."""

    def draw(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], how: How) -> list[Drawn]:
        """By Luthier's own engine; a group's prompt is computed once."""
        adapter, stop_ids = active_adapter(self.model), frozenset(self.tokenizer.stop_ids)
        asked = [
            Asked(
                ids=tuple(prompt),
                sampling=Sampling(max_new_tokens=how.max_new_tokens, temperature=how.temperature, seed=seed),
                stop_ids=stop_ids,
                adapter=adapter,
                tempered=True,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        if not self.ranks.each_whole:  # they write all of them together
            return self._drawn(asked)
        size = self.ranks.size
        shares = self.ranks.every([asdict(each) for each in self._drawn(asked[self.ranks.rank :: size])])
        return [Drawn(**shares[place % size][place // size]) for place in range(len(asked))]

    def _drawn(self, asked: Sequence[Asked]) -> list[Drawn]:
        """What stops or fails one rank stops or fails all."""
        stopped, found = False, list[Drawn]()
        with self.ranks.agreeing():
            try:
                found = [answer.drawn for answer in written(self.model, asked, look=self._look)]
            except Stopped:
                stopped = True
        if any(self.ranks.any([stopped])):
            raise Stopped
        return found

    def _look(self) -> None:
        stop = self.ranks.stop()
        if stop if self.ranks.each_whole else any(self.ranks.any([stop])):  # all, before the same forward pass
            raise Stopped


class Server(Protocol):
    """A server that can be given adapters (`luthier.serve.sampler`)."""

    def give(self, name: str, folder: Path) -> None:
        """Let it answer with the adapter of a folder, by this name, from now on."""
        ...

    def draw(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int, temperature: float) -> list[Drawn]:
        """An answer to each prompt, in order."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ByServer:
    """A server on other devices; the first rank speaks with it."""

    server: Server | Literal["asked by the first rank"]
    placed: Placed
    tokenizer: ChatTokenizer
    ranks: Ranks
    folder: Path
    """Where the server finds each step's adapter."""

    def renew(self, step: int) -> None:
        """Write the adapter and let the server load it; the one before is removed then."""
        weights = gathered(self.placed.trained, self.ranks)
        with self.ranks.agreeing():
            if not isinstance(self.server, str):
                folder = self.folder / f"step-{step:06d}"
                with files.told("the adapter for the server", self.folder), in_form(self.placed.model):
                    write_adapter(self.placed.model, weights, folder)
                run = seed_of(str(self.folder.absolute()))  # others may ask the same server, and are after as many steps
                self.server.give(f"{run:x}-{folder.name}", folder.absolute())
                for old in self.folder.iterdir():
                    if old != folder:
                        files.remove(old)

    def draw(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], how: How) -> list[Drawn]:
        """Asked all at once."""

        def drawn() -> list[dict[str, Any]]:
            if isinstance(self.server, str):
                return []
            told = self.server.draw(prompts, seeds, max_new_tokens=how.max_new_tokens, temperature=how.temperature)
            return [asdict(each) for each in told]

        found = self.ranks.by_first(drawn)
        if any(self.ranks.any([self.ranks.stop()])):
            raise Stopped
        return [Drawn(**each) for each in found]
