"""What is wrong with a run, found while it goes on and after it: pure functions of what its folder holds. A rule's docstring is its page.

`diagnosed` gives all findings of a run; RULES lists the rules, one code each. The changes that a finding names are ways to choose from,
by what they help and cost: one thing at a time, or nobody knows which it was.
"""

from typing import Literal

from luthier.core.finding import Finding, Severity
from luthier.runs.store import RunFolder, own_recipe
from luthier.watch.rules import device, proof, training, validation
from luthier.watch.rules.case import Case, Rule, look
from luthier.watch.series import Series

RULES: tuple[Rule, ...] = (*training.RULES, *validation.RULES, *device.RULES, *proof.RULES)
CODES = frozenset(rule.__name__.replace("_", "-") for rule in RULES)
GRAVITY: tuple[Severity, ...] = ("refuse", "warn", "note")


def diagnosed(run: RunFolder, known: Series | Literal["none"] = "none") -> tuple[Finding, ...]:
    """Everything that is found of a run, the gravest first. What is `known` of its metrics is read on from.

    Raises RunError where its recipe is damaged.
    """
    return found_in(look(run, own_recipe(run), known))


def found_in(case: Case) -> tuple[Finding, ...]:
    """Everything that the rules find, the gravest first."""
    found = [finding for rule in RULES for finding in rule(case)]
    return tuple(sorted(found, key=lambda finding: GRAVITY.index(finding.severity)))
