"""What plan and rehearsal of a reinforcement count with: every prompt with as many answers as it gets, each of the longest."""

import numpy as np

from luthier.data.completions import longest_completions, prompts_of
from luthier.data.order import rows_of_step
from luthier.data.pack import trees
from luthier.data.store import HeldRows, TokenRow


def row(length: int, *supervised: range) -> TokenRow:
    mask = np.zeros(length, np.bool_)
    for part in supervised:
        mask[part.start : part.stop] = True
    return TokenRow(ids=np.arange(100, 100 + length, dtype=np.int32), supervised=mask)


def held(*rows: TokenRow, examples: tuple[int, ...] = ()) -> HeldRows:
    return HeldRows(rows, np.array(examples or range(len(rows)), np.int64))


def test_a_prompt_is_what_stands_before_the_last_answer_of_an_example() -> None:
    dialogue = row(40, range(10, 15), range(30, 40))
    turn_by_turn = held(row(15, range(10, 15)), dialogue, row(12, range(5, 12)), examples=(0, 0, 1))
    prompts = prompts_of(turn_by_turn)
    assert prompts.lengths.tolist() == [30, 5]
    assert prompts.example_index.tolist() == [0, 1]


def test_every_prompt_has_its_answers_of_the_longest_and_they_differ_from_their_first_token_on() -> None:
    found = longest_completions(held(row(40, range(20, 40)), row(30, range(25, 30))), copies=4, max_new_tokens=60)
    assert len(found) == 8
    assert found.lengths.tolist() == [len(found[index]) for index in range(8)] == [80] * 4 + [85] * 4
    assert found.num_supervised.tolist() == [int(found[index].supervised.sum()) for index in range(8)] == [60] * 8
    (pack,) = trees([found[index] for index in range(4)], list(range(4)), 10**6)
    assert len(pack.ids_T) == 20 + 4 * 60  # the prompt once, no answer shared


def test_a_step_has_the_prompts_whose_groups_it_draws() -> None:
    prompts = held(*(row(20, range(10, 20)) for _ in range(12)))
    found = longest_completions(prompts, copies=4, max_new_tokens=8)
    for step in (1, 2, 3, 4):
        drawn = rows_of_step(step, 3, 7, found.prompts)
        counted = rows_of_step(step, 12, 7, found)
        assert set(found.prompts.example_index[drawn]) == set(found.example_index[counted])
