"""The pages of a review: what they send tells nobody whose an answer is, and nobody without the token anything."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from luthier import flow
from luthier.evaluate.report import Report
from luthier.review.asking import Review
from luthier.web.app import asking
from tests.review.rows import RUBRIC, answered, run_with
from tests.web.workshop import SCRIPT, TOKEN, runs_in

HERE = "http://127.0.0.1:8000"
MORE = f"review: {{rows: 8, rubric: {json.dumps(RUBRIC)}}}\n"
GROUPS = ["opening"] * 12 + ["ending"] * 4


def models() -> tuple[Report, Report]:
    """Sixteen answers of two models; the first of one holds HTML."""
    one = answered([f"Castle {SCRIPT} {number}." for number in range(16)], groups=GROUPS, right=[number < 4 for number in range(16)])
    return one, answered([f"Give up game {number}." for number in range(16)], groups=GROUPS)


def reviewer(review: Review) -> TestClient:
    """A browser that has opened the printed link."""
    client = TestClient(asking(review, TOKEN), base_url=HERE, headers={"origin": HERE})
    assert client.get("/", params={"token": TOKEN}).status_code == 200
    return client


@pytest.fixture
def review(tmp_path: Path) -> Iterator[Review]:
    with runs_in(tmp_path):
        run_with(tmp_path, *models(), MORE)
        yield flow.review("games")


@pytest.fixture
def page(review: Review) -> TestClient:
    return reviewer(review)


def everything_sent(review: Review) -> list[str]:
    """Every byte that a reviewer is sent who rates half of the rows, takes one back and looks at all of them."""
    client = reviewer(review)
    sent = [client.get("/")]
    for pair in review.draw.pairs[:4]:
        sent.append(client.get("/rows", params={"reviewer": "ann"}))
        said = {"reviewer": "ann", "pair": pair.id, "preferred": "a", "scores": {"a": {"helpful": 4}, "b": {"helpful": 2}}, "comment": "so"}
        sent.append(client.post("/ratings", json=said))
    sent.append(client.post("/undo", json={"reviewer": "ann"}))
    sent += [client.get(f"/rows/{pair.id}", params={"reviewer": name}) for pair in review.draw.pairs for name in ("ann", "ben")]
    sent += [client.get("/"), client.get("/done", params={"reviewer": "ann"}), client.get("/rows/nothing", params={"reviewer": "ann"})]
    assert [answer.status_code for answer in sent[:-1]] == [200] * (len(sent) - 1)
    return [f"{answer.url} {sorted(answer.headers.items())} {answer.text}" for answer in sent]


def test_not_a_byte_differs_if_base_and_tuned_are_exchanged(tmp_path: Path) -> None:
    one, other = models()
    sent = []
    for folder, (tuned, base) in (("as-it-is", (one, other)), ("exchanged", (other, one))):
        (tmp_path / folder).mkdir()
        with runs_in(tmp_path / folder):
            run_with(tmp_path / folder, tuned, base, MORE)
            sent.append(everything_sent(flow.review("games")))
    assert len(sent[0]) == 29 and sent[0] == sent[1]


def test_no_page_names_a_model_or_what_evaluation_made_of_it(review: Review) -> None:
    sent = " ".join(everything_sent(review)).lower().replace("base-uri", "")
    assert [word for word in ("tuned", "base", "adapter", "demo", "apart", "tokens", "stopped", "exact") if word in sent] == []


def test_every_address_refuses_who_has_no_token(review: Review) -> None:
    client = TestClient(asking(review, TOKEN), base_url=HERE, follow_redirects=False)
    routes = [route for route in asking(review, TOKEN).routes if isinstance(route, APIRoute)]
    assert {route.path for route in routes} == {"/", "/rows", "/rows/{pair}", "/done", "/ratings", "/undo", "/style.css"}
    for route in routes:
        for method in route.methods:
            answer = client.request(method, route.path.replace("{pair}", review.draw.pairs[0].id), params={"reviewer": "ann"})
            assert answer.status_code == 403 and "Move" not in answer.text, route.path


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:9999", "null"])
def test_another_page_can_neither_rate_nor_undo(page: TestClient, review: Review, origin: str) -> None:
    said = {"reviewer": "ann", "pair": review.draw.pairs[0].id, "preferred": "a"}
    assert page.post("/ratings", json=said, headers={"origin": origin}).status_code == 403
    assert page.post("/undo", json={"reviewer": "ann"}, headers={"origin": origin}).status_code == 403
    assert review.ratings.standing() == []


def test_the_run_itself_is_not_to_be_seen_from_here(page: TestClient) -> None:
    for path in ("/runs/games", "/runs/games/answers", "/runs/games/report", "/table"):
        assert page.get(path).status_code == 404


def test_what_models_and_people_write_is_text(page: TestClient, review: Review) -> None:
    pair = next(pair for pair in review.draw.pairs if SCRIPT in pair.tuned)
    page.post("/ratings", json={"reviewer": "ann", "pair": pair.id, "preferred": "tie", "comment": f"</textarea>{SCRIPT}"})
    text = page.get(f"/rows/{pair.id}", params={"reviewer": "ann"}).text
    assert SCRIPT not in text and text.count("&lt;script&gt;") == 2 and "</textarea>&lt;" not in text


def test_a_reviewer_goes_from_row_to_row_back_and_to_the_end(page: TestClient, review: Review) -> None:
    rows = [f"/rows/{pair.id}?reviewer=Ann+B." for pair in review.draw.pairs]
    assert len(rows) == 8
    assert page.get("/rows", params={"reviewer": "Ann B."}).url.raw_path.decode() == rows[0]
    for pair, following in zip(review.draw.pairs, [*rows[1:], "/done?reviewer=Ann+B."], strict=True):
        assert page.post("/ratings", json={"reviewer": "Ann B.", "pair": pair.id, "preferred": "tie"}).text == following
    assert "8 of 8 rows are rated" in page.get("/rows", params={"reviewer": "Ann B."}).text
    assert "8 of 8" in page.get("/").text
    assert page.post("/undo", json={"reviewer": "Ann B."}).text == rows[-1]


def test_what_was_said_is_shown_again(page: TestClient, review: Review) -> None:
    pair = review.draw.pairs[0].id
    said = {"reviewer": "ann", "pair": pair, "preferred": "b", "scores": {"b": {"true": 5}}, "comment": "why not?", "flagged": True}
    page.post("/ratings", json=said)
    text = page.get(f"/rows/{pair}", params={"reviewer": "ann"}).text
    for shown in ('value="b" checked', 'name="b.true" value="5" checked', "why not?", 'id="flagged" checked', "you have rated this row"):
        assert shown in text
    assert text.count(" checked") == 3
    assert " checked" not in page.get(f"/rows/{pair}", params={"reviewer": "ben"}).text


def test_what_cannot_be_kept_says_why(page: TestClient, review: Review) -> None:
    pair = review.draw.pairs[0].id
    for said, status, told in (
        ({"reviewer": "ann", "pair": pair}, 409, "say which answer is better"),
        ({"reviewer": "ann", "pair": "nothing", "preferred": "a"}, 409, "no such row"),
        ({"reviewer": "ann", "pair": pair, "preferred": "a", "scores": {"a": {"brave": 1}}}, 409, "no criterion"),
        ({"reviewer": "ann", "pair": pair, "preferred": "tuned"}, 422, "preferred"),
        ({"reviewer": "<i>", "pair": pair, "preferred": "a"}, 422, "reviewer"),
    ):
        answer = page.post("/ratings", json=said)
        assert answer.status_code == status and told in answer.text
    assert page.post("/undo", json={"reviewer": "ann"}).status_code == 409
