"""How far reviewers agree: Krippendorff's alpha, 1 where they always do, 0 where they do as often as chance would have it."""

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.core.errors import UsageError

CHANGE = "pip install -c constraints.txt 'luthier[review]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What one reviewer said of one thing, as a number on a scale with even steps."""

    reviewer: str
    of: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Of so many things that two reviewers or more have judged; None where there is no alpha: too few, or all judged alike."""

    alpha: float | None
    num_shared: int


def agreement(opinions: Sequence[Opinion]) -> Agreement:
    """Alpha with the interval metric, whoever judged what (Krippendorff, *Content Analysis*, 2004, ch. 11). Opinions on what nobody else
    judged do not count. Raises UsageError without the extra `review`."""
    judges: dict[str, set[str]] = {}
    for opinion in opinions:
        judges.setdefault(opinion.of, set()).add(opinion.reviewer)
    shared = [opinion for opinion in opinions if len(judges[opinion.of]) > 1]
    num_shared = sum(len(names) > 1 for names in judges.values())
    if len({opinion.value for opinion in shared}) < 2:  # nothing varies: neither agreement nor chance can be told
        return Agreement(alpha=None, num_shared=num_shared)
    try:
        from nltk.metrics.agreement import AnnotationTask
        from nltk.metrics.distance import interval_distance
    except ImportError as error:
        raise UsageError(f"agreement needs the extra `review` ({error.name} is not installed)", change=CHANGE) from error
    task = AnnotationTask([(opinion.reviewer, opinion.of, opinion.value) for opinion in shared], distance=interval_distance)
    return Agreement(alpha=float(task.alpha()), num_shared=num_shared)
