"""A page that is open is told what the run writes, from the byte on that it has read to."""

import asyncio
import json
import shutil
from pathlib import Path

from fastapi.testclient import TestClient

from luthier.core import jsonl
from luthier.runs.store import RunFolder
from luthier.web.stream import Stream, at_place, place
from tests.runs.recorded import line, recorded, run_in
from tests.web.workshop import browser


def opened(run: RunFolder, at: str) -> Stream:
    return Stream(run=run, at=at_place(at), parts={"standing": lambda: f"{len(run.metrics.read_bytes())} bytes"})


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
    assert first.startswith("id: ") and set(json.loads(first.split("data: ", 1)[1])["parts"]) == {"standing", "events", "rest"}
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
