"""Every way to divide a run, and what each of its ranks does for `test_layouts.py`:

`python -m tests.equivalence.layouts FOLDER SHARE RANKS`, started by torchrun, runs all scenes of that share for so many ranks, in one
process group, and leaves FOLDER/SHARE-RANKS-rank-N.json.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from luthier.model.mesh import Mesh
from luthier.plan.setup import Layout
from luthier.runs.store import RunFolder
from luthier.train.checkpoint import State
from luthier.train.loop import _take_step
from luthier.train.ranks import ALONE, Ranks, join, part
from luthier.train.run import _set_up
from tests.data.families import family
from tests.model.zoo import tiny
from tests.train.workshop import Workshop

Share = Literal["quick", "slow"]
STEPS = 8
UNDIVIDED = Layout()
FAMILIES = ("qwen3", "llama", "qwen3_moe")
TRAINED: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"r": 4, "alpha": 8, "dropout": 0.1}},
    "full": {"lora": "none", "training": {"learning_rate": 1e-4}},
}
PACKINGS = ("off", "bins", "tree")
ROWS = {"global_batch_size": 5, "max_steps": STEPS}
"""Five rows a step: two ranks have shares of different sizes, four have one or two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to divide a run."""

    layout: Layout = UNDIVIDED
    rows_at_once: int = 2
    checkpointing: bool = False


WAYS: dict[str, Way] = {
    "accumulation": Way(rows_at_once=1),
    "data 2": Way(layout=Layout(data=2)),
    "zero2 2": Way(layout=Layout(data=2, shard="zero2")),
    "zero3 2": Way(layout=Layout(data=2, shard="zero3")),
    "zero3 2, checkpointing": Way(layout=Layout(data=2, shard="zero3"), checkpointing=True),
    "tensor 2": Way(layout=Layout(tensor=2)),
    "tensor 2, checkpointing": Way(layout=Layout(tensor=2), checkpointing=True),
    "zero2 4": Way(layout=Layout(data=4, shard="zero2")),
    "zero3 4": Way(layout=Layout(data=4, shard="zero3")),
    "data 2, tensor 2": Way(layout=Layout(data=2, tensor=2)),
    "zero2 2, tensor 2": Way(layout=Layout(data=2, shard="zero2", tensor=2)),
    "zero3 2, tensor 2": Way(layout=Layout(data=2, shard="zero3", tensor=2)),
    "tensor 2, pipeline 2": Way(layout=Layout(tensor=2, pipeline=2)),
}
ONE = Way(rows_at_once=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A model, what of it is trained, how its rows are laid, and how the run is divided."""

    family: str
    trained: str
    packing: str
    way: str

    def __str__(self) -> str:
        return f"{self.family}, {self.trained}, {self.packing}, {self.way}"

    @property
    def share(self) -> Share:
        """A few of each way are quick: every family, what is trained and packing is among them."""
        quick = {("qwen3", "lora", "tree"), ("llama", "full", "bins"), ("qwen3_moe", "lora", "off")}
        return "quick" if (self.family, self.trained, self.packing) in quick and WAYS[self.way].layout.devices < 4 else "slow"


SCENES = [
    Scene(family=name, trained=trained, packing=packing, way=way)
    for way in WAYS
    for name in FAMILIES
    for trained in TRAINED
    for packing in PACKINGS
]


def base_of(folder: Path, name: str) -> Path:
    """A base of that family as it lies on the hub."""
    path = folder / name
    if not path.exists():
        tokenizer = family("chatml")
        tiny(name, vocab_size=len(tokenizer.pretrained)).save_pretrained(path)
        tokenizer.save(path)
    return path


def trained(folder: Path, scene: Scene, way: Way, ranks: Ranks = ALONE) -> list[list[float]]:
    """Loss and gradient norm of each step."""
    own, layout = TRAINED[scene.trained], way.layout
    sections: dict[str, Any] = {
        **own,
        "model": {"base": str(base_of(folder, scene.family)), "dtype": "float32"},
        "data": {"packing": scene.packing},
        "training": {
            **ROWS,
            **own.get("training", {}),
            "micro_batch_size": way.rows_at_once,
            "gradient_checkpointing": way.checkpointing,
        },
        "parallel": {"data": layout.data, "shard": layout.shard, "tensor": layout.tensor, "pipeline": layout.pipeline},
    }
    job = Workshop(folder).job(str(scene), **sections)
    loop, plan = _set_up(replace(job, ranks=ranks, folder=RunFolder(job.folder.path, read_only=not ranks.first)))
    assert plan.setup.layout == layout
    assert plan.setup.engine == ("plain" if scene.packing == "off" else "fused" if scene.trained == "lora" else "packed")
    loop.model.train()
    state, found = State(), []
    for _ in range(STEPS):
        state, line = _take_step(loop, state)
        found.append([line.loss, line.grad_norm])
    return found


def scenes_of(share: Share, num_ranks: int) -> Iterator[Scene]:
    """Those for so many ranks."""
    yield from (scene for scene in SCENES if scene.share == share and WAYS[scene.way].layout.devices == num_ranks)


def main() -> None:
    """All of a share's scenes, in one group."""
    folder, share = Path(sys.argv[1]), sys.argv[2]
    ranks = join(Layout(data=int(sys.argv[3])))
    meshes: dict[Layout, Mesh] = {}
    found = {}
    for scene in scenes_of(share, ranks.size):  # type: ignore[arg-type]  # a share
        layout = WAYS[scene.way].layout
        if layout not in meshes:
            meshes[layout] = Mesh.of(layout, "cpu")
        found[str(scene)] = trained(folder, scene, WAYS[scene.way], replace(ranks, mesh=meshes[layout], divided=layout.divided))
        dist.barrier()
    (folder / f"{share}-{ranks.size}-rank-{ranks.rank}.json").write_text(json.dumps(found))
    part(ranks)


if __name__ == "__main__":
    main()
