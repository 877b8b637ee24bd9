"""transformers.Trainer and its descendants at the gate."""

from collections.abc import Callable

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from bench.protocol import Account, Gate


class GateCallback(TrainerCallback):
    """Tells the gate of steps, and waits there at every epoch's end."""

    def __init__(self, gate: Gate, count: Callable[[], Account]) -> None:
        self._gate, self._count = gate, count

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: object) -> None:
        """An optimizer step is done."""
        self._gate.step()

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: object) -> None:
        """An epoch is done."""
        self._gate.epoch(self._count)
