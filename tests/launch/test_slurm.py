"""Slurm: what its batch script asks for, that bash can read it, and what happens to it on a cluster of stand-ins."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.core.errors import RunError, UsageError
from luthier.launch.backend import Job
from luthier.launch.slurm import Slurm, script
from tests.launch import cluster
from tests.launch.orders import order

SLURM = Slurm()
OPTIONS = {
    "partition": "gpu",
    "account": "lab",
    "constraint": "h100",
    "cpus": 32,
    "memory": "200G",
    "setup": ("module load cuda", 'export A="b c"'),
    "more": ("--exclusive",),
    "warning_seconds": 600,
}


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cluster's, which is there from now on."""
    cluster.write(tmp_path / "bin")
    (tmp_path / "memory").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CLUSTER", str(tmp_path / "memory"))
    return tmp_path / "memory"


def eventually(what: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def submitted(runs: Path, train: str, **launch: object) -> Job:
    """A job whose training is a shell line: it may name the run folder as $RUN."""
    made = order(runs, on="slurm", **launch)
    made.run.path.mkdir(parents=True, exist_ok=True)
    fake = runs.parent / "train.sh"
    fake.write_text(f"RUN={made.run.path}\n{train}\n")
    text = script(made).replace(" ".join(made.command), f"bash {fake}")
    ended = subprocess.run(["sbatch", "--parsable"], input=text, capture_output=True, text=True, check=True, timeout=30)
    return Job(on="slurm", id=ended.stdout.partition(";")[0], host="here", started=0)


def test_the_script_asks_for_what_the_recipe_says() -> None:
    text = script(order(Path("/runs"), on="slurm", nodes=2, gpus=4, gpu="H100x4", seconds=57_630, options=OPTIONS))
    asked = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert asked == [
        "--job-name=luthier-animals", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=4", "--cpus-per-task=32", "--mem=200G",
        "--partition=gpu", "--account=lab", "--constraint=h100", "--time=961", "--signal=USR1@600", "--requeue", "--open-mode=append",
        "--output=/runs/animals/log.txt", "--exclusive",
    ]  # fmt: skip
    assert 'module load cuda\nexport A="b c"\nset -u\nexport LUTHIER_RUNS=/runs\n' in text
    assert "export LUTHIER_ENDPOINT=$first:$((29400 + SLURM_JOB_ID % 20000))" in text
    assert "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1 --cpus-per-task=32 " in text
    assert "-m luthier.cli.main train /runs/animals/recipe.yaml\n" in text


def test_nothing_is_asked_for_that_the_recipe_does_not_say() -> None:
    text = script(order(Path("/runs"), on="slurm"))
    assert [word for word in ("--gpus", "--time", "--partition", "--mem", "--cpus-per-task", "ENDPOINT") if word in text] == []


def test_a_warning_that_would_come_at_once_is_an_error() -> None:
    with pytest.raises(UsageError, match="the run is to save 300 s before a limit of 5 min, which is at once"):
        script(order(Path("/runs"), on="slurm", timeout="5 min", seconds=300))


@pytest.mark.parametrize("nodes", [1, 2])
def test_bash_can_read_the_script_wherever_the_runs_lie(tmp_path: Path, nodes: int) -> None:
    text = script(order(tmp_path / "my runs; $(false)'", on="slurm", nodes=nodes, options=OPTIONS))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=30)


def test_what_would_run_is_the_command_and_the_script_and_nothing_is_touched(tmp_path: Path, memory: Path) -> None:
    made = order(tmp_path / "runs", on="slurm")
    text = SLURM.text(made)
    assert text == f"sbatch --parsable <<'END'\n{script(made)}END\n"
    assert not (memory / "calls").exists()
    assert not (tmp_path / "runs").exists()


def test_a_job_is_known_from_its_number_until_it_is_over(tmp_path: Path, memory: Path) -> None:
    made = order(tmp_path, on="slurm")
    made.run.path.mkdir()
    made.run.recipe.write_text("name: animals\nmodell: demo\n")
    (memory / "full").touch()
    waiting = SLURM.submit(made)
    assert (waiting.on, waiting.id) == ("slurm", "100")
    assert SLURM.status(made.run, waiting) == "queued"
    SLURM.stop(made.run, waiting, now=False)
    assert (memory / "calls").read_text().splitlines()[-1] == "scancel 100"
    assert SLURM.status(made.run, waiting) == "over"  # squeue has forgotten it
    (memory / "full").unlink()
    running = SLURM.submit(made)
    eventually(lambda: SLURM.status(made.run, running) == "over")
    assert "unknown key `modell`" in made.run.log.read_text()
    assert SLURM.logs(made.run, running) == (made.run.log,)
    with pytest.raises(UsageError, match="job 100 of run animals is over"):
        SLURM.stop(made.run, running, now=True)


SAVES_AND_STOPS = """\
trap 'echo saved-$((RANDOM)) > $RUN/latest.json; exit 138' USR1
if [ -e $RUN/latest.json ]; then exit 0; fi
for n in 1 2 3 4 5; do echo $n >> $RUN/metrics.jsonl; done
while true; do sleep 0.05; done"""


def test_when_its_time_is_nearly_over_the_run_saves_and_is_queued_again_until_it_is_done(tmp_path: Path, memory: Path) -> None:
    (memory / "warn_when").write_text(str(tmp_path / "runs" / "animals" / "metrics.jsonl"))
    submitted(tmp_path / "runs", SAVES_AND_STOPS)
    eventually(lambda: (memory / "100.runs").read_text() == "xx")
    assert "scontrol requeue 100" in (memory / "calls").read_text()
    eventually(lambda: is_over(memory))
    assert (memory / "calls").read_text().count("requeue") == 1


def is_over(memory: Path) -> bool:
    return SLURM.status(order(memory).run, Job(on="slurm", id="100", host="here", started=0)) == "over"


def test_a_run_that_saves_nothing_in_its_time_is_not_queued_for_ever(tmp_path: Path, memory: Path) -> None:
    submitted(tmp_path / "runs", "exit 138")
    eventually(lambda: is_over(memory))
    assert "requeue" not in (memory / "calls").read_text()
    assert "no checkpoint in this job's time, so it is not queued again" in order(tmp_path / "runs").run.log.read_text()


@pytest.mark.parametrize(("now", "signal", "code"), [(False, "--signal=TERM", "143"), (True, "--signal=KILL --full", "137")])
def test_a_job_that_is_stopped_is_not_queued_again(tmp_path: Path, memory: Path, now: bool, signal: str, code: str) -> None:
    job = submitted(tmp_path / "runs", "trap 'touch $RUN/latest.json; exit 143' TERM\ntouch $RUN/up\nwhile true; do sleep 0.05; done")
    run = order(tmp_path / "runs").run
    eventually((run.path / "up").exists)
    assert SLURM.status(run, job) == "running"
    SLURM.stop(run, job, now=now)
    eventually(lambda: SLURM.status(run, job) == "over")
    assert f"scancel {signal} 100" in (memory / "calls").read_text()
    assert "requeue" not in (memory / "calls").read_text()
    assert (run.path / "latest.json").exists() is not now


def test_without_slurm_the_error_says_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="sbatch is not installed here\n  give the command on a login node"):
        SLURM.submit(order(tmp_path, on="slurm"))


def test_what_sbatch_complains_of_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpuu' >&2\nexit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RunError, match="sbatch: error: invalid partition specified: gpuu"):
        SLURM.submit(order(tmp_path, on="slurm"))
