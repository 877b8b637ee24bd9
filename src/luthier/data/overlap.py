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


def overlap(train: Iterable[Example], held_out: Iterable[Example]) -> Overlap:
    """How many held-out prompts also stand in train (white space aside), or nearly, with examples `held-out ~ train`.

    A prompt is the turns before the answer without system turns. Both sides are read once; 2.9 KB per training row are held.
    """
    exact_twins: dict[bytes, str] = {}
    index, origins = NearIndex(), []
    for example in train:
        prompt = plain(prompt_text(example.conversation))
        mark = digest(prompt)
        if mark not in exact_twins:
            exact_twins[mark] = example.origin
            index.add(index.sketch(prompt))
            origins.append(example.origin)
    total = exact = near = 0
    exact_pairs: list[str] = []
    near_pairs: list[str] = []
    for example in held_out:
        total += 1
        prompt = plain(prompt_text(example.conversation))
        if twin := exact_twins.get(digest(prompt), ""):
            exact += 1
            exact_pairs.append(f"{example.origin} ~ {twin}")
        elif (number := index.twin(index.sketch(prompt))) is not None:
            near += 1
            near_pairs.append(f"{example.origin} ~ {origins[number]}")
    return Overlap(
        exact=exact,
        near=near,
        share_exact=exact / total if total else 0.0,
        share_near=near / total if total else 0.0,
        examples=tuple((exact_pairs + near_pairs)[:NUM_EXAMPLES]),
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
