"""Ray Train starts the ranks: one worker for each, wherever the cluster has room for it. The only file that imports ray, inside functions.

A worker starts its rank as a process of its own (`luthier.cli.rank`), with the environment that training needs, and sees it to its end.
Heartbeats, last words, restarts and what hangs are the supervisor's, as with torchrun (`launch/group.py`): Ray is told to restart nothing.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luthier.core.environment import start_settings
from luthier.core.errors import UsageError
from luthier.core.hardware import this_machine
from luthier.launch.attempt import asked_elsewhere
from luthier.launch.nodes import interface_of
from luthier.recipe.options import RayOptions
from luthier.recipe.schema import Launch
from luthier.runs.heartbeat import SUPERVISOR, end_with_supervisor, mark
from luthier.runs.store import RunFolder

NEEDED = ("ray", "pandas", "pyarrow", "requests", "fsspec")
"""What Ray Train imports (`ray[train]`)."""
SECONDS_BETWEEN_LOOKS = 0.2
STORAGE = "ray"
OBJECT_STORE_BYTES = 100 * 2**20
"""Of a Ray of its own: Ray asks for a third of the memory otherwise, and nothing goes through it."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a scorer of one's own is looked for in the folder that the command was given in
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
"""What Ray reads from the environment; a user's own value goes before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one rank stands, as Ray Train has placed its worker."""

    rank: int
    size: int
    local_rank: int
    """Of its machine's ranks, by the number that its GPU has there."""
    local_size: int
    master: str
    """`HOST PORT` of rank 0."""
    address: str
    """Of this machine."""
    cpus: int


def require() -> None:
    """Raise UsageError where Ray Train is not installed; nothing is imported."""
    if absent := [name for name in NEEDED if not find_spec(name)]:
        raise UsageError(f"launch.on: ray needs Ray Train, and there is no {', '.join(absent)}", change="pip install 'luthier[ray]'")


def ray_words(ranks: int, launch: Launch) -> list[str]:
    """The words with which `luthier.cli.rank` becomes the driver: `ray 4 gpu 8 ADDRESS`."""
    options = RayOptions.model_validate(launch.options)
    return ["ray", str(ranks), "cpu" if launch.gpu == "here" else "gpu", str(options.cpus), options.address]


def run_on_ray(run: RunFolder, words: Sequence[str], ranks: int, kind: str, cpus: str, address: str) -> None:
    """Start the ranks on a Ray cluster, and return when all have ended well; raises what Ray Train does where one has not."""
    os.environ.update({**QUIET, **os.environ})
    end_with_supervisor()  # and with this process its workers end, whose ranks end with them
    import ray
    from ray.train import BackendConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.backend import Backend
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class Together(Backend):
        """Every worker sees the GPUs of all on its machine, so that NCCL can copy between them."""

        share_cuda_visible_devices = True

    class Ranks(BackendConfig):
        @property
        def backend_cls(self) -> type[Backend]:
            return Together

    gpu = kind == "gpu" or bool(this_machine().gpus)
    own = {"num_cpus": max(ranks * int(cpus), os.cpu_count() or 1), "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    ray.init(**({"address": address} if address or "RAY_ADDRESS" in os.environ else own), configure_logging=False, log_to_driver=False)
    DataParallelTrainer(
        _be_a_rank,
        train_loop_config={"run": str(run.path), "words": list(words), "cpus": int(cpus)},
        backend_config=Ranks(),
        scaling_config=ScalingConfig(
            num_workers=ranks, use_gpu=gpu, resources_per_worker={"CPU": int(cpus), **({"GPU": 1} if gpu else {})}
        ),
        run_config=RunConfig(name=STORAGE, storage_path=str(run.path.absolute()), failure_config=FailureConfig(max_failures=0)),
    ).fit()
    ray.shutdown()
    shutil.rmtree(run.path / STORAGE, ignore_errors=True)  # Ray Train wants a folder for what its workers report: ours report nothing


def rank_environment(run: RunFolder, place: Place, base: Mapping[str, str]) -> dict[str, str]:
    """What a rank is started with: what torchrun would set, the threads that are its own, and whose end is its own."""
    host, port = place.master.split()
    interface = interface_of(place.address)
    return {
        **start_settings(),
        **({"GLOO_SOCKET_IFNAME": interface} if interface else {}),
        **base,
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.size),
        "LOCAL_RANK": str(place.local_rank),
        "LOCAL_WORLD_SIZE": str(place.local_size),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": str(place.cpus * place.local_size),  # which the machine's ranks divide
        "PYTHONSAFEPATH": "1",
        "LUTHIER_RUNS": str(run.path.parent),
        SUPERVISOR: f"{os.getpid()} {mark(run)}",
    }


def see_to_its_end(run: RunFolder, words: Sequence[str], place: Place) -> int:
    """A rank's exit code. While it runs, it is passed on what the supervisor, perhaps on another machine, was asked."""
    told = False
    with (
        run.log.open("ab") as log,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "luthier.cli.rank", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=rank_environment(run, place, os.environ),
        ) as rank,
    ):
        try:
            while (code := rank.poll()) is None:
                if not told and asked_elsewhere(run):
                    rank.send_signal(signal.SIGTERM)  # and not the signal itself: a second Ctrl-C would kill
                    told = True
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            if rank.poll() is None:
                rank.kill()
    return code


def _be_a_rank(given: dict[str, Any]) -> None:
    """What a worker does."""
    import ray
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    context, address = get_context(), ray.util.get_node_ip_address()
    rank, gpus = context.get_world_rank(), ray.get_gpu_ids()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    place = Place(
        rank=rank,
        size=context.get_world_size(),
        local_rank=visible.index(str(gpus[0])) if gpus else context.get_local_rank(),
        local_size=context.get_local_world_size(),
        master=broadcast_from_rank_zero(f"{address} {_free_port(address)}" if rank == 0 else ""),
        address=address,
        cpus=given["cpus"],
    )
    run = RunFolder(Path(given["run"]))
    if code := see_to_its_end(run, given["words"], place):
        raise RuntimeError(f"rank {rank} ended with exit code {code}; {run.log} says more")


def _free_port(address: str) -> int:
    with socket.socket() as asking:
        asking.bind((address, 0))
        return int(asking.getsockname()[1])
