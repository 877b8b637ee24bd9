"""Where replicas have nothing to divide."""

import pytest

from tests.plan.check.cases import found, only


def test_one_replica_has_nothing_to_divide() -> None:
    finding = only("nothing-to-shard", "parallel.shard=zero3")
    assert (finding.severity, [(change.path, change.value) for change in finding.changes]) == ("warn", [("parallel.shard", "none")])


@pytest.mark.parametrize("changes", [["parallel.shard=zero3"], ["parallel.shard=zero2", "parallel.pipeline=2"], ["parallel.shard=none"]])
def test_two_replicas_have_something_to_divide(changes: list[str]) -> None:
    assert "nothing-to-shard" not in found("launch.gpu=H100x4", "parallel.data=2", *changes)
