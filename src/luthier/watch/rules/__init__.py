"""What is wrong with a run, found while it goes on and after it: pure functions of what its folder holds. A rule's docstring is its page.

`found_in` gives all findings of a case; RULES lists the rules, one code each. The changes that a finding names are ways to choose from,
by what they help and cost: one thing at a time, or nobody knows which it was.
"""

from luthier.core.finding import Finding, Severity
from luthier.watch.rules import device, proof, reinforcement, training, validation
from luthier.watch.rules.case import Case, Rule

RULES: tuple[Rule, ...] = (*training.RULES, *validation.RULES, *device.RULES, *proof.RULES, *reinforcement.RULES)
OF_ROWS: frozenset[Rule] = frozenset(
    {
        training.spikes,
        training.diverged,
        training.learning_rate_high,
        training.learning_rate_low,
        *validation.RULES,
        device.data_bound,
        device.device_idle,
    }
)
"""Asked where rows are learned from, and not where answers are rewarded: what is minimised then lies about 0 whatever is learned, the
loss of references is not what is wanted, and a step draws its answers before it computes, which is no waiting and fills no device."""
OF_ANSWERS: frozenset[Rule] = frozenset(reinforcement.RULES)
CODES = frozenset(rule.__name__.replace("_", "-") for rule in RULES)
GRAVITY: tuple[Severity, ...] = ("refuse", "warn", "note")


def found_in(case: Case) -> tuple[Finding, ...]:
    """Everything that the rules find, the gravest first."""
    others = OF_ANSWERS if case.recipe.rl == "none" else OF_ROWS
    found = [finding for rule in RULES if rule not in others for finding in rule(case)]
    return tuple(sorted(found, key=lambda finding: GRAVITY.index(finding.severity)))
