"""`luthier quickstart` as a newcomer runs it, once, and what he can do with the run afterwards."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from openai import OpenAI

from luthier.flow import kept_report
from luthier.runs.store import RunFolder


def luthier(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LUTHIER_RUNS"}
    command = [sys.executable, "-m", "luthier.cli.main", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("newcomer")


@pytest.fixture(scope="module")
def shown(folder: Path) -> str:
    done = luthier(folder, "quickstart")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(folder: Path, shown: str) -> RunFolder:
    return RunFolder(folder / "runs" / "quickstart")


def test_its_exit_code_is_the_verdicts_and_the_verdict_is_deploy(run: RunFolder) -> None:
    assert json.loads(run.verdict.read_text())["decision"] == "deploy"


def test_the_base_knows_nothing_of_the_task_and_the_tuned_model_nearly_all(run: RunFolder) -> None:
    base, tuned = (json.loads((run.evaluation(name) / "scores.json").read_text())["tasks"]["answers"] for name in ("base", "tuned"))
    assert base["value"] <= 0.02
    assert tuned["value"] >= 0.9
    assert tuned["n"] == base["n"] >= 100
    assert base["high"] < tuned["low"]


def test_it_shows_three_rows_with_both_answers_the_verdict_and_what_to_do_next(shown: str) -> None:
    assert [shown.count(f"  {label}: ") for label in (" asked", "wanted")] == [3, 3]
    assert shown.count("   tuned: ") == shown.count("    base: ") == 4  # the score and three answers
    assert "verdict: deploy" in shown
    assert "luthier train recipe.yaml" in shown


def test_no_held_out_prompt_stands_in_the_training_rows(run: RunFolder) -> None:
    overlap = json.loads(run.data.read_text())["overlap"]
    assert overlap["test"]["exact"] == overlap["validation"]["exact"] == 0


def test_every_row_of_the_log_is_kept_or_counted(run: RunFolder) -> None:
    rows = json.loads(run.data.read_text())["rows"]
    assert rows["read"] == rows["kept"] + sum(rows["dropped"].values()) >= 1_500
    assert {"duplicate", "bad row", "longer than max_length", "where success"} == set(rows["dropped"])


def test_the_run_folder_is_the_designs(run: RunFolder) -> None:
    files = "recipe.yaml recipe.original environment.json data.json plan.json metrics.jsonl events.jsonl verdict.json best.json latest.json"
    assert [name for name in files.split() if not (run.path / name).exists()] == []
    first = json.loads(run.metrics.read_text().splitlines()[0])
    when, what = "step epoch kind seconds data_seconds", "loss learning_rate grad_norm tokens supervised_tokens"
    assert [key for key in f"{when} {what} tokens_per_second memory_bytes".split() if key not in first] == []


def test_the_adapter_is_plain_peft(run: RunFolder) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from luthier.demo import BASE

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), run.adapter)
    assert model.peft_config["default"].r == 16
    assert AutoTokenizer.from_pretrained(run.adapter).chat_template


def test_training_a_finished_run_again_says_so_and_leaves_it(folder: Path, run: RunFolder) -> None:
    before = run.metrics.read_bytes()
    done = luthier(folder, "quickstart")
    assert "is finished" in done.stderr
    assert run.metrics.read_bytes() == before


def test_evaluate_asks_fewer_rows_and_prints_one_json_object(folder: Path, run: RunFolder) -> None:
    done = luthier(folder, "evaluate", "quickstart", "--limit", "5", "--json")
    assert json.loads(done.stdout)["tasks"]["answers"]["n"] == 5
    assert (run.evaluation("tuned-limit-5") / "predictions.jsonl").read_text().count("\n") == 5


def test_decide_reads_what_was_evaluated_and_ends_in_the_verdicts_code(folder: Path, run: RunFolder) -> None:
    done = luthier(folder, "decide", "quickstart", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["decision"] == "deploy"
    assert "evaluating" not in done.stderr


def test_all_of_it_is_kept_as_one_page(run: RunFolder) -> None:
    text = run.report.read_text()
    assert "<svg" in text and "deploy" in text and "answers.exact" in text


def test_the_run_answers_openais_client_in_two_commands(folder: Path, run: RunFolder) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LUTHIER_RUNS"}
    command = [sys.executable, "-m", "luthier.cli.main", "serve", "quickstart", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        url, token = (server.stdout.readline().split()[-1] for _ in range(2))
        told = [server.stderr.readline() for _ in range(2)]
        assert told[0].startswith("quickstart: trained = served: ") and told[1] == "ready: quickstart, demo; Ctrl-C ends it\n"
        with OpenAI(base_url=url, api_key=token) as client:
            row = kept_report(run.evaluation("tuned")).predictions["answers"][0]
            answer = client.chat.completions.create(model="quickstart", messages=list(row.messages), max_tokens=32)  # type: ignore[arg-type]
            assert answer.choices[0].message.content == row.answer
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0
        assert "Traceback" not in server.stderr.read()


def test_chat_answers_with_run_and_base_what_comes_through_a_pipe(folder: Path, run: RunFolder) -> None:
    row = kept_report(run.evaluation("tuned")).predictions["answers"][0]
    system, question = (str(message["content"]) for message in row.messages)
    environment = {name: value for name, value in os.environ.items() if name != "LUTHIER_RUNS"}
    lines = f"/base\n{question}\n/base\n/nothing\n/reset\n\n{question}\n"
    command = [sys.executable, "-m", "luthier.cli.main", "chat", "quickstart", "--system", system]
    done = subprocess.run(command, cwd=folder, env=environment, input=lines, capture_output=True, text=True, timeout=120, check=True)
    first, base, again = done.stdout.splitlines()
    assert first == again == row.answer and base.startswith("base: ") and base != f"base: {first}"
    assert "nothing was said yet" in done.stderr and "there is no /nothing" in done.stderr and "Traceback" not in done.stderr
