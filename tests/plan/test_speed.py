"""Operations are those that torch counts in a real step; time and money follow from them, and from what the users' notes measured."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from luthier.core.errors import PlanRefused
from luthier.model.adapt import base_of
from luthier.model.fuse import fuse
from luthier.plan.hardware import table
from luthier.plan.rate import assumed_rate
from luthier.plan.setup import Engine, Layout, Setup
from luthier.plan.shape import ModelShape, known_config, shape_of
from luthier.plan.speed import (
    Range,
    Rate,
    cost,
    estimate,
    layout_efficiency,
    operations,
    operations_per_step,
    save_seconds,
    stages,
    steps_saved,
    validation_operations,
)
from luthier.plan.steps import Steps
from luthier.recipe.schema import Lora
from luthier.runs.workload import Extent, MicroBatchSize, Survey
from luthier.train.batch import MicroBatch
from luthier.train.objective import nll_sum
from tests.data.test_survey import extent_of
from tests.model.zoo import adapted, in_packs, row, tiny

LORA = Lora(r=4, alpha=8)
SETUP = Setup(
    device="cpu",
    dtype="float32",
    quantization="none",
    double_quant=False,
    lora=LORA,
    optimizer="adamw",
    engine="fused",
    chunked_head=True,
    micro_batch=MicroBatchSize(rows=8, tokens=10**6, packing="tree"),
    checkpoint_activations=False,
)
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "head_dim": 16}
PROMPT, TURN = [1] * 160, [2] * 64
ROWS = [(PROMPT, 0), (PROMPT + TURN, 160), (PROMPT + TURN + [3] * 64, 224), (PROMPT + TURN + [4] * 32, 224), ([5] * 96, 48)]
"""Ids, and after which place they are supervised: 1,024 tokens that are 416 in a tree."""
QWEN = known_config("Qwen/Qwen2.5-7B-Instruct")
EXTENT = Extent(rows=1, tokens=1000, supervised=400, places=1000, needed=400, targets=400, pairs=500_500, longest=1000)
ONE_STEP = Survey(steps=((EXTENT,),), heaviest=(EXTENT,), validation=())
TERA = Rate(flops=Range(low=0.5e12, mid=1e12, high=2e12), source="a test")


def steps(total: int, saves: tuple[int, ...] = (), evaluations: tuple[int, ...] = ()) -> Steps:
    return Steps(rows=1000, global_batch_size=16, per_epoch=63, total=total, warmup=0, saves=saves, evaluations=evaluations)


def shape(hub_id: str) -> ModelShape:
    config = known_config(hub_id)
    assert config
    return shape_of(config)


def seven_b() -> ModelShape:
    return shape("Qwen/Qwen2.5-7B-Instruct")


def one_batch(packing: str) -> MicroBatch:
    (batch,) = in_packs([row(ids, lambda index, first=first: index > first and index % 4 == 0) for ids, first in ROWS[:4]], packing, 10**6)
    return batch


def products_counted(model: nn.Module, batch: MicroBatch) -> int:
    """By torch, without attention's, which are products of stacks of matrices."""
    added = (torch.ops.aten.addmm_, torch.ops.aten.baddbmm_)  # in place, which torch's counter does not know
    in_place = {name: lambda _, left, right, **rest: 2 * left.numel() * right[-1] for name in added}
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        nll_sum(model, batch).backward()  # type: ignore[no-untyped-call]
    counted = counter.get_flop_counts()["Global"]
    return sum(number for operation, number in counted.items() if "bmm" not in str(operation) and "attention" not in str(operation))


def of_model(base: PreTrainedModel) -> ModelShape:
    return shape_of(base.config.to_dict())


def without_attention(shape: ModelShape) -> ModelShape:
    return replace(shape, full_attention_layers=0, sliding_layers=0)


def model_and_setup(engine: Engine, *, lora: bool, checkpointing: bool = False) -> tuple[PreTrainedModel | PeftModel, Setup]:
    base = tiny("qwen3", **SIZES)
    if checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    model = adapted(base).train() if lora else base.train()
    fusion = fuse(model, pack=engine != "plain", longest=300)
    assert (fusion.num_layers > 0) == (engine == "fused")
    setup = replace(SETUP, engine=engine, lora=LORA if lora else "none", chunked_head=lora, checkpoint_activations=checkpointing)
    return model, setup


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("engine", "packing", "lora"), [("fused", "tree", True), ("plain", "off", True), ("packed", "bins", False)])
def test_operations_are_those_that_torch_counts(engine: Engine, packing: str, lora: bool, checkpointing: bool) -> None:
    model, setup = model_and_setup(engine, lora=lora, checkpointing=checkpointing)
    batch = one_batch(packing)
    expected = operations(without_attention(of_model(base_of(model))), setup, extent_of(batch))
    counted = products_counted(model, batch)
    if checkpointing and engine != "fused":  # torch stops recomputing a layer before the last product, whose output nobody keeps
        assert 0.9 * expected < counted < expected
    else:
        assert counted == pytest.approx(expected, rel=1e-9)


def test_lora_costs_4n_and_full_training_6n() -> None:
    """Less for LoRA: into the first of 28 layers no gradient goes. r 16 adds 6 operations for each of 40 M numbers."""
    body, plain = replace(EXTENT, needed=0, targets=0, pairs=0), replace(SETUP, engine="plain", lora=Lora(r=16, alpha=32))
    per_token_n = 1000 * 6.53e9
    assert operations(seven_b(), plain, body) == pytest.approx(4 * per_token_n + 6 * 1000 * 40.4e6, rel=0.003)
    assert operations(seven_b(), replace(plain, lora="none"), body) == pytest.approx(6 * per_token_n, rel=0.001)
    assert validation_operations(seven_b(), replace(plain, lora="none"), body) == pytest.approx(2 * per_token_n, rel=0.001)


def test_a_pair_costs_14_operations_for_each_number_of_a_query() -> None:
    more = replace(EXTENT, pairs=EXTENT.pairs + 1000)
    assert operations(seven_b(), SETUP, more) - operations(seven_b(), SETUP, EXTENT) == pytest.approx(14 * 1000 * 28 * 128 * 28, rel=1e-6)


def test_a_sliding_window_limits_what_is_seen() -> None:
    gemma = shape("google/gemma-3-4b-it")
    assert gemma.window == 1024
    long = replace(EXTENT, places=8000, pairs=8000 * 8001 // 2, longest=8000)
    all_full = replace(gemma, full_attention_layers=gemma.num_layers, sliding_layers=0)
    saved = operations(all_full, SETUP, long) - operations(gemma, SETUP, long)
    assert saved == pytest.approx(14 * gemma.sliding_layers * gemma.query_width * (long.pairs - 8000 * 1024), rel=1e-6)


def test_a_mixture_multiplies_a_token_with_its_experts_only() -> None:
    """Qwen3-30B-A3B: 30.5 G parameters, 3.35 G of them for a token, 0.31 G of which are its embedding."""
    mixture = shape("Qwen/Qwen3-30B-A3B-Instruct-2507")
    body = replace(EXTENT, needed=0, targets=0, pairs=0)
    per_token = validation_operations(mixture, replace(SETUP, engine="plain", lora="none"), body) / 1000
    assert per_token == pytest.approx(2 * (3.35e9 - 2 * 0.311e9), rel=0.01)


def test_the_head_is_computed_for_each_target_or_where_it_is_not_chunked_for_each_place_that_has_one() -> None:
    twice = replace(EXTENT, targets=500)  # some places predict two targets: a fork of a tree
    vocabulary = 2 * 2 * 3584 * 152_064
    assert operations(seven_b(), SETUP, twice) - operations(seven_b(), SETUP, EXTENT) == pytest.approx(100 * vocabulary)
    whole = replace(SETUP, chunked_head=False)
    assert operations(seven_b(), whole, twice) == operations(seven_b(), whole, EXTENT)


def test_low_mid_and_high_are_those_of_the_rate() -> None:
    time = estimate(seven_b(), SETUP, ONE_STEP, steps(100), TERA)
    assert time.step == pytest.approx(operations_per_step(seven_b(), SETUP, ONE_STEP) / 1e12)
    assert time.total.mid == pytest.approx(100 * time.step)
    assert (time.total.low, time.total.high) == (pytest.approx(time.total.mid / 2), pytest.approx(time.total.mid * 2))


def test_validations_and_saves_take_their_time() -> None:
    survey = replace(ONE_STEP, validation=(EXTENT,), validation_share=0.5)
    time = estimate(seven_b(), SETUP, survey, steps(100, saves=(50, 100), evaluations=(100,)), TERA)
    assert time.validation == pytest.approx(2 * validation_operations(seven_b(), SETUP, EXTENT) / 1e12)
    assert time.saves == 2 * save_seconds(seven_b(), SETUP)
    assert time.total.mid == pytest.approx(100 * time.step + time.validation + time.saves)


def test_a_validation_may_find_a_new_best_and_save_it() -> None:
    assert steps_saved(steps(100, saves=(60, 100), evaluations=(50, 100))) == (50, 60, 100)


def test_a_pipeline_idles_and_tensors_that_are_divided_wait() -> None:
    assert layout_efficiency(Layout(), 8) == 1
    assert layout_efficiency(Layout(pipeline=2), 8) == pytest.approx(8 / 9)
    assert layout_efficiency(Layout(pipeline=2), 1) == 0.5  # seed 000's 35B: one of two GPUs waits for the other
    assert layout_efficiency(Layout(tensor=2), 8) == 0.907
    assert layout_efficiency(Layout(data=2, shard="zero3"), 8) < layout_efficiency(Layout(data=2), 8) < 1


def test_stages_have_as_much_to_do_with_the_head_and_all_layers() -> None:
    """Qwen3-0.6B's head does as much for 40 % of the tokens as four of its 28 layers; Qwen2.5-7B's not quite as one."""
    small = known_config("Qwen/Qwen3-0.6B")
    assert small
    for shape, counts in ((shape_of(small), {2: (16, 12), 4: (8, 8, 8, 4)}), (seven_b(), {2: (14, 14), 4: (7, 7, 7, 7)})):
        for depth, layers in counts.items():
            found = stages(shape, replace(SETUP, layout=Layout(pipeline=depth)), ONE_STEP)
            assert tuple(stage.layers for stage in found) == layers
            assert [stage.start for stage in found] == [sum(layers[:index]) for index in range(depth)]
            assert [stage.in_flight for stage in found] == list(range(depth, 0, -1))
            assert [(stage.first, stage.last) for stage in (found[0], found[-1])] == [(True, False), (False, True)]


def test_neither_packing_nor_engine_move_a_layer() -> None:
    piped = replace(SETUP, layout=Layout(pipeline=3))
    packed = Survey(steps=((replace(EXTENT, places=700, needed=380, targets=390),),), heaviest=(EXTENT,), validation=())
    assert stages(seven_b(), piped, packed) == stages(seven_b(), replace(piped, engine="plain"), ONE_STEP)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(PlanRefused, match="28 layers cannot be divided among 29 stages"):
        stages(seven_b(), replace(SETUP, layout=Layout(pipeline=29)), ONE_STEP)


def test_unequal_stages_wait_for_the_one_that_has_most_to_do() -> None:
    piped = replace(SETUP, layout=Layout(pipeline=2))
    alone, two = (estimate(seven_b(), setup, ONE_STEP, steps(100), TERA).step for setup in (SETUP, piped))
    assert two == pytest.approx(alone, rel=0.05)  # one micro batch: they take turns
    assert two > alone


def test_879_steps_of_21_seconds_are_5_hours_and_cost_what_two_devices_cost() -> None:
    """Seed 000 says 7 hours."""
    rate = Rate(flops=Range(low=1, mid=1, high=1).times(operations_per_step(seven_b(), SETUP, ONE_STEP) / 21), source="measured")
    time = estimate(seven_b(), SETUP, ONE_STEP, steps(879), rate)
    assert time.total.mid / 3600 == pytest.approx(5.13, abs=0.01)
    assert cost(time, Layout(data=2), 0.91).mid == pytest.approx(5.1275 * 2 * 0.91)


def seed_000() -> tuple[ModelShape, Setup, Survey]:
    """4B in 8 bits, r 64 on all matrices, 8 micro batches of 5 rows of 1,730 tokens on each of two RTX 5090: 21 s a step, measured."""
    rows = Extent(rows=5, tokens=8650, supervised=3460, places=8650, needed=3460, targets=3460, pairs=5 * 1730 * 1731 // 2, longest=1730)
    setup = replace(
        SETUP,
        device="cuda",
        dtype="bfloat16",
        quantization="int8",
        lora=Lora(r=64, alpha=128),
        engine="plain",
        checkpoint_activations=True,
        layout=Layout(data=2),
    )
    return shape("Qwen/Qwen3-4B-Thinking-2507"), setup, Survey(steps=((rows,) * 8,), heaviest=(rows,), validation=())


def test_the_step_that_seed_000_measured_lies_in_the_range() -> None:
    model, setup, survey = seed_000()
    time = estimate(model, setup, survey, steps(1), assumed_rate(table()["RTX-5090"], 1, model, setup))
    assert time.total.low < 21 < time.total.high
