"""The plans of the five users' recipes, whole: a change of any number is a change that somebody has to look at.

After one that is meant: python -m tests.plan.test_golden_plans
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.core import jsonl
from luthier.core.hardware import Hardware
from luthier.plan.layout import Task, place_of
from luthier.plan.plan import Facts, Plan, make
from luthier.plan.rate import assumed_rate
from luthier.plan.shape import known_config, shape_of
from luthier.plan.stated import StatedWorkload
from luthier.recipe.load import load

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "plans"
EPYC = Hardware(processor="AMD EPYC 9454P", cores=48, memory_bytes=128 * 2**30, bfloat16=True, gpus=(), allocator="luthier")
"""The processor of seed 004; its memory is assumed."""
ROWS = {
    "chess-coach-4b.yaml": ("23439:2640", "1730:2238"),
    "chess-coach-35b.yaml": ("23439:2640", "1730:2238"),
    "crafter-30b.toml": ("5000:500", "2000:4096"),  # assumed: the note has no data
    "nothing-gpt-3b.yaml": ("13482:1500", "400:1024"),  # validation rows and mean are assumed
    "qwen3-guide-0.6b.yaml": ("1500:1578", "400:1024"),  # training rows and lengths are assumed
    "qwen3-guide-1.7b.yaml": ("4000:1578", "400:1024"),
    "cpu-coder-7b.yaml": ("238:29", "600:2048"),  # the mean is assumed
}


def plan_of(name: str) -> Plan:
    recipe = load(ROOT / "recipes" / name).recipe
    config = known_config(recipe.model.base)
    assert config
    place = place_of(recipe.launch.gpu, EPYC)
    if place.device.local:
        place = replace(place, free_bytes=EPYC.memory_bytes)
    shape = shape_of(config)
    task = Task(recipe=recipe, shape=shape, workload=StatedWorkload.read(recipe, *ROWS[name]), place=place)
    return make(
        Facts(task=task, data="stated", host=EPYC, rate=lambda device, setup, survey: assumed_rate(device, EPYC.cores, shape, setup))
    )


def digest(name: str) -> dict[str, Any]:
    """What a user reads of a plan: numbers, reasons, findings; money and time to four digits."""
    plan = plan_of(name).to_json()
    return {
        "device": plan["device"],
        "steps": {key: value for key, value in plan["steps"].items() if key not in ("saves", "evaluations")},
        "memory": {
            "peak": [plan["memory"]["peak_at"], plan["memory"]["peak_bytes"]],
            "lines": {line["name"]: [line["bytes"], line["formula"]] for line in plan["memory"]["lines"]},
        },
        "hours": {key: float(f"{plan['time'][key] / 3600:.4g}") for key in ("low", "mid", "high")},
        "dollars": {key: float(f"{value:.4g}") for key, value in plan["cost"].items()} if plan["cost"] else None,
        "resolved": {item["path"]: item["value"] for item in plan["resolved"]},
        "rejected": [f"{item['value']}: {item['why']}" for item in plan["rejected"]],
        "findings": [f"{finding['severity']} {finding['code']}: {finding['message']}" for finding in plan["findings"]],
    }


@pytest.mark.parametrize("name", ROWS)
def test_the_plan_of_a_users_recipe_is_the_golden_one(name: str) -> None:
    golden = (GOLDEN / name).with_suffix(".json").read_text(encoding="utf-8")
    assert jsonl.dumps(digest(name), indent=1) + "\n" == golden


@pytest.mark.parametrize("name", ROWS)
def test_no_users_recipe_is_refused_on_its_own_hardware(name: str) -> None:
    assert plan_of(name).refused == ()


def test_what_the_users_worked_out_by_hand_is_corrected() -> None:
    chess, coder = plan_of("chess-coach-4b.yaml"), plan_of("cpu-coder-7b.yaml")
    assert (chess.steps.per_epoch, chess.steps.total, chess.steps.warmup) == (293, 879, 27)
    assert pytest.approx(5.1, abs=0.05) == 879 * 21 / 3600
    assert (coder.steps.per_epoch, coder.steps.total) == (15, 45)
    codes = {finding.code for finding in coder.findings}
    assert {"no-save-before-end", "warmup-too-long", "attention-only-targets", "test-too-small", "bound-unreachable"} <= codes
    assert {finding.code for finding in plan_of("crafter-30b.toml").findings} >= {
        "quantization-unplanned",
        "learning-rate",
        "no-save-before-end",
    }


if __name__ == "__main__":
    for each in ROWS:
        (GOLDEN / each).with_suffix(".json").write_text(jsonl.dumps(digest(each), indent=1) + "\n", encoding="utf-8")
