"""Several machines: each mistake, and what just is none."""

import pytest

from tests.plan.check.cases import found, only

TWO = ("launch.on=torchrun", "parallel.nodes=2")


def test_ranks_that_nodes_cannot_share_evenly_are_refused() -> None:
    finding = only("nodes-uneven", "launch.on=slurm", "launch.gpu=H100x2", "parallel.nodes=3", "parallel.tensor=4")
    assert (finding.severity, finding.changes[0].value) == ("refuse", 2)
    assert finding.message == "data 1 × tensor 4 × pipeline 1 are 4 ranks, and 3 nodes cannot have as many each"


def test_matrices_divided_between_machines_are_slow() -> None:
    finding = only("tensor-across-nodes", *TWO, "launch.gpu=H100x2", "parallel.tensor=4", "parallel.data=1")
    assert (finding.severity, [(change.path, change.value) for change in finding.changes]) == (
        "warn",
        [("parallel.tensor", 2), ("parallel.data", 2)],
    )


def test_devices_of_all_nodes_are_counted() -> None:
    assert "more-ranks-than-devices" not in found(*TWO, "launch.gpu=H100x2", "parallel.data=4")
    finding = found(*TWO, "launch.gpu=H100x2", "parallel.data=8")["more-ranks-than-devices"]
    assert (finding.evidence, finding.changes[0].value) == ({"ranks": 8, "devices": 4}, "H100x4")


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("nodes-uneven", [*TWO, "launch.gpu=H100x2"]),
        ("nodes-uneven", ["parallel.data=3", "launch.gpu=H100x3"]),
        ("tensor-across-nodes", [*TWO, "launch.gpu=H100x2", "parallel.tensor=2"]),
        ("tensor-across-nodes", ["launch.gpu=H100x4", "parallel.tensor=4"]),
    ],
)
def test_what_just_is_no_mistake_is_not_found(code: str, changes: list[str]) -> None:
    assert code not in found(*changes)
