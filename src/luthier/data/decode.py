"""Token ids back to text without transformers: for pages, which only show what was rendered before."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from luthier.core.errors import UsageError
from luthier.recipe.base import base_location
from luthier.recipe.schema import Model


class Decoder(Protocol):
    """What gives the text of token ids, special tokens included."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text."""
        ...


@dataclass(frozen=True, slots=True)
class LightTokenizer:
    """A tokenizer.json, read as it lies there; says the same as `ChatTokenizer.decode`."""

    tokenizer: Tokenizer

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens included."""
        return str(self.tokenizer.decode([int(token) for token in ids], skip_special_tokens=False))


def decoder(model: Model, adapter: Path) -> LightTokenizer:
    """The tokenizer of a recipe's model from its folder, the hub's local cache, or a run's adapter; raises UsageError where it is in none.

    Nothing is fetched.
    """
    from huggingface_hub import try_to_load_from_cache

    base = base_location(model.base)
    cached = None if Path(base).is_dir() else try_to_load_from_cache(base, "tokenizer.json", revision=model.revision)
    places = (Path(base) / "tokenizer.json", Path(cached) if isinstance(cached, str) else adapter, adapter / "tokenizer.json")
    for place in places:
        if place.is_file():
            return LightTokenizer(Tokenizer.from_file(str(place)))
    change = "luthier inspect with its recipe shows the rows, and loads the tokenizer"
    raise UsageError(f"the tokenizer of {model.base} is not on this machine", change=change)
