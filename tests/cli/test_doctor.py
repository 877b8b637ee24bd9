"""`luthier doctor` as it is called: real processes, with an nvidia-smi that answers as a machine's did, and libraries that are broken."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.watch.test_gpus import SEED_000

VARIABLES = ("LUTHIER_RUNS", "OMP_WAIT_POLICY", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM")


def doctor(home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-m", "luthier.cli.main", "doctor", *words]
    return subprocess.run(command, cwd=home, env={**kept, **environment}, capture_output=True, text=True, timeout=250)


def with_gpus(home: Path, answer: str) -> str:
    """A PATH on which nvidia-smi gives this answer."""
    (home / "answer.csv").write_text(answer)
    script = home / "bin" / "nvidia-smi"
    script.parent.mkdir()
    # what is asked first, seven facts, are the first seven of the answer
    script.write_text(f'#!/bin/sh\ncase "$1" in *driver_version*) cat {home}/answer.csv;; *) cut -d, -f1-7 {home}/answer.csv;; esac\n')
    script.chmod(0o755)
    return f"{script.parent}:{os.environ['PATH']}"


def broken(home: Path, library: str, error: str) -> str:
    """A PYTHONPATH on which a library ends in this error when it is imported."""
    (home / "site" / library).mkdir(parents=True)
    (home / "site" / library / "__init__.py").write_text(f"raise {error}\n")
    return os.pathsep.join(filter(None, (str(home / "site"), os.environ.get("PYTHONPATH", ""))))


def codes(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return {finding["code"]: finding["severity"] for finding in json.loads(done.stdout)["findings"]}


@pytest.mark.slow
def test_this_machine_passes_the_canary(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fine"][-1].startswith("canary: 10 steps on the ")
    assert list(tmp_path.iterdir()) == []


def test_the_machine_of_seed_000_is_told_what_mends_it_and_given_its_unit(tmp_path: Path) -> None:
    path = with_gpus(tmp_path, SEED_000)
    done = doctor(tmp_path, "--no-canary", "--json", "--write-unit", "luthier-persistence.service", PATH=path)
    found = codes(done)
    assert found["gpu-drives-display"] == "warn"
    assert found["persistence-off"] == "note"
    assert "GPU 1: NVIDIA GeForce RTX 5090, 34 GB, compute capability 12.0, driver 580.95.05" in done.stderr
    assert f"\nExecStart={tmp_path}/bin/nvidia-smi --persistence-mode=1\n" in (tmp_path / "luthier-persistence.service").read_text()
    assert "systemctl enable --now luthier-persistence.service" in done.stderr


def test_what_is_found_comes_before_what_is_fine_with_its_command(tmp_path: Path) -> None:
    lines = doctor(tmp_path, "--no-canary", CUDA_LAUNCH_BLOCKING="1").stdout.splitlines()
    place = next(place for place, line in enumerate(lines) if line.endswith("[harmful-variable]"))
    assert lines[place].startswith("warn: CUDA_LAUNCH_BLOCKING=1 ")
    assert lines[place + 1] == "    unset CUDA_LAUNCH_BLOCKING"
    assert place < next(place for place, line in enumerate(lines) if line.startswith("processor: "))


def test_what_a_run_cannot_work_with_ends_in_1(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--no-canary", "--json", LUTHIER_RUNS="/proc/runs")
    assert (done.returncode, codes(done)["disk-not-writable"]) == (1, "refuse")


def test_a_unit_needs_a_folder_to_lie_in(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--no-canary", "--write-unit", "nowhere/a.service")
    assert done.returncode == 2
    assert "there is no such folder" in done.stderr


def test_a_torch_that_cannot_be_loaded_is_found_and_explained(tmp_path: Path) -> None:
    said = "ImportError('libcudart.so.12: cannot open shared object file: No such file or directory')"
    done = doctor(tmp_path, "--json", PYTHONPATH=broken(tmp_path, "torch", said))
    assert (done.returncode, codes(done)["library-mismatch"]) == (1, "refuse")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGILL, "illegal-instruction"), (signal.SIGKILL, "killed")])
def test_a_canary_that_a_signal_ends_is_found_and_explained(tmp_path: Path, number: int, code: str) -> None:
    dies = f"SystemExit(__import__('os').kill(__import__('os').getpid(), {int(number)}))"
    done = doctor(tmp_path, "--json", PYTHONPATH=broken(tmp_path, "torch", dies))
    assert (done.returncode, codes(done)[code]) == (1, "refuse")


def test_a_canary_that_fails_as_nobody_knows_says_its_last_line(tmp_path: Path) -> None:
    done = doctor(tmp_path, PYTHONPATH=broken(tmp_path, "torch", "ValueError('the moon is full')"))
    assert done.returncode == 1
    assert "exit code 1: ValueError: the moon is full [canary-failed]" in done.stdout


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            "OSError(24, 'Too many open files')",
            ("OSError: [Errno 24]", "The process may not open more files [too-many-files]", "ulimit -n 65536"),
        ),
        ("ValueError('the moon is full')", ("ValueError: the moon is full", "this is a fault of Luthier")),
    ],
)
def test_an_error_that_ends_a_verb_is_told_with_its_cause_where_it_is_known(tmp_path: Path, error: str, told: tuple[str, ...]) -> None:
    done = doctor(tmp_path, "--no-canary", PYTHONPATH=broken(tmp_path, "psutil", error))
    assert done.returncode == 1
    assert [words for words in told if words not in done.stderr] == []
    assert "Traceback" not in done.stderr
