"""What rendering made of each split, counted while it runs, and summed up for data.json."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from luthier.data.render import Rendered
from luthier.data.split import SplitName, shares
from luthier.recipe.schema import Data
from luthier.runs.summary import Cut, Lengths, OverLength, SplitSummary

EDGES = tuple(2**power for power in range(3, 22))
"""Upper edges of the histogram's bins: 8 … 2,097,152 tokens."""


@dataclass(slots=True, kw_only=True)
class Account:
    """Running totals of one split."""

    examples: int = 0
    supervised: int = 0
    answers: int = 0
    cut: Cut = field(default_factory=Cut)
    over_length: OverLength = field(default_factory=OverLength)
    groups: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)

    def add(self, group: str, rendered: Rendered) -> int:
        """Count one kept example; its number of tokens."""
        lengths = [len(row) for row in rendered.rows]
        self.examples += 1
        self.supervised += sum(int(row.supervised.sum()) for row in rendered.rows)
        self.answers += rendered.answers
        self.groups[group] += 1
        self.lengths += lengths
        cut, more = self.cut, rendered.cut
        self.cut = Cut(rows=cut.rows + more.rows, tokens=cut.tokens + more.tokens, answers=cut.answers + more.answers)
        return sum(lengths)

    def lose(self, rendered: Rendered) -> None:
        """Count one dropped example, where `max_length` is why."""
        if rendered.answers:
            lost = self.over_length
            self.over_length = OverLength(examples=lost.examples + 1, answers=lost.answers + rendered.answers)


def split_summaries(data: Data, accounts: Mapping[SplitName, Account], capped: Counter[str]) -> dict[SplitName, SplitSummary]:
    """The splits that have rows or were asked for. Shares are of the rows that shares divide; a split given as a file has what it has.

    The training rows that `max_per_group` took, `capped` by group, count as obtained: shares tell how rows were divided.
    """
    wanted = shares(data.split)
    placed = {split: account.groups + capped if split == "train" else account.groups for split, account in accounts.items()}
    everything, divided = sum(placed.values(), Counter[str]()), sum((placed[split] for split in wanted), Counter[str]())
    found: dict[SplitName, SplitSummary] = {}
    for split, account in accounts.items():
        whole = divided if split in wanted else everything
        obtained = placed[split].total() / whole.total()
        found[split] = SplitSummary(
            examples=account.examples,
            rows=len(account.lengths),
            tokens=sum(account.lengths),
            supervised_tokens=account.supervised,
            answers=account.answers,
            wanted_share=float(wanted[split]) if split in wanted else obtained,
            obtained_share=obtained,
            groups=dict(sorted(account.groups.items())),
            group_shares={group: placed[split][group] / number for group, number in sorted(whole.items())},
            lengths=lengths_of(account.lengths),
            cut=account.cut,
            over_length=account.over_length,
        )
    return found


def lengths_of(lengths: Sequence[int]) -> Lengths:
    """Mean, percentiles (of a row that is there, no average of two), histogram and coverage of row lengths."""
    if not lengths:
        return Lengths(total=0, mean=0.0, p50=0, p95=0, max=0, histogram={}, coverage={})
    ordered = np.sort(np.array(lengths, np.int64))
    p50, p95 = (int(np.percentile(ordered, share, method="inverted_cdf")) for share in (50, 95))
    edges = EDGES[: bisect_left(EDGES, int(ordered[-1])) + 1]
    covered = [int(np.searchsorted(ordered, edge, side="right")) for edge in edges]
    return Lengths(
        total=int(ordered.sum()),
        mean=float(ordered.mean()),
        p50=p50,
        p95=p95,
        max=int(ordered[-1]),
        histogram={edge: upto - before for edge, before, upto in zip(edges, [0, *covered], covered, strict=False) if upto > before},
        coverage={edge: upto / len(ordered) for edge, upto in zip(edges, covered, strict=True)},
    )
