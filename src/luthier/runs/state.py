"""Whether a run is trained now and, if not, how it ended: by its lock, its ranks' beats and last words, and its events."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from luthier.core.signals import STOPS
from luthier.runs.heartbeat import Beat, Patience, beats
from luthier.runs.process import Named
from luthier.runs.store import RunFolder

State = Literal["new", "queued", "running", "silent", "stopped", "finished", "failed", "killed"]
"""Nobody has begun to train it; a host has it and has not begun; it is trained; it is on another machine, and has said nothing for longer
than it should; asked to stop, it has saved and ended; its adapter is in place; an error ended it; it ended without a word (SIGKILL)."""
MOVING: tuple[State, ...] = ("queued", "running", "silent")
"""States from which something may still come by itself."""
BEGINNINGS = {"begun", "launched", "started", "resumed", "restarted"}
PATIENCE = Patience()


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A run's state, and by what that is known."""

    state: State
    why: str = ""
    """How it ended or why it is not known, where it is neither running nor finished."""
    host: str = ""
    """Where it is trained, or was last; empty where nobody has said."""
    beats: tuple[Beat, ...] = field(default=())
    """Of the ranks, since it was last begun."""


class _Held(BaseModel):
    """The lock file of a run that a process has taken and not given back."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    host: str
    started: float
    since: datetime

    @property
    def process(self) -> Named:
        return Named(pid=self.pid, host=self.host, started=self.started)


def standing(run: RunFolder, events: Sequence[Mapping[str, Any]]) -> Standing:
    """How the run stands; `events` are all of its events.

    A process of this machine is known by its number and its start, so neither a killed one nor a later one of that number is taken for
    it. One elsewhere is believed to live for as long as its supervisor there would wait for its next beat, by two clocks that agree.
    """
    held = _held(run)
    launched = max((float(event["time"]) for event in events if event.get("event") == "launched"), default=0.0)
    begun = max(launched, held.since.timestamp() if held else 0.0)
    said = tuple(beat for _, beat in sorted(beats(run).items()) if beat.time >= begun)
    host = held.host if held else said[0].host if said else ""
    if run.adapter.exists() and any(event.get("event") == "finished" for event in events):
        return Standing(state="finished", host=host, beats=said)
    if held and held.process.is_here:
        gone = "" if held.process.find() else f"process {held.pid} is gone without a word: killed, or the machine was switched off"
        return Standing(state="killed" if gone else "running", why=gone, host=host, beats=said)
    state, why = _ended(events, said)
    if state == "running":
        state, why = _alive(said)
    elif held and not said:
        state, why = _heard("loading", begun, PATIENCE.phases["loading"])
    elif state == "new" and launched:
        state = "queued"
    return Standing(state=state, why=why, host=host, beats=said)


def holder(run: RunFolder) -> Named | None:
    """The process that has the run, or had it when it was killed; None where nobody has, or a container whose folder is a copy."""
    held = _held(run)
    return held.process if held else None


def _held(run: RunFolder) -> _Held | None:
    """Who has the run, or had it when he was killed; None where he gave it back, or what he wrote is torn."""
    if not run.pid.exists():
        return None
    try:
        return _Held.model_validate_json(run.lock.read_bytes())
    except (OSError, ValidationError):
        return None


def _ended(events: Sequence[Mapping[str, Any]], said: Sequence[Beat]) -> tuple[State, str]:
    """How it ended by its own words, the supervisor's before those of ranks; `new` where there are none, `running` where one is to come."""
    since = [number for number, event in enumerate(events) if str(event.get("event")) in BEGINNINGS]
    for event in reversed(events[since[-1] + 1 :] if since else events):
        match event:
            case {"event": "dead", "rank": rank, "how": how}:
                return "failed", f"rank {rank} ended in step {event.get('step')}: {how}"
            case {"event": "hang", "rank": rank}:
                return "failed", f"rank {rank} hung in step {event.get('step')}, {event.get('phase')}"
            case {"event": "gave_up", "why": why}:
                return "failed", str(why)
            case {"event": "interrupted", "signal": signal}:
                return "stopped", f"by {signal}"
            case {"event": "paused", "step": step}:
                return "stopped", f"after step {step}, as a sweep asked"
    words = [beat.last_words for beat in sorted(said, key=lambda beat: beat.time) if beat.last_words]
    if failed := [word for word in words if word.code not in (0, *STOPS)]:
        return "failed", ": ".join(filter(None, (failed[0].where, failed[0].what))) or f"exit code {failed[0].code}"
    if len(words) < len(said):
        return "running", ""
    return ("stopped", "before its first step" if not said[0].step else "") if words else ("new", "")


def _alive(said: Sequence[Beat]) -> tuple[State, str]:
    """Whether ranks that have not said their last word can be expected to: by their processes here, by their last beat elsewhere."""
    open_ = [beat for beat in said if not beat.last_words]
    here = [beat for beat in open_ if Named(pid=beat.pid, host=beat.host, started=beat.started).is_here]
    if gone := [beat for beat in here if not beat.process()]:
        return "killed", f"rank {gone[0].rank} is gone without a word in step {gone[0].step}, {gone[0].phase}"
    last = max(open_, key=lambda beat: beat.time)
    return ("running", "") if here else _heard(f"step {last.step}, {last.phase}", last.time, PATIENCE.of(last))


def _heard(of: str, at: float, patience: float) -> tuple[State, str]:
    """Running, or silent where the last sign of life is too old."""
    ago = time.time() - at
    return ("running", "") if ago <= patience else ("silent", f"the last sign of life, {of}, is {ago:.0f} s old")
