"""This machine, in the background: a process in a session of its own, which outlives the terminal and the login."""

import os
import shlex
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from luthier.core.errors import UsageError
from luthier.launch.backend import Job, On, Order, State
from luthier.runs.process import Named
from luthier.runs.store import RunFolder


class Local:
    """`on: local`, and, each on its own machine, the nodes of `on: torchrun` and the driver of `on: ray`."""

    def __init__(self, on: On) -> None:
        self._on = on

    def text(self, order: Order) -> str:
        """As a shell would write it."""
        return f"cd {shlex.quote(os.getcwd())}\n{order.shell('setsid')} < /dev/null >> {shlex.quote(str(order.run.log))} 2>&1 &\n"

    def submit(self, order: Order) -> Job:
        """Start the process, its output appended to log.txt."""
        with order.run.log.open("ab") as log:
            process = subprocess.Popen(
                order.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # no terminal that could hang up on it, and no Ctrl-C of this one
                env={**os.environ, **order.environment},
            )
        try:
            named = Named.of(process.pid)
        except psutil.NoSuchProcess:  # it is over already; log.txt says why
            named = Named(pid=process.pid, host=socket.gethostname(), started=0.0)
        return Job(on=self._on, id=str(named.pid), host=named.host, started=named.started)

    def status(self, run: RunFolder, job: Job) -> State:
        """By the process: its number and its start. Of another machine nothing is known here but what its ranks say in the run folder."""
        named = _named(job)
        if not named.is_here:
            return "unknown"
        return "running" if named.find() else "over"

    def logs(self, run: RunFolder, job: Job) -> tuple[Path, ...]:
        """Those of all nodes."""
        return tuple(sorted(run.path.glob("log*.txt")))

    def stop(self, run: RunFolder, job: Job, *, now: bool) -> None:
        """SIGTERM, at which it saves; or SIGKILL for it and all that it started."""
        named = _named(job)
        if not named.is_here:
            raise UsageError(f"run {run.name} is on {job.host}", where=str(run.path), change="stop it there")
        process = named.find()
        if process is None:
            raise UsageError(f"run {run.name} is not running", where=str(run.path))
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if not now:
                process.send_signal(signal.SIGTERM)
                return
            for each in (process, *process.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    each.kill()


def _named(job: Job) -> Named:
    return Named(pid=int(job.id), host=job.host, started=job.started)
