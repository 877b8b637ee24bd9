"""What a run's likeliest answers to validation rows were worth, validation by validation: its events `held_out`."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class HeldOutReward(BaseModel):
    """The mean reward after a step, with its 95 % interval over so many rows."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    step: Annotated[int, Field(ge=0)]
    value: float
    low: float
    high: float
    n: int


def held_out(events: Sequence[Mapping[str, Any]]) -> tuple[HeldOutReward, ...]:
    """By step; a run that went on from a checkpoint measures what came after it again. An event that is damaged tells nothing."""
    found = dict[int, HeldOutReward]()
    for event in events:
        match event:
            case {"event": "held_out"}:
                try:
                    each = HeldOutReward.model_validate(event)
                except ValidationError:
                    continue
                found[each.step] = each
            case {"event": "resumed", "step": int(step)}:
                found = {at: each for at, each in found.items() if at <= step}
    return tuple(found[step] for step in sorted(found))
