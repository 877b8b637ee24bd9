"""Rows: as many as asked, sharing what their workload says, and the same to Luthier as to transformers alone."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from bench import floor
from bench.peers.luthier import write_recipe
from bench.protocol import Account, Task, account
from bench.shapes import Shape, config_of, corpus, learn_tokenizer
from bench.workloads import Rows, make_rows
from luthier import flow

TINY = Shape(hidden=16, layers=1, heads=2, kv_heads=1, head_width=8, intermediate=16, vocabulary=1000, tied=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    learn_tokenizer(corpus()[:2], TINY.vocabulary).save_pretrained(folder)
    Qwen3ForCausalLM(config_of(TINY)).save_pretrained(folder)
    return folder


def made(name: str, model: Path, folder: Path) -> Rows:
    return make_rows(name, 16, model, Path("no recipe"), folder)


def as_luthier_counts(rows: Rows, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    monkeypatch.setenv("LUTHIER_RUNS", str(folder / "runs"))
    task = Task(files=rows.files, scratch=str(folder), batch=16, epochs=1, dropout=0.0, seed=1, device="cpu")
    prepared = flow.prepare(flow.load(write_recipe(task)).recipe)
    return account((row.ids.tolist(), row.supervised.tolist()) for row in prepared.rows("train"))


@pytest.mark.parametrize("name", ["i", "ii", "iii", "iv"])
def test_luthier_trains_the_rows_that_transformers_renders(name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = made(name, model, tmp_path)
    expected = account((row.ids, row.supervised) for row in rows.rows)
    assert expected.rows == 16 and expected.digest
    assert as_luthier_counts(rows, tmp_path, monkeypatch) == expected


def test_workloads_share_what_they_say(model: Path, tmp_path: Path) -> None:
    rows = {name: made(name, model, tmp_path).rows for name in ("i", "ii", "iii", "iv")}
    shares = {name: 1 - floor.shared(found).tokens / floor.separate(found).tokens for name, found in rows.items()}
    assert shares["iv"] < 0.02 < 0.2 < shares["i"] < shares["ii"] < 0.75
    assert 0.5 < shares["iii"] < 0.8


def test_a_dialogue_is_a_row_for_each_answer_and_whole_once(model: Path, tmp_path: Path) -> None:
    rows = made("ii", model, tmp_path)
    answers = [message["content"] for row in rows.whole for message in row.messages if message["role"] == "assistant"]
    assert [row.messages[-1]["content"] for row in rows.rows] == answers
    thought = (
        len(PreTrainedTokenizerFast.from_pretrained(model)("<think>\n\n</think>\n\nx")["input_ids"]) - 1
    )  # empty, as the template has it
    assert sum(sum(row.supervised) for row in rows.whole) == sum(sum(row.supervised) - thought for row in rows.rows)


def test_the_same_call_gives_the_same_rows(model: Path, tmp_path: Path) -> None:
    assert made("i", model, tmp_path / "one").rows == made("i", model, tmp_path / "two").rows
