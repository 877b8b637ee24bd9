"""What two ranks do for `test_deepspeed.py`: `python -m tests.equivalence.in_deepspeed FOLDER`, started by torchrun.

The same model trained by this engine under zero2, and by DeepSpeed's ZeRO-2, from the same rows; leaves FOLDER/losses-N.json.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from luthier.model.place import place
from luthier.plan.setup import Layout
from luthier.recipe.schema import Training
from luthier.train.batch import MicroBatch
from luthier.train.objective import nll_sum
from luthier.train.optim import make_optimizer
from luthier.train.ranks import Ranks, join, part
from luthier.train.step import Precision, train_step
from tests.model.zoo import adapted, tiny
from tests.train.workshop import CPU, in_batches, ragged_rows

STEPS, AT_ONCE = 5, 2
TRAINED = ("full", "lora")
TRAINING = Training(learning_rate=1e-3, weight_decay=0.01)
ZERO2: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": AT_ONCE,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
    "zero_optimization": {"stage": 2},
    "zero_force_ds_cpu_optimizer": False,
}


def model(trained: str) -> nn.Module:
    """The same for both."""
    base = tiny("qwen3")
    return (base if trained == "full" else adapted(base)).train()


def batches(ranks: Ranks) -> list[MicroBatch]:
    """This rank's four of eight ragged rows."""
    return in_batches(ragged_rows()[ranks.rank :: ranks.size], AT_ONCE)


def here(trained: str, ranks: Ranks) -> list[float]:
    """By this engine."""
    placed = place(model(trained), Layout(data=2, shard="zero2"), ranks.mesh)  # type: ignore[arg-type]  # of transformers or PEFT
    optimizer = make_optimizer(placed.trained, TRAINING)
    precision = Precision.of(torch.float32, CPU, replace(ranks, pieces=placed.pieces))
    return [
        train_step(placed.model, optimizer, batches(ranks), precision=precision, max_norm=1.0, seeds=(0, step)).loss
        for step in range(STEPS)
    ]


def there(trained: str, ranks: Ranks) -> list[float]:
    """By DeepSpeed, which averages over ranks and micro batches what is added up here."""
    whole, rows = model(trained), batches(ranks)
    optimizer = make_optimizer({name: weight for name, weight in whole.named_parameters() if weight.requires_grad}, TRAINING)
    engine, *_ = deepspeed.initialize(model=whole, optimizer=optimizer, config=ZERO2)
    (num_targets,) = ranks.sum([sum(batch.num_targets for batch in rows)])
    losses = []
    for _ in range(STEPS):
        total = 0.0
        for batch in rows:
            loss = nll_sum(engine.module, batch) / num_targets
            engine.backward(loss * len(rows) * ranks.size)
            engine.step()
            total += loss.item()
        losses += ranks.sum([total])
    return losses


def main() -> None:
    """Both, for everything that can be trained."""
    ranks = join(Layout(data=2, shard="zero2"))
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    found = {trained: {"here": here(trained, ranks), "there": there(trained, ranks)} for trained in TRAINED}
    (Path(sys.argv[1]) / f"losses-{ranks.rank}.json").write_text(json.dumps(found))
    dist.barrier()
    part(ranks)


if __name__ == "__main__":
    main()
