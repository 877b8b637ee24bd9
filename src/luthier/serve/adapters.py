"""Adapters that come and go while a server answers: of one folder, and only where the server was started for that."""

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from luthier.core.errors import ModelError
from luthier.model.adapt import PROVENANCE, WEIGHTS, load_adapter, refuse_whole_weights, take_off
from luthier.model.adapter_config import CONFIG
from luthier.model.decode import Decoder
from luthier.model.peak import is_out_of_memory
from luthier.serve.refused import Refused

LOADED = "loaded-"
"""What the engine's names of them begin with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapters:
    """What an engine may be given, by the engine's own names, of which none comes twice: what it has cached of one is never another's."""

    engine: Decoder
    below: Path
    """The folder, as it is without links."""
    check: Callable[[Path], None]
    """Raises ModelError for an adapter that was trained for something else than is served."""
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def load(self, path: str) -> str:
        """The engine's name of the adapter in this folder, once it answers; raises Refused, and then nothing has changed."""
        folder = self._folder(path)
        name = f"{LOADED}{next(self.numbers):09}"  # none is a part of another: PEFT looks for names in names
        try:
            refuse_whole_weights(folder)
            self.check(folder)
            self.engine.change(functools.partial(load_adapter, folder=folder, name=name))
        except ModelError as error:
            raise Refused(400, f"{error}", param="lora_path", code="adapter_refused") from error
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise Refused(500, "there is no memory for one more adapter: unload some", code="out_of_memory") from error
        return name

    def refuse_kept(self, model: str, name: str) -> None:
        """Raise Refused for a model of which the engine's name tells that the server was started with it."""
        if not name.startswith(LOADED):
            raise Refused(400, f"{model!r} is what the server was started with, and stays", param="lora_name", code="model_kept")

    def unload(self, name: str) -> None:
        """Who is answered by it is told so, and nothing of it is kept."""
        self.engine.change(functools.partial(take_off, name=name))

    def _folder(self, path: str) -> Path:
        """Where its files are, all of them below."""
        try:
            folder = (self.below / path).resolve()
            parts = [part for part in (folder / CONFIG, folder / WEIGHTS, folder / PROVENANCE) if part.exists()]
            outside = not all(part.resolve().is_relative_to(self.below) for part in (folder, *parts))
            strange = not all(part.is_file() for part in parts)  # such as a pipe, which would be waited for
        except (OSError, RuntimeError, ValueError) as error:  # a name that is too long, links in a circle, a zero byte
            raise _refused(f"{path!r:.200} cannot be looked at: {error}") from error
        if outside:
            raise _refused(f"{path!r:.200} leads out of the folder that adapters may be loaded from (serving.options.adapters_from)")
        if strange or len(parts) < 2:
            raise _refused(f"no adapter in {path!r:.200}: it needs {CONFIG} and {WEIGHTS}")
        return folder


def _refused(what: str) -> Refused:
    return Refused(400, what, param="lora_path", code="adapter_refused")
