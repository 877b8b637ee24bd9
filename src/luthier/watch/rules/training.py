"""Rules that look at steps: jumps and divergence, gradients, the learning rate, numbers that are none, a loss of nothing."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from luthier.core.finding import Change, Finding
from luthier.core.words import count, percent
from luthier.watch.rules.case import Case, Rule
from luthier.watch.rules.curves import Blocks, Floats, blocks, jumps
from luthier.watch.rules.validation import MOST_RATE, finite

JUMP_SIGMAS, JUMP = 8.0, 1.5
"""A jump lies so many robust standard deviations of the 32 steps before above them, and is so many times as high."""
MANY_JUMPS = 3
SIGMAS = 5.0
"""Blocks that lie apart by so many standard errors do so for a reason: 20 blocks are 190 pairs, of which chance gives less than 10⁻⁴."""
DIVERGED, HUMP = 0.15, 0.05
"""By such a share of the lowest block."""
LARGE_NORM, LARGE_SHARE = 10.0, 0.05
STRAIGHT, LEARNED, SURE_SIGMAS = (0.7, 1.5), 0.5, 2.0
"""The second half's fall over the first's of a curve that counts as straight; and what it must be above, by so many standard errors."""
FALLS = 0.02
"""The least fall in all, of the loss at the start."""
ENOUGH_BLOCKS = 6
LOWER_RATE = 0.8
"""Of the rate at which a loss rose, the most at which its fall may be the rate's doing."""
SHORT_WARMUP = 0.1


def spikes(case: Case) -> Iterator[Finding]:
    """The training loss jumps, and comes back.

    Severity: note for one or two, warn from three on.

    A step counts that is 1.5 × as high as the median of the 32 before it and eight robust standard deviations above it, in logarithms.
    A loss that stays up is told by diverged. Not asked where answers are rewarded: what is minimised then lies about 0.

    Arithmetic: losses of 2.0 that scatter by 5 % have a threshold of 3.0; a step of 4.5 is a jump. Normal noise reaches eight standard
    deviations once in 10¹⁵ steps.

    What to do: look at the rows of that step, which may be broken. Then clip the gradient; a longer warm-up; a lower rate; at least 8
    rows a step.

    Source: seed 003, "Unstable Training" (docs/notes/seeds.md); Molybog et al. 2023, arXiv:2304.09871, on Adam's jumps.
    """
    steps, losses = finite(case)
    found = jumps(losses, JUMP_SIGMAS, JUMP)
    if not len(found) or _is_diverged(case):
        return
    highest = found[losses[found].argmax()]
    before = float(np.median(losses[highest - 32 : highest]))
    yield Finding(
        code="spikes",
        severity="warn" if len(found) >= MANY_JUMPS else "note",
        message=f"The training loss jumps at {count(len(found), 'step')}, most at step {int(steps[highest]):,}: "
        f"{losses[highest]:.3g}, and {before:.3g} before it",
        evidence={"spikes": len(found), "step": int(steps[highest]), "loss": round(float(losses[highest]), 4), "before": round(before, 4)},
        changes=tuple(_calmer(case)),
    )


def diverged(case: Case) -> Iterator[Finding]:
    """The training loss rises, and does not come back.

    Severity: warn.

    The training loss is divided into up to twenty blocks. The newest two must lie 15 % above the lowest block before them, by five standard
    errors of their medians, with the noise taken from the differences of neighbouring steps. Not asked where answers are rewarded: what
    is minimised then lies about 0.

    Arithmetic: 400 steps that scatter by 10 % are blocks of 20, whose medians are known to 2.8 %: two differ by chance by 4 %, and five
    times that is what is asked.

    What to do: a third of the rate; a longer warm-up; clip the gradient. What was learned after the lowest block is lost: the best
    checkpoint before it is kept where there are validations.

    Source: the open sweep of Tinker's cookbook (`sft_sweep.md`): 3e-3 mostly diverges; seed 003, "Unstable Training".
    """
    if not _is_diverged(case):
        return
    found = blocks(*finite(case))
    low = int(found.y[:-2].argmin())
    yield Finding(
        code="diverged",
        severity="warn",
        message=f"The training loss has risen by {percent(found.rise(low, -1))} since step {int(found.x[low]):,} and stays there: "
        f"{found.y[low]:.3g} → {found.y[-1]:.3g}",
        evidence={"lowest": round(float(found.y[low]), 4), "at_step": int(found.x[low]), "now": round(float(found.y[-1]), 4)},
        changes=tuple(_calmer(case, rate_first=True)),
    )


def learning_rate_high(case: Case) -> Iterator[Finding]:
    """The loss rose while the learning rate was at its highest, and came back once the rate was lower.

    Severity: warn.

    Of the blocks of the training loss (as in diverged) two in a row lie 5 % above an earlier one, by five standard errors, while the rate
    is at least half of its peak. The first later block that has lost half of that rise has at most 0.8 of the rate: a hump that goes by at
    the same rate has another cause. Restarts of the rate, after which a loss rises for a while, do not count. Not asked where answers are
    rewarded.

    Arithmetic: 2.6 at the end of the warm-up, 2.9 at a quarter of the run, where the rate is 2.6e-3; 2.7 at half of it, and 1.5e-3.

    What to do: a third of the rate; then a longer warm-up. 3e-4 costs 0.3 % of the loss on average over the best rate of each model.

    Source: the open sweep of Tinker's cookbook (`sft_sweep.md`), 35 models; seed 003, "Unstable Training".
    """
    found = _blocks(case)
    if len(found.y) < ENOUGH_BLOCKS or case.recipe.training.lr_cycles > 1 or _is_diverged(case):
        return
    rates = np.interp(found.x, case.series.train["step"], case.series.train["learning_rate"])
    for high in range(1, len(found.y) - 2):
        low = int(found.y[:high].argmin())
        stays = all(found.rise(low, at) > HUMP and found.sigmas(low, at) > SIGMAS for at in (high, high + 1))
        lower = np.flatnonzero(found.y[high + 2 :] < (found.y[low] + found.y[high]) / 2)
        if not (stays and len(lower) and rates[high] >= 0.5 * rates.max()):
            continue
        back = high + 2 + int(lower[0])
        if rates[back] <= LOWER_RATE * rates[high]:
            yield Finding(
                code="learning-rate-high",
                severity="warn",
                message=f"The training loss rose by {percent(found.rise(low, high))} at a learning rate of {rates[high]:.2g} (step "
                f"{int(found.x[high]):,}) and came back at {rates[back]:.2g} (step {int(found.x[back]):,})",
                evidence={
                    "lowest": round(float(found.y[low]), 4),
                    "high": round(float(found.y[high]), 4),
                    "step": int(found.x[high]),
                    "rate": float(f"{rates[high]:.3g}"),
                    "rate_at_fall": float(f"{rates[back]:.3g}"),
                },
                changes=tuple(_calmer(case, rate_first=True)),
            )
            return


def learning_rate_low(case: Case) -> Iterator[Finding]:
    """The loss still falls as fast as it did at the start: the run ends before it has learned.

    Severity: warn.

    The training loss is drawn over the sum of the learning rates up to each step, which is how far the weights can have gone. A run that
    has learned falls fast, then slowly; a straight line is one that has only begun. Told is: the second half of the way falls 0.7 to 1.5
    times as steeply as the first, and more than 0.5 times by two standard errors; three quarters of the steps are done; the fall is 2 % of
    the loss, and five standard errors. The stairs that a training loss goes down with each epoch, as rows come again, are taken off. Not
    asked where answers are rewarded.

    Arithmetic: a curve exp(-x/τ) whose τ is a third of the run falls in its second half by 0.22 of the first's; one whose τ is five times
    the run by 0.9.

    What to do: three times the rate (to 1e-3 at most); more epochs.

    Source: the open sweep of Tinker's cookbook (`sft_sweep.md`): 1e-4 costs up to 6.5 % of the loss, and small models often want 1e-3.
    """
    found = _blocks(case)
    if len(found.y) < ENOUGH_BLOCKS or case.last_step < 0.75 * case.total or _is_diverged(case):
        return
    rates = case.series.train["learning_rate"]
    way = np.interp(found.x, case.series.train["step"], np.cumsum(np.nan_to_num(rates)))
    epochs = np.floor(np.interp(found.x, case.series.train["step"], case.series.train["epoch"]) - 1e-9)
    first, second, whole = _slopes(found, way / way[-1], epochs)
    straight = STRAIGHT[0] * first.value >= second.value >= STRAIGHT[1] * first.value
    surely = LEARNED * first.value - second.value > SURE_SIGMAS * math.hypot(LEARNED * first.error, second.error)
    if not (straight and surely) or -whole.value < max(FALLS * abs(found.y[0]), SIGMAS * whole.error):
        return
    rate, epochs_in_all = case.recipe.training.learning_rate, float(case.series.train["epoch"][-1]) * case.total / case.last_step
    longer, higher = case.epochs_until(2 * epochs_in_all, "goes on as far again"), float(f"{min(MOST_RATE, 3 * rate):.2g}")
    faster = Change(path="training.learning_rate", value=higher, why="as far in a third of it")
    yield Finding(
        code="learning-rate-low",
        severity="warn",
        message=f"The training loss fell in a straight line to the end ({found.y[0]:.3g} → {found.y[-1]:.3g}): "
        f"at a learning rate of {rate:.2g} the run has only begun to learn",
        evidence={"first_half": round(-first.value, 6), "second_half": round(-second.value, 6), "learning_rate": rate},
        changes=(faster, longer) if rate < MOST_RATE else (longer,),
    )


def gradient_large(case: Case) -> Iterator[Finding]:
    """The gradient's norm is above 10 again and again.

    Severity: warn.

    Counted are steps after the first tenth, in which a new adapter finds its size. The norm is of the mean loss per supervised token,
    before clipping, and so does not depend on batch or micro batch.

    Arithmetic: 5 of 100 steps. A healthy adapter has 0.1 to 2 (seed 003's good run 0.11 to 0.15), one that is rewarded 0.6 to 4.6 (forty
    steps of `recipes/quickstart-rl.yaml`).

    What to do: half the rate; a longer warm-up; clip at 1, if nothing is clipped.

    Source: seed 003, "Gradient norm > 10" (docs/notes/seeds.md).
    """
    norms = case.series.train["grad_norm"]
    later = norms[max(10, len(norms) // 10) :]
    later = later[np.isfinite(later)]
    share = float((later > LARGE_NORM).mean()) if len(later) >= 20 else 0.0
    if share < LARGE_SHARE:
        return
    yield Finding(
        code="gradient-large",
        severity="warn",
        message=f"The gradient's norm is above {LARGE_NORM:.0f} in {percent(share)} of the steps, at most {later.max():.3g}",
        evidence={"share": round(share, 3), "largest": round(float(later.max()), 2), "median": round(float(np.median(later)), 3)},
        changes=(
            case.lower_rate("smaller steps into where it is steep", 2.0),
            *(each for each in _calmer(case) if "rate" not in each.path),
        ),
    )


def not_finite(case: Case) -> Iterator[Finding]:
    """Loss or gradient was no number.

    Severity: warn.

    The update of such a step is never applied. `training.on_nonfinite` says whether the run stops there or goes on without the step's rows.

    Arithmetic: none; float16 overflows at 65,504, bfloat16 and float32 at 3·10³⁸.

    What to do: look at the rows that are named; a third of the rate; float32, which shows whether it is the precision.

    Source: transformers' Trainer logs `loss 0.0` there and goes on; here it is an event (docs/guarantees.md).
    """
    found = [event for event in case.events if event.get("event") == "nonfinite"]
    if not found:
        return
    last = found[-1]
    origins = last.get("origins") or []
    rows = f", with {', '.join(map(str, origins[:3]))}{' …' if len(origins) > 3 else ''}" if origins else ""
    changes = [case.lower_rate("what grows too large grows with it")]
    if case.recipe.model.dtype != "float32":
        changes.append(Change(path="model.dtype", value="float32", why="shows whether it is the precision"))
    yield Finding(
        code="not-finite",
        severity="warn",
        message=f"Loss or gradient was not a number {count(len(found), 'time')}, last at step {last.get('step')} ({last.get('of')}){rows}",
        evidence={"times": len(found), "step": int(last.get("step", 0)), "of": str(last.get("of", ""))},
        changes=tuple(changes),
    )


def masked_to_nothing(case: Case) -> Iterator[Finding]:
    """Steps or validation rows have no token that is trained on: their loss is that of nothing.

    Severity: warn.

    A step's supervised tokens are counted over all ranks; rows without any are dropped before training, so that this is a fault of the
    rows' preparation, or of a model that leaves them out. A loss of exactly 0 counts too. Where answers are rewarded only validation rows
    count: of steps without a signal no-signal tells.

    Arithmetic: one such step is enough.

    What to do: `luthier inspect RECIPE` shows which tokens are trained on; data.train_on and data.max_length decide it.

    Source: TRL#6025, LlamaFactory#3995, Qwen3#1522: a mask of nothing trains without an error (docs/notes/seeds.md).
    """
    train = case.series.train
    nothing = ((train["supervised_tokens"] == 0) | (train["loss"] == 0)) & (case.recipe.rl == "none")
    rows = max((int((each.tokens == 0).sum()) for each in case.rows.values()), default=0)
    if not nothing.any() and not rows:
        return
    num = int(nothing.sum())
    first = f", the first at step {int(train['step'][nothing.argmax()]):,}" if num else ""
    yield Finding(
        code="masked-to-nothing",
        severity="warn",
        message=f"{count(num, 'step')} and {count(rows, 'validation row')} have no token to train on{first}",
        evidence={"steps": num, "rows": rows},
        fix="luthier inspect RECIPE shows which tokens of a row are trained on",
    )


RULES: tuple[Rule, ...] = (
    not_finite,
    masked_to_nothing,
    diverged,
    spikes,
    learning_rate_high,
    learning_rate_low,
    gradient_large,
)


def _blocks(case: Case) -> Blocks:
    steps, losses = finite(case)
    return blocks(steps, losses) if len(steps) else Blocks(x=np.zeros(0), y=np.zeros(0), error=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slope:
    value: float
    error: float


def _slopes(found: Blocks, way: Floats, epochs: Floats) -> tuple[_Slope, _Slope, _Slope]:
    """Of the way's first half, its second, and all of it; the stairs down which a training loss goes with each epoch are not of it."""

    def fitted(*columns: Floats) -> tuple[Floats, Floats]:
        design = np.stack([np.ones_like(way), *columns, *([epochs] if epochs.any() else [])], axis=1)
        inverse = np.linalg.pinv(design.T @ design)
        return inverse @ design.T @ found.y, found.error * np.sqrt(np.diag(inverse))

    values, errors = fitted(np.minimum(way, 0.5), np.maximum(way - 0.5, 0))
    whole, of_whole = fitted(way)
    return (
        _Slope(value=float(values[1]), error=float(errors[1])),
        _Slope(value=float(values[2]), error=float(errors[2])),
        _Slope(value=float(whole[1]), error=float(of_whole[1])),
    )


def _is_diverged(case: Case) -> bool:
    found = _blocks(case)
    if len(found.y) < ENOUGH_BLOCKS:
        return False
    low = int(found.y[:-2].argmin())
    return all(found.rise(low, at) > DIVERGED and found.sigmas(low, at) > SIGMAS for at in (-2, -1))


def _calmer(case: Case, *, rate_first: bool = False) -> Iterator[Change]:
    """What calms training, by what it helps and costs."""
    training = case.recipe.training
    rate = case.lower_rate("smaller steps")
    if rate_first:
        yield rate
    if training.max_grad_norm == 0 or training.max_grad_norm > 1:
        yield Change(path="training.max_grad_norm", value=1.0, why="no step is larger than that")
    if training.warmup_steps is None and (training.warmup_ratio or 0) < SHORT_WARMUP:
        yield Change(path="training.warmup_ratio", value=SHORT_WARMUP, why="Adam's averages settle before the rate is high")
    if not rate_first:
        yield rate
    if training.global_batch_size < 8:
        yield Change(path="training.global_batch_size", value=8, why="a less noisy gradient")
