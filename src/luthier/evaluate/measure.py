"""What answers cost: seconds, one row at a time."""

from collections.abc import Sequence

from luthier.core.chat import Completer
from luthier.core.progress import Progress
from luthier.data.rows import Example
from luthier.evaluate.metrics import estimate, seconds_of
from luthier.evaluate.report import AnswerTime, Latency, Times
from luthier.evaluate.task import choose
from luthier.recipe.proof import Decision
from luthier.score.intervals import rows_for_quantile

LATENCY_ROWS = 16  # each answered alone, so a few seconds on a small model, minutes on a large one
WARM_UP_TOKENS = 4


def latency_rows(decision: Decision) -> int:
    """Rows to time: 16, or what a bound on a 95th percentile needs to have an upper end at all (72 at 95 % confidence)."""
    if any(metric.endswith("_p95") for metric in (*decision.deploy, *decision.abort)):
        return max(LATENCY_ROWS, rows_for_quantile(0.95, decision.confidence))
    return LATENCY_ROWS


def measure_latency(
    examples: Sequence[Example], completer: Completer, *, num_rows: int, max_new_tokens: int, seed: int, progress: Progress
) -> Latency:
    """Answer up to `num_rows` (by seeded hash) one at a time, after a warm-up: what one user waits, not what a batch takes."""
    (latency,) = measure_in_turn(examples, (completer,), num_rows=num_rows, max_new_tokens=max_new_tokens, seed=seed, progress=progress)
    return latency


def measure_in_turn(
    examples: Sequence[Example], completers: Sequence[Completer], *, num_rows: int, max_new_tokens: int, seed: int, progress: Progress
) -> list[Latency]:
    """The same of several, each row asked of all of them in turn, so that what else the machine does falls on all alike.

    Who is asked first changes from row to row. Of rows of one key one is asked.
    """
    alone = list({row.key: row for row in reversed(examples)}.values())[::-1]
    rows = choose(alone, num_rows, seed)
    for completer in completers:
        completer.complete([row.prompt for row in rows[:1]], max_new_tokens=WARM_UP_TOKENS)
    times: list[list[AnswerTime]] = [[] for _ in completers]
    with progress.task("latency", len(rows)) as advance:
        for number, row in enumerate(rows):
            for turn in range(len(completers)):
                place = (number + turn) % len(completers)
                (answer,) = completers[place].complete([row.prompt], max_new_tokens=max_new_tokens)
                times[place].append(
                    AnswerTime(
                        origin=row.origin, first_token_seconds=answer.first_token_seconds, seconds=answer.seconds, tokens=answer.num_tokens
                    )
                )
            advance(number + 1, f"{answer.seconds:.2f} s")
    return [_latency(each) for each in times]


def _latency(times: Sequence[AnswerTime]) -> Latency:
    return Latency(
        answer=_times("latency", times), first_token=_times("first_token", times), per_token=_times("per_token", times), rows=tuple(times)
    )


def _times(name: str, rows: Sequence[AnswerTime]) -> Times:
    values = seconds_of(name, rows)
    return Times(mean=estimate("mean", values), p50=estimate("p50", values), p95=estimate("p95", values))
