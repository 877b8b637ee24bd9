"""Rules that look at validations: overfitting, plateau."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from luthier.core.finding import Change, Finding
from luthier.core.words import count, percent
from luthier.score.intervals import Interval, mean
from luthier.watch.rows import Rows
from luthier.watch.rules.case import Case, Rule
from luthier.watch.rules.curves import Floats, blocks, fall

CONFIDENCE = 0.99
WORSE = 0.01
"""Of the best loss: less is not worth a warning, however sure it is."""
ENOUGH_TO_AVERAGE = 500
"""Rows from which on the mean's interval is the normal one: a bootstrap of 50,000 takes minutes."""
NORMAL_99 = 2.576
LITTLE = 0.005
"""δ: a fall by less than this share of the loss is nothing to wait for."""
SURE = 0.95
ENOUGH_POINTS = 5
SHARE_SEEN = 0.75
"""Of the way, the sum of all learning rates: from there on a plateau would have been the time to stop."""
MOST_RANK, MOST_RATE = 128, 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Worse:
    """A validation against the best one: by how much its loss is higher, per supervised token."""

    step: int
    by: Interval


def overfitting(case: Case) -> Iterator[Finding]:
    """Validation gets worse while training gets better: rows are learned by heart.

    Severity: note where the best checkpoint is kept, warn where the last one is.

    The two newest validations are compared with the best one row by row: each row's own difference in summed loss, over the mean number of
    supervised tokens, so that their mean is the difference of the two losses. Both must be worse by more than 1 % of the best loss, and
    the 99 % interval of each must lie above zero: a bootstrap over rows (BCa), from 500 rows on the normal one. Pairing takes away what
    makes rows differ from each other; asking it of two validations takes away a single unlucky step. The training loss must have fallen
    meanwhile; else it is no overfitting. Not asked where answers are rewarded, which need not become like the references.

    Arithmetic: seed 003's losses 0.80, 0.76, 0.74, 0.78, 0.85 are worse by 5 and 15 %; 0.74, 0.73, 0.73 are not. With 100 rows whose
    differences scatter by 0.1 a token, the interval is ± 0.026: a rise of 0.04 is seen.

    What to do: end the run where the best validation was; more dropout; a smaller rank, where it is large; weight decay. New rows help
    most. Report the task's metric beside the loss: on reasoning a rising loss went along with better answers.

    Source: seeds 002 and 003 (docs/notes/seeds.md); pairing: Miller 2024, arXiv:2411.00640; against it: arXiv:2602.11149.
    """
    validations = case.series.validation.finite
    if len(validations) < 3:
        return
    losses, steps = validations["loss"], validations["step"]
    best = int(losses.argmin())
    newest = range(max(best + 1, len(losses) - 2), len(losses))
    if len(newest) < 2 or any(losses[one] < (1 + WORSE) * losses[best] for one in newest) or not _training_fell(case, steps[best]):
        return
    rows = case.rows
    if not {int(steps[one]) for one in (best, *newest)} <= rows.keys():
        return
    worse = [Worse(step=int(steps[one]), by=compared(rows[int(steps[best])], rows[int(steps[one])])) for one in newest]
    if any(one.by.low <= 0 for one in worse):
        return
    last, epoch = worse[-1], float(validations["epoch"][best])
    kept = "the best checkpoint is kept" if case.keeps_best else "the last one is kept, not the best"
    yield Finding(
        code="overfitting",
        severity="note" if case.keeps_best else "warn",
        message=f"Validation was best at epoch {epoch:.2g} ({losses[best]:.4g}) and is worse by {last.by.value:.3g} at step {last.step:,} "
        f"({last.by.low:.2g} … {last.by.high:.2g} at 99 %, over {count(last.by.n, 'row')}), while the training loss fell; {kept}",
        evidence={
            "best_step": int(steps[best]),
            "best_loss": round(float(losses[best]), 5),
            "step": last.step,
            "worse": round(last.by.value, 5),
            "low": round(last.by.low, 5),
            "high": round(last.by.high, 5),
            "rows": last.by.n,
        },
        changes=tuple(_against_overfitting(case, epoch)),
    )


def plateau(case: Case) -> Iterator[Finding]:
    """The loss has stopped falling long before the run's end.

    Severity: note.

    A curve a + b·exp(-w/τ) + c·w is fitted over the way w, the sum of the learning rates: to the validation losses, if there are five; and,
    where these say nothing, to the training loss in twenty blocks. All τ count by how well they fit. Told is, once three quarters of the
    way are done (half of the steps where the rate falls in a line, three quarters where it is constant): with a probability of at least
    95 % its last quarter brings less than δ = 0.5 % of the loss. It is asked again with all that is measured since. Not asked where answers
    are rewarded.

    Arithmetic: losses 2.60, 2.58, 2.581, 2.579, 2.58, 2.58 over the way leave 0.000 ± 0.003; δ is 0.013.

    What to do: one thing at a time: fewer epochs; twice the rank; twice alpha; a higher rate; weight decay. A floor may be the data's:
    what comes next in a dialogue is hard to know (seed 002's 2.3 to 2.5).

    Source: seed 002's tuning guide, in its order (docs/notes/seeds.md); learning curves as sums of decays: Domhan et al. 2015 (IJCAI).
    """
    if not len(finite(case)[0]) or (way := _way(case))[case.last_step - 1] < SHARE_SEEN:
        return
    validations, steps = case.series.validation.finite, finite(case)
    of_steps = blocks(*steps)
    begin = 1 + int(np.searchsorted(way, SHARE_SEEN))
    for x, y in ((validations["step"], validations["loss"]), (np.maximum(1, of_steps.x.round()), of_steps.y)):
        if len(y) < ENOUGH_POINTS:
            continue
        delta = LITTLE * abs(float(y[-1]))
        rest = fall(way[x.astype(int) - 1], y, (SHARE_SEEN, 1.0), delta)
        if rest.probability < SURE or rest.value < -2 * delta:
            continue
        epoch = float(np.interp(begin, case.series.train["step"], case.series.train["epoch"]))
        yield Finding(
            code="plateau",
            severity="note",
            message=f"The loss stands at {y[-1]:.4g}: from step {begin:,} of {case.total:,} on, with a probability of "
            f"{percent(min(rest.probability, 0.99))}, the run brings less than {delta:.2g} ({percent(LITTLE)})",
            evidence={
                "step": begin,
                "total": case.total,
                "loss": round(float(y[-1]), 5),
                "fall": round(rest.value, 6),
                "delta": round(delta, 6),
                "probability": round(rest.probability, 4),
            },
            changes=tuple(_against_a_plateau(case, epoch)),
        )
        return


RULES: tuple[Rule, ...] = (overfitting, plateau)


def compared(best: Rows, other: Rows) -> Interval:
    """By how much the other's loss per supervised token is higher, at 99 %, with the rows as what scatters."""
    differences = (other.losses - best.losses) / best.tokens.mean()
    if len(differences) < ENOUGH_TO_AVERAGE:
        return mean(differences.tolist(), CONFIDENCE)
    value, error = float(differences.mean()), NORMAL_99 * float(differences.std(ddof=1)) / math.sqrt(len(differences))
    return Interval(value=value, low=value - error, high=value + error, n=len(differences))


def _training_fell(case: Case, since: float) -> bool:
    """Whether the training loss is lower at the end than it was around the best validation."""
    steps, losses = finite(case)
    width = max(5, len(steps) // 20)
    place = int(np.searchsorted(steps, since))
    around = losses[max(0, place - width // 2) : place + (width + 1) // 2]
    return len(around) > 0 and float(np.median(losses[-width:])) < float(np.median(around))


def finite(case: Case) -> tuple[Floats, Floats]:
    """Steps and training losses that are numbers."""
    lines = case.series.train.finite
    return lines["step"], lines["loss"]


def _way(case: Case) -> Floats:
    """How far the weights may have gone after each step of the whole run, in 0…1: the rates summed, those to come by the schedule."""
    training, train = case.recipe.training, case.series.train
    rates = np.interp(np.arange(1, case.last_step + 1), train["step"], np.nan_to_num(train["learning_rate"]))  # lines may be lost
    ahead = np.arange(case.last_step + 1, case.total + 1) / max(1, case.total)
    falling = {
        "constant": np.ones_like(ahead),
        "linear": 1 - ahead,
        "cosine": 0.5 * (1 + np.cos(np.pi * ahead)),
        "cosine_with_restarts": 0.5 * (1 + np.cos(np.pi * (training.lr_cycles * ahead % 1))),
    }
    summed = np.cumsum(np.concatenate([rates, training.learning_rate * falling[training.lr_scheduler]]))
    found: Floats = summed / summed[-1] if len(summed) and summed[-1] > 0 else summed
    return found


def _against_overfitting(case: Case, epoch: float) -> Iterator[Change]:
    yield case.epochs_until(epoch, "where validation was best")
    lora = case.recipe.lora
    if lora != "none":
        more = 0.1 if lora.dropout < 0.1 else min(0.3, round(lora.dropout + 0.05, 2))
        yield Change(path="lora.dropout", value=more, why="an adapter that sees less of each row learns less of it by heart")
        if lora.r > 16:
            yield Change(path="lora.r", value=lora.r // 2, why="fewer numbers to remember rows in")
    decay = case.recipe.training.weight_decay
    if decay < 0.1:
        yield Change(path="training.weight_decay", value=0.01 if decay < 0.01 else 0.1, why="little effect, and it costs nothing")


def _against_a_plateau(case: Case, epoch: float) -> Iterator[Change]:
    training, lora = case.recipe.training, case.recipe.lora
    yield case.epochs_until(epoch, "the rest brings nothing")
    if lora != "none":
        if lora.r < MOST_RANK:
            yield Change(path="lora.r", value=2 * lora.r, why="more capacity, for more memory")
        yield Change(path="lora.alpha", value=2 * lora.alpha, why="a stronger adapter of the same size")
    if training.learning_rate < MOST_RATE:
        rate = float(f"{min(MOST_RATE, 1.5 * training.learning_rate):.2g}")
        yield Change(path="training.learning_rate", value=rate, why="may leave the plateau, and may jump")
    if training.weight_decay == 0:
        yield Change(path="training.weight_decay", value=0.01, why="little effect, and it costs nothing")
