"""Ratings are kept click by click, of several reviewers, and nothing is lost but what was taken back."""

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.core.errors import RunError
from luthier.review.store import Preferred, Rating, Ratings
from tests.review.rows import pair

PAIRS = [pair(number) for number in range(50)]
CLICKING = """
import sys
from luthier.review.store import Rating, Ratings
from pathlib import Path
ratings = Ratings(Path(sys.argv[1]))
for number, pair in enumerate(sys.argv[2:]):
    print(number, flush=True)
    ratings.add(Rating(reviewer="ann", pair=pair, preferred="tuned"))
"""


@pytest.fixture
def ratings(tmp_path: Path) -> Ratings:
    found = Ratings(tmp_path / "ratings.sqlite")
    found.begin(PAIRS)
    return found


def rating(number: int, reviewer: str = "ann", preferred: Preferred = "tuned", comment: str = "") -> Rating:
    return Rating(reviewer=reviewer, pair=PAIRS[number].id, preferred=preferred, comment=comment)


def said(ratings: Ratings) -> list[tuple[str, str, str]]:
    names = {each.id: each.origin.partition(":")[2] for each in PAIRS}
    return [(each.reviewer, names[each.pair], each.preferred) for each in ratings.standing()]


def test_all_that_was_said_is_read_back(ratings: Ratings) -> None:
    scores = {"tuned": {"helpful": 4}, "base": {"helpful": 1}}
    ratings.add(Rating(reviewer="ann", pair=PAIRS[0].id, preferred="tie", scores=scores, comment="‘wie Tal’ 😀", flagged=True))
    (found,) = ratings.standing()
    assert (found.preferred, found.scores, found.comment, found.flagged) == ("tie", scores, "‘wie Tal’ 😀", True)
    assert 0 <= time.time() - found.time < 60
    assert ratings.pairs()[found.pair] == PAIRS[0]


def test_a_later_word_on_the_same_row_holds(ratings: Ratings) -> None:
    for preferred in ("tuned", "base"):
        ratings.add(rating(0, preferred=preferred))
    ratings.add(rating(0, "ben", "tie"))
    assert said(ratings) == [("ann", "1", "base"), ("ben", "1", "tie")]


def test_undo_goes_back_step_by_step_and_only_ones_own(ratings: Ratings) -> None:
    ratings.add(rating(0))
    ratings.add(rating(1, "ben"))
    ratings.add(rating(1))
    ratings.add(rating(0, preferred="base"))
    assert ratings.undo("ann") == PAIRS[0].id
    assert said(ratings) == [("ann", "1", "tuned"), ("ben", "2", "tuned"), ("ann", "2", "tuned")]
    assert [ratings.undo("ann"), ratings.undo("ann"), ratings.undo("ann")] == [PAIRS[1].id, PAIRS[0].id, None]
    assert said(ratings) == [("ben", "2", "tuned")]


def test_a_review_that_is_begun_again_goes_on(ratings: Ratings) -> None:
    ratings.add(rating(0))
    again = Ratings(ratings.path)
    again.begin(PAIRS)
    again.add(rating(1))
    assert [number for _, number, _ in said(again)] == ["1", "2"]


def _click(path: Path, reviewer: str) -> None:
    for each in PAIRS:
        Ratings(path).add(Rating(reviewer=reviewer, pair=each.id, preferred="tie"))


def test_reviewers_in_several_processes_lose_nothing(ratings: Ratings) -> None:
    names = ("ann", "ben", "cleo")
    fresh = multiprocessing.get_context("spawn")
    clicking = [fresh.Process(target=_click, args=(ratings.path, name)) for name in names]
    for process in clicking:
        process.start()
    for process in clicking:
        process.join(timeout=60)
    found = ratings.standing()
    assert {name: sum(each.reviewer == name for each in found) for name in names} == dict.fromkeys(names, len(PAIRS))


def test_a_killed_process_loses_at_most_its_last_click(ratings: Ratings) -> None:
    command = [sys.executable, "-c", CLICKING, str(ratings.path), *(each.id for each in PAIRS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        begun = [process.stdout.readline() for _ in range(8)]
        os.kill(process.pid, signal.SIGKILL)
        begun += process.stdout.read().splitlines()
    kept = said(ratings)
    assert len(begun) - 1 <= len(kept) <= len(begun) < len(PAIRS)
    ratings.add(rating(0, "ben"))
    assert len(ratings.standing()) == len(kept) + 1


def test_a_disk_that_takes_no_more_is_told_and_what_was_kept_stays(ratings: Ratings) -> None:
    ratings.add(rating(0))
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({ratings.path.stat().st_size},) * 2)"
    long = "Rating(reviewer='ben', pair=sys.argv[2], preferred='tie', comment='so it is; ' * 5_000)"
    code = CLICKING.partition("ratings =")[0] + f"{limit}\nRatings(Path(sys.argv[1])).add({long})"
    done = subprocess.run([sys.executable, "-c", code, str(ratings.path), PAIRS[1].id], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "RunError" in done.stderr and "the ratings cannot be read or written" in done.stderr
    assert said(ratings) == [("ann", "1", "tuned")]


def test_a_secret_in_a_comment_is_not_kept(ratings: Ratings) -> None:
    ratings.add(rating(0, comment="my key is hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"))
    assert b"abcdefghijklmnop" not in ratings.path.read_bytes()


@pytest.mark.parametrize("damage", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_an_error_that_names_it(ratings: Ratings, damage: bytes) -> None:
    ratings.path.write_bytes(damage)
    with pytest.raises(RunError, match="cannot be read or written") as error:
        ratings.standing()
    assert error.value.where == str(ratings.path)


@pytest.mark.parametrize("left", [b"", None])
def test_a_process_that_was_killed_while_it_began_leaves_a_file_that_is_begun_again(ratings: Ratings, left: bytes | None) -> None:
    ratings.path.unlink()
    if left is None:  # tables, but no word yet that they are all there
        database = sqlite3.connect(ratings.path)
        database.execute("CREATE TABLE pairs (id TEXT PRIMARY KEY, pair TEXT NOT NULL) STRICT")
        database.close()
    else:
        ratings.path.write_bytes(left)
    assert ratings.standing() == []
    ratings.begin(PAIRS)
    ratings.add(rating(0))
    assert len(ratings.standing()) == 1 and len(ratings.pairs()) == len(PAIRS)


def test_ratings_of_another_version_are_refused(ratings: Ratings) -> None:
    database = sqlite3.connect(ratings.path)
    database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(RunError, match="of version 7"):
        ratings.add(rating(0))
