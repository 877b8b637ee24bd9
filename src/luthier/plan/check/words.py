"""Numbers as findings say them."""

from luthier.core.words import duration as duration
from luthier.core.words import gigabytes as gigabytes


def percent(share: float) -> str:
    """`4.4 %`, `37 %`."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def count(number: int, what: str) -> str:
    """`1 save`, `1,200 rows`: the noun in the singular."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
