"""Luthier's worker: the public job, `flow.train` of a recipe, held at epoch ends through its progress."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.protocol import ALPHA, LEARNING_RATE, RANK, Account, Gate, Task, account
from luthier import flow
from luthier.core.progress import Advance
from luthier.recipe.load import LoadedRecipe
from luthier.runs.store import find


class Held:
    """Progress that tells the gate of steps, and waits there at every epoch's end."""

    def __init__(self, gate: Gate, loaded: LoadedRecipe) -> None:
        self._gate, self._loaded = gate, loaded

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        """Holds the training; other work runs through."""
        per_epoch = total // self._gate.task.epochs

        def advance(done: int, text: str) -> None:
            self._gate.step()
            if done % per_epoch == 0:
                self._gate.epoch(self._account, self._order(done - per_epoch + 1, done), self._resolved())

        yield advance if name == "training" else lambda done, text: None

    def say(self, line: str) -> None:
        """Into the log."""
        print(line, file=sys.stderr, flush=True)

    def _account(self) -> Account:
        rows = flow.prepare(self._loaded.recipe).rows("train")
        return account((row.ids.tolist(), row.supervised.tolist()) for row in rows)

    def _order(self, first: int, last: int) -> list[list[int]]:
        """The rows of each step: which of them share a step decides what can be shared."""
        from luthier.data.order import rows_of_step  # heavy, and loaded by now

        recipe = self._loaded.recipe
        prepared = flow.prepare(recipe)
        steps, rows = flow.steps(recipe, prepared), prepared.rows("train")
        return [rows_of_step(step, steps.global_batch_size, recipe.seed, rows).tolist() for step in range(first, last + 1)]

    def _resolved(self) -> dict[str, object]:
        plan = json.loads(find(self._loaded.recipe.name).plan.read_text(encoding="utf-8"))
        return {item["path"]: item["value"] for item in plan["resolved"]}


def write_recipe(task: Task) -> Path:
    """The task as a recipe; no validation, and no checkpoint before the end, which the controller never lets come."""
    recipe = {
        "name": "bench",
        "seed": task.seed,
        "model": {"base": task.files.model, "dtype": "bfloat16", "chat_template": task.files.template},
        "lora": {"r": RANK, "alpha": ALPHA, "dropout": task.dropout},
        "data": {
            "sources": [{"path": task.files.dialogues, "format": "messages"}],
            "deduplicate": "none",
            "split": {"train": 1, "validation": 0, "test": 0},
        },
        "training": {
            "epochs": task.epochs,
            "global_batch_size": task.batch,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler": "constant",
            "warmup_steps": 0,
        },
        "checkpoints": {"save_steps": "100%"},
    }
    path = Path(task.scratch) / "recipe.yaml"
    path.write_text(json.dumps(recipe, indent=2), encoding="utf-8")  # JSON is YAML
    return path


def main() -> None:
    """Train until the controller has enough."""
    gate = Gate(("torch", "transformers", "peft"))
    os.environ["LUTHIER_RUNS"] = str(Path(gate.task.scratch) / "runs")
    loaded = flow.load(write_recipe(gate.task), gate.task.options["overrides"])
    flow.train(loaded, Held(gate, loaded))


if __name__ == "__main__":
    main()
