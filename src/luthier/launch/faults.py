"""What ails a group of ranks: which one died or hangs, where it stood, and whether another attempt may help."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from luthier.core.errors import LuthierError, RunError
from luthier.core.signals import STOPS
from luthier.launch.attempt import GONE, Attempt
from luthier.runs.heartbeat import Beat, Patience
from luthier.runs.store import RunFolder

FINAL_CODES = {2, 3}
"""Recipe, data or call are wrong; the plan refuses: the same again."""
FINAL_ERRORS = {"NonFiniteError", "ModelError"}
"""The same rows give the same numbers again, and a model that does not fit is no better the second time."""
GO_ON = "the same command goes on from the last checkpoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why an attempt failed, by the rank to blame."""

    event: Literal["dead", "hang"]
    beat: Beat
    """The rank's last."""
    details: Mapping[str, Any]
    error: LuthierError
    """What is raised if the run is not begun again."""
    may_pass: bool
    """Whether another attempt may do better."""
    done: bool = False
    """Whether all ranks had done their work, and only could not exit in order: libraries crash or hang in that."""
    cause: bool = True
    """Whether it is one: an error that is not Luthier's may be no more than the loss of a peer."""

    @property
    def before_all(self) -> bool:
        """Whether the rank died without a word before its first step: nothing is lost."""
        return self.event == "dead" and self.beat.step == 0 and not self.beat.last_words

    @property
    def why(self) -> str:
        """In a sentence."""
        return self.error.what.partition("\n")[0]

    def record(self, run: RunFolder) -> None:
        """Write the event."""
        run.event(self.event, rank=self.beat.rank, phase=self.beat.phase, step=self.beat.step, **self.details)


def death(attempt: Attempt, code: int | None, kills_before: int) -> Fault | None:
    """The rank that ended as it should not have. `code` is the command's exit code, None while it runs.

    What a rank says in Luthier's words is the cause; then one that is gone without a word; then any other error, which may be no more
    than the loss of a peer.
    """
    said = sorted((beat for beat in attempt.beats.values() if beat.last_words), key=lambda beat: beat.time)
    failed = [(beat, beat.last_words) for beat in said if beat.last_words and beat.last_words.code not in (0, *STOPS)]
    for beat, words in failed:
        if error := words.error:
            may_pass = error.exit_code not in FINAL_CODES and words.kind not in FINAL_ERRORS
            return Fault(event="dead", beat=beat, details={"how": error.what}, error=error, may_pass=may_pass)
    for beat in sorted(attempt.gone(), key=lambda beat: beat.phase == "waiting"):
        return _dead(beat, f"gone without a word, as by {_killed_by_whom(kills_before)}")
    for beat, words in failed:
        how = f"{words.kind}: {words.what}" if words.kind else f"exit code {words.code}"
        return replace(_dead(beat, how, may_pass=words.code not in FINAL_CODES), cause=False)
    if code is None:
        return None
    beat = max(attempt.beats.values(), key=lambda beat: beat.step, default=unseen(0))
    who = f"rank {beat.rank}" if attempt.leads(beat) or not attempt.beats else "what started the ranks"
    if code >= 0:
        fault = _dead(beat, f"exit code {code}", who=who, may_pass=code not in FINAL_CODES, done=attempt.done)
        return replace(fault, cause=False)
    by = _killed_by_whom(kills_before) if -code == signal.SIGKILL else signal.Signals(-code).name
    return _dead(beat, f"killed by {by}", who=who, done=attempt.done)


def hang(attempt: Attempt, patience: Patience) -> Fault | None:
    """The rank that holds up the others, with its Python stack: one that is stopped, or else not itself waiting, silent for longest."""
    last = {
        rank: attempt.beats.get(rank, unseen(rank)) for rank in attempt.quiet if rank not in attempt.beats or attempt.state(rank) != GONE
    }
    silent = [rank for rank, beat in last.items() if attempt.quiet[rank] > patience.of(beat)]
    awake = [rank for rank, beat in last.items() if beat.phase != "waiting" or beat.last_words]
    silent = [rank for rank in silent if rank in awake or not awake]
    if not silent or (not awake and len(silent) < len(last)):
        return None
    rank = max(silent, key=lambda rank: (attempt.state(rank) == psutil.STATUS_STOPPED, attempt.quiet[rank]))
    beat, seconds, stack = last[rank], attempt.quiet[rank], attempt.stack(rank)
    usual = f", where a step takes {beat.usual_seconds:.2g} s" if beat.usual_seconds else ""
    what = f"rank {rank} hangs in step {beat.step}, {beat.phase}: no sign of life for {seconds:.0f} s{usual}\n{stack}"
    return Fault(
        event="hang",
        beat=beat,
        details={"seconds": seconds, "stack": stack},
        error=RunError(what, change=GO_ON),
        may_pass=True,
        done=attempt.done,
    )


def out_of_memory_kills(root: Path = Path("/")) -> int:
    """How often the kernel has killed for want of memory in this process's control group, as far as that can be read: else 0."""
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return 0
    for _, names, path in groups:  # version 2 has one without a name; in a container the path may be the host's, and its own the top
        mount, file = ("memory", "memory.oom_control") if "memory" in names.split(",") else ("", "memory.events")
        if mount or not names:
            for place in (path.strip("/"), ""):
                try:
                    counts = dict(line.split() for line in (root / "sys/fs/cgroup" / mount / place / file).read_text().splitlines())
                except OSError:
                    continue
                return int(counts.get("oom_kill", 0))
    return 0


def _dead(beat: Beat, how: str, *, who: str = "", may_pass: bool = True, done: bool = False) -> Fault:
    """A rank, or what started it, that ended without an error of Luthier's."""
    error = RunError(f"{who or f'rank {beat.rank}'} ended in step {beat.step}, {beat.phase}: {how}", change=GO_ON)
    return Fault(event="dead", beat=beat, details={"how": how}, error=error, may_pass=may_pass, done=done)


def _killed_by_whom(kills_before: int) -> str:
    by_kernel = "by the kernel, out of memory" if out_of_memory_kills() > kills_before else "the kernel's out-of-memory killer?"
    return f"SIGKILL ({by_kernel})"


def unseen(rank: int) -> Beat:
    """What stands for the beat of a rank that has not shown itself."""
    return Beat(rank=rank, pid=1, host="", started=0, phase="loading", step=0, time=0, usual_seconds=0)
