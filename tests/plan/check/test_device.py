"""Whether the run fits memory, disk and time, and what may kill or slow it there: each mistake, and what just is none."""

from dataclasses import replace

import pytest

from tests.plan.check.cases import World, found, gpu, host, only

HERE = "launch.gpu=here"
OWN = World(host=host(gpu()))
ADAPTER = 10_092_544 * 12
"""Bytes of a checkpoint: weights and Adam's two numbers, in float32."""


def test_a_model_larger_than_the_device_is_refused_with_what_would_fit() -> None:
    finding = only("does-not-fit", "model.base=Qwen/Qwen2.5-7B-Instruct", "launch.gpu=T4")
    assert finding.severity == "refuse"
    assert finding.changes


def test_memory_that_others_hold_now_is_a_warning() -> None:
    finding = found(HERE, world=World(host=host(gpu()), device_free=1_000_000_000))["does-not-fit"]
    assert finding.severity == "warn"
    assert finding.message.endswith("only 1 GB of its 80 GB are free now")


def test_ranks_on_a_processor_each_have_their_part_of_it() -> None:
    finding = found(HERE, "parallel.data=4", world=World(device_free=1_200_000_000))["does-not-fit"]
    assert finding.message.startswith("Each of 4 ranks needs")
    assert finding.message.endswith("only 1.2 GB of its 50 GB are free now")
    assert (finding.changes[0].path, finding.changes[0].value) == ("parallel.data", 1)


def test_a_small_micro_batch_and_recomputing_are_for_memory_that_is_short() -> None:
    finding = only("memory-unused", "training.micro_batch_size=1", "training.gradient_checkpointing=true")
    assert [change.path for change in finding.changes] == ["training.micro_batch_size", "training.gradient_checkpointing"]


def test_weights_pass_through_the_host() -> None:
    finding = only("host-memory-too-small", HERE, world=World(host=host(gpu()), host_free=10**9))
    assert finding.evidence == {"needed_bytes": 1_192_099_840, "free_bytes": 10**9}


def test_checkpoints_need_room_on_the_disk() -> None:
    finding = only("disk-too-small", world=World(disk_free=500_000_000))
    assert (finding.severity, finding.changes[0].value) == ("warn", 2)
    assert only("disk-too-small", world=World(disk_free=ADAPTER)).severity == "refuse"


def test_checkpoints_that_are_there_already_need_no_room_again() -> None:
    """Every 38th of 375 steps is saved, four kept with the best: a run that has four writes one beside them, and the result after that."""
    four = World(saved=(152, 114, 76, 38), disk_free=ADAPTER)
    assert "disk-too-small" not in found(world=four)
    finding = only("disk-too-small", world=replace(four, disk_free=ADAPTER - 1))
    assert finding.severity == "refuse"  # not even the save that is tried before step 1
    assert finding.message.startswith("1 checkpoint of 121 MB besides the 4 that are there, and the result, need 121 MB: the disk has")
    two = only("disk-too-small", world=World(saved=(76, 38), disk_free=2 * ADAPTER))
    assert (two.severity, two.changes[0].value) == ("warn", 2)
    assert two.evidence["needed_bytes"] == 3 * ADAPTER


def test_a_run_with_one_save_left_needs_room_for_that_and_the_result() -> None:
    last = World(saved=(342, 304), disk_free=ADAPTER + ADAPTER // 3)
    assert "disk-too-small" not in found(world=last)
    assert only("disk-too-small", world=replace(last, disk_free=ADAPTER)).severity == "warn"


def test_a_gpu_with_a_monitor_has_a_watchdog() -> None:
    finding = only("gpu-drives-display", HERE, world=World(host=host(gpu(), gpu(drives_display=True))))
    assert finding.evidence == {"gpus": "1: NVIDIA H100 80GB HBM3"}


def test_persistence_mode_that_is_off_is_a_note() -> None:
    assert only("persistence-off", HERE, world=World(host=host(gpu(persistent=False)))).severity == "note"


def test_a_host_that_ends_the_run_early_is_found() -> None:
    assert "will not be done" in only("timeout-too-short", "launch.timeout=10 s").message
    assert "may not be done" in only("timeout-too-short", "launch.timeout=1 min").message


@pytest.mark.parametrize(
    ("code", "changes", "world"),
    [
        ("does-not-fit", ["model.base=Qwen/Qwen2.5-7B-Instruct", "launch.gpu=L4"], World()),
        ("memory-unused", ["training.micro_batch_size=16"], World()),
        ("memory-unused", ["training.micro_batch_size=1", "model.base=Qwen/Qwen3-14B", "launch.gpu=L40S"], World()),
        ("memory-unused", [HERE, "training.micro_batch_size=1"], World()),  # a CPU gains nothing
        ("host-memory-too-small", [HERE], World(host=host(gpu()), host_free=2 * 10**9)),
        ("host-memory-too-small", [HERE], World(host_free=10**9)),  # on a CPU, does-not-fit says it
        ("disk-too-small", [], World(disk_free=5 * ADAPTER)),
        ("gpu-drives-display", [HERE], OWN),
        ("gpu-drives-display", [], World(host=host(gpu(drives_display=True)))),  # rented: this machine's monitor does not matter
        ("persistence-off", [HERE], OWN),
        ("timeout-too-short", ["launch.timeout=2 min"], World()),
    ],
)
def test_what_just_is_no_mistake_is_not_found(code: str, changes: list[str], world: World) -> None:
    assert code not in found(*changes, world=world)
