"""What a micro batch asks of the model."""

from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.data.pack import bins, row_keys, trees
from luthier.data.store import TokenRow
from luthier.runs.workload import MicroBatchSize
from luthier.train.batch import MicroBatch, collate, micro_batches, of_pack
from tests.train.workshop import CPU, VOCABULARY, ragged_rows, stored

PROMPT = list(range(20, 40))


def row(ids: list[int], supervised: list[int]) -> TokenRow:
    return TokenRow(ids=np.array(ids, np.int32), supervised=np.array(supervised, np.bool_))


def asked(batch: MicroBatch) -> list[tuple[int, int, int, int]]:
    """Place of the source among all tokens, its id, the target, and for how many rows."""
    source_ids = batch.ids_BT.flatten()[batch.sources_N]
    return list(zip(batch.sources_N.tolist(), source_ids.tolist(), batch.targets_N.tolist(), batch.counts_N.tolist(), strict=True))


def test_a_target_is_asked_for_at_the_position_before_it() -> None:
    batch = collate([row([5, 6, 7, 8], [0, 0, 1, 1]), row([9, 4], [0, 1])], [0, 1], CPU)
    assert asked(batch) == [(1, 6, 7, 1), (2, 7, 8, 1), (4, 9, 4, 1)]
    assert (batch.num_tokens, batch.num_targets) == (6, 3)


def test_padding_carries_no_loss_even_where_the_pad_token_is_the_end_of_turn() -> None:
    end_of_turn = 8
    batch = collate([row([5, 6, 7, end_of_turn], [0, 0, 1, 1]), row([9, end_of_turn], [0, 1])], [0, 1], CPU, pad_id=end_of_turn)
    assert batch.ids_BT.tolist() == [[5, 6, 7, 8], [9, 8, 8, 8]]
    assert batch.targets_N.tolist() == [7, end_of_turn, end_of_turn]


def test_a_pack_counts_what_several_rows_supervise() -> None:
    rows = [row([*PROMPT, 1, 2], [0] * 19 + [1, 1, 1]), row([*PROMPT, 3], [0] * 19 + [1, 1]), row(PROMPT, [0] * 19 + [1])]
    batch = of_pack(trees(rows, range(3), 100)[0], CPU)
    assert asked(batch) == [(18, 38, 39, 3), (19, 39, 1, 1), (19, 39, 3, 1), (20, 1, 2, 1)]
    assert batch.ids_BT.tolist() == [[*PROMPT, 1, 2, 3]]
    assert batch.inputs()["position_ids"].tolist() == [[*range(20), 20, 21, 20]]
    assert (batch.num_tokens, batch.num_targets) == (22 + 21 + 20, 6)


def test_a_padded_token_has_the_key_that_it_has_in_a_bin() -> None:
    rows = ragged_rows([4, 6])
    padded, packed = collate(rows, [7, 3], CPU), of_pack(bins(rows, [7, 3], 100)[0], CPU)
    assert padded.keys_A.view(2, 6)[0, :4].tolist() == row_keys(7, 4).tolist() == packed.keys_A[6:].tolist()
    assert padded.keys_A.view(2, 6)[1].tolist() == row_keys(3, 6).tolist() == packed.keys_A[:6].tolist()


@pytest.mark.parametrize("packing", ["off", "bins", "tree"])
def test_rows_are_divided_within_the_budget_the_largest_micro_batch_first(packing: str, tmp_path: Path) -> None:
    shared = [row([*PROMPT, *range(end), end], [0] * 20 + [1] * (end + 1)) for end in (9, 30, 12, 25)]
    rows = stored([*ragged_rows(), *shared], tmp_path)
    taken = np.array([11, 4, 8, 2, 7, 9, 10])
    batches = micro_batches(rows, taken, MicroBatchSize(rows=3, tokens=70, packing=packing), CPU)  # type: ignore[arg-type]
    sizes = [batch.ids_BT.numel() for batch in batches]
    assert 1 < len(batches) < len(taken) and max(sizes) <= 70
    if packing != "off":
        assert sizes == sorted(sizes, reverse=True)
    assert sum(batch.num_tokens for batch in batches) == rows.lengths[taken].sum()
    assert sum(batch.num_targets for batch in batches) == rows.num_supervised[taken].sum()
    computed, in_rows = sum(sizes), rows.lengths[taken].sum()
    assert {"off": computed > in_rows, "bins": computed == in_rows, "tree": computed < in_rows}[packing]


def test_a_pack_tells_the_model_its_positions_and_its_tree_and_padded_rows_need_neither() -> None:
    rows = ragged_rows([4, 6])
    assert collate(rows, [0, 1], CPU).inputs().keys() == {"input_ids", "use_cache"}
    batch = of_pack(bins(rows, [0, 1], 100)[0], CPU)
    inputs = batch.inputs()
    assert inputs.keys() == {"input_ids", "use_cache", "position_ids", "attention_mask", "tree"}
    assert inputs["use_cache"] is False and inputs["tree"] is batch.tree
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 0, 1, 2, 3]]
    assert torch.all(batch.ids_BT < VOCABULARY)
