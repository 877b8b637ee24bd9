"""How many processes answer: the recipe's replicas, as far as there are devices for them here."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.hardware import Gpu
from luthier.core.progress import Silent
from luthier.evaluate.run import Subject
from luthier.flow.evaluating import _devices_needed, _replicas
from luthier.plan.shape import known_config
from luthier.recipe.schema import Model, Recipe


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def recipe(**sections: Any) -> Recipe:
    plain = {"name": "a", "model": {"base": "demo"}, "data": {"sources": [{"path": "rows.jsonl"}]}}
    return Recipe.model_validate({**plain, **sections})


ON_TWO_MACHINES = {"parallel": {"data": 8, "nodes": 2}, "launch": {"on": "slurm", "gpu": "H100x8"}}
FEWER = ["answered by 2 of the recipe's 8 replicas: there are no more devices here"]


@pytest.mark.parametrize(
    ("sections", "places", "answering", "said"),
    [
        ({}, 8, 1, []),
        ({"parallel": {"data": 2}}, 8, 2, []),
        (ON_TWO_MACHINES, 8, 4, []),
        ({"parallel": {"data": 8}}, 2, 2, FEWER),
    ],
)
def test_no_more_processes_answer_than_have_a_device(sections: dict[str, Any], places: int, answering: int, said: list[str]) -> None:
    progress = Listening()
    assert _replicas(recipe(**sections), places, progress) == answering
    assert progress.said == said


def gpus(number: int, gigabytes: int) -> tuple[Gpu, ...]:
    one = Gpu(name="a GPU", memory_bytes=gigabytes * 10**9, free_bytes=0, capability="8.9", drives_display=False, persistent=True)
    return (one,) * number


@pytest.mark.parametrize(
    ("base", "quantization", "here", "devices"),
    [
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "none", gpus(4, 24), 3),  # 61 GB of weights, and 1.6 of caches, in 0.9 × 72
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "nf4", gpus(4, 24), 1),  # 17 GB
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "none", gpus(2, 24), 2),  # what there is
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "none", (), 1),
    ],
)
def test_what_is_too_large_for_one_gpu_is_divided_among_the_fewest(
    base: str, quantization: str, here: tuple[Gpu, ...], devices: int, tmp_path: Path
) -> None:
    config = known_config(base)
    assert config
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = Model.model_validate({"base": str(tmp_path), "dtype": "bfloat16", "quantization": quantization})
    assert _devices_needed(Subject(name="large", model=model), here) == devices
