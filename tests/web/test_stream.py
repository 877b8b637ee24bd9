"""A page that is open is told what the run writes, from the byte on that it has read to."""

import asyncio
import json
import shutil
import time
from pathlib import Path

from fastapi.testclient import TestClient

from luthier.core import files, jsonl
from luthier.runs.held_out import held_out as rewards_of
from luthier.runs.store import RunFolder, alone
from luthier.web import views
from luthier.web.site import Site
from luthier.web.stream import Part, Stream, at_place, place
from tests.runs.recorded import held_out, line, recorded, rewarded, run_in
from tests.web.workshop import browser


def opened(run: RunFolder, at: str) -> Stream:
    return Stream(run=run, at=at_place(at), parts={"standing": Part(text=lambda: f"{len(run.metrics.read_bytes())} bytes")})


def test_only_what_was_appended_is_told(tmp_path: Path) -> None:
    run = run_in(tmp_path / "runs" / "animals")
    recorded(run, [line(1, 2.0), line(2, 1.5)])
    at = browser(tmp_path / "runs").get("/runs/animals/curves").json()["place"]
    assert at.endswith(f"-{run.metrics.stat().st_size}")
    stream = opened(run, at)
    assert list(stream.look()) == ["parts"]
    assert stream.look() == {}
    run.metric(line(3, 1.25))
    told = stream.look()
    assert [curve["y"] for curve in told["charts"][0]["curves"]] == [[1.25], []] and told["charts"][0]["curves"][0]["x"] == [3.0]
    assert place(stream.at).endswith(f"-{run.metrics.stat().st_size}")


def test_a_line_that_is_half_written_waits_for_its_end(tmp_path: Path) -> None:
    run = run_in(tmp_path / "runs" / "animals")
    recorded(run, [line(1, 2.0)])
    stream = opened(run, place(at_place("")))
    assert stream.look()["charts"][0]["curves"][0]["x"] == [1.0]
    text = jsonl.dumps(line(2, 1.0)) + "\n"
    with run.metrics.open("a") as file:
        file.write(text[:20])
        file.flush()
        assert "charts" not in stream.look()
        file.write(text[20:])
    assert stream.look()["charts"][0]["curves"][0]["x"] == [2.0]


def test_a_run_that_was_resumed_with_new_metrics_is_begun_anew(tmp_path: Path) -> None:
    run = run_in(tmp_path / "runs" / "animals")
    recorded(run, [line(1, 2.0), line(2, 1.5)])
    stream = opened(run, browser(tmp_path / "runs").get("/runs/animals/curves").json()["place"])
    run.metrics.rename(run.metrics.with_suffix(".old"))
    recorded(run, [line(1, 2.0)])
    assert stream.look()["anew"] is True


def test_the_first_step_of_a_run_comes_too(tmp_path: Path) -> None:
    run = run_in(tmp_path / "runs" / "animals")
    stream = Stream(run=run, at=at_place(browser(tmp_path / "runs").get("/runs/animals/curves").json()["place"]), parts={})
    assert stream.look() == {}
    recorded(run, [line(1, 2.0)])
    assert stream.look()["charts"][0]["curves"][0]["x"] == [1.0]


def test_what_is_no_place_is_the_beginning() -> None:
    for text in ("", "x", "1-2", "1-2-x", "-1--2--3", "1-2-" + "9" * 30, "٣-٣-٣"):
        assert at_place(text).offset == 0


def test_the_stream_of_a_decided_run_tells_where_it_stands_and_ends(page: TestClient, root: Path) -> None:
    text = page.get("/runs/animals/stream", params={"place": page.get("/runs/animals/curves").json()["place"]}).text
    first, last = text.strip().split("\n\n")
    assert first.startswith("id: ") and set(json.loads(first.split("data: ", 1)[1])["parts"]) == {"standing", "acts", "events", "rest"}
    assert last == "event: over\ndata: {}"


def test_a_browser_that_comes_back_goes_on_where_it_was(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "animals", tmp_path / "runs" / "animals")
    client = browser(tmp_path / "runs")
    at = client.get("/runs/animals/curves").json()["place"]
    RunFolder(tmp_path / "runs" / "animals").metric(line(61, 0.5))
    text = client.get("/runs/animals/stream", params={"place": "0-0-0"}, headers={"last-event-id": at}).text
    told = json.loads(text.split("\n\n")[0].split("data: ", 1)[1])
    assert told["charts"][0]["curves"][0]["x"] == [61.0]


def test_events_come_as_they_are_written(tmp_path: Path) -> None:
    run = run_in(tmp_path / "runs" / "animals")
    recorded(run, [line(1, 2.0)])

    async def two() -> list[str]:
        events = opened(run, "").events()
        first = await anext(events)
        run.metric(line(2, 1.0))
        second = await anext(events)
        await events.aclose()  # type: ignore[attr-defined]
        return [first, second]

    first, second = (json.loads(each.split("data: ", 1)[1]) for each in asyncio.run(two()))
    assert first["charts"][0]["curves"][0]["x"] == [1.0] and second["charts"][0]["curves"][0]["x"] == [2.0]


def test_a_part_is_made_again_only_where_what_it_is_made_of_has_changed(tmp_path: Path) -> None:
    run = run_in(tmp_path / "runs" / "animals")
    made: list[str] = []

    def text() -> str:
        made.append("")
        return f"{len(run.events.read_bytes())} bytes"

    stream = Stream(run=run, at=at_place(""), parts={"events": Part(text=text, of=lambda: files.stamp(run.events))})
    assert "events" in stream.look()["parts"]
    assert (stream.look(), stream.look(), len(made)) == ({}, {}, 1)
    run.event("saved", step=3)
    assert "events" in stream.look()["parts"]
    assert len(made) == 2


def test_a_page_that_is_open_costs_little_however_many_events_the_run_has(tmp_path: Path) -> None:
    """Read whole, 20,000 events take half a second at each look."""
    run = run_in(tmp_path / "runs" / "animals")
    with run.events.open("a") as file:
        file.writelines(jsonl.dumps({"event": "scored", "step": step, "scores": {}, "time": 5.0 + step}) + "\n" for step in range(20_000))
    recorded(run, [line(1, 2.0)])
    site = Site(tmp_path / "runs")
    stream = Stream(run=run, at=at_place(""), parts=views.live(site, site.seen("animals")))
    assert set(stream.look()["parts"]) == {"standing", "acts", "events", "rest"}
    times = []
    for step in range(2, 7):
        run.metric(line(step, 1.0))
        began = time.process_time()
        assert "charts" in stream.look()
        times.append(time.process_time() - began)
    assert min(times) < 0.1


def test_the_buttons_come_with_a_run_that_begins_and_go_when_it_ends(tmp_path: Path) -> None:
    run = run_in(tmp_path / "runs" / "animals")
    site = Site(tmp_path / "runs")
    stream = Stream(run=run, at=at_place(""), parts=views.live(site, site.seen("animals")))
    assert "<form" not in stream.look()["parts"]["acts"]
    with alone(run):
        assert "save and stop" in stream.look()["parts"]["acts"]
        assert "acts" not in stream.look().get("parts", {})  # a button that is pressed stays the same one
    assert "<form" not in stream.look()["parts"]["acts"]


def test_a_held_out_reward_is_told_once_with_the_charts_by_title(tmp_path: Path) -> None:
    run = run_in(tmp_path / "runs" / "animals")
    recorded(run, [rewarded(1, 0.25)])
    for step, value in ((0, 0.25), (1, 0.5)):
        held_out(run, step, value)
    page = browser(tmp_path / "runs").get("/runs/animals/curves").json()
    reward = page["charts"][0]
    assert (reward["title"], reward["curves"][1]["y"], reward["curves"][1]["low"]) == ("Reward", [0.25, 0.5], [0.2, 0.45])
    stream = Stream(run=run, at=at_place(page["place"]), parts={}, rewards=lambda: rewards_of(list(jsonl.records(run.events))))
    assert stream.look()["charts"][0]["curves"][1]["x"] == [0.0, 1.0]  # the page has them, and passes them over
    assert stream.look() == {}
    run.metric(line(2, 1.5, "validation"))
    assert "Reward" not in [chart["title"] for chart in stream.look()["charts"]]
    held_out(run, 2, 0.75)
    (told, *_) = stream.look()["charts"]
    assert (told["title"], [curve["y"] for curve in told["curves"]]) == ("Reward", [[], [0.75]])
