"""What each page shows of runs, rows, answers and comparisons."""

import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from luthier.runs import control
from luthier.runs.store import RunFolder, alone
from luthier.watch.series import KEYS
from tests.runs.recorded import line, planned, recorded, run_in
from tests.web.workshop import SCRIPT, browser

ESCAPED = "&lt;script&gt;alert(&#39;row&#39;)&lt;/script&gt;"


def test_the_list_has_every_run_with_its_state(page: TestClient) -> None:
    text = page.get("/").text
    assert 'href="/runs/animals"' in text and 'href="/runs/faster"' in text and "finished" in text and "60/60" in text


def test_the_list_has_what_is_known_of_each_run_with_what_its_curves_show(tmp_path: Path) -> None:
    run = run_in(tmp_path / "runs" / "animals")
    planned(run, 100)
    recorded(run, [*(line(step, 3.0 - step / 20, grad_norm=50.0) for step in range(1, 41)), line(40, 1.25, "validation")])
    client = browser(tmp_path / "runs")
    with alone(run):
        text = client.get("/table").text
    cells = [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", text.partition("<tbody>")[2])]
    assert cells[1:12] == ["animals", "running (preparing)", "40/100", "0.50", "1.0000", "1.2500", "-0.2250", "500", "7 MB", "2 min", "–"]
    assert cells[12] == "gradient-large"


def test_the_list_is_filtered_by_state_and_by_text(page: TestClient) -> None:
    assert "/runs/faster" in page.get("/table", params={"text": "FAST"}).text
    assert "/runs/animals" not in page.get("/table", params={"text": "FAST"}).text
    assert "none of 2 runs is like that" in page.get("/table", params={"state": "running"}).text
    assert "/runs/animals" in page.get("/table", params={"state": "finished"}).text


def test_an_empty_folder_says_how_to_begin(tmp_path: Path) -> None:
    assert "luthier train R" in browser(tmp_path / "runs").get("/").text


def test_a_run_shows_its_verdict_scores_data_events_and_provenance(page: TestClient) -> None:
    text = page.get("/runs/animals").text
    for told in (
        "not enough data",
        "answers.exact is 80 % on 5 rows",
        "answers.exact",
        "40 rows read",
        "started",
        "chat template",
        "max_steps: 60",
    ):
        assert told in text
    assert "save and stop" not in text  # it is finished


def test_what_the_curves_show_stands_beside_the_plan(page: TestClient) -> None:
    text = page.get("/runs/animals/looked-at").text
    assert "60 done" in text and re.search(r"a step</th><td>[\d.]+ m?s</td><td>2 s", text) and "auto" in text
    assert "perfect" not in text and "Findings" in text


def test_curves_are_those_of_training_and_validation(page: TestClient) -> None:
    found = page.get("/runs/animals/curves").json()
    assert [chart["title"] for chart in found["charts"]][:3] == ["Loss", "Learning rate", "Gradient norm"]
    train, validation = found["charts"][0]["curves"]
    assert (train["name"], len(train["x"]), validation["x"]) == ("train", 60, [20.0, 40.0, 60.0])
    assert [curve["y"][0] for curve in found["charts"][4]["curves"]] == [0.007]


def test_rows_are_shown_as_tokens_with_those_that_are_trained_on(page: TestClient) -> None:
    text = "".join(page.get("/runs/animals/rows", params={"split": split}).text for split in ("train", "validation", "test"))
    assert 'class="trained">' in text and "tokens, " in text and "&lt;" in text
    assert SCRIPT not in text and "script" in re.sub(r"</span>\n?<span[^>]*>", "", text.replace("<script src", ""))


def test_answers_are_filtered_by_wrong_by_group_and_by_what_was_gained(page: TestClient) -> None:
    def shown(**asked: str) -> int:
        return page.get("/runs/animals/answers", params=asked).text.count('<article class="answer">')

    assert (shown(), shown(which="wrong"), shown(which="gained"), shown(which="lost")) == (5, 1, 3, 0)
    assert (shown(group="barks"), shown(text="PURRS"), shown(evaluation="base", which="wrong")) == (1, 1, 4)
    assert page.get("/runs/animals/answers", params={"which": "nonsense"}).status_code == 422


def test_a_row_that_holds_html_is_shown_as_text(page: TestClient) -> None:
    text = page.get("/runs/animals/answers").text
    assert SCRIPT not in text and text.count(ESCAPED) == 2 + 1  # asked, and answered by both; the base's row is the same question


def test_runs_are_compared_by_recipe_scores_and_curves(page: TestClient) -> None:
    text = page.get("/compare", params={"run": ["animals", "faster"]}).text
    rows = re.findall(r'<th scope="row"><code>([^<]*)</code></th><td><code>([^<]*)</code></td><td><code>([^<]*)</code></td>', text)
    assert dict((key, (one, other)) for key, one, other in rows) == {"lora.r": ("16", "4"), "training.learning_rate": ("0.0003", "0.001")}
    charts = page.get("/compare/curves", params={"run": ["animals", "faster"]}).json()["charts"]
    assert [[curve["name"] for curve in chart["curves"]] for chart in charts] == [["animals", "faster"]] * 3


def test_a_run_that_is_damaged_says_so_and_shows_the_rest(page: TestClient, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "animals", tmp_path / "runs" / "animals")
    (tmp_path / "runs" / "animals" / "plan.json").write_text("{")
    (tmp_path / "runs" / "animals" / "data.json").write_text('{"hash": 1}')
    text = browser(tmp_path / "runs").get("/runs/animals").text
    assert "not shown: plan.json, data.json" in text and "answers.exact is 80 % on 5 rows" in text


def test_a_run_that_has_only_begun_is_shown(tmp_path: Path) -> None:
    run_in(tmp_path / "runs" / "animals")
    client = browser(tmp_path / "runs")
    assert "not decided yet" in client.get("/runs/animals").text
    assert client.get("/runs/animals/curves").json()["charts"][0]["curves"][0]["x"] == []
    assert client.get("/runs/animals/looked-at").status_code == 200
    assert "has no data yet" in client.get("/runs/animals/rows").text
    assert client.get("/runs/animals/answers").status_code == 409


def test_secrets_are_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_in(tmp_path / "runs" / "animals")
    run.events.write_text(run.events.read_text() + json.dumps({"event": "note", "time": 1.0, "said": "the key is hf_" + "a1" * 12}) + "\n")
    monkeypatch.setenv("SOME_API_KEY", "quite-unmistakable-7")
    run.event("note", said="and quite-unmistakable-7")
    text = browser(tmp_path / "runs").get("/runs/animals").text
    assert text.count("[redacted]") == 2 and "a1a1" not in text and "unmistakable" not in text


def test_a_button_says_where_nothing_runs(tmp_path: Path) -> None:
    run = run_in(tmp_path / "runs" / "animals")
    for button in ("save", "stop"):
        answer = browser(tmp_path / "runs").post(f"/runs/animals/{button}")
        assert (answer.status_code, "nothing of it runs" in answer.text) == (409, True)
    assert not run.control.exists()


def test_a_button_asks_the_run_and_says_what_it_has_saved(tmp_path: Path) -> None:
    run = run_in(tmp_path / "runs" / "animals")

    def trains_a_step() -> None:
        while control.wished(run) != "save":
            time.sleep(0.01)
        run.checkpoint(7).mkdir(parents=True)
        control.obeyed(run, control.wished(run))

    with alone(run), ThreadPoolExecutor() as trainer:
        trainer.submit(trains_a_step)
        answer = browser(tmp_path / "runs").post("/runs/animals/save")
    assert (answer.status_code, answer.text) == (200, "saved after step 7")


def test_report_html_is_taken_from_the_page_and_nothing_is_written(page: TestClient, root: Path) -> None:
    answer = page.get("/runs/animals/report")
    assert answer.headers["content-disposition"] == 'attachment; filename="animals.html"'
    assert "<polyline" in answer.text and "60 done" in answer.text
    assert not (root / "animals" / "report.html").exists()


def test_a_run_that_trains_here_has_buttons(tmp_path: Path) -> None:
    run = run_in(tmp_path / "runs" / "animals")
    with alone(run):
        assert "save and stop" in browser(tmp_path / "runs").get("/runs/animals").text


def test_200_000_steps_open_in_less_than_a_second(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "runs" / "long")
    run_in(run.path)
    lines = (line(step, 2.3456789 + step * 1e-7, grad_norm=0.84123 + step * 1e-6) for step in range(1, 200_001))
    recorded(run, [{key: each[key] for key in KEYS} for each in lines])  # in the order that the trainer writes them

    def opened() -> tuple[float, float]:
        client = browser(tmp_path / "runs")  # which has read nothing yet
        wall, processor = time.perf_counter(), time.process_time()
        assert "200,000" in client.get("/runs/long").text
        curve = client.get("/runs/long/curves").json()["charts"][0]["curves"][0]
        assert len(curve["x"]) <= 1200 and curve["x"][-1] == 200_000
        return time.perf_counter() - wall, time.process_time() - processor

    times = [opened() for _ in range(2)]
    with capsys.disabled():
        print(f"\n200,000 steps open in {min(times)[0]:.2f} s, with {min(busy for _, busy in times):.2f} s of a processor")
    assert min(busy for _, busy in times) < 1.0  # of a processor's time: other programs may have it in between
