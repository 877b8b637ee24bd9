"""Findings about the decision: whether its bounds can be shown to hold by so few rows, and be met by such a model at all."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from luthier.core.finding import Change, Finding
from luthier.plan.check.case import Case, Check, Wanted, wanted
from luthier.plan.check.words import count, gigabytes, percent
from luthier.plan.setup import DTYPE_BYTES, Dtype, Layout, Quantization
from luthier.plan.weights import matrix_bytes, stored_weights, undivided
from luthier.recipe.proof import COMPARISON, Task
from luthier.score.intervals import rows_for_share
from luthier.score.scorers import metric_name

MOST_TEST = 0.3
"""Share of the rows that may be moved to the test split to decide; more would be missed in training."""
PAIRS = 0.2 * (1.96 + 0.84) ** 2
"""Pairs of rows, times the square of the improvement, that show it with 80 % power at 95 % where 20 % of pairs differ (arXiv:2411.00640):
5 points 628, 10 points 157."""
WORTHWHILE = 0.1
"""An improvement that a comparison should be able to show."""
BUSY = 1.25
"""Times the bandwidth that was found, what a processor's memory may give when nothing else uses it."""
ROOM = 0.9
"""Of a bound on memory, for weights; the rest is for caches and the process."""


def test_too_small(case: Case) -> Iterator[Finding]:
    """The rows that a task asks are too few to show what the decision wants shown.

    Severity: warn where not even a perfect result would do; note where only one well above the bound would.

    A share of right answers is known with an interval, which shrinks with the number of rows. `decide` takes Clopper–Pearson's exact,
    two-sided interval at `decision.confidence`, and a bound is shown when its near end clears it. Of a comparison with the baseline, the
    rows tell how large an improvement must be to be seen.

    Arithmetic: 31 of 31 right is at least 88.8 % at 95 %: not 98 %. All right, 98 % needs ln(0.025) / ln(0.98) = 183 rows (149 if only
    one side were tested, which `decide` does not do). With 98.7 % right it needs 1,541. For a comparison: 31 pairs show 22 points,
    157 show 10, 628 show 5. A guard of `not worse than base by 5 %` takes as many: of fewer, a model that is as good will often not pass.

    What to do: more test rows (a larger share, or more data), `limit: all`, a bound that is as far below what you expect as the rows can
    tell, or a comparison on the same rows. `decide` says "not enough data" otherwise.

    Source: Clopper & Pearson 1934; arXiv:2503.01747 (no normal approximation below a few hundred rows), arXiv:2411.00640 (pairs);
    seed 004 (docs/notes/seeds.md): ≥ 98 % on 31 rows.
    """
    tasks = {f"{task.name}.{metric_name(task.scorer)}": task for task in case.recipe.evaluation.tasks}
    for bound in wanted(case.recipe):
        task = tasks.get(bound.metric)
        if task and (rows := _rows_asked(case, task)) != "unknown":
            yield from _too_few(case, bound, task, rows)
    for metric, text in case.recipe.decision.deploy.items():
        task = tasks.get(metric)
        compared = COMPARISON.fullmatch(text)
        if task and compared and (rows := _rows_asked(case, task)) != "unknown":
            if compared["claim"] == "better":
                yield from _too_few_pairs(case, metric, (task, rows))
            else:
                yield from _too_few_to_guard(
                    case, metric, (task, rows), float(compared["value"]) * (0.01 if compared["unit"] == "%" else 1)
                )


def bound_unreachable(case: Case) -> Iterator[Finding]:
    """A bound on memory or latency cannot be met by a model of this size in this format.

    Severity: warn.

    Answering needs all weights in memory, and each token reads every weight that it is multiplied with: at the device's bandwidth, bytes
    per second, that is a floor under the time per token. A bound below the floor fails whatever is trained. Times assume answers as long
    as those that are trained on, and one at a time. A GPU's bandwidth is its maker's; a processor's is what this machine was found to
    read, and a quarter more, for other work may have slowed that.

    Arithmetic: 7.61 G parameters are 15.2 GB in bf16: not ≤ 10 GB. In nf4 they are 5.5 GB (0.52 bytes a weight; head and embedding stay
    in bf16). 14.1 GB a token at 300 GB/s are 47 ms: 300 tokens take 14 s at least. On a processor that reads 29 GB/s, 117 s.

    What to do: quantise, take a smaller base, or a device with more bandwidth; or bound what matters to you instead.

    Source: seed 004 (docs/notes/seeds.md): "≤10GB RAM" for a 7B in bf16; QLoRA (arXiv:2305.14314) for the bytes.
    """
    for bound in wanted(case.recipe):
        if bound.at_least:
            continue
        if bound.metric == "peak_memory":
            yield from _too_large(case, bound)
        elif _has_floor(bound) and case.device.bandwidth and _tokens_in(case, bound):
            yield from _too_slow(case, bound)


def bound_not_checked(case: Case) -> Iterator[Finding]:
    """Whether a bound on latency can be met at all is not known here.

    Severity: note.

    The floor under the time of an answer (bound-unreachable) follows from the memory's bandwidth and the answer's length. A processor's
    bandwidth stands in no table: `luthier plan` measures it, once for each machine, where the recipe has such a bound. How long answers
    are is not known of rows that are only stated, and of those that are trained on whole (`data.train_on: all`).

    Arithmetic: none; that is the point.

    What to do: plan on the machine that will answer, with its rows; or bound `per_token_mean`, which needs no length.

    Source: seed 004 (docs/notes/seeds.md): 12 s on a processor, for a 7B.
    """
    for bound in wanted(case.recipe):
        if bound.at_least or not _has_floor(bound) or (case.device.bandwidth and _tokens_in(case, bound)):
            continue
        unknown = "how long answers are" if case.device.bandwidth else f"how fast {case.device.name} reads its memory"
        yield Finding(
            code="bound-not-checked",
            severity="note",
            message=f"Whether {bound.metric} {bound.text} can be met was not checked: {unknown} is not known",
            evidence={"metric": bound.metric, "bound": bound.value},
            fix="" if case.device.bandwidth or case.on_gpu else "luthier plan, on the machine that will answer, measures it",
        )


CHECKS: tuple[Check, ...] = (test_too_small, bound_unreachable, bound_not_checked)


def _rows_asked(case: Case, task: Task) -> int | Literal["unknown"]:
    """Rows that the task will ask."""
    there: int | Literal["unknown"] = _rows_of(case, task.split) if task.of_split else "unknown"
    return there if task.limit == "all" or there == "unknown" else min(there, task.limit)


def _rows_of(case: Case, split: str) -> int | Literal["unknown"]:
    """Of the prepared data; of stated rows, what the shares make of them."""
    if case.data != "stated":
        return case.data.splits[split].examples if split in case.data.splits else 0
    shares = case.recipe.data.split
    share: float | str = {"train": shares.train, "validation": shares.validation, "test": shares.test}[split]
    return "unknown" if isinstance(share, str) else round(case.steps.rows * share / shares.train)


def _too_few(case: Case, bound: Wanted, task: Task, rows: int) -> Iterator[Finding]:
    confidence = case.recipe.decision.confidence
    perfect = rows_for_share(1.0 if bound.at_least else 0.0, bound.value, confidence)
    hoped = _hoped_for(case, bound)
    wide = rows_for_share(hoped, bound.value, confidence)
    if rows >= wide:
        return
    enough = rows >= perfect
    best = f"{100 * hoped:.4g} % right" if enough else "all right" if bound.at_least else "none right"
    then = "" if enough else f", and {_rows(wide)} with {100 * hoped:.4g} %"
    yield Finding(
        code="test-too-small",
        severity="note" if enough else "warn",
        message=f"{bound.metric} {bound.text} cannot be shown by {count(rows, 'row')}: with {best} it takes "
        f"{_rows(wide if enough else perfect)}{then} (at {percent(confidence)} confidence)",
        evidence={
            "metric": bound.metric,
            "rows": rows,
            "needed_if_perfect": perfect if math.isfinite(perfect) else "unreachable",
            "hoped_for": hoped,
            "needed_as_hoped": wide if math.isfinite(wide) else "unreachable",
        },
        changes=_more_rows(case, task, wide) or (() if enough else _more_rows(case, task, perfect)),
    )


def _hoped_for(case: Case, bound: Wanted) -> float:
    """The share that is expected: the baseline's number, where it meets the bound, else halfway between the bound and perfection."""
    baseline = case.recipe.evaluation.baseline
    known = baseline[bound.metric].value if isinstance(baseline, dict) and bound.metric in baseline else bound.value
    meets = known > bound.value if bound.at_least else known < bound.value
    return known if meets else (bound.value + bound.at_least) / 2


def _too_few_to_guard(case: Case, metric: str, asked: tuple[Task, int], margin: float) -> Iterator[Finding]:
    """A guard that many pairs of equal systems would not pass: their interval is wider than the margin."""
    (task, rows), needed = asked, math.ceil(PAIRS / margin**2)
    if rows >= needed:
        return
    shown = f"that it is within {100 * math.sqrt(PAIRS / rows):.0f} points" if rows else "nothing"
    guard = f"{metric} '{case.recipe.decision.deploy[metric].strip()}'"
    yield Finding(
        code="test-too-small",
        severity="warn",
        message=f"{guard}: of a model that is as good, {count(rows, 'row')} can show {shown}; {100 * margin:.3g} points take {needed:,} "
        "(if the answers to a fifth of the rows differ)",
        evidence={"metric": metric, "rows": rows, "margin": margin, "needed": needed},
        changes=_more_rows(case, task, needed),
    )


def _too_few_pairs(case: Case, metric: str, asked: tuple[Task, int]) -> Iterator[Finding]:
    task, rows = asked
    needed = math.ceil(PAIRS / WORTHWHILE**2)
    if rows >= needed:
        return
    seen = math.sqrt(PAIRS / rows) if rows else math.inf
    bound = case.recipe.decision.deploy[metric].strip()
    what = f"an improvement of about {100 * seen:.0f} points" if seen < 1 else "no improvement"
    yield Finding(
        code="test-too-small",
        severity="warn",
        message=f"{metric} '{bound}': {count(rows, 'row')} can show {what}; 10 points take {needed}, 5 points "
        f"{math.ceil(PAIRS / 0.05**2)} (if the answers to a fifth of the rows differ)",
        evidence={"metric": metric, "rows": rows, "needed_for_10_points": needed},
        changes=_more_rows(case, task, needed),
    )


def _more_rows(case: Case, task: Task, needed: float) -> tuple[Change, ...]:
    """What gives the task so many rows, if anything reasonable does."""
    place = case.recipe.evaluation.tasks.index(task)
    there = _rows_of(case, task.split)
    if there == "unknown" or not math.isfinite(needed):
        return ()
    if there >= needed:
        return (Change(path=f"evaluation.tasks.{place}.limit", value="all", why=f"the split has {there:,} rows"),)
    shares = case.recipe.data.split
    if task.split != "test" or isinstance(shares.test, str) or isinstance(shares.validation, str) or not there:
        return ()
    test = math.ceil(100 * 1.1 * needed / there * shares.test) / 100  # a tenth more: a hashed split gives about its share
    if test > MOST_TEST or test + shares.validation >= 1:
        return ()
    why = f"about {there / shares.test * test:,.0f} test rows"
    train = round(1 - shares.validation - test, 6)
    changes = [Change(path="data.split.test", value=test, why=why), Change(path="data.split.train", value=train, why="shares add up to 1")]
    if task.limit != "all":
        changes.append(Change(path=f"evaluation.tasks.{place}.limit", value="all", why="every row is asked"))
    return tuple(changes)


def _too_large(case: Case, bound: Wanted) -> Iterator[Finding]:
    setup = case.setup
    weights = _weight_bytes(case, setup.quantization, setup.dtype)
    if weights <= bound.value:
        return
    others: list[tuple[str, str, int]] = []
    if setup.dtype == "float32":
        others.append(("model.dtype", "bfloat16", _weight_bytes(case, setup.quantization, "bfloat16")))
    if case.recipe.lora != "none" and setup.quantization in ("none", "int8"):
        others.append(("model.quantization", "nf4", _weight_bytes(case, "nf4", "bfloat16")))
    meeting = [(path, value, size) for path, value, size in others if size <= ROOM * bound.value]
    told = "; ".join(f"in {value} {gigabytes(size)}" for _, value, size in others)
    largest = ROOM * bound.value / DTYPE_BYTES[setup.dtype]
    if not meeting:
        told = f"{told + '; ' if told else ''}a base of at most {largest / 1e9:.2g} G parameters would meet it in {setup.dtype}"
    form = setup.dtype if setup.quantization == "none" else setup.quantization
    yield Finding(
        code="bound-unreachable",
        severity="warn",
        message=f"peak_memory {bound.text} cannot be met: {case.shape.parameters / 1e9:.3g} G parameters are {gigabytes(weights)} "
        f"in {form} ({told})",
        evidence={"bound_bytes": bound.value, "weight_bytes": weights, **{f"{value}_bytes": size for _, value, size in others}},
        changes=tuple(Change(path=path, value=value, why=f"weights of {gigabytes(size)}") for path, value, size in meeting[:1]),
    )


def _too_slow(case: Case, bound: Wanted) -> Iterator[Finding]:
    tokens, bandwidth = _tokens_in(case, bound), case.device.bandwidth * (1.0 if case.on_gpu else BUSY)
    read = _bytes_per_token(case, case.setup.quantization)
    least = tokens * read / bandwidth
    if least <= bound.value:
        return
    nf4 = tokens * _bytes_per_token(case, "nf4") / bandwidth
    can = case.recipe.lora != "none" and case.setup.quantization in ("none", "int8") and nf4 < bound.value
    change = Change(path="model.quantization", value="nf4", why=f"{nf4:.2g} s at least, if unpacking costs nothing")
    answer = f"an answer of {tokens:.0f} tokens" if tokens > 1 else "a token"
    yield Finding(
        code="bound-unreachable",
        severity="warn",
        message=f"{bound.metric} {bound.text} cannot be met: {answer} reads {gigabytes(tokens * read)} of weights, "
        f"which takes {least:.2g} s at {bandwidth / 1e9:.0f} GB/s",
        evidence={"bound": bound.value, "least_seconds": round(least, 4), "bytes_per_token": round(read), "bandwidth": bandwidth},
        changes=(change,) if can else (),
    )


def _has_floor(bound: Wanted) -> bool:
    """Of latencies the mean only: a short answer may be as fast as one likes."""
    return bound.metric == "latency_mean" or bound.metric.startswith("per_token_")


def _tokens_in(case: Case, bound: Wanted) -> float:
    """Tokens that are written in the time that is bound; 0 where it is not known."""
    return _answer_tokens(case) if bound.metric == "latency_mean" else 1.0


def _answer_tokens(case: Case) -> float:
    """Mean tokens of an answer that is trained on, as far as a task lets it grow; 0 where it is not known."""
    if case.data == "stated" or case.recipe.data.train_on == "all":
        return 0.0
    train = case.data.splits["train"]
    longest = max((task.max_new_tokens for task in case.recipe.evaluation.tasks), default=0)
    return min(train.supervised_tokens / train.answers, longest) if train.answers else 0.0


def _weight_bytes(case: Case, quantization: Quantization, dtype: Dtype) -> int:
    """All weights on one device, to answer with."""
    if case.recipe.lora == "none":
        return case.shape.parameters * DTYPE_BYTES[dtype]
    alone = replace(case.setup, quantization=quantization, dtype=dtype, layout=Layout())
    stage = undivided(case.shape)
    return sum(part.bytes for part in stored_weights(case.shape, alone, stage))


def _bytes_per_token(case: Case, quantization: Quantization) -> int:
    """Of the weights that a token is multiplied with."""
    plain = DTYPE_BYTES[case.setup.dtype]
    return sum(linear.active * matrix_bytes(linear, quantization, case.setup.double_quant, plain) for linear in case.shape.linears)


def _rows(number: float) -> str:
    return f"{number:,.0f}" if math.isfinite(number) else "more rows than there can be"
