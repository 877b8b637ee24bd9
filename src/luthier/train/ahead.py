"""The next step's micro batches, made in the background while this step is computed."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from luthier.data.order import Indices
from luthier.train.batch import MicroBatch


@dataclass(slots=True)
class Ahead:
    """Makes each step's micro batches once; the step after it is begun as soon as one is taken."""

    make: Callable[[int], tuple[Indices, list[MicroBatch]]]
    last: int
    _worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches"))
    _next: dict[int, Future[tuple[Indices, list[MicroBatch]]]] = field(default_factory=dict)

    def take(self, step: int) -> tuple[Indices, list[MicroBatch]]:
        """The rows of a step and its micro batches; what making them raised is raised here."""
        made = self._next.pop(step, None) or self._worker.submit(self.make, step)
        if step < self.last:
            self._next[step + 1] = self._worker.submit(self.make, step + 1)
        return made.result()

    def told(self) -> Mapping[str, float]:
        """Nothing that a step does not tell itself."""
        return {}

    def reached(self, loss: float) -> str:
        """The loss."""
        return f"loss {loss:.4f}"
