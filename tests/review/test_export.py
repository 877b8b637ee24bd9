"""Ratings as files that other programs read."""

import csv
import json
from pathlib import Path

import pytest

from luthier import flow
from luthier.core.errors import UsageError
from luthier.review.export import Written, write
from luthier.review.pair import Pair
from luthier.review.store import Preferred, Rating
from tests.review.rows import pair

PAIRS = [pair(number) for number in range(30)]
KNOWN: dict[str, Pair] = {each.id: each for each in PAIRS}


def rating(number: int, preferred: Preferred, reviewer: str = "ann", comment: str = "", *, flagged: bool = False) -> Rating:
    scores = {"tuned": {"helpful": 5}, "base": {"helpful": 2}} if preferred == "tuned" else {}
    return Rating(reviewer=reviewer, pair=PAIRS[number].id, preferred=preferred, scores=scores, comment=comment, flagged=flagged, time=0.0)


def test_a_table_has_a_line_for_each_rating_with_its_scores(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    assert write(path, [rating(0, "tuned"), rating(1, "tie", "ben", 'so-so, "hm"\nand more')], KNOWN) == Written(num=2)
    with path.open(newline="") as file:
        one, other = csv.DictReader(file)
    assert (one["reviewer"], one["preferred"], one["tuned.helpful"], one["base.helpful"]) == ("ann", "tuned", "5", "2")
    assert (one["origin"], one["time"]) == ("games.jsonl:1", "1970-01-01T00:00:00+00:00")
    assert (other["comment"], other["tuned.helpful"]) == ('so-so, "hm"\nand more', "")


@pytest.mark.parametrize("comment", ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1"])
def test_a_comment_is_no_formula_in_a_spreadsheet(tmp_path: Path, comment: str) -> None:
    write(tmp_path / "ratings.csv", [rating(0, "tie", comment=comment)], KNOWN)
    with (tmp_path / "ratings.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["comment"] == f"'{comment}"


def test_lines_have_question_and_both_answers(tmp_path: Path) -> None:
    path = tmp_path / "ratings.jsonl"
    write(path, [rating(3, "base", comment="=1")], KNOWN)
    (found,) = map(json.loads, path.read_text().splitlines())
    assert (found["preferred"], found["comment"], found["base"]) == ("base", "=1", "Resign game 3.")
    assert found["messages"] == [{"role": "user", "content": "Move 3?"}]


def test_preferences_are_prompt_chosen_and_rejected_messages(tmp_path: Path) -> None:
    path = tmp_path / "games.dpo.jsonl"
    said = [rating(0, "tuned"), rating(1, "base"), rating(2, "tie"), rating(3, "tuned", flagged=True), rating(4, "none", flagged=True)]
    assert write(path, said, KNOWN) == Written(num=2, num_tied=1, num_flagged=2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {
            "prompt": [{"role": "user", "content": f"Move {number}?"}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for number, chosen, rejected in (
            (0, "Castle, as in game 0.", "Resign game 0."),
            (1, "Resign game 1.", "Castle, as in game 1."),
        )
    ]


def test_several_reviewers_of_a_row_make_one_preference(tmp_path: Path) -> None:
    said = [rating(0, "base"), rating(0, "base", "ben"), rating(0, "tuned", "cleo"), rating(1, "base"), rating(1, "tuned", "ben")]
    assert write(tmp_path / "p.dpo.jsonl", said, KNOWN) == Written(num=1, num_tied=1)
    (found,) = (tmp_path / "p.dpo.jsonl").read_text().splitlines()
    assert json.loads(found)["chosen"][0]["content"] == "Resign game 0."


def test_the_chosen_answers_are_rows_that_luthier_prepares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    write(tmp_path / "games.dpo.jsonl", [rating(number, "tuned") for number in range(30)], KNOWN)
    source = "{path: games.dpo.jsonl, format: prompt_completion, columns: {completion: chosen}}"
    (tmp_path / "recipe.yaml").write_text(f"name: chosen\nmodel: {{base: demo}}\ndata: {{sources: [{source}]}}\n")
    prepared = flow.prepare(flow.load(tmp_path / "recipe.yaml").recipe)
    assert prepared.summary.rows.kept == 30
    assert prepared.examples("train")[0].reference.startswith("Castle, as in game")


def test_another_kind_of_file_is_refused_and_not_begun(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ratings\.xlsx") as error:
        write(tmp_path / "ratings.xlsx", [], KNOWN)
    assert ".dpo.jsonl, .jsonl, .csv" in error.value.change and list(tmp_path.iterdir()) == []
