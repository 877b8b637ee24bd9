"""Tensor parallelism: what it cannot divide is refused with the nearest that works, and what it can is not."""

from dataclasses import replace

import pytest

from luthier.core.finding import Finding
from luthier.plan.check import check
from luthier.plan.shape import shape_of
from tests.plan.check.cases import case, found, only

DIVIDED = ("launch.gpu=H200x8", "parallel.tensor=2")


def of_gpt_oss(*changes: str) -> dict[str, Finding]:
    """What is found of a model for which transformers has no plan."""
    return {finding.code: finding for finding in check(replace(case(*changes), shape=shape_of({"model_type": "gpt_oss"})))}


def test_heads_that_ranks_cannot_share_are_refused_with_the_nearest_number_that_can() -> None:
    finding = found("model.base=Qwen/Qwen2.5-7B-Instruct", "launch.gpu=H200x8", "parallel.tensor=8")["tensor-indivisible"]
    assert finding.severity == "refuse"
    assert finding.message == "8 ranks cannot have equal parts of this model: it has 28 query heads and 4 key and value heads"
    assert [(change.path, change.value) for change in finding.changes] == [("parallel.tensor", 4)]


def test_one_head_of_keys_and_values_divides_among_nobody() -> None:
    assert found("model.base=google/gemma-3-1b-it", *DIVIDED)["tensor-indivisible"].changes[0].value == 1


def test_a_model_without_a_plan_may_be_sharded_by_as_many_replicas() -> None:
    finding = of_gpt_oss(*DIVIDED, "parallel.data=2")["tensor-unplanned"]
    assert [(change.path, change.value) for change in finding.changes] == [
        ("parallel.tensor", 1),
        ("parallel.shard", "zero3"),
        ("parallel.data", 4),
    ]


def test_dora_wants_whole_rows() -> None:
    assert only("tensor-with-dora", *DIVIDED, "lora.use_dora=true").severity == "refuse"


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("tensor-indivisible", ["model.base=Qwen/Qwen2.5-7B-Instruct", "launch.gpu=H200x8", "parallel.tensor=4"]),
        ("tensor-unplanned", [*DIVIDED]),
        ("tensor-with-dora", ["launch.gpu=H200x8", "lora.use_dora=true"]),
        ("tensor-with-dora", [*DIVIDED]),
    ],
)
def test_what_just_is_no_mistake_is_not_found(code: str, changes: list[str]) -> None:
    assert code not in found(*changes)


def test_a_model_without_a_plan_is_told_that_and_no_more() -> None:
    assert "tensor-indivisible" not in of_gpt_oss("launch.gpu=H200x8", "parallel.tensor=7")
    assert "tensor-unplanned" not in of_gpt_oss("launch.gpu=H200x8")
