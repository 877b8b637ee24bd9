"""Two models timed in turn on the same rows, in one process: what a comparison of their times rests on."""

from collections.abc import Sequence
from dataclasses import dataclass

import luthier.model  # noqa: F401  # isort: skip  # before PEFT: it imports bitsandbytes in silence, and without code of the hub
from peft import PeftModel

from luthier.core.chat import Completer, Completion, Conversation
from luthier.core.errors import RunError
from luthier.core.progress import Progress
from luthier.data.questions import asked_hash
from luthier.data.store import Prepared
from luthier.evaluate.asking import asked
from luthier.evaluate.measure import latency_rows, measure_in_turn
from luthier.evaluate.report import InTurn
from luthier.evaluate.run import Subject, loaded
from luthier.model.generate import LocalCompleter
from luthier.model.load import resolve_devices
from luthier.recipe.schema import Recipe

ROWS = 64  # an interval of the median from the 24th to the 41st difference


@dataclass(frozen=True, slots=True, kw_only=True)
class Untuned:
    """A Completer: a tuned model, asked as if it had no adapter. So base and tuned take the room of one."""

    tuned: LocalCompleter
    adapted: PeftModel

    def complete(self, conversations: Sequence[Conversation], *, max_new_tokens: int) -> list[Completion]:
        """One answer per conversation, in order."""
        with self.adapted.disable_adapter():
            return self.tuned.complete(conversations, max_new_tokens=max_new_tokens)


def time_in_turn(tuned: Subject, other: Subject | Completer, recipe: Recipe, prepared: Prepared, progress: Progress) -> InTurn:
    """Single answers of both to the rows of the task that is timed; the recipe has one. The other may answer elsewhere."""
    task = recipe.evaluation.timed
    if task is None:
        raise RunError(f"{recipe.name} has no task by whose rows answers could be timed")
    devices = resolve_devices(tuned.num_devices, 0)
    own = loaded(tuned, devices)
    its = _beside(own, tuned, other) if isinstance(other, Subject) else other
    first, second = measure_in_turn(
        asked(task, prepared),
        (own, its),
        num_rows=max(ROWS, latency_rows(recipe.decision)),
        max_new_tokens=task.max_new_tokens,
        seed=recipe.seed,
        progress=progress,
    )
    return InTurn(data_hash=asked_hash(prepared.summary.hash, recipe.evaluation.tasks), tuned=first, other=second)


def _beside(own: LocalCompleter, tuned: Subject, other: Subject) -> Completer:
    if other.model == tuned.model and not other.adapters and isinstance(own.model, PeftModel):
        return Untuned(tuned=own, adapted=own.model)
    return loaded(other, resolve_devices(other.num_devices, 0))
