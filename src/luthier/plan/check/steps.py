"""Findings about steps: when the run saves and validates, how long its rate climbs, what a step and an epoch are."""

import math
from collections.abc import Iterator

from luthier.core.finding import Change, Finding
from luthier.plan.check.case import Case, Check
from luthier.plan.check.words import count, duration, percent
from luthier.plan.ending import resolve_ending

LONG_RUN = 3600.0
"""Seconds of work that nobody would lose gladly."""
LONG_WARMUP = 0.2
COSTLY_VALIDATION = 0.2
ENOUGH_STEPS = 100
FEWEST_ROWS = 8
MANY_EPOCHS = 3
DIALOGUE = 1.5
"""Trained answers per example: below, most examples are one question and its answer."""


def no_save_before_end(case: Case) -> Iterator[Finding]:
    """No checkpoint is saved before the last step.

    Severity: warn.

    A run that is killed before its end (a crash, a pre-empted machine, a time limit) then starts anew. It is found where `save_steps`
    names a step that never comes, and where the one save of a run of more than an hour is its last.

    Arithmetic: 238 rows, 16 a step, make ⌈238 / 16⌉ = 15 steps an epoch, 45 in 3 epochs. `save_steps: 50` comes after the end.

    What to do: save about every fifth of the run. A save of a LoRA adapter takes a second or less.

    Source: seed 004 (docs/notes/seeds.md), whose notes promise "every 50 steps → 1 checkpoint after 45 steps".
    """
    steps, asked = case.steps, case.recipe.checkpoints.save_steps
    never = isinstance(asked, int) and asked >= steps.total
    if len(steps.saves) > 1 or steps.total < 2 or not (never or case.time.total.mid >= LONG_RUN):
        return
    every = math.ceil(steps.total / 5)
    reason = f"every {asked} steps never comes" if never else f"the first save is the last step, after {duration(case.time.total.mid)}"
    lost = duration(every * case.time.total.mid / steps.total)
    yield Finding(
        code="no-save-before-end",
        severity="warn",
        message=f"No checkpoint is saved before the last of {steps.total} steps: {reason}, and a run that is killed starts anew",
        evidence={"total": steps.total, "save_steps": asked, "seconds": round(case.time.total.mid)},
        changes=(Change(path="checkpoints.save_steps", value=every, why=f"at most {count(every, 'step')}, {lost}, are lost"),),
    )


def warmup_too_long(case: Case) -> Iterator[Finding]:
    """The learning rate climbs for more than a fifth of the run, or never reaches its peak.

    Severity: warn.

    Warm-up bridges the first updates, while Adam's averages are not worth much. What it takes beyond that is training at less than the
    rate that was chosen; after it, the schedule falls to 0 in the steps that are left.

    Arithmetic: 50 steps of warm-up in a run of 45: the rate ends at 45 / 50 = 90 % of the peak and never falls. 200 of 1,686 are 12 %.

    What to do: give warm-up as a share, `warmup_ratio` 0.03 to 0.1, which follows when rows, batch or epochs change.

    Source: Goyal et al. 2017 (arXiv:1706.02677) on what warm-up is for; seed 004 (docs/notes/seeds.md) for a warm-up longer than the run.
    """
    total, warmup = case.steps.total, case.steps.warmup
    if warmup <= max(1, LONG_WARMUP * total):
        return
    ratio = 0.03 if total >= ENOUGH_STEPS else 0.1
    effect = f"it ends at {percent(total / warmup)} of its peak" if warmup > total else "it has no time to fall" if warmup == total else ""
    yield Finding(
        code="warmup-too-long",
        severity="warn",
        message=f"The learning rate climbs for {warmup} of {total} steps" + (f": {effect}" if effect else f", {percent(warmup / total)}"),
        evidence={"warmup": warmup, "total": total},
        changes=(Change(path="training.warmup_ratio", value=ratio, why=f"{math.ceil(ratio * total)} of {total} steps"),),
    )


def validations_too_rare(case: Case) -> Iterator[Finding]:
    """Early stopping can never act, because there are too few validations.

    Severity: warn where the recipe names a patience, note where it is `auto`.

    With a patience of p the run stops at the p-th validation in a row that brings no new best. The first one always is a new best, so
    p + 1 validations are the fewest after which it can stop.

    Arithmetic: patience 3, one validation at the end of each of 3 epochs: the fourth never comes.

    What to do: validate more often (`eval_steps`), or switch early stopping off. The best checkpoint is kept in either case.

    Source: the definition; `luthier.plan.ending` and `luthier.train.loop` do it so.
    """
    steps, checkpoints = case.steps, case.recipe.checkpoints
    num = len(steps.evaluations)
    if not num or checkpoints.early_stopping_patience == "off":
        return
    patience = resolve_ending(checkpoints, num).patience
    if num > patience:
        return
    yield Finding(
        code="validations-too-rare",
        severity="note" if checkpoints.early_stopping_patience == "auto" else "warn",
        message=f"Early stopping waits for {count(patience, 'validation')} without a new best; with {num} in all it can never act",
        evidence={"validations": num, "patience": patience, "total": steps.total},
        changes=(_enough_validations(case, patience),),
    )


def validations_too_frequent(case: Case) -> Iterator[Finding]:
    """Validation takes more than a fifth of the run.

    Severity: warn.

    A validation computes the forward pass of all validation rows: per token about half of what a LoRA training step takes, a third of a
    full one. Where answers are rewarded, or a task chooses the checkpoint, answers to them are written besides, which takes longer. What it
    adds to the choice of a checkpoint grows slowly after ten or so.

    Arithmetic: 2,000 training rows and 1,000 validation rows, validated every tenth of each epoch: 10 × 1,000 × ½ = 5,000 rows' worth of
    work beside 2,000, 71 % of the run.

    What to do: validate less often, or keep fewer rows for validation.

    Source: the operations that the plan itself counts (2 per parameter and token forward, 4 for a LoRA step, 6 for a full one).
    """
    time, steps = case.time, case.steps
    if not steps.evaluations or time.validation <= COSTLY_VALIDATION * time.total.mid:
        return
    share, num = time.validation / time.total.mid, len(steps.evaluations)
    fewer = int(_affordable_validations(case))
    change = Change(path="checkpoints.eval_steps", value=math.ceil(steps.total / max(1, fewer)), why=f"{count(fewer, 'validation')} in all")
    rows = "" if fewer else "; even one takes that much: fewer validation rows would do"
    take = "takes" if num == 1 else "take"
    yield Finding(
        code="validations-too-frequent",
        severity="warn",
        message=f"{count(num, 'validation')} {take} {duration(time.validation)} of {duration(time.total.mid)}, {percent(share)}{rows}",
        evidence={"validations": num, "seconds": round(time.validation, 1), "share": round(share, 3)},
        changes=(change,) if fewer else (),
    )


def few_steps(case: Case) -> Iterator[Finding]:
    """The run has fewer than 100 optimizer steps.

    Severity: note.

    Each step moves a weight by about the learning rate at most, and the schedule spends some steps climbing and most of the rest falling.
    The open sweep's advice is at least 100 steps, and its best results took 1,000 and more. Not asked where answers are rewarded.

    Arithmetic: 238 rows × 3 epochs, 16 a step, are 45 steps; 8 a step 90.

    What to do: fewer rows a step (down to 8), or more rows. More epochs of the same rows help less than new rows.

    Source: Tinker cookbook, `skills/research/references/hyperparams.md`: "Aim for at least 100 training steps".
    """
    steps = case.steps
    if steps.total >= ENOUGH_STEPS:
        return
    batch = int(steps.rows * case.epochs / ENOUGH_STEPS)
    smaller = Change(path="training.global_batch_size", value=batch, why=f"at least {ENOUGH_STEPS} steps of the same rows")
    mends = FEWEST_ROWS <= batch < steps.global_batch_size and case.recipe.training.max_steps is None
    yield Finding(
        code="few-steps",
        severity="note",
        message=f"{steps.rows:,} rows, {steps.global_batch_size} a step, make only {count(steps.total, 'step')} in all",
        evidence={"total": steps.total, "rows": steps.rows, "global_batch_size": steps.global_batch_size, "enough": ENOUGH_STEPS},
        changes=(smaller,) if mends else (),
    )


def small_batch(case: Case) -> Iterator[Finding]:
    """A step has fewer than 8 rows.

    Severity: warn.

    The gradient of few rows is noisy, and Adam's averages were tuned for larger steps: at one rate the loss jumps where that of a larger
    batch falls. Small batches can be made to work, with a lower rate and slower averages; the recipe has neither unless you chose them.
    Where answers are rewarded, few-prompts counts prompts instead.

    Arithmetic: the noise of a mean falls with the root of its number: 2 rows are 2 × as noisy as 8.

    What to do: 8 rows a step or more. It costs no memory: the micro batch stays as small as it must be.

    Source: seed 002 (docs/notes/seeds.md): "too noisy for stable convergence"; the other side: arXiv:2507.07101 (small batches with β₂
    adapted), and LoRA Without Regret (Thinking Machines, 2025): large batches cost LoRA more than full fine-tuning.
    """
    batch = case.steps.global_batch_size
    if batch >= FEWEST_ROWS:
        return
    noise = math.sqrt(FEWEST_ROWS / batch)
    yield Finding(
        code="small-batch",
        severity="warn",
        message=f"A step has only {count(batch, 'row')}: its gradient is {noise:.2g} × as noisy as that of {FEWEST_ROWS}",
        evidence={"global_batch_size": batch, "fewest": FEWEST_ROWS},
        changes=(Change(path="training.global_batch_size", value=FEWEST_ROWS, why="no memory more: the micro batch stays"),),
    )


def many_epochs(case: Case) -> Iterator[Finding]:
    """Dialogue is trained on for more than 3 epochs.

    Severity: note where the best checkpoint is kept, warn where the last one is.

    What comes next in a conversation is hard to know and easy to learn by heart: its validation loss turns early. Rows count as dialogue
    where an example has more than 1.5 answers that are trained on. Not asked where answers are rewarded.

    Arithmetic: a team's best checkpoint of 13,482 dialogues fell at epoch 0.94; at epoch 1.2 its validation loss was rising.

    What to do: 1 to 3 epochs, and validation rows, so that the best checkpoint is kept. Report the task's metric beside the loss: on
    reasoning, a rising loss went along with better answers.

    Source: seed 002 (docs/notes/seeds.md); against it, for reasoning: arXiv:2602.11149 (400 samples × 128 epochs beat 51,200 × 1).
    """
    if case.data == "stated" or case.epochs <= MANY_EPOCHS:
        return
    train = case.data.splits["train"]
    if not train.examples or (turns := train.answers / train.examples) <= DIALOGUE:
        return
    best = bool(case.steps.evaluations) and case.recipe.checkpoints.final != "last"
    kept = "the best checkpoint is kept" if best else "the last is kept, not the best"
    yield Finding(
        code="many-epochs",
        severity="note" if best else "warn",
        message=f"{case.epochs:.3g} epochs are many for dialogue ({turns:.2g} answers an example), which overfits fast; {kept}",
        evidence={"epochs": round(case.epochs, 2), "answers_per_example": round(turns, 2)},
        changes=(Change(path="training.epochs", value=float(MANY_EPOCHS), why="more than most dialogue needs"),),
    )


def batch_mismatch(case: Case) -> Iterator[Finding]:
    """Micro batch, replicas and global batch do not agree.

    Severity: warn.

    `global_batch_size` is what a step trains on; `micro_batch_size` and the replicas only divide it. Where a micro batch on all replicas
    is more than a step, or does not go into it, the two statements mean different batches, and only one of them can be what you meant.

    Arithmetic: 5 rows × 2 replicas are 10 at once; a step of 16 is 10 + 6. With 8 steps of accumulation it would have been 80.

    What to do: set `global_batch_size` to what you mean, and leave `micro_batch_size` to `auto`, or to a divisor of a replica's rows.

    Source: seeds 001 and 004 (docs/notes/seeds.md), which each work out a batch in two ways.
    """
    micro, ranks, batch = case.recipe.training.micro_batch_size, case.setup.layout.data, case.steps.global_batch_size
    if micro == "auto":
        return
    at_once, padded = micro * ranks, case.setup.micro_batch.packing == "off"
    if at_once <= batch and not (padded and batch % at_once):
        return
    effect = "more than a step has" if at_once > batch else f"which do not go into a step of {batch}"
    divisors = [size for size in range(1, min(micro, batch // ranks) + 1) if batch % (size * ranks) == 0]
    if divisors:
        change = Change(path="training.micro_batch_size", value=divisors[-1], why=f"{divisors[-1]} × {ranks} goes into {batch}")
    else:
        nearest = max(1, round(batch / at_once)) * at_once
        change = Change(path="training.global_batch_size", value=nearest, why=f"a multiple of {micro} × {ranks}")
    yield Finding(
        code="batch-mismatch",
        severity="warn",
        message=f"Micro batches of {micro} on {count(ranks, 'replica')} are {at_once} rows at once, {effect}"
        + (f" ({batch})" if at_once > batch else ""),
        evidence={"micro_batch_size": micro, "replicas": ranks, "global_batch_size": batch},
        changes=(change,),
    )


def step_split_uneven(case: Case) -> Iterator[Finding]:
    """The rows of a step do not divide evenly among the replicas.

    Severity: note.

    The update is the same, for the loss is a sum over all rows divided once; but replicas with fewer rows wait for the others.

    Arithmetic: 16 rows on 3 replicas are 6 + 5 + 5: two wait for a sixth of each step, 11 % of all that the devices could do.

    What to do: a global batch that is a multiple of the replicas.

    Source: the definition of data parallelism.
    """
    ranks, batch = case.setup.layout.data, case.steps.global_batch_size
    said = case.recipe.training.micro_batch_size != "auto" and case.setup.micro_batch.packing == "off"
    if said or batch % ranks == 0:  # of what the recipe says itself, batch-mismatch tells
        return
    idle = 1 - batch / (ranks * case.rows_per_rank)
    nearest = max(1, round(batch / ranks)) * ranks
    yield Finding(
        code="step-split-uneven",
        severity="note",
        message=f"{batch} rows a step do not divide among {ranks} replicas: {percent(idle)} of the devices' time is spent waiting",
        evidence={"global_batch_size": batch, "replicas": ranks, "idle_share": round(idle, 3)},
        changes=(Change(path="training.global_batch_size", value=nearest, why=f"{nearest // ranks} rows on each replica"),),
    )


CHECKS: tuple[Check, ...] = (
    no_save_before_end,
    warmup_too_long,
    validations_too_rare,
    validations_too_frequent,
    few_steps,
    small_batch,
    many_epochs,
    batch_mismatch,
    step_split_uneven,
)


def _enough_validations(case: Case, patience: int) -> Change:
    """The longest interval with twice the validations it takes, if that costs less than a fifth of the run; else with just enough."""
    steps, affordable = case.steps, _affordable_validations(case)
    for num in (2 * (patience + 1), patience + 1):
        if num <= min(affordable, steps.total):
            every = steps.total // num
            return Change(path="checkpoints.eval_steps", value=every, why=f"{math.ceil(steps.total / every)} validations")
    why = f"{steps.total} steps are too few, or validations too dear, for {patience + 1}"
    return Change(path="checkpoints.early_stopping_patience", value="off", why=why)


def _affordable_validations(case: Case) -> float:
    """As many as take a fifth of the run with them: a quarter of its steps."""
    each = case.time.validation / len(case.steps.evaluations)
    return COSTLY_VALIDATION / (1 - COSTLY_VALIDATION) * case.time.step * case.steps.total / each if each else math.inf
