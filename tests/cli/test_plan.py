"""`luthier plan` from a user's files: what it names, what it prints, how it ends."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core import jsonl
from luthier.demo import BASE
from luthier.plan.shape import known_config
from tests.plan.check.test_check import MISTAKES as IN_A_CASE

SOUND = """\
name: animals
model: {base: base, dtype: bfloat16}
lora: {r: 16, alpha: 32}
data:
  sources: [{path: train.jsonl, format: prompt_completion}]
  split: {train: 1, validation: validation.jsonl, test: test.jsonl}
training: {epochs: 3, global_batch_size: 16, learning_rate: 4.0e-4}
launch: {gpu: H100}
"""
MISTAKES = IN_A_CASE | {"near-duplicates": ["data.split.test=copied.jsonl"]}


def row(number: int, kind: str, last: str = "today") -> dict[str, str]:
    """A question of its own: hardly a word is shared with another's."""
    words = " ".join(f"{kind}{number * 31 + place}" for place in range(40))
    return {"prompt": f"{words} {last}", "completion": f"answer {number} of {kind}" * (2 + number % 3)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of Qwen3-0.6B's shape with the demo's tokenizer, and rows; some test rows of copied.jsonl nearly stand in train."""
    home = tmp_path_factory.mktemp("plan")
    config = known_config("Qwen/Qwen3-0.6B")
    assert config
    shutil.copytree(BASE, home / "base", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    (home / "base" / "config.json").write_text(json.dumps(dict(config)))
    (home / "recipe.yaml").write_text(SOUND)
    rows = {
        "train": [row(number, "t") for number in range(2000)],
        "validation": [row(number, "v") for number in range(100)],
        "test": [row(number, "e") for number in range(200)],
        "copied": [row(number, "e") for number in range(150)] + [row(number, "t", "tomorrow") for number in range(50)],
    }
    for name, values in rows.items():
        (home / f"{name}.jsonl").write_text("".join(jsonl.dumps(value) + "\n" for value in values))
    return home


def luthier(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    environment.pop("LUTHIER_RUNS", None)
    command = [sys.executable, "-m", "luthier.cli.main", *words]
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=120)


def planned(home: Path, *words: str) -> tuple[int, dict[str, object]]:
    done = luthier(home, "plan", "recipe.yaml", *words, "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def codes(plan: dict[str, object]) -> list[str]:
    findings = plan["findings"]
    assert isinstance(findings, list)
    return sorted(finding["code"] for finding in findings)


def test_a_sound_recipe_has_no_findings(home: Path) -> None:
    code, plan = planned(home)
    assert (code, codes(plan)) == (0, [])


def test_ten_planted_mistakes_are_all_named_and_nothing_else(home: Path) -> None:
    code, plan = planned(home, *(override for overrides in MISTAKES.values() for override in overrides))
    assert code == 0
    assert codes(plan) == sorted(MISTAKES)


@pytest.mark.parametrize("name", ["warmup-too-long", "near-duplicates", "fast-path-off"])
def test_a_planted_mistake_is_named_alone(home: Path, name: str) -> None:
    assert codes(planned(home, *MISTAKES[name])[1]) == [name]


def test_what_does_not_fit_ends_in_3_with_what_would(home: Path) -> None:
    words = ("launch.gpu=T4", "training.micro_batch_size=512", "training.global_batch_size=512", "training.gradient_checkpointing=false")
    code, plan = planned(home, "--rows", "51200:100", "--tokens", "2000", *words)
    assert code == 3
    (refused,) = [finding for finding in plan["findings"] if finding["severity"] == "refuse"]  # type: ignore[attr-defined]
    assert refused["code"] == "does-not-fit"
    assert 1 <= len(refused["changes"]) <= 3
    trained = luthier(home, "train", "recipe.yaml", "launch.gpu=here", "model.dtype=float16")
    assert trained.returncode == 3
    assert "[float16-on-cpu]" in trained.stderr
    assert "Traceback" not in trained.stderr


def test_the_page_tells_steps_memory_time_and_cost(home: Path) -> None:
    page = luthier(home, "plan", "recipe.yaml").stdout
    for told in ("2,000 rows, 16 a step: 125 steps an epoch, 375 in all", "memory", "GB", "time", "cost $", "no findings"):
        assert told in page


def test_another_gpu_has_its_own_price_and_apply_stands_alone(home: Path) -> None:
    stated = ("launch.price_per_hour=99", "--rows", "51200:100", "--tokens", "2000")
    dollars, others = planned(home, *stated)[1]["cost"], planned(home, *stated, "--gpu", "B200")[1]["cost"]
    assert others["mid"] < dollars["mid"] / 5  # type: ignore[index]  # a dictionary of numbers
    for words in (("training.warmup_steps=400",), ("--gpu", "L4"), ("--gpu", "all")):
        refused = luthier(home, "plan", "recipe.yaml", *words, "--apply", "warmup-too-long")
        assert refused.returncode == 2
        assert "leave out overrides and --gpu" in refused.stderr
    missing = luthier(home, "plan", "recipe.yaml", "data.sources.0.path=nowhere.jsonl")
    assert missing.returncode == 2
    assert "--rows N --tokens MEAN:MAX" in missing.stderr


def test_every_gpu_stands_on_one_page(home: Path) -> None:
    page = luthier(home, "plan", "recipe.yaml", "--gpu", "all").stdout
    for told in ("T4", "L4", "A100-80GB", "H200", "B200", "cheapest: ", "fastest: B200"):
        assert told in page


def test_a_change_is_applied_to_the_recipe(home: Path) -> None:
    (home / "late.yaml").write_text(SOUND.replace("epochs: 3", "epochs: 3, warmup_steps: 400"))
    done = luthier(home, "plan", "late.yaml", "--apply", "warmup-too-long")
    assert done.returncode == 0, done.stderr
    assert "warmup_steps" in done.stdout
    assert "400" not in (home / "late.yaml").read_text()


@pytest.mark.parametrize("verb", ["plan", "train"])
def test_what_has_no_plan_at_all_is_one_object_too_with_what_refuses_it(home: Path, verb: str) -> None:
    done = luthier(home, verb, "recipe.yaml", "model.attention=eager", "data.packing=tree", "launch.gpu=here", "--json")
    assert done.returncode == 3
    (finding,) = json.loads(done.stdout)["findings"]
    assert (finding["code"], finding["severity"]) == ("refused", "refuse")
    assert finding["message"].startswith("data.packing: rows cannot be packed")
    assert finding["fix"]
    assert finding["message"] in done.stderr


def test_a_training_that_a_finding_refuses_prints_the_finding(home: Path) -> None:
    shutil.copytree(home / "base", home / "large", dirs_exist_ok=True)
    (home / "large" / "config.json").write_text(json.dumps(dict(known_config("Qwen/Qwen3-32B") or {})))
    done = luthier(home, "train", "recipe.yaml", "launch.gpu=here", "model={base: large, dtype: float32}", "lora=none", "--json")
    assert done.returncode == 3, done.stderr
    (finding,) = (finding for finding in json.loads(done.stdout)["findings"] if finding["code"] == "does-not-fit")
    assert finding["severity"] == "refuse"
    assert finding["message"] in done.stderr
