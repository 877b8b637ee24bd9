"""Validation loss is a property of model and rows."""

from pathlib import Path

import pytest
import torch

from luthier.model.fuse import fuse
from luthier.runs.workload import MicroBatchSize
from luthier.train.objective import nll_sum
from luthier.train.validate import validation_loss
from tests.model.zoo import LONGEST, adapted, shared_rows, tiny
from tests.train.workshop import FLOAT32, in_batches, ragged_rows, stored, tiny_model

ALONE_SIZE = MicroBatchSize(rows=1, tokens=10**6)


def test_the_loss_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    model, rows = tiny_model(), stored(ragged_rows(), tmp_path)
    sizes = [MicroBatchSize(rows=size, tokens=10**6) for size in (1, 3, 8)] + [MicroBatchSize(rows=8, tokens=40)]
    losses = [validation_loss(model, rows, size, FLOAT32).loss for size in sizes]
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-6)
    with torch.no_grad():
        batches = in_batches(ragged_rows(), 3)
        averaged = sum(nll_sum(model, batch).item() / batch.num_targets for batch in batches) / len(batches)
    assert abs(averaged - losses[0]) > 1e-2  # the mean of means, which this is not


def test_the_loss_does_not_depend_on_how_rows_are_packed(tmp_path: Path) -> None:
    model, rows = adapted(tiny("qwen3"), dropout=0.3), stored(shared_rows(), tmp_path)
    assert fuse(model.train(), pack=True, longest=LONGEST).num_layers == 2
    sizes = [MicroBatchSize(rows=4, tokens=200, packing=packing) for packing in ("off", "bins", "tree")]  # type: ignore[arg-type]
    losses = [validation_loss(model, rows, size, FLOAT32).loss for size in sizes]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_validation_has_no_dropout_and_leaves_the_model_in_training(tmp_path: Path) -> None:
    model, rows = tiny_model(), stored(ragged_rows(), tmp_path)
    model.train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.9
    size = MicroBatchSize(rows=8, tokens=10**6)
    first, second = (validation_loss(model, rows, size, FLOAT32) for _ in range(2))
    assert first.losses_R.tolist() == second.losses_R.tolist()
    assert model.training
    assert first.num_targets == int(rows.num_supervised.sum())


def test_each_rows_loss_is_its_own_however_rows_are_packed(tmp_path: Path) -> None:
    given = [row for row in shared_rows() if row.supervised.any()]
    model, rows = adapted(tiny("qwen3"), dropout=0.3), stored(given, tmp_path)
    assert fuse(model.train(), pack=True, longest=LONGEST).num_layers == 2
    alone = []
    for number, row in enumerate(given):
        (folder := tmp_path / str(number)).mkdir()
        alone.append(validation_loss(model, stored([row], folder), ALONE_SIZE, FLOAT32))
    for packing in ("off", "bins", "tree"):
        found = validation_loss(model, rows, MicroBatchSize(rows=4, tokens=200, packing=packing), FLOAT32)  # type: ignore[arg-type]
        assert found.losses_R == pytest.approx([one.losses_R[0] for one in alone], rel=1e-5)
        assert found.targets_R.tolist() == [one.num_targets for one in alone]
        assert found.loss == pytest.approx(found.losses_R.sum() / found.num_targets, rel=1e-12)
