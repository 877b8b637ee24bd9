"""A Slurm cluster: a batch job that is warned before its time is over, saves, and is queued again until the run is done."""

import math
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from luthier.core.errors import RunError, UsageError
from luthier.launch.backend import Job, Order, State
from luthier.launch.nodes import ENDPOINT, PORT
from luthier.recipe.options import SlurmOptions
from luthier.runs.store import RunFolder

COMMAND = ("sbatch", "--parsable")
"""The script comes on its standard input; it answers with the job's number alone."""
SECONDS_TO_ANSWER = 60.0
STATES: dict[str, State] = {"PENDING": "queued", "REQUEUED": "queued", "REQUEUE_HOLD": "queued", "CONFIGURING": "queued"}
"""squeue's words for a job that waits; what else squeue lists runs, or is about to end, but for OVER."""
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"}
SCRIPT = """\
#!/bin/bash
{directives}

{setup}set -u
{environment}
saved() {{ cat {latest} 2>/dev/null; }}
before=$(saved)
{run}
code=$?
# 128 + 10: asked by SIGUSR1, the run has saved and ended, for the job's time is nearly over. It is queued again if it got any further.
if [ "$code" -eq 138 ]; then
  if [ "$(saved)" = "$before" ]; then
    echo "luthier: no checkpoint in this job's time, so it is not queued again: raise launch.timeout" >&2
  else
    scontrol requeue "$SLURM_JOB_ID" && exit 0
  fi
fi
exit "$code"
"""


class Slurm:
    """`on: slurm`."""

    def text(self, order: Order) -> str:
        """The command and the script that it gets on its standard input."""
        return f"{shlex.join(COMMAND)} <<'END'\n{script(order)}END\n"

    def submit(self, order: Order) -> Job:
        """By sbatch, which may be on a login node only."""
        answer = _told(COMMAND, script(order))
        number = re.match(r"\d+", answer)
        if not number:
            raise RunError(f"sbatch answered {answer.strip()!r}, which is no job id")
        return Job(on="slurm", id=number[0], host=socket.gethostname(), started=time.time())

    def status(self, run: RunFolder, job: Job) -> State:
        """By squeue, which forgets a job some minutes after its end."""
        command = ["squeue", "--noheader", "--format=%T", "--states=all", f"--jobs={job.id}"]
        ended = _asked(command)
        if ended.returncode and "Invalid job id" not in ended.stderr:
            raise RunError(f"squeue: {ended.stderr.strip()}", where=str(run.path))
        word = ended.stdout.strip().partition("\n")[0]
        return "over" if not word or word in OVER else STATES.get(word, "running")

    def logs(self, run: RunFolder, job: Job) -> tuple[Path, ...]:
        """Those of all nodes; the job's own output is in the first."""
        return tuple(sorted(run.path.glob("log*.txt")))

    def stop(self, run: RunFolder, job: Job, *, now: bool) -> None:
        """SIGTERM to the run, which saves and is not queued again; a job that waits, or must end now, is cancelled."""
        state = self.status(run, job)
        if state == "over":
            raise UsageError(f"job {job.id} of run {run.name} is over", where=str(run.path))
        signal = ["--signal=KILL", "--full"] if now else ["--signal=TERM"]
        _told(["scancel", *([] if state == "queued" else signal), job.id])


def script(order: Order) -> str:
    """The batch script: what to ask of Slurm, how the nodes meet, and what to do when the time is over."""
    options = SlurmOptions.model_validate(order.launch.options)
    if order.timeout_seconds != "none" and options.warning_seconds >= order.timeout_seconds:
        what = f"the run is to save {options.warning_seconds} s before a limit of {order.launch.timeout}, which is at once"
        raise UsageError(what, where="launch.options.warning_seconds", change="a longer launch.timeout, or a later warning")
    exports = [f"export {name}={shlex.quote(value)}" for name, value in order.environment.items()]
    if order.nodes > 1:
        # Job ids differ, so that two jobs on one node meet at two ports.
        exports.append('first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)')
        exports.append(f"export {ENDPOINT}=$first:$(({PORT} + SLURM_JOB_ID % 20000))")
    srun = ["srun", f"--nodes={order.nodes}", f"--ntasks={order.nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    if options.cpus != "auto":
        srun.append(f"--cpus-per-task={options.cpus}")  # which srun has not taken over from sbatch since Slurm 22.05
    return SCRIPT.format(
        directives="\n".join(f"#SBATCH {line}" for line in _directives(order, options)),
        setup="".join(f"{line}\n" for line in options.setup),
        environment="".join(f"{line}\n" for line in exports),
        latest=shlex.quote(str(order.run.pointer("latest"))),
        run=shlex.join([*srun, *order.command]),
    )


def _directives(order: Order, options: SlurmOptions) -> Iterator[str]:
    yield f"--job-name=luthier-{order.run.name}"
    yield f"--nodes={order.nodes}"
    yield "--ntasks-per-node=1"  # one command on each node, which starts its ranks
    if order.gpus:
        yield f"--gpus-per-node={order.gpus}"
    if options.cpus != "auto":
        yield f"--cpus-per-task={options.cpus}"
    for name, value in (
        ("mem", options.memory),
        *((name, getattr(options, name)) for name in ("partition", "account", "qos", "constraint")),
    ):
        if value:
            yield f"--{name}={value}"
    if order.timeout_seconds != "none":
        yield f"--time={math.ceil(order.timeout_seconds / 60)}"
    yield f"--signal=USR1@{options.warning_seconds}"  # to the tasks of srun, not to this script
    yield "--requeue"  # also after a node has failed, or a job of more weight took it
    yield "--open-mode=append"
    yield f"--output={shlex.quote(str(order.run.log))}"
    yield from options.more


def _there(command: Sequence[str]) -> list[str]:
    if not shutil.which(command[0]):
        change = "give the command on a login node of the cluster, or choose another --on"
        raise UsageError(f"{command[0]} is not installed here", where="launch.on: slurm", change=change)
    return list(command)


def _told(command: Sequence[str], standard_input: str = "") -> str:
    """What a command of Slurm's answers; raises RunError with what it complains of."""
    ended = _asked(command, standard_input)
    if ended.returncode:
        raise RunError(f"{command[0]}: {ended.stderr.strip() or ended.stdout.strip()}", where="launch.on: slurm")
    return ended.stdout


def _asked(command: Sequence[str], standard_input: str = "") -> "subprocess.CompletedProcess[str]":
    """A command of Slurm's, ended; raises RunError where it does not answer."""
    try:
        return subprocess.run(_there(command), input=standard_input, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER, check=False)
    except subprocess.TimeoutExpired as error:
        what = f"{command[0]} has not answered in {SECONDS_TO_ANSWER:.0f} s"
        raise RunError(what, where="launch.on: slurm", change="ask again") from error
