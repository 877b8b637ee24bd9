"""What the controller and its workers say to each other, as JSON lines through pipes.

A worker starts, trains its first epoch at once (the warm-up, which also shows how long a start takes) and from then on waits at
every epoch's end until it is told `go`. Standard library only: this module runs in every peer's environment.
"""

import hashlib
import json
import os
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

RANK, ALPHA = 16, 32
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LEARNING_RATE = 1e-4
LONGEST = 1024
"""Tokens of the longest row: TRL's default `max_length`, so that nobody cuts anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One training row: its messages, the last of which is the answer, and the tokens that they must become."""

    messages: Sequence[Mapping[str, str]]
    ids: Sequence[int]
    supervised: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What every worker is given: the model's folder, the chat template, and the same rows in three forms."""

    model: str
    template: str
    dialogues: str
    """JSON lines of `messages`, whole conversations."""
    rows: str
    """JSON lines of `Row`, one for each answer."""
    whole: str
    """JSON lines of `Row`, one for each conversation, rendered by chatml.jinja with all answers supervised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one worker does. `options` are its own setting's."""

    files: Files
    scratch: str
    batch: int
    epochs: int
    dropout: float
    seed: int
    device: Literal["cpu", "cuda"]
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Task":
        """What `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "files": Files(**fields["files"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a worker trains in an epoch, counted in its own data. `digest` names rows, order and targets; empty where rows were joined."""

    rows: int
    tokens: int
    supervised: int
    digest: str


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: str) -> list[Row]:
    """The rows of a file that `write_rows` wrote."""
    return [Row(**json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def account(rows: Iterable[tuple[Sequence[int], Sequence[int]]], *, joined: bool = False) -> Account:
    """The account of (ids, supervised) pairs; `joined` rows are packs of several, whose number and digest would say nothing."""
    digest, num_rows, num_tokens, num_supervised = hashlib.sha256(), 0, 0, 0
    for ids, supervised in rows:
        digest.update(array("i", ids).tobytes() + bytes(int(bool(target)) for target in supervised))
        num_rows, num_tokens, num_supervised = num_rows + 1, num_tokens + len(ids), num_supervised + sum(map(bool, supervised))
    return Account(rows=num_rows, tokens=num_tokens, supervised=num_supervised, digest="" if joined else digest.hexdigest()[:16])


class Gate:
    """A worker's side: tells when the first step and every epoch are done, and holds the worker until the next round."""

    def __init__(self, packages: Sequence[str]) -> None:
        self.task = Task.from_json(sys.argv[1])
        self._packages = packages
        self._epochs = self._steps = 0
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever the trainer prints goes to the log

    def step(self) -> None:
        """To be called after every optimizer step."""
        self._steps += 1
        if self._steps == 1:
            self._wait_for_device()
            self._tell(event="first step")

    def epoch(self, count: Callable[[], Account], order: Sequence[Sequence[int]] = (), resolved: Mapping[str, Any] | None = None) -> None:
        """To be called at every epoch's end; raises SystemExit when the controller wants no more.

        `order`: the numbers of the rows in each step, for those who share between the rows of a step.
        """
        self._wait_for_device()
        self._tell(event="epoch", steps=self._steps, order=[list(step) for step in order], device_peak_bytes=self._device_peak_bytes())
        if self._epochs == 0:
            versions = {name: metadata.version(name) for name in self._packages}
            self._tell(event="account", versions=versions, resolved=dict(resolved or {}), **asdict(count()))
        self._epochs += 1
        if sys.stdin.readline().strip() != "go":
            raise SystemExit(0)

    def _tell(self, **message: object) -> None:
        self._out.write(json.dumps(message) + "\n")

    def _wait_for_device(self) -> None:
        if self.task.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def _device_peak_bytes(self) -> int:
        if self.task.device == "cpu":
            return 0
        import torch

        return int(torch.cuda.max_memory_allocated())
