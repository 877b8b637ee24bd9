"""The ledger against numbers worked by hand, and what moves each of its lines."""

from dataclasses import replace
from typing import Any

import pytest

from luthier.plan.memory import Line, Memory, ledger
from luthier.plan.setup import Layout, Setup
from luthier.plan.shape import ModelShape, known_config, shape_of
from luthier.plan.weights import quantized_bytes
from luthier.recipe.schema import Lora
from luthier.runs.workload import Extent, MicroBatchSize, Survey

GB = 1e9


def shape(hub_id: str) -> ModelShape:
    config = known_config(hub_id)
    assert config is not None
    return shape_of(config)


QWEN_7B = shape("Qwen/Qwen2.5-7B-Instruct")
CODER_30B = shape("Qwen/Qwen3-Coder-30B-A3B-Instruct")
SMALL = shape("Qwen/Qwen3-0.6B")


def setup(**changed: Any) -> Setup:
    given = Setup(
        device="cuda",
        dtype="bfloat16",
        quantization="none",
        double_quant=True,
        lora=Lora(r=16),
        optimizer="adamw",
        engine="packed",
        chunked_head=True,
        micro_batch=MicroBatchSize(rows=4, tokens=4096, packing="bins"),
        checkpoint_activations=False,
    )
    return replace(given, **changed)


def extent(rows: int = 4, length: int = 1024, supervised: float = 0.5) -> Extent:
    places = rows * length
    targets = round(places * supervised)
    pairs = rows * length * (length + 1) // 2
    return Extent(rows=rows, tokens=places, supervised=targets, places=places, needed=targets, targets=targets, pairs=pairs, longest=length)


def survey(one: Extent, *, micro_batches: int = 1) -> Survey:
    return Survey(steps=((one,) * micro_batches,), heaviest=(one,), validation=(one,))


def memory(model: ModelShape = SMALL, one: Extent | None = None, *, micro_batches: int = 1, **changed: Any) -> Memory:
    return ledger(model, setup(**changed), survey(one or extent(), micro_batches=micro_batches), 80 * 10**9)


def weights(found: Memory) -> float:
    return found.bytes_of("weights") / GB


def line(found: Memory, name: str) -> Line:
    (only,) = (item for item in found.lines if item.name == name)
    return only


def test_qwen_7b_takes_30_gb_in_float32_and_15_in_bfloat16() -> None:  # seed 004
    assert weights(memory(QWEN_7B, dtype="float32")) == pytest.approx(30.5, abs=0.1)
    assert weights(memory(QWEN_7B)) == pytest.approx(15.2, abs=0.1)


def test_a_30b_mixture_takes_61_gb_and_half_of_its_matrices_on_each_of_two_devices() -> None:  # seed 001 said 70
    whole, half = memory(CODER_30B), memory(CODER_30B, layout=Layout(tensor=2))
    assert weights(whole) == pytest.approx(61.1, abs=0.1)
    assert line(half, "matrices").bytes == line(whole, "matrices").bytes / 2
    assert line(half, "embedding and head").bytes == line(whole, "embedding and head").bytes == 2 * 151_936 * 2_048 * 2
    assert weights(half) == pytest.approx(31.2, abs=0.1)


def test_a_rank_of_tensor_parallelism_trains_half_of_an_adapter_and_more() -> None:
    """r 16 on Qwen2.5-7B, 28 layers: A of q, k, v, gate and up, B of o and down are whole on both ranks."""
    whole, half = (memory(QWEN_7B, layout=Layout(tensor=tensor)) for tensor in (1, 2))
    kept = 28 * 16 * (5 * 3_584 + 2 * 3_584)
    assert line(whole, "adapter").bytes == 4 * 40_370_176
    assert line(half, "adapter").bytes == 4 * (40_370_176 - kept) // 2 + 4 * kept


def test_a_shared_expert_that_has_no_plan_is_whole_on_every_rank() -> None:
    found = memory(shape_of({"model_type": "qwen2_moe"}), layout=Layout(tensor=2))
    assert line(found, "matrices, not divided").bytes == 2 * 24 * (3 * 2_048 * 5_632 + 2_048)


def test_fused_experts_are_quantised_with_the_rest() -> None:  # bitsandbytes alone would leave 59.7 GB (trap 20)
    assert weights(memory(CODER_30B, quantization="nf4")) == pytest.approx(16.6, abs=0.3)  # seed 001's recipe has 4 bits: about 17 GB


def test_nf4_of_a_dense_7b_takes_5_5_gb_with_embedding_and_head_in_bfloat16() -> None:
    # 6.53 G × 0.5159 B = 3.37 GB; 2 × 152,064 × 3,584 × 2 B = 2.18 GB
    assert weights(memory(QWEN_7B, quantization="nf4")) == pytest.approx(5.55, abs=0.03)


@pytest.mark.parametrize(
    ("kind", "double", "size"),
    [
        ("nf4", False, 4096 * 4096 // 2 + 4 * 4096 * 4096 // 64),
        ("fp4", True, 4096 * 4096 // 2 + 4096 * 4096 // 64 + 4 * 4096 * 4096 // 64 // 256 + 4 + 12),  # 12 fill the last place of 16
        ("int8", False, 4096 * 4096 + 4 * 4096),
    ],
)
def test_a_matrix_has_the_bytes_of_its_codes_and_constants(kind: Any, double: bool, size: int) -> None:
    assert quantized_bytes(kind, double, 4096, 4096) == size


def test_the_lines_add_up_to_the_peak_and_the_peak_is_the_worst_instant_not_the_sum() -> None:
    found = memory()
    assert sum(item.bytes for item in found.lines) == found.peak_bytes == max(found.instants.values())
    assert len(found.instants) > 5
    assert found.peak_bytes < sum(found.instants.values())
    assert all(item.formula and item.bytes for item in found.lines)


def test_one_extent_is_the_peak_of_one_wide_head_another_of_long_rows() -> None:
    short = memory(one=extent(rows=1, length=64, supervised=1.0))
    long = memory(one=extent(supervised=0.02), checkpoint_activations=True)
    assert "loss" in short.peak_at
    assert "MLP" in long.peak_at


def test_a_larger_rank_means_a_larger_adapter_gradients_and_optimizer() -> None:
    low, high = memory(micro_batches=2), memory(micro_batches=2, lora=Lora(r=64))
    for kind in ("adapters", "gradients", "optimizer"):
        assert high.bytes_of(kind) == 4 * low.bytes_of(kind)  # type: ignore[arg-type]  # a name of a kind
    assert low.bytes_of("optimizer") == 2 * low.bytes_of("adapters")  # two float32 moments for each float32 number


def test_activations_are_proportional_to_the_tokens_of_the_micro_batch() -> None:
    kept, twice = (line(memory(one=extent(rows=rows)), "activations of layers").bytes for rows in (2, 4))
    assert twice == 2 * kept


def test_checkpointing_keeps_inputs_and_computes_one_layer_again() -> None:
    whole, recomputed = memory(), memory(checkpoint_activations=True)
    assert line(recomputed, "inputs of layers").bytes == 28 * 4096 * 1024 * 2  # layers × tokens × hidden × bfloat16
    assert recomputed.bytes_of("activations") < whole.bytes_of("activations") / 5


def test_eight_bit_adamw_spares_six_of_eight_bytes_of_large_tensors_only() -> None:
    full, eight = (
        memory(QWEN_7B, lora="none", chunked_head=False, optimizer=name).bytes_of("optimizer") for name in ("adamw", "adamw_8bit")
    )
    assert eight / full == pytest.approx((2 + 8 / 256) / 8, rel=0.01)
    small = Lora(r=1, target_modules=("q_proj",))  # 1,024 and 2,048 numbers: below 4,096
    assert memory(lora=small, optimizer="adamw_8bit").bytes_of("optimizer") == memory(lora=small).bytes_of("optimizer")


def test_zero2_divides_gradients_and_optimizer_and_zero3_the_weights_too() -> None:
    alone, two, three = (
        memory(QWEN_7B, micro_batches=2, layout=Layout(data=8, shard=shard))  # type: ignore[arg-type]  # a name of a kind
        for shard in ("none", "zero2", "zero3")
    )
    assert two.bytes_of("optimizer") == pytest.approx(alone.bytes_of("optimizer") / 8, abs=8)
    assert two.bytes_of("gradients") == pytest.approx(alone.bytes_of("gradients") / 8, abs=8)
    assert weights(two) == weights(alone)
    assert weights(three) == pytest.approx(weights(alone) / 8, rel=0.01)
    assert line(three, "gathered weights").bytes > 0


def test_tensor_divides_what_stands_inside_a_layer_and_pipeline_the_layers() -> None:
    alone, split = (memory(QWEN_7B, layout=Layout(tensor=number)) for number in (1, 4))
    assert 1 / 4 < split.bytes_of("activations") / alone.bytes_of("activations") < 1  # the hidden states are whole on each
    piped = memory(QWEN_7B, layout=Layout(pipeline=4))
    assert weights(piped) == pytest.approx((6.53 / 4 + 0.545) * 2, rel=0.02)  # a quarter of the layers, and one table
    assert "4 micro batches" in line(piped, "activations of layers").formula


def test_full_fine_tuning_in_bfloat16_has_float32_weights_their_copies_and_16_bytes_a_number() -> None:
    found = memory(lora="none", chunked_head=False, micro_batches=2)
    numbers = SMALL.parameters
    assert found.bytes_of("weights") == 4 * numbers
    assert found.bytes_of("gradients") == 4 * numbers
    assert found.bytes_of("optimizer") == 8 * numbers
    assert line(found, "autocast's copies").bytes == 2 * (SMALL.multiplied_parameters + SMALL.embedding_parameters)


def test_a_head_in_chunks_never_holds_all_logits() -> None:
    whole, chunks = (memory(one=extent(supervised=1.0), chunked_head=chunked) for chunked in (False, True))
    assert line(whole, "logits, their softmax, its gradient").bytes == 4096 * 151_936 * 12
    assert line(chunks, "chunks of logits").bytes <= 2 * (64 << 20)


def test_a_trained_heads_gradient_comes_when_two_of_three_logits_are_gone() -> None:
    whole: dict[str, Any] = {"device": "cpu", "allocator": "luthier", "dtype": "float32", "lora": "none", "chunked_head": False}
    few, many = (memory(one=extent(supervised=share), **whole) for share in (0.05, 1.0))
    gradient = SMALL.vocabulary * SMALL.hidden * 4
    for found, num_targets in ((few, 205), (many, 4096)):
        a_logit = num_targets * SMALL.vocabulary * 4
        assert found.instants["the head's gradient"] - found.instants["the loss's gradient"] == gradient - 2 * a_logit


def test_few_tokens_computed_again_have_their_peak_where_the_backward_pass_ends() -> None:
    found = memory(one=extent(rows=1, length=64), lora=Lora(r=256), checkpoint_activations=True)
    assert found.peak_at == "an MLP's backward, in the first layer"
    assert line(found, "gradients").bytes == line(found, "adapter").bytes > line(found, "inputs of layers").bytes
    assert line(found, "inputs of layers").formula.startswith("1 layer × 64 tokens")
    many = memory(one=extent(rows=64, length=1024), lora=Lora(r=8), checkpoint_activations=True)
    assert "in the first layer" not in many.peak_at


def test_in_bfloat16_a_heads_gradient_is_cast_beside_itself() -> None:
    given: dict[str, Any] = {"device": "cpu", "allocator": "luthier", "lora": "none", "chunked_head": False}
    found = memory(one=extent(rows=1, length=64), **given)
    logits = 32 * SMALL.vocabulary * 4
    assert found.instants["the head's gradient"] - found.instants["the loss's gradient"] == 6 * SMALL.vocabulary * SMALL.hidden - 3 * logits


def test_a_steps_largest_micro_batch_may_be_followed_by_one_nearly_as_large_beside_gradients() -> None:
    large, less = extent(length=1024), extent(length=1020)
    given = Survey(steps=((extent(rows=1), extent(rows=1)),), heaviest=(large,), heaviest_later=(less,), validation=())
    found, without = (ledger(SMALL, setup(), each, 80 * 10**9) for each in (given, replace(given, heaviest_later=(extent(rows=1),))))
    assert line(found, "gradients").bytes and line(found, "activations of layers").formula.startswith("28 layers × 4,080 tokens")
    assert line(without, "activations of layers").formula.startswith("28 layers × 4,096 tokens")


def test_an_engine_is_tried_on_three_rows_whose_logits_are_there_alone_and_in_two_packs() -> None:
    packed, plain = memory(engine="packed"), memory(engine="plain")
    logits = (3 * (24 + 23 + 22) + (23 + 22)) * SMALL.vocabulary * 2 + (23 + 22) * SMALL.vocabulary * 4
    assert packed.instants["trying the engine"] - plain.instants["trying the engine"] == pytest.approx(logits, rel=0.01)
    assert packed.instants["trying the engine"] < packed.peak_bytes


def test_rows_of_many_lengths_compile_products_of_their_own() -> None:
    alike, unlike = (Survey(steps=(of,), heaviest=of[:1], validation=of[:1]) for of in ((extent(),) * 2, (extent(), extent(length=500))))
    for engine, fixed, products, attention in (("packed", 20, (27, 64), (0, 0)), ("plain", 30, (32, 60), (1024, 1524))):
        given = setup(device="cpu", engine=engine, allocator="luthier")
        found = [line(ledger(SMALL, given, each, 80 * 10**9), "libraries").bytes for each in (alike, unlike)]
        assert found == [fixed * 10**6 + 700_000 * shapes + 2_000 * tokens for shapes, tokens in zip(products, attention, strict=True)]


def test_mkl_copies_a_panel_of_the_head() -> None:
    one_dnn, mkl = (memory(device="cpu", dtype="float32", allocator="luthier", float32_by=name) for name in ("oneDNN", "MKL"))
    assert mkl.peak_at == one_dnn.peak_at == "loss"
    assert line(mkl, "MKL's workspace").bytes == 4 * (19_968 * 384 + 2**20) - 8_000_000
    assert "MKL's workspace" not in {item.name for item in one_dnn.lines}


def test_our_own_allocator_has_no_holes_others_have_and_a_gpu_has_another() -> None:
    own, jemalloc, glibc = (memory(device="cpu", allocator=name) for name in ("luthier", "jemalloc", "glibc"))
    assert "allocator" not in {item.name for item in own.lines}
    assert line(jemalloc, "allocator").formula.startswith("jemalloc: 20% of ")
    assert line(glibc, "allocator").formula.startswith("glibc: 30% of ")
    assert own.lines == glibc.lines[:-1]
    assert memory(allocator="luthier") == memory(allocator="glibc")


def test_float32_that_mkl_multiplies_has_no_compiled_products() -> None:
    one_dnn, mkl = (
        memory(device="cpu", dtype="float32", engine="fused", allocator="luthier", float32_by=name) for name in ("oneDNN", "MKL")
    )
    assert line(one_dnn, "libraries").formula.endswith("shapes of products × 0.7 MB")
    assert line(mkl, "libraries").formula.startswith("25 MB with MKL")
    assert mkl.peak_bytes < one_dnn.peak_bytes
    kinds = [memory(device="cpu", allocator="luthier", float32_by=name) for name in ("oneDNN", "MKL")]
    assert kinds[0] == kinds[1]  # bfloat16 is oneDNN's on every processor


def test_it_fits_where_the_device_has_the_peak() -> None:
    found = memory()
    assert replace(found, device_bytes=found.peak_bytes).fits
    assert not replace(found, device_bytes=found.peak_bytes - 1).fits
