"""What the formulas say is kept, against what autograd keeps: every engine, type and kind of training, on tiny models."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from luthier.data.pack import bins
from luthier.data.store import TokenRow
from luthier.model.adapt import add_lora
from luthier.model.dropout import draw
from luthier.model.fuse import fuse
from luthier.plan.activations import PerToken, chunk_rows, kept_after, kept_before, layer_input, layer_of, score_blocks
from luthier.plan.setup import Dtype, Engine, Setup
from luthier.plan.shape import ModelShape, shape_of
from luthier.recipe.schema import Lora
from luthier.runs.workload import Extent, MicroBatchSize
from luthier.train.batch import MicroBatch, collate, of_pack
from luthier.train.objective import nll_sum
from luthier.train.precision import Precision
from tests.train.workshop import tiny_model

CPU = torch.device("cpu")
WIDE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
}
LENGTHS = (192, 160, 160)


def rows(lengths: Sequence[int]) -> list[TokenRow]:
    random = np.random.default_rng(3)
    found = []
    for length in lengths:
        supervised = np.arange(length) >= length // 2
        found.append(TokenRow(ids=random.integers(0, 96, length).astype(np.int32), supervised=supervised))
    return found


def setup_for(engine: Engine, lora: Lora | None, dtype: Dtype, *, checkpoint: bool = False) -> Setup:
    return Setup(
        device="cpu",
        dtype=dtype,
        quantization="none",
        double_quant=False,
        lora=lora or "none",
        optimizer="adamw",
        engine=engine,
        chunked_head=lora is not None,
        micro_batch=MicroBatchSize(rows=4, tokens=1024, packing="off" if engine == "plain" else "bins"),
        checkpoint_activations=checkpoint,
    )


def trained(setup: Setup) -> tuple[nn.Module, MicroBatch]:
    """The model as a run prepares it, and a micro batch."""
    lora = setup.lora != "none"
    base = tiny_model(**WIDE).to(torch.bfloat16 if lora and setup.dtype == "bfloat16" else torch.float32)
    if setup.checkpoint_activations:
        base.activation_checkpointing_enable({"use_reentrant": False})
    model = add_lora(base, setup.lora, 0) if isinstance(setup.lora, Lora) else base
    fusion = fuse(model, pack=setup.engine != "plain", longest=max(LENGTHS))
    assert fusion.num_layers == (WIDE["num_hidden_layers"] if setup.engine == "fused" else 0), fusion.reasons
    given = rows(LENGTHS)
    if setup.engine == "plain":
        return model, collate(given, range(len(given)), CPU)
    (pack,) = bins(given, range(len(given)), sum(LENGTHS))
    return model, of_pack(pack, CPU)


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Of all storages that autograd keeps, each once, without parameters and buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}
    total: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.detach()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))


def expected_bytes(shape: ModelShape, setup: Setup, batch: MicroBatch) -> int:
    """What the formulas say, but for rotary angles, which layers hold without autograd."""
    layer = layer_of(shape, setup)
    places, needed, targets = batch.ids_BT.numel(), len(batch.needed_S), len(batch.targets_N)
    before, after, size = without_angles(kept_before(layer, setup, False)).bytes, kept_after(layer, setup).bytes, layer.size
    rows_out = needed if setup.engine == "fused" else places
    if setup.checkpoint_activations:
        layers = shape.num_layers * places * without_angles(layer_input(layer, setup, False)).bytes
    elif setup.engine == "fused":  # after the last attention only what is needed
        layers = (shape.num_layers - 1) * places * (before + after) + places * before + needed * (layer.queries * size + after)
    else:
        layers = shape.num_layers * places * (before + after)
    if setup.lora != "none":
        final = rows_out * layer.hidden * 4 + targets * layer.hidden * size  # the norm's input, and the gradient that the head's loss keeps
        adapters = sum(shape.num_layers * 16 * (d_in + d_out) for d_in, d_out in matrices(shape))
        return layers + final + (adapters * size if setup.engine == "plain" and size == 2 else 0)
    copies = size * (shape.multiplied_parameters + shape.embedding_parameters) if size == 2 else 0
    return layers + rows_out * layer.hidden * 8 + needed * layer.hidden * size + targets * shape.vocabulary * 4 + copies


def without_angles(terms: PerToken) -> PerToken:
    return PerToken(terms=tuple(term for term in terms.terms if term[0] != "angles"))


def matrices(shape: ModelShape) -> list[tuple[int, int]]:
    return [(item.d_in, item.d_out) for item in shape.linears if item.role != "head"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("engine", "lora"), [("fused", 16), ("plain", 16), ("packed", 0), ("plain", 0)])
def test_autograd_keeps_what_the_formulas_say(engine: Engine, lora: int, dtype: Dtype) -> None:
    setup = setup_for(engine, Lora(r=lora) if lora else None, dtype)
    model, batch = trained(setup)
    draw(model, batch.keys_A, batch.needed_S, (0, 1))
    model.train()
    precision = Precision.of(torch.bfloat16 if dtype == "bfloat16" else torch.float32, CPU)
    with saved_bytes(model) as found, precision.autocast():
        nll_sum(model, batch)
    shape = shape_of(tiny_model(**WIDE).config.to_dict())
    assert found[0] == pytest.approx(expected_bytes(shape, setup, batch), rel=0.02)


def test_recomputed_fused_layers_keep_their_inputs_only() -> None:
    setup = setup_for("fused", Lora(r=16), "float32", checkpoint=True)
    model, batch = trained(setup)
    model.train()
    with saved_bytes(model) as found:
        nll_sum(model, batch)
    shape = shape_of(tiny_model(**WIDE).config.to_dict())
    assert found[0] == pytest.approx(expected_bytes(shape, setup, batch), rel=0.02)


def test_dropout_gives_each_adapted_layer_an_input_of_its_own() -> None:
    shape = shape_of(tiny_model(**WIDE).config.to_dict())
    shared, apart = (setup_for("plain", Lora(r=16, dropout=dropout), "float32") for dropout in (0.0, 0.1))
    layer = layer_of(shape, shared)
    more = kept_before(layer, apart, False).bytes - kept_before(layer, shared, False).bytes
    assert more == 2 * 64 * 4  # q, k and v no longer read one


def test_only_adapted_layers_keep_something_for_their_adapter() -> None:
    shape = shape_of(tiny_model(**WIDE).config.to_dict())
    every, two = (setup_for("plain", lora, "bfloat16") for lora in (Lora(r=16), Lora(r=16, target_modules=("q_proj", "v_proj"))))
    saved = kept_after(layer_of(shape, every), every).bytes - kept_after(layer_of(shape, two), two).bytes
    assert saved == (2 * 64 + 160 + 3 * 16) * 2


def test_logits_stand_in_two_chunks_at_most() -> None:
    assert chunk_rows(32_000, 2, 10_000) == 2 * 1048
    assert chunk_rows(32_000, 2, 900) == 900


def test_a_block_of_scores_has_256_queries_and_all_keys_of_its_row() -> None:
    shape = shape_of(tiny_model(**WIDE).config.to_dict())
    layer = layer_of(shape, setup_for("fused", Lora(r=16), "float32"))
    one = Extent(rows=1, tokens=1024, supervised=1, places=1024, needed=1, targets=1, pairs=1, longest=1024)
    assert score_blocks(layer, one, "bins") == 4 * 256 * 4 * (2 * 1024 + 3 * 32)
    assert score_blocks(layer, replace(one, longest=32), "bins") == 4 * 32 * 4 * (2 * 32 + 3 * 32)


def test_in_a_tree_a_block_has_all_descendants_of_a_node_and_without_shared_prefixes_it_is_a_packs() -> None:
    shape = shape_of(tiny_model(**WIDE).config.to_dict())
    layer = layer_of(shape, setup_for("fused", Lora(r=16), "float32"))
    apart = Extent(rows=8, tokens=1024, supervised=8, places=1024, needed=8, targets=8, pairs=1, longest=128)
    assert score_blocks(layer, replace(apart, tokens=2048), "tree") == 4 * 1024 * 4 * (2 * 128 + 3 * 32)
    assert score_blocks(layer, apart, "tree") == score_blocks(layer, apart, "bins") == 4 * 128 * 4 * (2 * 128 + 3 * 32)
