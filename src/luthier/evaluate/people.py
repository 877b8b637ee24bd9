"""What people said of a run's answers, as the gate needs it."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from luthier.evaluate.judgement import Judgement
from luthier.evaluate.metrics import Measurement
from luthier.recipe.proof import PEOPLE
from luthier.score.intervals import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """Metrics of people's ratings, by the names that bounds use, of no row before all are rated that have to be; and how many rows are."""

    run: str = ""
    measured: Mapping[str, Measurement] = field(default_factory=dict)
    num_rated: int = 0
    num_required: int = 0

    @property
    def evidence(self) -> str:
        """`+` and a digest of what is bounded; empty where nothing of it is known."""
        said = [(metric, found.sample.rows, found.sample.values) for metric, found in sorted(self.measured.items()) if found.n]
        return f"+{hashlib.sha256(repr(said).encode()).hexdigest()[:16]}" if said else ""

    def demanded(self) -> Iterator[Judgement]:
        """Whether the rows that have to be rated are; nothing where none have to."""
        if not self.num_required:
            return
        there = self.num_rated >= self.num_required
        reason = f"people have rated {self.num_rated} rows, and have to rate {self.num_required}"
        yield Judgement(
            metric=PEOPLE,
            bound=f">= {self.num_required} rows",
            outcome="holds" if there else "undecided",
            reason=reason if there else f"the review is missing: {reason}: luthier review {self.run}",
            measured=Interval(value=self.num_rated, low=self.num_rated, high=self.num_rated, n=self.num_rated),
            rows_needed=0 if there else self.num_required,
        )


NOBODY = People()
"""Where the recipe asks no people."""
