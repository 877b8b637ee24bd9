"""Held-out rows whose prompt stands in train too, to the letter or nearly: what they measure is memory, not learning (trap 28)."""

from collections.abc import Iterable

from luthier.core.errors import DataError
from luthier.data.rows import Example
from luthier.data.similar import NearIndex, digest, plain, prompt_text
from luthier.runs.summary import Overlap

MOST_EXACT = 0.05
"""Share of a split's rows with an exact twin in train above which the data is refused."""

MOST_NEAR = 0.5
"""Share with a near twin above which it is refused: templated prompts are alike by nature, so the bound is wide."""

NUM_EXAMPLES = 5


class TrainPrompts:
    """The training prompts, to hold other splits against. A prompt is the turns before the answer without system turns.

    2.9 KB per training row are held.
    """

    def __init__(self, train: Iterable[Example]) -> None:
        self._exact: dict[bytes, str] = {}
        self._index, self._origins = NearIndex(), list[str]()
        for example in train:
            prompt = plain(prompt_text(example.conversation))
            mark = digest(prompt)
            if mark not in self._exact:
                self._exact[mark] = example.origin
                self._index.add(self._index.sketch(prompt))
                self._origins.append(example.origin)

    def overlap(self, held_out: Iterable[Example]) -> Overlap:
        """How many held-out prompts also stand here (white space aside), or nearly, with examples `held-out ~ train`."""
        total = 0
        exact: list[str] = []
        near: list[str] = []
        for example in held_out:
            total += 1
            prompt = plain(prompt_text(example.conversation))
            if twin := self._exact.get(digest(prompt), ""):
                exact.append(f"{example.origin} ~ {twin}")
            elif (number := self._index.twin(self._index.sketch(prompt))) is not None:
                near.append(f"{example.origin} ~ {self._origins[number]}")
        return Overlap(
            exact=len(exact),
            near=len(near),
            share_exact=len(exact) / total if total else 0.0,
            share_near=len(near) / total if total else 0.0,
            examples=tuple((exact + near)[:NUM_EXAMPLES]),
        )


def check_overlap(split: str, found: Overlap) -> None:
    """Refuses a split that stands in train to more than 5 % exactly or 50 % nearly."""
    for share, bound, how, fix in (
        (found.share_exact, MOST_EXACT, "exactly", "set data.deduplicate: exact"),
        (found.share_near, MOST_NEAR, "nearly", "set data.deduplicate: near"),
    ):
        if share > bound:
            raise DataError(
                f"{share:.1%} of the {split} prompts stand {how} in train too (at most {bound:.0%}), e.g. {'; '.join(found.examples[:2])}",
                where=f"data.split.{split}",
                change=f"{fix}, or data.keep_together with the column that related rows share",
            )
