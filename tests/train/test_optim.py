"""Learning rates and weight decay."""

import pytest
import torch
from transformers import get_scheduler

from luthier.model.place import trained_of
from luthier.plan.steps import Steps
from luthier.recipe.schema import Training
from luthier.train.optim import make_optimizer, rate_at
from tests.train.workshop import tiny_model

PEAK = 3e-4


def rates(total: int, warmup: int, **training: object) -> list[float]:
    steps = Steps(rows=1, global_batch_size=1, per_epoch=total, total=total, warmup=warmup, saves=(total,), evaluations=())
    settings = Training.model_validate({"learning_rate": PEAK, **training})
    return [rate_at(step, steps, settings) for step in range(1, total + 1)]


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "cosine_with_restarts"])
def test_after_warmup_the_schedules_are_those_of_transformers(name: str) -> None:
    total, warmup, cycles = 45, 5, 3 if name == "cosine_with_restarts" else 1
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=PEAK)
    theirs_name = "constant_with_warmup" if name == "constant" else name
    extra = {"num_cycles": cycles} if cycles > 1 else {}
    schedule = get_scheduler(theirs_name, optimizer, warmup, total, scheduler_specific_kwargs=extra)
    theirs = []
    for _ in range(total):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    ours = rates(total, warmup, lr_scheduler=name, lr_cycles=cycles)
    assert ours[warmup:] == pytest.approx(theirs[warmup:], rel=1e-12)


def test_warmup_climbs_in_equal_stairs_and_wastes_no_step() -> None:
    assert rates(10, 4, lr_scheduler="linear")[:5] == pytest.approx([PEAK / 4, PEAK / 2, PEAK * 3 / 4, PEAK, PEAK])
    assert rates(10, 0)[0] == PEAK


def test_the_last_step_still_learns() -> None:
    assert all(rates(20, 2, lr_scheduler=name)[-1] > 0 for name in ("cosine", "linear", "constant", "cosine_with_restarts"))


def test_matrices_decay_and_vectors_do_not() -> None:
    model = tiny_model()
    optimizer = make_optimizer(trained_of(model), Training(weight_decay=0.5, learning_rate=0.1))
    decay = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    assert {name.rpartition("proj")[1] or name: decay[parameter] for name, parameter in model.model.layers[0].named_parameters()} == {
        "proj": 0.5,
        "self_attn.q_norm.weight": 0.0,
        "self_attn.k_norm.weight": 0.0,
        "input_layernorm.weight": 0.0,
        "post_attention_layernorm.weight": 0.0,
    }
