"""Ratings as files: a table, JSON lines, and preferences as DPO learns from them."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luthier.core import files, jsonl
from luthier.core.errors import UsageError
from luthier.review.pair import Pair, Whose
from luthier.review.results import rated
from luthier.review.store import Rating

RUNS_AS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """How many lines a file has; and of preferences, how many rated rows it has not."""

    num: int
    num_tied: int = 0
    """By those who rated them, taken together."""
    num_flagged: int = 0


def write(path: Path, ratings: Sequence[Rating], pairs: Mapping[str, Pair]) -> Written:
    """Write a line for each rating into a .csv, or with question and answers into a .jsonl; or what was preferred into a .dpo.jsonl."""
    kinds = {".dpo.jsonl": _preferences, ".jsonl": _ratings, ".csv": _table}
    kind = next((kind for suffix, kind in kinds.items() if path.name.endswith(suffix)), None)
    if kind is None:
        raise UsageError(f"what kind of file {path.name} is to be is not known", change=f"let its name end in {', '.join(kinds)}")
    text, written = kind(ratings, pairs)
    with files.told(path.name, path.parent):
        files.write(path, text)
    return written


def _preferences(ratings: Sequence[Rating], pairs: Mapping[str, Pair]) -> tuple[str, Written]:
    """`{prompt, chosen, rejected}`, each a list of messages, of every row on which people preferred one answer; several reviewers of a row
    count together. Ties and flagged rows are left out."""
    found, flagged = rated(ratings, pairs)
    preferred = [each for each in found if each.preference != 0.5]
    lines = _lines([_preference(each.pair, "tuned" if each.preference > 0.5 else "base") for each in preferred])
    return lines, Written(num=len(preferred), num_tied=len(found) - len(preferred), num_flagged=len(flagged))


def _ratings(ratings: Sequence[Rating], pairs: Mapping[str, Pair]) -> tuple[str, Written]:
    return _lines([_record(rating, pairs[rating.pair]) for rating in ratings]), Written(num=len(ratings))


def _table(ratings: Sequence[Rating], pairs: Mapping[str, Pair]) -> tuple[str, Written]:
    """Columns `tuned.CRITERION` and `base.CRITERION` for the scores; question and answers are left out."""
    scored = sorted({(whose, name) for rating in ratings for whose, given in rating.scores.items() for name in given})
    plain = ("reviewer", "time", "task", "group", "origin", "preferred", "comment", "flagged")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*plain, *(f"{whose}.{name}" for whose, name in scored)])
    for rating in ratings:
        record = _record(rating, pairs[rating.pair])
        scores = (rating.scores.get(whose, {}).get(name, "") for whose, name in scored)
        table.writerow([*(_cell(record[name]) for name in plain), *scores])
    return text.getvalue(), Written(num=len(ratings))


def _preference(pair: Pair, chosen: Whose) -> dict[str, Any]:
    answers = (pair.tuned, pair.base) if chosen == "tuned" else (pair.base, pair.tuned)
    won, lost = ([{"role": "assistant", "content": answer}] for answer in answers)
    return {"prompt": list(pair.messages), "chosen": won, "rejected": lost}


def _record(rating: Rating, pair: Pair) -> dict[str, Any]:
    return {
        "reviewer": rating.reviewer,
        "time": datetime.fromtimestamp(rating.time, UTC).isoformat(timespec="seconds"),
        "task": pair.task,
        "group": pair.group,
        "origin": pair.origin,
        "preferred": rating.preferred,
        "scores": rating.scores,
        "comment": rating.comment,
        "flagged": rating.flagged,
        "messages": pair.messages,
        "reference": pair.reference,
        "tuned": pair.tuned,
        "base": pair.base,
    }


def _lines(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(jsonl.dumps(record) + "\n" for record in records)


def _cell(value: object) -> object:
    """Text that a spreadsheet would run as a formula begins with an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(RUNS_AS_A_FORMULA) else value
