"""Secrets planted in environment, command line, recipe and rows are in no file of the run folder, and in nothing that is printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core import jsonl
from luthier.core.errors import RecipeError
from luthier.core.hardware import this_machine
from luthier.core.redact import HIDDEN
from luthier.recipe.load import load
from luthier.runs.store import RunFolder

ROOT = Path(__file__).parents[2]
IN_ROWS = {
    "prompt": "hf_" + "PlantedInAPrompt42" * 2,
    "completion": "sk-planted-InACompletion0123456789",
    "group": "AKIAPLANTEDGROUP0123",
    "system": "ghp_" + "PlantedInASystem4" * 2,
    "bad row": "eyJhbGciOiJQTEFOVEVE.eyJzdWIiOiJQTEFOVEVE.plantedsignature42",
    "named": "plantedvalue1234",
}
IN_ENVIRONMENT = {"HF_TOKEN": "plantedwithoutaform", "MY_DATABASE_PASSWORD": "planted-0-environment"}
ON_THE_LINE = "planted-on-the-line-77"
IN_ENV_FILE = {"A_WORD": "plantedbatterystaple", "SOME_KEY": "planted-in-the-env-file-1"}
RECIPE = """\
name: secret
model: {base: demo, dtype: float32}
lora: {r: 2}
data:
  sources: [{path: rows.jsonl, format: prompt_completion}]
  on_bad_row: skip
  group_by: group
  split: {train: 0.5, validation: 0.25, test: 0.25}
  split_method: exact
  deduplicate: none
training: {max_steps: 2, global_batch_size: 2}
checkpoints: {eval_steps: 1, save_steps: 1}
evaluation: {tasks: [{name: answers, scorer: exact, max_new_tokens: 2, limit: 3}], baseline: {answers.exact: {value: 0.5, n: 10}}}
decision: {deploy: {answers.exact: '>= 0.9'}}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    rows: list[dict[str, object]] = []
    for number in range(12):
        rows.append(
            {
                "prompt": f"What opens door {number}? {IN_ROWS['prompt']} password={IN_ROWS['named']}",
                "completion": f"key {number}: {IN_ROWS['completion']}",
                "system": f"Say it. {IN_ROWS['system']}",
                "group": IN_ROWS["group"],
            }
        )
    rows.insert(0, {"prompt": "a", "completion": {IN_ROWS["bad row"]: 1}, "group": "a"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def luthier(home: Path, *words: str, expected: tuple[int, ...] = (0,)) -> str:
    """What a real process prints, on both streams."""
    environment = {**os.environ, **IN_ENVIRONMENT, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "luthier.cli.main", *words]
    ended = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode in expected, ended.stderr
    return ended.stdout + ended.stderr


def planted() -> list[str]:
    return [*IN_ROWS.values(), *IN_ENVIRONMENT.values(), *IN_ENV_FILE.values(), ON_THE_LINE]


def assert_clean(name: str, text: str) -> None:
    assert [secret for secret in planted() if secret in text] == [], name


@pytest.mark.slow
def test_no_planted_secret_is_in_the_run_folder_or_in_what_is_printed(home: Path) -> None:
    """Prepared, planned, trained, evaluated and judged by real processes; then every file of the run is searched, weights too."""
    over = f"over-password={ON_THE_LINE}.yaml"  # a file's name is all of a command line that a recipe does not see
    (home / over).write_text("seed: 7\n")
    (home / ".env").write_text("".join(f"{name}={value}\n" for name, value in IN_ENV_FILE.items()) + "OMP_NUM_THREADS=3\n")
    said = [
        luthier(home, "train", "recipe.yaml", f"@{over}", "--env-file", ".env"),
        luthier(home, "decide", "secret", expected=(0, 10, 11, 12)),
    ]
    files = [path for path in (home / "runs").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert names > {
        "events.jsonl",
        "metrics.jsonl",
        "environment.json",
        "recipe.yaml",
        "recipe.original",
        "data.json",
        "plan.json",
        "verdict.json",
    }
    assert names > {"predictions.jsonl", "scores.json", "adapter_model.safetensors", "state.json"}
    for path in files:
        assert_clean(str(path), path.read_bytes().decode(errors="replace"))
    for text in said:
        assert_clean("printed", text)
    started = [record for record in jsonl.records(home / "runs" / "secret" / "events.jsonl") if record["event"] == "started"]
    assert [record["threads"] for record in started] == [min(3, this_machine().cores)]  # the process that trains was given the env file
    predictions = next(path for path in files if path.name == "predictions.jsonl").read_text()
    assert HIDDEN in predictions  # it is the rows' secrets that were there to be hidden
    assert HIDDEN in RunFolder(home / "runs" / "secret").environment.read_text()
    assert any(secret in path.read_text() for path in (home / "prepared").rglob("train.jsonl") for secret in IN_ROWS.values())


@pytest.mark.parametrize(
    ("line", "override"),
    [
        (f"# {IN_ROWS['prompt']}", ""),
        (f"seed: 42  # api_key={IN_ROWS['named']}", ""),
        ("", f"data.system_prompts={IN_ROWS['completion']}"),
        ("", f"evaluation.baseline=https://me:{IN_ROWS['named']}@host/scores.json"),
        (f"launch: {{gpu: '{IN_ROWS['group']}'}}", ""),
        (f'model: {{base: demo, revision: "\\x68f_{IN_ROWS["prompt"][3:]}"}}', ""),
    ],
)
def test_a_recipe_with_a_secret_is_refused_with_its_line_and_without_the_secret(home: Path, line: str, override: str) -> None:
    kept = "" if not line.startswith("model") else RECIPE.replace("model: {base: demo, dtype: float32}\n", "")
    (home / "recipe.yaml").write_text(f"{kept or RECIPE}{line}\n")
    with pytest.raises(RecipeError, match="holds what looks like a secret") as refused:
        load(home / "recipe.yaml", [override] if override else [])
    assert_clean("error", str(refused.value))
    assert "override" in str(refused.value) if override else f"recipe.yaml:{len((kept or RECIPE).splitlines()) + 1}" in str(refused.value)


@pytest.mark.parametrize("on", ["local", "slurm", "ray", "modal"])
def test_what_would_be_launched_is_told_without_what_is_in_the_env_file(home: Path, on: str) -> None:
    (home / ".env").write_text("".join(f"{name}={value}\n" for name, value in IN_ENV_FILE.items()))
    gpu = ["launch.gpu=L4"] if on == "modal" else []
    text = luthier(home, "launch", "recipe.yaml", "--on", on, "--env-file", ".env", "--dry-run", *gpu)
    assert "luthier.cli.main train" in text
    assert_clean("printed", text)
    assert not (home / "runs").exists()


def test_an_error_of_the_env_file_tells_its_line_and_not_what_stands_there(home: Path) -> None:
    (home / ".env").write_text(f"A=1\n{IN_ENV_FILE['A_WORD']}\n")
    text = luthier(home, "train", "recipe.yaml", "--env-file", ".env", expected=(2,))
    assert ".env:2: this line is not KEY=VALUE" in text
    assert_clean("error", text)


def test_an_error_tells_where_a_row_is_bad_without_the_rows_secret(home: Path) -> None:
    text = luthier(home, "prepare", "recipe.yaml", "data.on_bad_row=error", "--debug", expected=(2,))
    assert "rows.jsonl:1" in text
    assert HIDDEN in text
    assert_clean("error", text)


def test_an_unexpected_error_hides_secrets_in_its_message_and_in_its_traceback() -> None:
    program = (
        "import sys, luthier.cli.main as main\ndef fail(*words): raise ZeroDivisionError(sys.argv[-1])\nmain.app = fail\nmain.main()\n"
    )
    for words in (["x"], ["--debug", "x"]):
        command = [sys.executable, "-c", program, *words, f"password={ON_THE_LINE}"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert "ZeroDivisionError" in ended.stderr
        assert HIDDEN in ended.stderr
        assert ON_THE_LINE not in ended.stderr
