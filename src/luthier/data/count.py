"""How many examples a recipe's sources hold, and how long their dialogues are: before there is a tokenizer or a split."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from luthier.core.progress import Progress
from luthier.data.collect import Tally, collect, inputs_of
from luthier.recipe.schema import Data


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Examples that were kept, and all of their assistant turns."""

    examples: int
    answers: int


def count_examples(data: Data, progress: Progress) -> Counted:
    """The examples of the sources; raises DataError as `prepare` does."""
    with TemporaryDirectory() as folder:
        spool = Path(folder) / "spool.jsonl"
        rows = collect(data, inputs_of(data), spool, Tally(), progress).rows
        with spool.open(encoding="utf-8") as lines:
            turns = (turn["role"] for line in lines for turn in json.loads(line)["messages"])
            return Counted(examples=len(rows), answers=sum(role == "assistant" for role in turns))
