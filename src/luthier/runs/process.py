"""A process by more than its number, which another may have got since."""

import socket
from dataclasses import dataclass
from typing import Self

import psutil


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A process of some machine, and when it was started: with that, no later one of the same number is taken for it."""

    pid: int
    host: str
    started: float
    """Seconds since 1970, as psutil reckons them from the machine's start."""

    @classmethod
    def of(cls, pid: int) -> Self:
        """A process of this machine that is there now; raises psutil.NoSuchProcess."""
        return cls(pid=pid, host=socket.gethostname(), started=psutil.Process(pid).create_time())

    @property
    def is_here(self) -> bool:
        """Whether this machine is its own."""
        return self.host == socket.gethostname()

    def find(self) -> psutil.Process | None:
        """It, if it lives and is on this machine. A zombie, whose exit code nobody has read yet, does not live."""
        if not self.is_here:
            return None
        try:
            process = psutil.Process(self.pid)
            # Both reckon from the machine's start: they differ by what the clock was set meanwhile.
            same = abs(process.create_time() - self.started) < 2
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None
