"""The count of the least work: by hand where that is short, against torch's own count where it is not."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3ForCausalLM

from bench import floor
from bench.floor import Step
from bench.protocol import MODULES, RANK, Row
from bench.shapes import SHAPES, Shape, config_of

SMALL = Shape(hidden=256, layers=3, heads=4, kv_heads=2, head_width=64, intermediate=512, vocabulary=1024, tied=True)


def row(*ids: int, targets: int = 1) -> Row:
    return Row(messages=[], ids=ids, supervised=[0] * (len(ids) - targets) + [1] * targets)


def test_rows_by_themselves_are_causal_triangles() -> None:
    # 1 + 2 + 3 + 4 and 1 + 2 + 3 pairs; the targets are predicted from 3, 2 and 1 tokens
    assert floor.separate([row(1, 2, 3, 4), row(1, 2, 5, targets=2)]) == Step(tokens=7, sources=3, pairs=16, source_pairs=6)


def test_leading_tokens_that_rows_share_count_once() -> None:
    # 1 2 stands once, then 3 4 and 5: 1 + 2 + 3 + 4 + 3 pairs; token 2 is the source of 5, token 3 that of 4, token 1 that of 2
    assert floor.shared([row(1, 2, 3, 4), row(1, 2, 5, targets=2)]) == Step(tokens=5, sources=3, pairs=13, source_pairs=6)
    assert floor.shared([row(1, 2, 3)] * 5) == floor.separate([row(1, 2, 3)])


def test_rows_that_begin_differently_share_nothing() -> None:
    rows = [row(1, 2, 3), row(2, 2, 3)]
    assert floor.shared(rows) == floor.separate(rows)


def test_the_floor_lies_a_little_below_what_torch_computes() -> None:
    model = get_peft_model(
        Qwen3ForCausalLM._from_config(config_of(SMALL), attn_implementation="eager", dtype=torch.float32),
        LoraConfig(r=RANK, target_modules=list(MODULES)),
    )
    ids = torch.arange(24)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    least = floor.operations(SMALL, floor.separate([row(*range(24), targets=23)]))
    assert 0.96 < least / counter.get_total_flops() < 1.0  # torch computes the whole attention square and the last token's head


def test_few_targets_spare_the_head_and_the_last_layer() -> None:
    one, all_but_first = (floor.operations(SMALL, floor.separate([row(*range(100), targets=targets)])) for targets in (1, 99))
    head = 4 * 98 * SMALL.hidden * SMALL.vocabulary
    assert all_but_first - one > head


@pytest.mark.parametrize(("size", "billions"), [("0.6B", 0.596), ("4B", 4.02), ("8B", 7.57)])
def test_shapes_have_the_parameters_of_their_models(size: str, billions: float) -> None:
    assert SHAPES[size].matrix_parameters == pytest.approx(billions * 1e9, rel=0.01)


def test_four_n_is_four_operations_a_parameter_and_token() -> None:
    assert floor.four_n(SMALL, 10) == 40 * SMALL.matrix_parameters
