"""Findings about what replicas divide among them."""

from collections.abc import Iterator

from luthier.core.finding import Change, Finding
from luthier.plan.check.case import Case, Check


def nothing_to_shard(case: Case) -> Iterator[Finding]:
    """`parallel.shard` divides something among replicas, and there is one.

    Severity: warn.

    zero2 and zero3 divide gradients, optimizer state and weights among the replicas of `parallel.data`. One replica keeps everything.

    Arithmetic: 1 / 1 of 8 B a trained number is all of them.

    What to do: more replicas; or `parallel.shard: none`, which says what happens.

    Source: ZeRO (arXiv:1910.02054), section 5.
    """
    layout = case.setup.layout
    if layout.shard != "none" and layout.data == 1:
        yield Finding(
            code="nothing-to-shard",
            severity="warn",
            message=f"parallel.shard is {layout.shard}, and one replica has nothing to divide",
            evidence={"shard": layout.shard, "data": layout.data},
            changes=(Change(path="parallel.shard", value="none", why="the same run"),),
        )


CHECKS: tuple[Check, ...] = (nothing_to_shard,)
