"""A server in a process of its own, under supervision: started, waited for until it answers, ended with who started it.

Light: only its command is known here, not what it serves.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from luthier.core.errors import RunError
from luthier.core.redact import redact
from luthier.serve.listen import HERE, opened

SECONDS_TO_BEGIN = 1800.0
"""As a rank may take to load: a base of 140 GB comes over the network at 100 MB/s in 1,400 s."""
SECONDS_TO_END = 20.0
"""Between SIGTERM, at which what is being answered is ended, and SIGKILL."""
SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_ANSWER = 5.0
LINES = 15
"""Of its last words."""
DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


def free_port(port: int) -> int:
    """The port, which nobody has, or, for 0, one; raises UsageError where another program answers there already."""
    with opened(HERE, port) as found:
        return int(found.getsockname()[1])


class Child:
    """A server's process and the file that it prints into."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process, self.log = process, log

    def until_healthy(self, url: str, seconds: float = SECONDS_TO_BEGIN) -> None:
        """Wait for 200 from the address; raises RunError, with its last words, where the process ends before or answers too late."""
        end = time.monotonic() + seconds
        while not _answers(url):
            self._alive("before it answered")
            if time.monotonic() > end:
                raise RunError(f"the server did not answer within {seconds:g} s{self.last_words()}", where=str(self.log))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self._alive("before it answered")  # it was another's answer

    def wait(self) -> None:
        """Until the process ends, which it should not by itself: raises RunError with its last words."""
        self.process.wait()
        self._alive("by itself")

    def last_words(self) -> str:
        """The end of what it printed, without secrets, as lines to put behind an error."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LINES:]
        return "".join(f"\n    {redact(line)}" for line in lines)

    def _alive(self, when: str) -> None:
        code = self.process.poll()
        if code is not None:
            how = f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
            raise RunError(f"the server ended {when} ({how}){self.last_words()}", where=str(self.log))


@contextmanager
def running(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[Child]:
    """The server while it is open; then SIGTERM for it and all that it started, and SIGKILL where that is not enough.

    It has a session of its own: Ctrl-C is for who supervises it. Should that one be killed, the kernel ends the server.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**os.environ, **environment},
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        except OSError as error:
            raise RunError(f"the server cannot be started: {error.strerror}", where=command[0]) from error
    try:
        yield Child(process, log)
    finally:
        _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """The whole session: vLLM's engine and workers are processes of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


_LIBC = ctypes.CDLL(None)
"""Loaded here: between fork and exec nothing may be imported."""


def _end_with_parent() -> None:
    _LIBC.prctl(DEATH_SIGNAL, signal.SIGTERM)


def _answers(url: str) -> bool:
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=SECONDS_TO_ANSWER) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
