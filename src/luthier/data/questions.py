"""The rows of a file that a task asks, just as they are: no split, no groups, none left out."""

from pathlib import Path

from luthier.core import files
from luthier.data.fields import BadRowError
from luthier.data.read import BadRow, read_rows
from luthier.data.rows import Example, RawRow
from luthier.data.shape import labels_of, layout_for, shape
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


def digest(path: str) -> str:
    """Tells the file's content, so that kept answers to other questions are not taken for answers to these."""
    return files.sha256(Path(path))
