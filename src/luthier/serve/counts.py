"""What a server has done, in Prometheus' text format. Every number is counted in the event loop alone."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds of the buckets that durations are counted in."""


class Histogram:
    """Durations by size."""

    def __init__(self) -> None:
        self.buckets, self.sum = [0] * (len(SECONDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.buckets[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds

    def lines(self, name: str) -> Iterator[str]:
        """As Prometheus reads it: each bucket counts all that are no longer."""
        total = 0
        for bound, number in zip((*map(str, SECONDS), "+Inf"), self.buckets, strict=True):
            total += number
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self.sum}"
        yield f"{name}_count {total}"


class Counts:
    """Requests, tokens, durations, and what is open now."""

    def __init__(self) -> None:
        self.answers_open = 0
        self.requests: Counter[tuple[str, int]] = Counter()
        """By path and status; 499: the client left."""
        self.prompt_tokens: Counter[str] = Counter()
        self.completion_tokens: Counter[str] = Counter()
        """By model."""
        self.first_token_seconds, self.answer_seconds = Histogram(), Histogram()

    def forget(self, model: str) -> None:
        """One that is not served any more."""
        del self.prompt_tokens[model], self.completion_tokens[model]

    def text(self, models: Sequence[str]) -> str:
        """All of it."""
        return "\n".join(self._lines(models)) + "\n"

    def _lines(self, models: Sequence[str]) -> Iterator[str]:
        yield from _family("luthier_requests_total", "counter", "Requests by path and status; 499: the client left before its answer.")
        for (path, status), number in sorted(self.requests.items()):
            yield f'luthier_requests_total{{path="{path}",status="{status}"}} {number}'
        yield from _family("luthier_answers_open", "gauge", "Answers that are being written or wait for it.")
        yield f"luthier_answers_open {self.answers_open}"
        yield from _family("luthier_tokens_total", "counter", "Tokens of prompts and of answers, by model.")
        for kind, counted in (("prompt", self.prompt_tokens), ("completion", self.completion_tokens)):
            for model in models:
                yield f'luthier_tokens_total{{kind="{kind}",model="{_escaped(model)}"}} {counted[model]}'
        yield from _family("luthier_first_token_seconds", "histogram", "From a request to the first token of its answer.")
        yield from self.first_token_seconds.lines("luthier_first_token_seconds")
        yield from _family("luthier_answer_seconds", "histogram", "From a request to the end of its answer.")
        yield from self.answer_seconds.lines("luthier_answer_seconds")


def _family(name: str, kind: str, told: str) -> Iterator[str]:
    yield f"# HELP {name} {told}"
    yield f"# TYPE {name} {kind}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
