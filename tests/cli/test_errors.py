"""What goes wrong is told in words, with the exit code of its kind, and never as a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = '{"prompt": "one", "completion": "1"}\n' * 20


def luthier(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("LUTHIER_RUNS", None)
    command = [sys.executable, "-m", "luthier.cli.main", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "recipe.yaml").write_text("name: a\nmodel: {base: demo}\ndata:\n  sources: [{path: rows.jsonl}]\n  deduplicate: none\n")
    return tmp_path


def test_a_misspelt_key_is_told_with_its_line_and_the_nearest_name(folder: Path) -> None:
    with (folder / "recipe.yaml").open("a") as recipe:
        recipe.write("training:\n  learning_rat: 1e-4\n")
    done = luthier(folder, "train", "recipe.yaml")
    assert done.returncode == 2
    assert "recipe.yaml:7: training.learning_rat" in done.stderr
    assert "`training.learning_rate`" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("prepare", "absent.yaml"), "absent.yaml"),
        (("prepare",), "Missing argument"),
        (("prepare", "recipe.yaml", "lora.rank=8"), "lora.r"),
        (("decide", "absent"), "no run called 'absent'"),
        (("evaluate", "recipe.yaml", "recipe.yaml"), "one run or model is wanted"),
        (("evaluate", "absent", "evaluation.tasks.0.limit=2"), "a run brings its own recipe"),
        (("evaluate", "absent"), "a model or an adapter folder needs --recipe"),
        (("evaluate", "absent", "--data", "rows.jsonl", "--split", "validation"), "--split"),
        (("evaluate", "absent", "--data", "none.jsonl"), "none.jsonl"),
        (("inspect", "recipe.yaml", "--row", "99"), "train has no row 99"),
        (("inspect", "recipe.yaml", "--split", "practice"), "practice"),
        (("train", "recipe.yaml", "data.sources.0.path=none.jsonl"), "none.jsonl"),
    ],
)
def test_a_wrong_call_recipe_or_data_ends_in_2(folder: Path, words: tuple[str, ...], told: str) -> None:
    done = luthier(folder, *words)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_id_without_a_network_is_told_plainly(folder: Path) -> None:
    done = luthier(folder, "train", "recipe.yaml", "model.base=Qwen/Qwen3-0.6B")
    assert done.returncode == 1
    assert "Qwen/Qwen3-0.6B" in done.stderr
    assert "network" in done.stderr
    assert "Traceback" not in done.stderr


def test_float16_on_a_cpu_is_refused_with_3(folder: Path) -> None:
    done = luthier(folder, "train", "recipe.yaml", "model.dtype=float16", "data.split={train: 1, validation: 0, test: 0}")
    assert done.returncode == 3
    assert "model.dtype" in done.stderr


def test_debug_shows_the_traceback(folder: Path) -> None:
    assert "Traceback" in luthier(folder, "decide", "absent", "--debug").stderr


def test_the_version_is_printed(folder: Path) -> None:
    from luthier import __version__

    assert luthier(folder, "--version").stdout.strip() == __version__


@pytest.mark.parametrize(("given", "used"), [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")])
def test_waiting_threads_spin_for_a_moment_unless_the_user_says_how_long(given: dict[str, str], used: str) -> None:
    code = "import atexit, os, sys; atexit.register(lambda: print(os.environ.get('GOMP_SPINCOUNT'))); sys.argv[1:] = ['--version']"
    environment = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | given
    command = [sys.executable, "-c", f"{code}; from luthier.cli.main import main; main()"]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60).stdout.split()[-1] == used


def test_help_says_what_the_exit_codes_mean(folder: Path) -> None:
    told = " ".join(luthier(folder, "--help").stdout.split())
    assert "Exit codes: 0 done; 1 failed; 2 the call, the recipe or the data is wrong; 3 the plan refuses." in told
    assert "130, 143, 138, 129: stopped by Ctrl-C" in told
