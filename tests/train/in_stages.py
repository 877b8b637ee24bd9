"""What the ranks of a pipeline do for `test_pipeline.py`: `python -m tests.train.in_stages FOLDER PIPELINE DATA`, started by torchrun.

Every rank trains the whole model by itself first, and then its stage of it beside the others. Leaves FOLDER/rank-N.json.
"""

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from luthier.model.adapt import base_of
from luthier.model.fuse import fuse
from luthier.model.pipeline import as_one, cut
from luthier.model.place import trained_of
from luthier.plan.setup import Layout
from luthier.plan.weights import Stage
from luthier.recipe.schema import Training
from luthier.train.batch import MicroBatch
from luthier.train.optim import make_optimizer, set_rate
from luthier.train.passes import Seen, Stopped, forward
from luthier.train.precision import Precision
from luthier.train.ranks import ALONE, Ranks, join, part
from luthier.train.step import TooLarge, train_step
from tests.model.zoo import LONGEST, adapted, in_packs, shared_rows, tiny
from tests.train.workshop import CPU

NUM_LAYERS, STEPS = 4, 8
SPLITS = {2: (3, 1), 3: (1, 2, 1)}
"""Layers of each stage; unlike, so that an index too many or too few would show."""
KINDS = ("qwen3 full bins", "llama lora tree", "qwen3_moe lora off", "llama lora bins recomputed", "qwen3_moe full tree recomputed")
"""Family, what is trained, packing; Qwen3's embedding is its head, too."""
LINEAR = {"layer_types": ["linear_attention", "full_attention"] * 2, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
LINEAR |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
GENERATING: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "mistral": {},
    "gemma": {},
    "qwen2": {"max_window_layers": 2},
    "qwen3_5_moe_text": {**LINEAR, "num_experts": 4, "num_experts_per_tok": 2},
}
Model = PreTrainedModel | PeftModel


def kinds(data: int) -> tuple[str, ...]:
    """Those that a layout of so many replicas compares: several do the first two, or they would take long."""
    return KINDS if data == 1 else KINDS[:2]


def stage_of(ranks: Ranks) -> Stage:
    """This rank's."""
    axis = ranks.mesh.pipeline
    layers = SPLITS[axis.size]
    return Stage(start=sum(layers[: axis.index]), layers=layers[axis.index], num_layers=NUM_LAYERS, in_flight=axis.size - axis.index)


def made(kind: str) -> Model:
    """A whole model, to be trained."""
    family, how, _, *recomputed = kind.split()
    base = tiny(family, num_hidden_layers=NUM_LAYERS)
    if recomputed:
        base.activation_checkpointing_enable({"use_reentrant": False})
    return adapted(base, dropout=0.1) if how == "lora" else base


def divided(model: Model, ranks: Ranks) -> Ranks:
    """Leave this rank's stage in the model; the ranks, which then know their pieces."""
    pieces = cut(model, stage_of(ranks), ranks.mesh.pipeline, {})
    return Ranks(rank=ranks.rank, size=ranks.size, mesh=ranks.mesh, pieces=pieces, waiting=ranks.waiting, stop=ranks.stop)


def batches_of(packing: str, ranks: Ranks) -> list[MicroBatch]:
    """This replica's micro batches, of unequal length."""
    replicas = ranks.mesh.data
    return in_packs(shared_rows()[replicas.index :: replicas.size], packing, budget=120)


def trained(model: Model, kind: str, ranks: Ranks) -> dict[str, Any]:
    """What eight steps show, and the first one's gradients."""
    packing = kind.split()[2]
    fusion = fuse(model, pack=packing != "off", longest=LONGEST)
    optimizer, precision = make_optimizer(trained_of(model.train()), Training(weight_decay=0.1)), Precision.of(torch.float32, CPU, ranks)
    set_rate(optimizer, 1e-3)
    gradients: dict[str, Tensor] = {}

    def keep(*_: object) -> None:
        if not gradients:
            gradients.update({name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None})

    optimizer.register_step_pre_hook(keep)
    steps = [
        train_step(model, optimizer, batches_of(packing, ranks), precision=precision, max_norm=1.0, seeds=(3, step))
        for step in range(1, STEPS + 1)
    ]
    told = {
        "losses": [step.loss for step in steps],
        "norms": [step.grad_norm for step in steps],
        "targets": [step.num_targets for step in steps],
    }
    return {**told, "engine": fusion.engine, "gradients": gradients}


def compared(kind: str, ranks: Ranks) -> dict[str, Any]:
    """One process beside the stages: what both show, and how far the gradients that this stage has are apart."""
    alone, model = trained(made(kind), kind, ALONE), made(kind)
    together = trained(model, kind, divided(model, ranks))
    expected, found = alone.pop("gradients"), together.pop("gradients")
    apart = {name: apart_from(gradient, expected[name]) for name, gradient in found.items()}
    return {"alone": alone, "together": together, "names": sorted(found), "expected": sorted(expected), "apart": max(apart.values())}


def answers(ranks: Ranks) -> dict[str, bool]:
    """Whether all stages together generate what the whole model does: after unlike prompts, past a window, by linear attention."""
    same = {}
    for family, changed in GENERATING.items():
        whole, model = (tiny(family, num_hidden_layers=NUM_LAYERS, **changed).eval() for _ in range(2))
        divided(model, ranks)
        with as_one(model):
            found = generated(model)
        same[family] = torch.equal(found, generated(whole))
    return same


def generated(model: PreTrainedModel) -> Tensor:
    """Twelve greedy tokens after each of three rows."""
    ids = [torch.from_numpy(one.ids).long() for one in shared_rows()[1:4]]
    padded = torch.stack([torch.nn.functional.pad(row, (LONGEST - len(row), 0)) for row in ids])
    mask = torch.stack([torch.arange(LONGEST) >= LONGEST - len(row) for row in ids]).long()
    greedy = GenerationConfig(max_new_tokens=12, do_sample=False, pad_token_id=0, use_cache=True)
    return model.generate(padded, attention_mask=mask, generation_config=greedy)  # type: ignore[no-any-return]


def evaluated(ranks: Ranks) -> list[float]:
    """The loss of rows without a gradient: of the whole model, and of all its stages."""
    whole, model = made("qwen3 lora bins").eval(), made("qwen3 lora bins").eval()
    ranks = divided(model, ranks)
    batches, alone = batches_of("bins", ranks), Precision.of(torch.float32, CPU)
    (found,) = ranks.sum([total(forward(model, batches, Precision.of(torch.float32, CPU, ranks)))])
    return [total(forward(whole, batches, alone)), found]


def total(seen: list[Seen]) -> float:
    """Of all rows that were seen."""
    return sum(float(each.nll_N.double()[each.targets_M].sum()) for each in seen)


def broken_off(ranks: Ranks) -> dict[str, str]:
    """What all see of a step in which one stage is asked to stop, or has no memory; and of the step after all of these."""
    model = made("llama lora bins")
    ranks = divided(model, ranks)
    fuse(model, pack=True, longest=LONGEST)
    found = {}
    for culprit, why in itertools.product(range(ranks.size), (Stopped, torch.OutOfMemoryError)):
        asked = itertools.count(1)

        def stop(culprit: int = culprit, why: type[Exception] = why, asked: Iterator[int] = asked) -> bool:
            if ranks.rank == culprit and next(asked) == 3:
                raise why("a test")
            return False

        try:
            one_step(model, replace(ranks, stop=stop))
            found[f"{culprit} {why.__name__}"] = "nothing"
        except (Stopped, TooLarge) as raised:
            found[f"{culprit} {why.__name__}"] = type(raised).__name__
    whole = made("llama lora bins")
    fuse(whole, pack=True, longest=LONGEST)
    apart = abs(one_step(model, ranks) / one_step(whole, ALONE) - 1)
    return {**found, "afterwards": "as one process" if apart < 1e-6 else f"{apart} off"}


def overflowed(ranks: Ranks) -> list[Any]:
    """float16's loss scale is too large for the first stage's gradients only: how often it was halved, and what it is."""
    model = made("qwen3 full bins").train()
    ranks = divided(model, ranks)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    if ranks.mesh.pipeline.first:

        def explode(_: nn.Module, gradients: tuple[Tensor, ...], __: object) -> tuple[Tensor, ...]:
            return tuple(gradient * torch.inf if scaler.get_scale() > 4 else gradient for gradient in gradients)

        base_of(model).get_decoder().layers[0].register_full_backward_hook(explode)
    precision = Precision(device=CPU, dtype=torch.float16, scaler=scaler, ranks=ranks)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    done = train_step(model, optimizer, batches_of("off", ranks), precision=precision, max_norm=1.0, seeds=(0, 1))
    return [done.num_overflows, scaler.get_scale(), done.finite]


def one_step(model: Model, ranks: Ranks) -> float:
    """Its gradient's norm."""
    optimizer, precision = make_optimizer(trained_of(model.train()), Training()), Precision.of(torch.float32, CPU, ranks)
    model.zero_grad()
    return train_step(model, optimizer, batches_of("bins", ranks), precision=precision, max_norm=1.0, seeds=(3, 1)).grad_norm


def apart_from(found: Tensor, expected: Tensor) -> float:
    """Relative difference."""
    return ((found - expected).norm() / expected.norm()).item()


def main() -> None:
    """All scenes, in one group."""
    folder, pipeline, data = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    ranks = join(Layout(pipeline=pipeline, data=data))
    found = {kind: compared(kind, ranks) for kind in kinds(data)}
    told = {"compared": found, **{scene.__name__: scene(ranks) for scene in (answers, evaluated, broken_off, overflowed) if data == 1}}
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(told))
    part(ranks)


if __name__ == "__main__":
    main()
