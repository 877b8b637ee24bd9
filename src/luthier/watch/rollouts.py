"""Some of what a run answered, from its rollouts: of the first steps and of the newest, as much as is read in a moment."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luthier.core import jsonl
from luthier.runs.store import RunFolder

STEPS = 4
"""Of the first, and of the newest."""
HEAD_BYTES = 1 << 19
"""Of each file: its first groups. 512 answers of 1,000 letters, in whole."""


class Answer(BaseModel):
    """One line of rollouts/step-000012.jsonl, without what was said."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: int
    origin: str
    """Of its prompt: the answers of a step that have the same are a group."""
    reward: float | None
    tokens: Annotated[int, Field(ge=0)]
    cut: bool
    failure: str = ""


def answers(run: RunFolder) -> tuple[Answer, ...]:
    """Of the first steps and the newest, in the run's order; none where there are none. Lines that are torn or damaged are left out."""
    paths = sorted(run.rollouts.glob("step-*.jsonl"))
    chosen = dict.fromkeys([*paths[:STEPS], *paths[-STEPS:]])
    return tuple(answer for path in chosen for answer in _answers(path))


def _answers(path: Path) -> Iterator[Answer]:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return
    for line in head.split(b"\n")[:-1]:
        record = jsonl.record(line) or {}
        with suppress(ValidationError):
            yield Answer.model_validate({**record, "step": path.stem.removeprefix("step-")})
