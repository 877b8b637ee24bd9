"""Small evaluations for tests that need one: so many right answers, such latencies."""

from collections.abc import Mapping, Sequence

from luthier.evaluate.metrics import estimate, seconds_of
from luthier.evaluate.report import AnswerTime, Latency, Loss, Prediction, Report, RowLoss, Scores, Times
from luthier.evaluate.task import summarise


def prediction(row: int, score: float, *, stopped: bool = True, group: str = "", key: str = "") -> Prediction:
    return Prediction(
        task="answers",
        origin=f"log.jsonl:{row + 1}",
        group=group,
        messages=({"role": "user", "content": f"question {row}"},),
        reference="yes",
        answer="yes" if score == 1 else "no",
        score=score,
        tokens=2,
        stopped=stopped,
        seconds=0.5,
        key=key,
    )


def latency(seconds: Sequence[float]) -> Latency:
    rows = tuple(
        AnswerTime(origin=f"log.jsonl:{row + 1}", first_token_seconds=value / 10, seconds=value, tokens=10)
        for row, value in enumerate(seconds)
    )

    def times(name: str) -> Times:
        values = seconds_of(name, rows)
        return Times(mean=estimate("mean", values), p50=estimate("p50", values), p95=estimate("p95", values))

    return Latency(answer=times("latency"), first_token=times("first_token"), per_token=times("per_token"), rows=rows)


def report(
    answers: Sequence[float], *, seconds: Sequence[float] = (), memory: int | None = None, loss: float | None = None, cut: int = 0
) -> Report:
    """An evaluation of one task `answers`, scored by `exact`; row k of one report is row k of every other."""
    rows = tuple(prediction(row, score, stopped=row >= cut) for row, score in enumerate(answers))
    scores = Scores(
        subject="runs/tuned",
        data_hash="0" * 16,
        tasks={"answers": summarise("exact", rows)} if rows else {},
        loss=None if loss is None else Loss(value=loss, n=29, tokens=1_000),
        latency=latency(seconds) if seconds else None,
        tokens_per_second=100.0,
        peak_memory_bytes=memory,
    )
    return Report(scores=scores, predictions={"answers": rows} if rows else {})


def right(count: int, of: int) -> list[float]:
    """So many right answers, then wrong ones."""
    return [1.0] * count + [0.0] * (of - count)


def grouped(groups: Mapping[str, Sequence[float]], *, keys: Sequence[str] = ()) -> Report:
    """The same of rows in groups, each of a key where keys are given."""
    answers = [(group, score) for group, scores in groups.items() for score in scores]
    rows = tuple(prediction(row, score, group=group, key=keys[row] if keys else "") for row, (group, score) in enumerate(answers))
    scores = Scores(subject="runs/tuned", data_hash="0" * 16, tasks={"answers": summarise("exact", rows)})
    return Report(scores=scores, predictions={"answers": rows})


def answered(texts: Sequence[tuple[str, bool]]) -> Report:
    """Answers of such texts, each with whether it ended by itself."""
    rows = tuple(prediction(row, 1.0, stopped=stopped).model_copy(update={"answer": text}) for row, (text, stopped) in enumerate(texts))
    scores = Scores(subject="runs/tuned", data_hash="0" * 16, tasks={"answers": summarise("exact", rows)})
    return Report(scores=scores, predictions={"answers": rows})


def lost(nats: Sequence[float]) -> Report:
    """An evaluation of a validation loss alone: so many nats on rows of ten tokens."""
    rows = tuple(RowLoss(row=str(row), key=str(row), nats=value, tokens=10) for row, value in enumerate(nats))
    loss = Loss(value=sum(nats) / (10 * len(nats)), n=len(nats), tokens=10 * len(nats), rows=rows)
    return Report(scores=Scores(subject="runs/tuned", data_hash="0" * 16, tasks={}, loss=loss))
