"""Prompts with the longest answers they may get: what plan and rehearsal of a reinforcement count with, before any is there. numpy only."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from luthier.data.store import HeldRows, Rows, TokenRow


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LongestCompletions:
    """Each prompt `copies` times, each with an answer of `max_new_tokens` tokens of its own, which say nothing (`Rows`)."""

    prompts: HeldRows
    copies: int
    max_new_tokens: int
    example_index: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    num_supervised: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenRow:
        prompt, copy = divmod(index, self.copies)
        ids = self.prompts[prompt].ids
        answer = np.resize(np.roll(ids, -copy), self.max_new_tokens)  # ids that the model has, and in another order for each copy
        return TokenRow(ids=np.concatenate([ids, answer]), supervised=np.arange(len(ids) + len(answer)) >= len(ids))


def longest_completions(rows: Rows, copies: int, max_new_tokens: int) -> LongestCompletions:
    """Of the prompts of these rows."""
    prompts = prompts_of(rows)
    return LongestCompletions(
        prompts=prompts,
        copies=copies,
        max_new_tokens=max_new_tokens,
        example_index=np.repeat(prompts.example_index, copies),
        lengths=np.repeat(prompts.lengths + np.int32(max_new_tokens), copies),
        num_supervised=np.full(copies * len(prompts), max_new_tokens, np.int32),
    )


def prompts_of(rows: Rows) -> HeldRows:
    """What stands before the last answer of each example, which is in the longest of its rows."""
    longest: dict[int, int] = {}
    for row, example in enumerate(rows.example_index.tolist()):
        if example not in longest or rows.lengths[row] > rows.lengths[longest[example]]:
            longest[example] = row
    return HeldRows([_before_the_answer(rows[row]) for row in longest.values()], np.array(list(longest), np.int64))


def _before_the_answer(row: TokenRow) -> TokenRow:
    """Up to the last run of supervised tokens; a row without one, or of nothing else, is a prompt as a whole."""
    begins = np.flatnonzero(np.diff(row.supervised.astype(np.int8), prepend=0) == 1)
    length = int(begins[-1]) if len(begins) and begins[-1] else len(row)
    return TokenRow(ids=row.ids[:length], supervised=np.zeros(length, np.bool_))
