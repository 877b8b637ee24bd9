"""What `evaluate` may ask instead of the recipe's own questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core import files
from luthier.core.errors import UsageError

if TYPE_CHECKING:  # `luthier --help` does not wait for the schema
    from luthier.recipe.schema import Data, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `evaluate` asks instead of the recipe's own: another split, or a file's rows; fewer rows. `recipe` leaves each as it is."""

    split: Literal["train", "validation", "test", "recipe"] = "recipe"
    data: Path | Literal["recipe"] = "recipe"
    limit: int | Literal["recipe"] = "recipe"

    def __post_init__(self) -> None:
        if self.data == "recipe":
            return
        if self.split != "recipe":
            raise UsageError("--data asks all rows of its file, --split those of the recipe", change="give one of the two")
        if not self.data.is_file():
            raise UsageError("there is no such file", where=str(self.data), change="--data wants a file of rows")

    @property
    def suffix(self) -> str:
        """Tells such an evaluation's folder from that of the recipe's own; a file is known by its name and content."""
        data = self.data if isinstance(self.data, str) else f"{self.data.stem}-{files.sha256(self.data)[:8]}"
        parts = (("split", self.split), ("data", data), ("limit", str(self.limit)))
        return "".join(f"-{name}-{value}" for name, value in parts if value != "recipe")

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe with these questions."""
        tasks: dict[str, str | int] = {} if self.data == "recipe" else {"split": "test", "limit": "all"}
        tasks |= {} if self.split == "recipe" else {"split": self.split}
        tasks |= {} if self.limit == "recipe" else {"limit": self.limit}
        asked = [task for task in recipe.evaluation.tasks if task.of_split or "split" not in tasks]  # which would ask its own rows still
        evaluation = recipe.evaluation.model_copy(update={"tasks": tuple(task.model_copy(update=tasks) for task in asked)})
        data = recipe.data if self.data == "recipe" else _rows_of(self.data, recipe.data)
        return recipe.model_copy(update={"evaluation": evaluation, "data": data})


AS_THE_RECIPE = Options()


def _rows_of(file: Path, data: Data) -> Data:
    """The data section with a file's rows as its test split, every one of them; of the sources stays the least that `prepare` takes."""
    from luthier.recipe.schema import Split

    whole: dict[str, object] = {"split": Split(train=1, validation=0, test=str(file.absolute())), "deduplicate": "none", "max_per_group": 1}
    if data.over_length != "truncate":
        whole["max_length"] = "fit"
    return data.model_copy(update=whole)
