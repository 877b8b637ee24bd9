"""Advice fits the size, the data and the device, and names the other source where that says otherwise."""

import math

import pytest

from luthier.core.finding import Change
from luthier.plan.advice import Advice, DataSize, advise, learning_rate_range
from luthier.plan.hardware import Device, device_of
from luthier.recipe import fields
from luthier.recipe.override import key_of
from luthier.recipe.schema import Lora

L4, _ = device_of("L4")
SWEPT = Lora(r=16, alpha=32)
SIZES = (600_000_000, 1_700_000_000, 4_000_000_000, 7_600_000_000, 30_500_000_000, 70_000_000_000)


def advice(parameters: int = 1_700_000_000, rows: int = 13_482, *, dialogue: bool = False, device: Device = L4) -> dict[str, Advice]:
    return {said.path: said for said in advise(parameters, DataSize(rows=rows, dialogue=dialogue), device)}


@pytest.mark.parametrize(
    ("parameters", "best"), [(1_235_814_400, 1e-3), (4_022_468_096, 1e-3), (8_030_261_248, 3e-4), (70_553_706_496, 3e-4)]
)
def test_at_the_sweeps_alpha_and_batch_the_rate_is_the_sweeps_best_for_the_size(parameters: int, best: float) -> None:
    rates = learning_rate_range(parameters, SWEPT, 128)
    assert rates.best == best and rates.low <= best <= rates.high and rates.swept
    assert "sft_sweep" in rates.source


def test_alpha_times_rate_is_what_counts_whatever_the_rank() -> None:
    swept = learning_rate_range(4_000_000_000, SWEPT, 128)
    for rank in (4, 64):
        assert learning_rate_range(4_000_000_000, Lora(r=rank, alpha=32), 128) == swept
    four_times = learning_rate_range(4_000_000_000, Lora(r=64, alpha=128), 128)
    assert math.isclose(four_times.best * 4, swept.best) and math.isclose(four_times.high * 4, swept.high)
    stabilised = learning_rate_range(4_000_000_000, Lora(r=64, alpha=16, use_rslora=True), 128)
    assert math.isclose(stabilised.best, four_times.best)  # 16·√64 = 128


def test_fewer_rows_a_step_want_a_lower_rate_by_the_root_but_no_lower_ceiling() -> None:
    swept, fewer = (learning_rate_range(8_000_000_000, SWEPT, batch) for batch in (128, 32))
    assert (fewer.low * 2, fewer.best * 2, fewer.high) == (swept.low, swept.best, swept.high)
    assert learning_rate_range(8_000_000_000, SWEPT, 1024) == swept


def test_full_fine_tuning_wants_a_tenth_of_loras_rate() -> None:
    assert math.isclose(learning_rate_range(8_000_000_000, "none", 128).best * 10, learning_rate_range(8_000_000_000, SWEPT, 128).best)


def test_the_seeds_rates_lie_in_the_range_but_for_the_one_that_belongs_to_full_fine_tuning() -> None:
    """Seeds 000, 002, 003 twice, 004; and 001, whose 5e-6 is a twentieth of the lowest rate that the sweep found good."""
    seeds = [
        (1e-4, 4_022_468_096, Lora(r=64, alpha=128), 80),
        (2e-4, 3_212_749_824, Lora(r=32, alpha=32), 16),
        (3e-4, 596_049_920, SWEPT, 8),
        (2e-4, 1_720_574_976, SWEPT, 16),
        (2e-4, 7_615_616_512, Lora(r=8, alpha=32), 16),
    ]
    for rate, parameters, lora, batch in seeds:
        rates = learning_rate_range(parameters, lora, batch)
        assert rates.low <= rate <= rates.high
    assert math.isclose(learning_rate_range(30_532_122_624, SWEPT, 128).low, 20 * 5e-6)


def test_a_size_that_nobody_swept_is_called_so() -> None:
    rates = learning_rate_range(2_200_000, SWEPT, 8)
    assert not rates.swept and rates.low <= 3e-3 <= rates.high


@pytest.mark.parametrize("parameters", SIZES)
@pytest.mark.parametrize("rows", [20, 238, 13_482])
def test_every_advice_is_a_value_of_the_recipe_with_reason_and_source(parameters: int, rows: int) -> None:
    given = advice(parameters, rows)
    assert set(given) > {"lora.r", "lora.alpha", "training.learning_rate", "training.epochs", "training.global_batch_size"}
    for said in given.values():
        assert fields.at(key_of(said.path)) is not None
        assert said.why and said.source and said.comment == f"{said.why} ({said.source})"
        assert Change(path=said.path, value=said.value, why=said.why).value == said.value


def test_where_guide_and_sweep_disagree_both_are_named() -> None:
    rate = advice(1_700_000_000)["training.learning_rate"]
    assert rate.value == 3.5e-4  # 1e-3 · √(16/128)
    assert "field guide says 2e-4" in rate.why and "sweep" in rate.why
    alpha = advice(7_600_000_000)["lora.alpha"]
    assert alpha.value == 32 and "2 × rank, here 64" in alpha.why
    assert "field guide" not in advice(1_700_000_000)["lora.r"].why  # 16 is in its 16–32
    assert advice(1_700_000_000)["lora.dropout"].why.endswith("the Qwen3 field guide says 0.1")
    assert advice(600_000_000)["training.epochs"].why.endswith("the Qwen3 field guide says 5–8")


def test_few_rows_make_smaller_steps_and_more_epochs_until_there_are_a_hundred_steps() -> None:
    few = advice(7_600_000_000, 238)
    assert (few["training.global_batch_size"].value, few["training.epochs"].value) == (8, 4)  # ⌈238/8⌉ · 4 = 120
    assert few["training.global_batch_size"].why.startswith("120 steps")
    many = advice(7_600_000_000, 13_482)
    assert (many["training.global_batch_size"].value, many["training.epochs"].value) == (16, 3)
    assert advice(7_600_000_000, 20)["training.epochs"].value == 5  # the guide's most


def test_dialogue_is_seen_fewer_times() -> None:
    assert advice(rows=13_482, dialogue=True)["training.epochs"].value == 2
    assert advice(rows=238, dialogue=True)["training.epochs"].value == 3


def test_four_bits_are_advised_only_where_bf16_leaves_too_little() -> None:
    assert "model.quantization" not in advice(3_200_000_000)
    needed = advice(7_600_000_000)["model.quantization"]
    assert needed.value == "nf4"
    assert needed.why == "weights take 15 GB in bf16, 4 GB in 4 bits; L4 has 24 GB"
    assert "model.quantization" not in advice(7_600_000_000, device=device_of("H200")[0])
