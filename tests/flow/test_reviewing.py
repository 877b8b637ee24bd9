"""People and a run, from drawing its rows to the verdict that wants their word."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from luthier import flow
from luthier.core.errors import UsageError
from luthier.flow.reviewing import people
from luthier.runs.store import RunFolder, open_or_create, own_recipe
from tests.cli.test_errors import luthier as in_folder
from tests.review.rows import answered, prefer, run_with

MORE = "review: {rows: 12, rubric: {helpful: 'Could a beginner act on it?'}, required: 10}\n"
TUNED = answered([f"Castle {number}." for number in range(20)], groups=["opening"] * 15 + ["ending"] * 5)
BASE = answered([f"Resign {number}." if number else "Castle 0." for number in range(20)], groups=["opening"] * 15 + ["ending"] * 5)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    return run_with(tmp_path, TUNED, BASE, MORE)


@pytest.fixture
def luthier(tmp_path: Path) -> Callable[..., dict[str, object]]:
    """What a verb prints with --json, in the folder that has runs/."""

    def call(*words: str) -> dict[str, object]:
        done = in_folder(tmp_path, *words, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return call


def rated(num: int, *reviewers: str) -> None:
    """The first rows of the draw, the tuned model's answer preferred on all but every fourth."""
    review = flow.review("games")
    for place, pair in enumerate(review.draw.pairs[:num]):
        for reviewer in reviewers:
            prefer(review, reviewer, pair, "base" if place % 4 == 3 else "tuned")


def test_a_review_draws_the_recipes_rows_from_those_that_differ(run: RunFolder) -> None:
    draw = flow.review("games").draw
    assert (len(draw.pairs), draw.num_rows, draw.num_same) == (12, 20, 1)
    assert len(flow.review("games", rows=5).draw.pairs) == 5
    assert run.ratings.exists()


@pytest.mark.parametrize("missing", ["tuned", "base"])
def test_where_answers_are_missing_the_error_says_what_makes_them(run: RunFolder, missing: str) -> None:
    (run.evaluation(missing) / "predictions.jsonl").unlink()
    with pytest.raises(UsageError, match=f"no answers of the {missing} model") as error:
        flow.review("games")
    assert error.value.change == "luthier decide games makes them"
    assert not run.ratings.exists()


def test_answers_that_are_all_the_same_are_nothing_to_prefer(run: RunFolder) -> None:
    TUNED.write(run.evaluation("base"))
    with pytest.raises(UsageError, match="all 20 rows"):
        flow.review("games")


def test_before_anybody_was_asked_there_is_nothing_to_tell(run: RunFolder) -> None:
    with pytest.raises(UsageError, match="nobody has rated"):
        flow.reviewed("games")
    assert people(run, own_recipe(run)).num_rated == 0


def test_what_was_said_is_told_with_agreement_and_groups(run: RunFolder) -> None:
    rated(12, "ann", "ben")
    found = flow.reviewed("games")
    assert (found.reviewers, found.preference.won, found.preference.lost) == ({"ann": 12, "ben": 12}, 9, 3)
    assert found.agreement["preferred"].alpha == pytest.approx(1)
    assert sum(group.won + group.lost for group in found.groups.values()) == 12


def test_ratings_of_an_evaluation_that_was_made_anew_do_not_count(run: RunFolder) -> None:
    rated(12, "ann")
    answered([f"Castle long {number}." for number in range(20)], groups=["opening"] * 15 + ["ending"] * 5).write(run.evaluation("tuned"))
    found = flow.reviewed("games")
    assert (found.num_stale, found.preference.share.n, people(run, own_recipe(run)).num_rated) == (12, 0, 0)
    assert flow.write_ratings("games", run.path / "all.jsonl").num == 12  # they stay, with the answers that they are of


def test_the_gate_counts_rows_and_a_recipe_that_asks_nobody_reads_nothing(run: RunFolder) -> None:
    rated(7, "ann", "ben")
    found = people(run, own_recipe(run))
    assert (found.num_rated, found.num_required) == (7, 10)
    recipe = own_recipe(run)
    unasked = recipe.model_copy(update={"review": recipe.review.model_copy(update={"required": 0})})
    run.ratings.write_bytes(b"damaged")
    assert people(run, unasked).measured == {}


def test_decide_waits_for_people_and_goes_by_what_they_say(run: RunFolder, tmp_path: Path) -> None:
    rule = "decision: {deploy: {review.preferred: '> 0.5', coach.cut: '<= 20 %'}}\n"
    recipe = (tmp_path / "recipe.yaml").read_text().replace("name: games", "name: decided")
    (tmp_path / "recipe.yaml").write_text(recipe + rule)
    loaded = flow.load(tmp_path / "recipe.yaml")
    run = open_or_create("decided", loaded.text, loaded.source)
    known = flow.prepare(loaded.recipe).summary.hash
    for name, answers in (("tuned", TUNED), ("base", BASE)):
        replace(answers, scores=answers.scores.model_copy(update={"data_hash": known})).write(run.evaluation(name))
    run.adapter.mkdir()
    run.event("finished", step=1)

    verdict = flow.decide("decided")
    assert (verdict.decision, flow.decide("decided").look) == ("not_enough_data", 1)
    assert any(reason.startswith("the review is missing: people have rated 0 rows") for reason in verdict.reasons)
    review = flow.review("decided")
    for pair in review.draw.pairs:
        prefer(review, "ann", pair, "tuned")
    verdict = flow.decide("decided")
    assert (verdict.decision, verdict.look) == ("deploy", 1)  # nobody had looked at what people say
    assert json.loads(run.verdict.read_text())["decision"] == "deploy"
    review.ratings.undo("ann")
    assert flow.decide("decided").look == 2


def test_the_verb_prints_results_and_writes_files(run: RunFolder, luthier: Callable[..., dict[str, object]], tmp_path: Path) -> None:
    rated(8, "ann")
    told = luthier("review", "games", "--results")
    assert told["reviewers"] == {"ann": 8} and told["flagged"] == 0
    told = luthier("review", "games", "--export", "games.dpo.jsonl")
    assert told["export"] == {"lines": 8, "tied": 0, "flagged": 0}
    assert len((tmp_path / "games.dpo.jsonl").read_text().splitlines()) == 8


def test_the_verb_tells_people_in_words(run: RunFolder, tmp_path: Path) -> None:
    rated(8, "ann", "ben")
    told = in_folder(tmp_path, "review", "games", "--results").stdout
    assert "rated by ann 8, ben 8; 0 rows flagged" in told
    assert "all: the tuned model's answer is preferred on 75.0% (34.9% … 96.8%, n = 8): 6 won, 0 tied, 2 lost" in told
    assert "helpful: not scored" in told
    assert "agreement on preferred (Krippendorff's alpha): 1.00 (8 judged by several)" in told


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("absent",), "no run called 'absent'"),
        (("games", "--json"), "--results --json"),
        (("games", "--results"), "nobody has rated answers of run games"),
        (("games", "--rows", "0"), "--rows"),
    ],
)
def test_a_wrong_call_ends_in_code_2_and_words(run: RunFolder, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    done = in_folder(tmp_path, "review", *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
