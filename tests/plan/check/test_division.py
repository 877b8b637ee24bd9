"""What replicas cannot divide, and where there is nothing to divide."""

import pytest

from tests.plan.check.cases import found, only

TWO = ("launch.gpu=H100x2", "parallel.data=2")


def test_a_pipeline_is_not_sharded_as_well() -> None:
    finding = only(
        "shard-impossible",
        "launch.gpu=H100x4",
        "parallel.data=2",
        "parallel.pipeline=2",
        "parallel.shard=zero2",
    )
    assert (finding.severity, [(change.path, change.value) for change in finding.changes]) == ("refuse", [("parallel.pipeline", 1)])


def test_int8_weights_are_not_cut() -> None:
    finding = only("shard-impossible", *TWO, "parallel.shard=zero3", "model.quantization=int8", beside=["quantised-needlessly"])
    assert (finding.severity, [(change.path, change.value) for change in finding.changes]) == ("refuse", [("parallel.shard", "zero2")])


def test_one_replica_has_nothing_to_divide() -> None:
    finding = only("nothing-to-shard", "parallel.shard=zero3")
    assert (finding.severity, [(change.path, change.value) for change in finding.changes]) == ("warn", [("parallel.shard", "none")])


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("shard-impossible", [*TWO, "parallel.shard=zero2", "model.quantization=int8"]),
        ("shard-impossible", [*TWO, "parallel.shard=zero3", "model.quantization=nf4"]),
        ("shard-impossible", ["launch.gpu=H100x4", "parallel.data=2", "parallel.tensor=2", "parallel.shard=zero3"]),
        ("shard-impossible", ["launch.gpu=H100x4", "parallel.data=2", "parallel.pipeline=2"]),
        ("nothing-to-shard", [*TWO, "parallel.shard=zero3"]),
    ],
)
def test_what_can_be_divided_is_not_found(code: str, changes: list[str]) -> None:
    assert code not in found(*changes)
