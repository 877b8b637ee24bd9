"""Learning rates and weight decay."""

import pytest
import torch
from transformers import get_scheduler

from luthier.model.place import trained_of
from luthier.plan.steps import Steps
from luthier.recipe.schema import Training
from luthier.train.optim import make_optimizer, put_back, rate_at, tensors_of
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


def trained(optimizer: str, steps: int = 6) -> torch.Tensor:
    """Weights of a matrix large enough for 8 bits, after some steps against a gradient that grows along it."""
    layer = torch.nn.Linear(128, 64, bias=False)
    torch.nn.init.zeros_(layer.weight)
    made = make_optimizer(trained_of(layer), Training(optimizer=optimizer, learning_rate=0.01, weight_decay=0.1))  # type: ignore[arg-type]
    for step in range(steps):
        layer.weight.grad = torch.linspace(-1, 1, 64 * 128).view(64, 128) * (1 + 0.1 * step)
        made.step()
    return layer.weight.detach()


def test_in_8_bits_the_updates_are_adamws_to_a_few_percent() -> None:
    exact, rounded = trained("adamw"), trained("adamw_8bit")
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).norm() < 0.03 * exact.norm()


def test_its_state_takes_two_bytes_a_number_and_constants_and_small_tensors_keep_float32() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(128, 64, bias=False), torch.nn.Linear(16, 16, bias=False)])
    optimizer = make_optimizer(trained_of(model), Training(optimizer="adamw_8bit"))
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    sizes = [
        sum(tensor.nbytes for name, tensor in tensors_of(optimizer.state[weight]).items() if name != "step")
        for weight in model.parameters()
    ]
    assert sizes == [8192 * 2 + 2 * 4 * 8192 // 256, 2 * 4 * 256]


@pytest.mark.gpu
def test_a_paged_optimizer_steps_and_goes_on_on_a_gpu() -> None:
    layer = torch.nn.Linear(1024, 1024, bias=False, device="cuda")
    training = Training(optimizer="paged_adamw_8bit", learning_rate=1e-3)
    optimizer = make_optimizer(trained_of(layer), training)
    layer.weight.grad = torch.randn_like(layer.weight)
    optimizer.step()
    saved = {name: tensor.cpu().clone() for name, tensor in tensors_of(optimizer.state[layer.weight]).items()}
    again = make_optimizer(trained_of(layer), training)
    put_back(again, [saved])
    assert again.state[layer.weight]["state1"].is_paged
    before = layer.weight.detach().clone()
    optimizer.step()
    first = layer.weight.detach().clone()
    layer.weight.data.copy_(before)
    again.step()
    assert torch.equal(layer.weight, first)
