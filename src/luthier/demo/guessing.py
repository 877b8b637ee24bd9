"""A game of several turns, as an environment for `luthier rl`: a number is to be guessed (docs/guide/rl.md)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.score.scorers import final

HIGHEST = 20
MOST_GUESSES = 8
"""Who halves what is left each time needs five."""


class Guessing:
    """`environment: luthier.demo.guessing:Guessing`. A row's answer is its number, from 1 to 20; a guess is a number and nothing else."""

    def __init__(self, question: Sequence[Mapping[str, Any]], reference: str) -> None:
        self._number = int(reference)
        if not 1 <= self._number <= HIGHEST:
            raise ValueError(f"{self._number} is not from 1 to {HIGHEST}")
        self._num_guesses = 0
        self.reward = 0.0

    def reply(self, answer: str) -> str:
        """`higher` or `lower`; nothing once the number is found, guesses have run out, or what is said is no guess."""
        guess = final(answer)
        if not re.fullmatch("[0-9]{1,2}", guess):
            return ""
        if int(guess) == self._number:
            self.reward = 1 - self._num_guesses / MOST_GUESSES  # 1 for the first guess, 0.5 for the fifth
            return ""
        self._num_guesses += 1
        if self._num_guesses == MOST_GUESSES:
            return ""
        return "higher" if int(guess) < self._number else "lower"
