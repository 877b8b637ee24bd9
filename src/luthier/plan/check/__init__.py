"""What is wrong with a recipe, found before it runs. A check's docstring is its page in docs/findings/.

`check` gives all findings of a Case; CHECKS lists the checks, one code each. The changes that a finding names belong together, but those
of does-not-fit, each of which is enough.
"""

from luthier.core.finding import Finding, Severity
from luthier.plan.check import adapter, compute, data, device, division, nodes, proof, reinforcement, steps, tensor
from luthier.plan.check.case import Case, Check

CHECKS: tuple[Check, ...] = (
    *steps.CHECKS,
    *data.CHECKS,
    *adapter.CHECKS,
    *compute.CHECKS,
    *division.CHECKS,
    *tensor.CHECKS,
    *device.CHECKS,
    *nodes.CHECKS,
    *proof.CHECKS,
    *reinforcement.CHECKS,
)
OF_ROWS: frozenset[Check] = frozenset({steps.few_steps, steps.small_batch, steps.many_epochs, adapter.learning_rate})
"""Asked where rows are learned from, and not where answers are rewarded, of which each step draws new ones."""
OF_ANSWERS: frozenset[Check] = frozenset(reinforcement.CHECKS)
CODES = frozenset(each.__name__.replace("_", "-") for each in CHECKS)
ALTERNATIVES = frozenset({"does-not-fit"})
"""Codes whose changes are ways to choose from, the first the cheapest; those of the others belong together."""
GRAVITY: tuple[Severity, ...] = ("refuse", "warn", "note")


def check(case: Case) -> tuple[Finding, ...]:
    """Everything that is found, the gravest first."""
    others = OF_ANSWERS if case.recipe.rl == "none" else OF_ROWS
    found = [finding for each in CHECKS if each not in others for finding in each(case)]
    return tuple(sorted(found, key=lambda finding: GRAVITY.index(finding.severity)))
