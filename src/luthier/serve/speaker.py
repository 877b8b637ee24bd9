"""What an engine tells of tokens that it is given: a Speaker, so that what is served is compared with what was trained."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from luthier.core.generation import Asked, Engine, Sampling, Token
from luthier.data.store import TokenRow


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpeaker:
    """An adapter of an engine, by its name there; empty: the base."""

    engine: Engine
    adapter: str = ""

    def log_probabilities(self, rows: Sequence[TokenRow]) -> list[npt.NDArray[np.float64]]:
        """Of each row's supervised tokens; all rows are asked at once, as clients would."""
        heard = [_Prompt() for _ in rows]
        sampling = Sampling(max_new_tokens=1)
        for row, listener in zip(rows, heard, strict=True):
            asked = Asked(ids=tuple(row.ids.tolist()), sampling=sampling, adapter=self.adapter, prompt_told=True)
            self.engine.submit(asked, listener)
        return [listener.wait()[row.supervised[1:]] for row, listener in zip(rows, heard, strict=True)]


class _Prompt:
    """The listener of one row."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._told: tuple[Token, ...] | Exception = ()

    def prompt(self, tokens: tuple[Token, ...]) -> None:
        self._told = tokens

    def token(self, token: Token) -> None:
        self._over.set()

    def failed(self, error: Exception) -> None:
        self._told = error
        self._over.set()

    def wait(self) -> npt.NDArray[np.float64]:
        """Of every token from the second on; raises what the engine failed with."""
        self._over.wait()
        if isinstance(self._told, Exception):
            raise self._told
        return np.array([token.logprob for token in self._told])
