"""What reviewers said, in ratings.sqlite of the run folder. A click is a transaction: a process that is killed loses at most the last one.

Nothing is written over: a row that is rated again, or undone, keeps what was said before. Several processes may write at once.
"""

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier.core import jsonl
from luthier.core.errors import RunError
from luthier.core.redact import redact
from luthier.review.pair import Pair, Whose

Preferred = Literal["tuned", "base", "tie", "none"]
"""`none`: of a row that was flagged without a preference."""
VERSION = 1
SECONDS_TO_WAIT = 10.0
"""For another process that writes."""
TABLES = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS pairs (id TEXT PRIMARY KEY, pair TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ratings (
    number INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, reviewer TEXT NOT NULL, pair TEXT NOT NULL REFERENCES pairs (id),
    preferred TEXT NOT NULL, scores TEXT NOT NULL, comment TEXT NOT NULL, flagged INTEGER NOT NULL, undone INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS of_reviewers ON ratings (reviewer, pair);
PRAGMA user_version = {VERSION};
COMMIT;
"""
STANDING = "number IN (SELECT max(number) FROM ratings WHERE NOT undone GROUP BY reviewer, pair)"
"""The last that each reviewer said of each pair, without what was undone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """What a reviewer said of a pair: scores 1 … 5 of either answer by criterion, where they were given."""

    reviewer: str
    pair: str
    preferred: Preferred
    scores: Mapping[Whose, Mapping[str, int]] = field(default_factory=dict)
    comment: str = ""
    flagged: bool = False
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Ratings:
    """A run's ratings.sqlite."""

    path: Path

    def begin(self, pairs: Sequence[Pair]) -> None:
        """Keep these pairs, so that the file says by itself what was rated."""
        known = [(pair.id, jsonl.dumps(pair.model_dump(mode="json"))) for pair in pairs]
        with self._open() as database, database:
            database.executemany("INSERT OR IGNORE INTO pairs VALUES (?, ?)", known)

    def add(self, rating: Rating) -> None:
        """Keep it; on the disk when this returns."""
        with self._open() as database, database:
            who = (time.time(), rating.reviewer, rating.pair)
            said = (rating.preferred, jsonl.dumps(rating.scores), redact(rating.comment), rating.flagged)
            columns = "time, reviewer, pair, preferred, scores, comment, flagged"
            database.execute(f"INSERT INTO ratings ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", (*who, *said))

    def undo(self, reviewer: str) -> str | None:
        """Take back what the reviewer said last; the pair it was of, None where nothing is left. What was said of it before holds again."""
        newest = "SELECT number, pair FROM ratings WHERE reviewer = ? AND NOT undone ORDER BY number DESC LIMIT 1"
        with self._open() as database, database:
            number, pair = database.execute(newest, (reviewer,)).fetchone() or (0, None)
            database.execute("UPDATE ratings SET undone = 1 WHERE number = ?", (number,))
        return pair

    def standing(self) -> list[Rating]:
        """What holds now, the oldest first."""
        columns = "reviewer, pair, preferred, scores, comment, flagged, time"
        with self._open() as database:
            rows = database.execute(f"SELECT {columns} FROM ratings WHERE {STANDING} ORDER BY number")
            return [_rating(*row) for row in rows]

    def pairs(self) -> dict[str, Pair]:
        """Every pair that was ever drawn, by its id."""
        with self._open() as database:
            return {name: Pair.model_validate_json(pair) for name, pair in database.execute("SELECT id, pair FROM pairs")}

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """Raises RunError for a file that is damaged, of another version, or cannot be written."""
        try:
            with closing(sqlite3.connect(self.path, timeout=SECONDS_TO_WAIT)) as database:
                version = database.execute("PRAGMA user_version").fetchone()[0]
                if version == 0:  # new, or of a process that was killed before it had made the tables
                    database.executescript(TABLES)
                elif version != VERSION:
                    raise RunError(f"the ratings are of version {version}, and this reads {VERSION}", where=str(self.path))
                yield database
        except (sqlite3.Error, ValueError) as error:  # pydantic's ValidationError is a ValueError
            change = "see that its disk has room and is sound; ratings that were kept stay"
            raise RunError(f"the ratings cannot be read or written: {error}", where=str(self.path), change=change) from error


def _rating(reviewer: str, pair: str, preferred: Preferred, scores: str, *more: Any) -> Rating:
    comment, flagged, at = more
    scored = json.loads(scores)
    return Rating(reviewer=reviewer, pair=pair, preferred=preferred, scores=scored, comment=comment, flagged=bool(flagged), time=at)
