"""Nobody sees anything without the token, from another name, or as another page."""

from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from luthier.web.app import app
from tests.web.workshop import TOKEN, browser

HERE = "http://127.0.0.1:8000"


def stranger(root: Path, host: str = HERE) -> TestClient:
    return TestClient(app(root, TOKEN), base_url=host, follow_redirects=False)


def test_every_route_refuses_who_has_no_token(root: Path) -> None:
    site = app(root, TOKEN)
    routes = [route for route in site.routes if isinstance(route, APIRoute)]
    assert len(routes) > 10
    client = stranger(root)
    for route in routes:
        for method in route.methods:
            answer = client.request(method, route.path.replace("{name}", "animals"))
            assert (answer.status_code, "animals" in answer.text) == (403, False), route.path
    for path in ("/static/page.js", "/docs", "/openapi.json", "/nothing"):
        assert client.get(path).status_code == 403


def test_the_link_gives_a_cookie_and_leaves_the_token_out_of_the_address(root: Path) -> None:
    client = stranger(root)
    answer = client.get("/runs/animals", params={"token": TOKEN, "state": "running"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/runs/animals?state=running")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert client.get("/runs/animals").status_code == 200


@pytest.mark.parametrize("other", ['prefs={"a": 1}', "last=Sat Nov 29", "foo[]=1", "="])
def test_another_programs_cookie_locks_nobody_out(root: Path, other: str) -> None:
    client = stranger(root)
    own = client.get("/", params={"token": TOKEN}).headers["set-cookie"].partition(";")[0]
    client.cookies.clear()
    assert client.get("/", headers={"cookie": f"{other}; {own}"}).status_code == 200
    assert client.get("/", headers={"cookie": other}).status_code == 403


@pytest.mark.parametrize("token", ["", "another", TOKEN[:-1], TOKEN + "x", "é"])
def test_a_wrong_token_is_none(root: Path, token: str) -> None:
    client = stranger(root)
    assert client.get("/", params={"token": token}).status_code == 403
    assert client.get("/", headers={"authorization": f"Bearer {token}".encode()}).status_code == 403
    assert client.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize("host", ["http://evil.example", "http://127.0.0.1.evil.example:8000", "http://10.0.0.1:8000"])
def test_a_name_that_was_made_to_point_here_is_refused_even_with_the_token(root: Path, host: str) -> None:
    assert stranger(root, host).get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:9999", "null", ""])
def test_another_page_cannot_press_a_button(root: Path, origin: str) -> None:
    client = browser(root)
    answer = client.post("/runs/animals/stop", headers={"origin": origin})
    assert (answer.status_code, answer.text) == (403, "this was asked by another page\n")


def test_a_redirect_never_leaves_this_machine(root: Path) -> None:
    answer = stranger(root).get(f"{HERE}//evil.example/", params={"token": TOKEN})
    assert answer.status_code == 303 and answer.headers["location"] == "/evil.example/"


def test_no_answer_lets_a_page_ask_or_run_anything_from_elsewhere(root: Path) -> None:
    policy = browser(root).get("/runs/animals").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy and "http" not in policy


@pytest.mark.parametrize("name", ["..", "nothing", "%2e%2e%2fruns%2fanimals", "evaluations", "animals%00", "-x"])
def test_a_name_never_leaves_the_folder_of_runs(root: Path, name: str) -> None:
    client = browser(root)
    for path in (f"/runs/{name}/curves", f"/runs/{name}/rows", f"/compare/curves?run={name}"):
        assert client.get(path).status_code == 404, path
