"""However a run is divided over devices, it has the losses and gradient norms of one process: real processes, gloo, float32."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.equivalence.layouts import ONE, SCENES, WAYS, Scene, Share, trained

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
SECONDS = {"quick": 280, "slow": 800}
Losses = list[list[float]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_RUNS", str(folder / "runs"))
        yield folder


@pytest.fixture(scope="module")
def alone(home: Path) -> Callable[[Scene], Losses]:
    """What one process finds for the same model and rows, all rows of a step at once."""

    @functools.cache
    def found(family: str, what: str, packing: str) -> Losses:
        return trained(home, Scene(family=family, trained=what, packing=packing, way="one"), ONE)

    return lambda scene: found(scene.family, scene.trained, scene.packing)


@pytest.fixture(scope="module")
def together(home: Path, alone: Callable[[Scene], Losses]) -> Callable[[Scene], list[Losses]]:
    """What each rank found for a scene: all scenes of as many ranks and the same share are run at its first call."""

    @functools.cache
    def ran(share: Share, num_ranks: int) -> list[dict[str, Losses]]:
        command = [*TORCHRUN, f"--nproc-per-node={num_ranks}", "-m", "tests.equivalence.layouts", str(home), share, str(num_ranks)]
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        group = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        try:
            _, told = group.communicate(timeout=SECONDS[share])
        finally:
            group.terminate()  # torchrun ends its ranks
            group.wait(60)
        assert group.returncode == 0, told[-4000:]
        return [json.loads((home / f"{share}-{num_ranks}-rank-{rank}.json").read_text()) for rank in range(num_ranks)]

    def found(scene: Scene) -> list[Losses]:
        way = WAYS[scene.way]
        if way.layout.devices == 1:
            return [trained(home, scene, way)]
        alone(scene)  # prepares the rows, which ranks only read
        return [rank[str(scene)] for rank in ran(scene.share, way.layout.devices)]

    return found


def marked(scene: Scene) -> Any:
    slow = [pytest.mark.slow, pytest.mark.timeout(900)]  # the first of a group of ranks waits for all of their scenes
    return pytest.param(scene, id=str(scene), marks=slow if scene.share == "slow" else [])


@pytest.mark.parametrize("scene", [marked(scene) for scene in SCENES])
def test_a_divided_run_has_the_losses_and_gradients_of_one_process(
    alone: Callable[[Scene], Losses], together: Callable[[Scene], list[Losses]], scene: Scene
) -> None:
    one, (first, *others) = alone(scene), together(scene)
    assert all(other == first for other in others)
    assert [loss for loss, _ in first] == [pytest.approx(loss, rel=1e-5) for loss, _ in one]
    assert [norm for _, norm in first] == [pytest.approx(norm, rel=1e-5) for _, norm in one]
    assert one[-1][0] < one[0][0]
