"""What is wrong with a run, found while it goes on and after it: pure functions of what its folder holds. A rule's docstring is its page.

`found_in` gives all findings of a case; RULES lists the rules, one code each. The changes that a finding names are ways to choose from,
by what they help and cost: one thing at a time, or nobody knows which it was.
"""

from luthier.core.finding import Finding, Severity
from luthier.watch.rules import device, proof, training, validation
from luthier.watch.rules.case import Case, Rule

RULES: tuple[Rule, ...] = (*training.RULES, *validation.RULES, *device.RULES, *proof.RULES)
CODES = frozenset(rule.__name__.replace("_", "-") for rule in RULES)
GRAVITY: tuple[Severity, ...] = ("refuse", "warn", "note")


def found_in(case: Case) -> tuple[Finding, ...]:
    """Everything that the rules find, the gravest first."""
    found = [finding for rule in RULES for finding in rule(case)]
    return tuple(sorted(found, key=lambda finding: GRAVITY.index(finding.severity)))
