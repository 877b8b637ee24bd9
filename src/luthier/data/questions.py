"""The rows of a file that a task asks, just as they are: no split, no groups, none left out."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from luthier.core import files
from luthier.data.fields import BadRowError
from luthier.data.read import BadRow, read_rows
from luthier.data.rows import Example, RawRow
from luthier.data.shape import labels_of, layout_for, shape
from luthier.recipe.proof import Task
from luthier.recipe.schema import Data, Source


def questions(path: str) -> list[Example]:
    """The file's rows, in any format that a source may have; raises BadRowError for one that cannot be asked."""
    source = Source(path=path)
    plain = Data(sources=(source,))
    rows: list[RawRow] = []
    for row in read_rows(source):
        if isinstance(row, BadRow):
            raise BadRowError(row.detail, where=row.origin, change="mend the row, or leave it out")
        rows.append(row)
    if not rows:
        return []
    layout = layout_for(plain, source, rows[0], labels_of([(source, rows[0])]))
    return [shape(row, layout) for row in rows]


def asked_hash(prepared_hash: str, tasks: Sequence[Task]) -> str:
    """What answers were given to: prepared rows, and the files of tasks that bring their own. Other rows, another hash."""
    own = [files.sha256(Path(task.file)) for task in tasks if task.file]
    return hashlib.sha256("".join((prepared_hash, *own)).encode()).hexdigest()[:16] if own else prepared_hash
