"""What a micro batch asks of the model."""

import numpy as np

from luthier.data.store import TokenRow
from luthier.train.batch import collate
from tests.train.workshop import CPU


def row(ids: list[int], supervised: list[int]) -> TokenRow:
    return TokenRow(ids=np.array(ids, np.int32), supervised=np.array(supervised, np.bool_))


def test_a_target_is_asked_for_at_the_position_before_it() -> None:
    batch = collate([row([5, 6, 7, 8], [0, 0, 1, 1]), row([9, 4], [0, 1])], CPU)
    asked = list(zip(batch.rows_N.tolist(), batch.positions_N.tolist(), batch.targets_N.tolist(), strict=True))
    assert asked == [(0, 1, 7), (0, 2, 8), (1, 0, 4)]
    assert batch.num_tokens == 6


def test_padding_carries_no_loss_even_where_the_pad_token_is_the_end_of_turn() -> None:
    end_of_turn = 8
    batch = collate([row([5, 6, 7, end_of_turn], [0, 0, 1, 1]), row([9, end_of_turn], [0, 1])], CPU, pad_id=end_of_turn)
    assert batch.ids_BT.tolist() == [[5, 6, 7, 8], [9, 8, 8, 8]]
    assert batch.targets_N.tolist() == [7, end_of_turn, end_of_turn]
