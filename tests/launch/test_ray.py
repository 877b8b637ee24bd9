"""What Ray is told of a run, and what a rank of it is started with. `tests/test_flow_ray.py` has a real one."""

import os
from pathlib import Path

import pytest

from luthier.core.errors import UsageError
from luthier.launch.ray import Place, rank_environment, ray_words, require
from luthier.recipe.schema import Launch
from luthier.runs.heartbeat import SUPERVISOR, mark
from luthier.runs.store import RunFolder


def test_the_driver_is_told_the_ranks_their_devices_and_the_cluster() -> None:
    assert ray_words(2, Launch(on="ray")) == ["ray", "2", "cpu", "1", ""]
    rented = Launch(on="ray", gpu="H100x8", options={"address": "auto", "cpus": 12})
    assert ray_words(8, rented) == ["ray", "8", "gpu", "12", "auto"]


def test_a_rank_finds_its_place_its_threads_and_whose_end_is_its_own(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "animals")
    run.path.mkdir(parents=True)
    place = Place(rank=3, size=4, local_rank=1, local_size=2, master="192.0.2.7 4321", address="127.0.0.1", cpus=6)
    found = rank_environment(run, place, {"KEPT": "as it is", "RANK": "of another"})
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [found[name] for name in names] == ["3", "4", "1", "2", "192.0.2.7", "4321"]
    assert found["OMP_NUM_THREADS"] == "12"  # which the two ranks of the machine divide
    assert found["GLOO_SOCKET_IFNAME"] == "lo"
    assert found["LUTHIER_RUNS"] == str(tmp_path / "runs")
    assert found[SUPERVISOR] == f"{os.getpid()} {mark(run)}"
    assert found["KEPT"] == "as it is"


def test_where_ray_is_missing_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.launch.ray.NEEDED", ("ray_of_another_world", "json"))
    with pytest.raises(UsageError, match=r"there is no ray_of_another_world\n  pip install 'luthier\[ray\]'"):
        require()
