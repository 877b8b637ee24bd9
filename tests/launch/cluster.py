"""A Slurm of one machine: stand-ins for sbatch, srun, squeue, scancel and scontrol, whose jobs are processes and whose memory is a folder.

`write(folder)` makes the commands; with `folder` first in PATH they are found. A job's script is started by sbatch, warned by `srun` when
its time is nearly over, begun again by `scontrol requeue`, and signalled by scancel, as Slurm does it.
"""

import os
import sys
from pathlib import Path

COMMANDS = ("sbatch", "srun", "squeue", "scancel", "scontrol")


def write(folder: Path) -> None:
    """The stand-ins, each of which runs this file."""
    folder.mkdir()
    for name in COMMANDS:
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "$@"\n')
        command.chmod(0o755)


def main() -> None:
    import shlex
    import signal
    import subprocess
    import time

    memory, name, words = Path(os.environ["CLUSTER"]), sys.argv[1], sys.argv[2:]
    with (memory / "calls").open("a") as calls:
        calls.write(shlex.join([name, *words]) + "\n")

    def start(number: str) -> None:
        """Run a job's script in a session of its own, as sbatch does on the first node; its directives say where the output goes."""
        script = memory / f"{number}.sh"
        asked = dict(
            line.removeprefix("#SBATCH --").partition("=")[::2] for line in script.read_text().splitlines() if line[:7] == "#SBATCH"
        )
        runs = memory / f"{number}.runs"
        runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
        environment = {**os.environ, "SLURM_JOB_ID": number, "SLURM_JOB_NODELIST": "localhost", "STARTS": runs.read_text()}
        with Path(shlex.split(asked["output"])[0]).open("ab") as log:
            words = ["bash", str(script)]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True)
        (memory / f"{number}.pid").write_text(str(process.pid))

    def state(number: str) -> str:
        pid = memory / f"{number}.pid"
        if not pid.exists():
            return "PENDING"
        status = Path(f"/proc/{pid.read_text()}/stat")
        return "COMPLETED" if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z" else "RUNNING"

    match name:
        case "sbatch":
            number = str(100 + len(list(memory.glob("*.sh"))))
            (memory / f"{number}.sh").write_text(sys.stdin.read())
            if not (memory / "full").exists():  # a cluster without a free node
                start(number)
            print(f"{number};cluster")
        case "srun":
            command = words[next(place for place, word in enumerate(words) if not word.startswith("--")) :]
            seconds = (memory / "warn_when").read_text() if (memory / "warn_when").exists() and os.environ["STARTS"] == "x" else ""
            with subprocess.Popen(command, env={**os.environ, "SLURM_NODEID": "0"}) as task:
                (memory / f"{os.environ['SLURM_JOB_ID']}.task").write_text(str(task.pid))
                while seconds and task.poll() is None:  # `--signal`: when the run has come so far, its time is nearly over
                    if Path(seconds).exists() and Path(seconds).read_text().count("\n") > 3:
                        task.send_signal(signal.SIGUSR1)
                        break
                    time.sleep(0.05)
                code = task.wait()
            sys.exit(128 - code if code < 0 else code)
        case "squeue":
            number = next(word.partition("=")[2] for word in words if word.startswith("--jobs="))
            if not (memory / f"{number}.sh").exists():
                sys.exit("slurm_load_jobs error: Invalid job id specified")
            print(state(number))
        case "scancel":
            signals = [word.partition("=")[2] for word in words if word.startswith("--signal=")]
            if signals:
                os.kill(int((memory / f"{words[-1]}.task").read_text()), signal.Signals[f"SIG{signals[0]}"])
            else:
                (memory / f"{words[-1]}.sh").unlink()
        case "scontrol":
            if words[0] == "requeue":
                start(words[1])
            else:
                print("localhost")


if __name__ == "__main__":
    main()
