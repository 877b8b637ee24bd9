"""From files to token rows: nothing lost, nothing made twice, nothing of another tokenizer taken."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luthier.core.chat import Message
from luthier.core.errors import DataError
from luthier.core.progress import Silent
from luthier.data.pool import Chunk, render_chunks
from luthier.data.prepare import prepare, write_splits
from luthier.data.render import Renderer
from luthier.data.rows import Example
from luthier.data.store import Prepared, example_from_json, example_to_json
from luthier.recipe.schema import Recipe
from luthier.runs.store import prepared_root
from tests.data.families import CALL, TWO_TURNS, family

SILENT = Silent()


@pytest.fixture(autouse=True)
def _runs_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    family("chatml").save(tmp_path / "base")
    return tmp_path / "base"


def row(number: int, agent: str = "coder") -> dict[str, Any]:
    return {"prompt": f"What is {number} + {number}?", "response": f"The answer is {2 * number}.", "agent": agent, "success": True}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in rows))
    return path


def recipe(base: Path, path: Path, seed: int = 42, **data: Any) -> Recipe:
    return Recipe.model_validate(
        {"name": "a", "seed": seed, "model": {"base": str(base)}, "data": {"sources": [{"path": str(path)}], "group_by": "agent", **data}}
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Sixty rows of which five fail, five repeat others, two are long and three are no rows; groups of 3 to 1."""
    rows = [row(number, "coder" if number % 4 else "tester") for number in range(45)]
    failed = [{**row(number), "success": False} for number in range(100, 105)]
    long = [{**row(number), "prompt": "Why? " * 200 + str(number)} for number in range(2)]
    bad = [
        {"prompt": 7, "response": "seven", "agent": "coder"},
        {"prompt": "What?", "agent": "coder"},
        {**row(1), "response": "half \ud83d"},
    ]
    return write(tmp_path / "log.jsonl", [*rows[:20], *failed, *rows[:5], *rows[20:], *long, *bad])


def splits_of(prepared: Prepared) -> dict[str, list[Example]]:
    return {split: prepared.examples(split) for split in prepared.summary.splits}


def test_every_row_is_kept_or_counted_with_its_reason_and_place(base: Path, log: Path) -> None:
    summary = prepare(recipe(base, log, on_bad_row="skip", max_length=200), SILENT).summary
    assert summary.rows.read == 60
    assert summary.rows.kept == 45
    assert dict(summary.rows.dropped) == {"failed interaction": 5, "duplicate": 5, "bad row": 3, "longer than max_length": 2}
    assert summary.rows.dropped_examples["duplicate"][0] == f"{log}:26: of {log}:1"
    assert summary.rows.dropped_examples["bad row"][0] == f"{log}:58: field `prompt`: found the number 7, expected text"
    assert summary.rows.dropped_examples["bad row"][2].startswith(f"{log}:60: not JSON")
    assert [len(examples) for examples in summary.rows.dropped_examples.values()] == [3, 3, 3, 2]
    assert dict(summary.groups) == {"coder": 33, "tester": 12}
    assert sum(split.answers for split in summary.splits.values()) == 45
    assert sum(split.over_length.examples for split in summary.splits.values()) == 2
    assert sum(split.over_length.answers for split in summary.splits.values()) == 2


def test_a_bad_row_stops_unless_the_recipe_skips_it(base: Path, log: Path) -> None:
    with pytest.raises(DataError, match=r"log\.jsonl:58: field `prompt`: found the number 7, expected text"):
        prepare(recipe(base, log), SILENT)
    assert [path.name for path in prepared_root().iterdir() if not path.name.startswith(".")] == []


def test_default_prompts_list_the_labels_of_all_sources_and_split_files(base: Path, tmp_path: Path) -> None:
    """A list per file would tell the model which file, and so which labels, a row is from."""
    files = {"lab": ["db", "net", "web"], "lab2": ["games"], "held": ["mail"]}
    for name, labels in files.items():
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(f"{name} row {n},{labels[n % len(labels)]}\n" for n in range(6)))
    sources = [{"path": str(tmp_path / f"{name}.csv")} for name in ("lab", "lab2")]
    split = {"train": 0.8, "validation": 0.2, "test": str(tmp_path / "held.csv")}
    prepared = prepare(recipe(base, tmp_path, sources=sources, split=split, group_by=""), SILENT)
    prompts = {example.conversation.messages[0].content for examples in splits_of(prepared).values() for example in examples}
    assert prompts == {"Answer with one of: db, games, mail, net, web."}


def turns(*messages: Message) -> dict[str, Any]:
    return {"messages": [message.to_template() for message in messages], "agent": "coder"}


def test_evaluation_asks_what_training_saw_when_thinking_is_stripped(base: Path, tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", [turns(*TWO_TURNS)])
    prepared = prepare(recipe(base, log, thinking="strip", split={"train": 1.0, "validation": 0, "test": 0}), SILENT)
    (example,), (token_row,) = prepared.examples("train"), prepared.rows("train")
    prompt = family("chatml").prompt_ids(example.prompt)
    assert token_row.ids[: len(prompt)].tolist() == prompt
    assert family("chatml").decode(token_row.ids[token_row.supervised]) == "The answer is 4.<|im_end|>yes<|im_end|>"


def test_an_answer_of_nothing_but_thinking_is_dropped_when_thinking_is_stripped(base: Path, tmp_path: Path) -> None:
    silent = turns(TWO_TURNS[0], Message(role="assistant", content="<think>\nhm\n</think>\n\n"))
    log = write(tmp_path / "log.jsonl", [turns(*TWO_TURNS), silent])
    found = prepare(recipe(base, log, thinking="strip", split={"train": 1.0, "validation": 0, "test": 0}), SILENT)
    assert found.summary.rows.dropped == {"nothing but thinking in an answer": 1}


def test_evaluation_asks_what_training_saw_when_texts_are_shortened(base: Path, log: Path) -> None:
    prepared = prepare(recipe(base, log, on_bad_row="skip", max_length=60, over_length="truncate"), SILENT)
    assert sum(split.cut.rows for split in prepared.summary.splits.values()) == 2
    for split, examples in splits_of(prepared).items():
        for example, token_row in zip(examples, prepared.rows(split), strict=True):
            prompt = family("chatml").prompt_ids(example.prompt)
            assert token_row.ids[: len(prompt)].tolist() == prompt


def test_the_reference_of_a_tool_call_is_kept_with_its_example(tmp_path: Path) -> None:
    family("qwen3").save(tmp_path / "qwen3")
    called = turns(TWO_TURNS[0], Message(role="assistant", content="", tool_calls=(CALL,)))
    log = write(tmp_path / "log.jsonl", [called])
    found = prepare(recipe(tmp_path / "qwen3", log, split={"train": 1.0, "validation": 0, "test": 0}), SILENT)
    (example,) = found.examples("train")
    assert example.reference.endswith('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>')


def test_half_a_character_inside_json_text_is_a_bad_row(base: Path, tmp_path: Path) -> None:
    log = write(
        tmp_path / "log.jsonl", [{"messages": json.dumps([{"role": "user", "content": "a \ud83d"}, {"role": "assistant", "content": "b"}])}]
    )
    with pytest.raises(DataError, match=r"log\.jsonl:1: the text holds half of a surrogate pair \(\\ud83d\), which no tokenizer takes"):
        prepare(recipe(base, log, group_by=""), SILENT)


def test_rows_and_examples_and_summary_agree(base: Path, log: Path) -> None:
    prepared = prepare(recipe(base, log, on_bad_row="skip", max_length=200), SILENT)
    tokenizer = family("chatml")
    for split, summary in prepared.summary.splits.items():
        rows, examples = prepared.rows(split), prepared.examples(split)
        assert (len(examples), len(rows), int(rows.lengths.sum())) == (summary.examples, summary.rows, summary.tokens)
        assert int(rows.num_supervised.sum()) == summary.supervised_tokens
        for place, token_row in zip(rows.example_index, rows, strict=True):
            assert tokenizer.decode(token_row.ids[token_row.supervised]) == examples[place].answer.content + "<|im_end|>"
    template = prepared.summary.template
    assert (template.prefix_stable, template.end_of_turn, template.stop_ids) == (True, "<|im_end|>", tokenizer.stop_ids)


def test_max_length_fit_is_the_longest_row(base: Path, log: Path) -> None:
    summary = prepare(recipe(base, log, on_bad_row="skip"), SILENT).summary
    assert summary.max_length == max(split.lengths.max for split in summary.splits.values())


def test_a_second_call_returns_what_is_there_without_transformers(base: Path, log: Path) -> None:
    """In a process of its own, because this one has imported transformers long since."""
    first = prepare(recipe(base, log, on_bad_row="skip"), SILENT)
    before = (first.folder / "data.json").stat().st_mtime_ns
    code = (
        "import sys\n"
        "from luthier.core.progress import Silent\nfrom luthier.data.prepare import prepare\nfrom luthier.recipe.schema import Recipe\n"
        "print(prepare(Recipe.model_validate_json(sys.argv[1]), Silent()).folder)\n"
        "print('transformers' in sys.modules or 'torch' in sys.modules)"
    )
    text = recipe(base, log, on_bad_row="skip").model_dump_json(exclude_none=True)
    output = subprocess.run([sys.executable, "-c", code, text], capture_output=True, text=True, check=True, timeout=60).stdout
    assert output.split() == [str(first.folder), "False"]
    assert (first.folder / "data.json").stat().st_mtime_ns == before


def test_other_rows_rules_seeds_tokenizers_and_templates_are_prepared_anew(base: Path, log: Path, tmp_path: Path) -> None:
    """Trap 33: a tokenised cache must not outlive its tokenizer or template."""
    template = tmp_path / "other.jinja"
    template.write_text((base / "chat_template.jinja").read_text().replace("'\\n'", "' '"))
    family("llama3").save(tmp_path / "llama3")
    more = write(tmp_path / "more.jsonl", [row(number) for number in range(60)])
    plain = recipe(base, log, on_bad_row="skip")
    recipes = [
        plain,
        recipe(base, log, seed=43, on_bad_row="skip"),
        recipe(base, log, on_bad_row="skip", train_on="all"),
        recipe(base, more, on_bad_row="skip"),
        recipe(tmp_path / "llama3", log, on_bad_row="skip"),
        plain.model_copy(update={"model": plain.model.model_copy(update={"chat_template": str(template)})}),
    ]
    assert len({prepare(item, SILENT).folder for item in recipes}) == len(recipes)
    log.write_text(log.read_text() + json.dumps(row(99)) + "\n")
    assert prepare(plain, SILENT).summary.rows.read == 61


def test_what_a_killed_process_left_is_cleared_away(base: Path, log: Path) -> None:
    folder = prepare(recipe(base, log, on_bad_row="skip"), SILENT).folder
    folder.rename(folder.with_name(folder.name + ".part"))
    (folder.with_name(folder.name + ".part") / "data.json").unlink()
    assert prepare(recipe(base, log, on_bad_row="skip"), SILENT).summary.rows.read == 60
    assert not folder.with_name(folder.name + ".part").exists()


def test_max_per_group_caps_training_rows_only(base: Path, log: Path) -> None:
    whole = prepare(recipe(base, log, on_bad_row="skip"), SILENT).summary
    capped = prepare(recipe(base, log, on_bad_row="skip", max_per_group=5), SILENT).summary
    assert dict(capped.splits["train"].groups) == {"coder": 5, "tester": 5}
    for split in ("validation", "test"):
        assert capped.splits[split].groups == whole.splits[split].groups
    for split, summary in whole.splits.items():  # shares tell how rows were divided, before the cap
        assert capped.splits[split].obtained_share == summary.obtained_share
        assert capped.splits[split].group_shares == summary.group_shares
        assert summary.group_shares["coder"] == summary.groups["coder"] / whole.groups["coder"]
    assert capped.rows.dropped["over max_per_group"] == whole.rows.kept - capped.rows.kept


def test_a_split_given_as_a_file_is_taken_whole_and_its_rows_leave_train(base: Path, tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", [row(number) for number in range(20)])
    held_out = write(tmp_path / "held.jsonl", [row(number) for number in range(15, 25)])
    split = {"train": 1.0, "validation": 0, "test": str(held_out)}
    prepared = prepare(recipe(base, log, split=split), SILENT)
    assert [example.origin for example in prepared.examples("test")] == [f"{held_out}:{line}" for line in range(1, 11)]
    assert len(prepared.examples("train")) == 15
    assert prepared.summary.rows.dropped == {"duplicate": 5}
    assert prepared.summary.overlap["test"].exact == 0
    assert [source.path for source in prepared.summary.sources] == [str(held_out), str(log)]


def test_held_out_rows_that_stand_in_train_are_reported_and_many_are_refused(base: Path, tmp_path: Path) -> None:
    held_out = write(tmp_path / "held.jsonl", [{**row(number), "response": "4"} for number in range(30)])
    split = {"train": 1.0, "validation": 0, "test": str(held_out)}
    one = write(tmp_path / "one.jsonl", [row(number) for number in range(29, 60)])
    found = prepare(recipe(base, one, split=split), SILENT).summary.overlap["test"]
    assert (found.exact, round(found.share_exact, 3)) == (1, 0.033)
    most = write(tmp_path / "most.jsonl", [row(number) for number in range(60)])
    with pytest.raises(DataError, match="of the test prompts stand exactly in train too"):
        prepare(recipe(base, most, split=split), SILENT)


def test_data_of_which_nothing_is_left_says_where_it_went(base: Path, log: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no row is left to train on: 60 rows were read, dropped: 47 longer than max_length \(e\.g\."):
        prepare(recipe(base, log, on_bad_row="skip", max_length=5), SILENT)
    with pytest.raises(DataError, match="47 no token to train on"):
        prepare(recipe(base, log, on_bad_row="skip", max_length=3, over_length="truncate"), SILENT)
    with pytest.raises(DataError, match="no row is left to train on: 0 rows were read"):
        prepare(recipe(base, write(tmp_path / "empty.jsonl", [])), SILENT)


def test_cut_rows_are_summed_up(base: Path, log: Path) -> None:
    summary = prepare(recipe(base, log, on_bad_row="skip", max_length=150, over_length="truncate"), SILENT).summary
    assert sum(split.cut.rows for split in summary.splits.values()) == 2
    assert sum(split.cut.tokens for split in summary.splits.values()) > 500
    assert summary.max_length == 150


def test_written_splits_are_rows_for_other_tools_and_for_luthier(base: Path, log: Path, tmp_path: Path) -> None:
    prepared = prepare(recipe(base, log, on_bad_row="skip"), SILENT)
    write_splits(prepared, tmp_path / "out")
    files = {split: str(tmp_path / "out" / f"{split}.jsonl") for split in ("validation", "test")}
    again = prepare(
        recipe(base, tmp_path / "out" / "train.jsonl", group_by="group", split={"train": 1.0, **files}, deduplicate="none"), SILENT
    )
    for split, examples in splits_of(prepared).items():
        assert [example.conversation for example in again.examples(split)] == [example.conversation for example in examples]
        assert all(np.array_equal(one.ids, other.ids) for one, other in zip(again.rows(split), prepared.rows(split), strict=True))
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata["splits"]["test"]["examples"] == len(prepared.examples("test"))
    assert metadata["rows"]["dropped"]["failed interaction"] == 5


def test_worker_processes_render_what_this_process_does(base: Path, log: Path) -> None:
    prepared = prepare(recipe(base, log, on_bad_row="skip"), SILENT)
    lines = [(example_to_json(example) + "\n").encode() for example in prepared.examples("train")]
    renderer = Renderer(family("chatml"), recipe(base, log).data)
    chunks = [Chunk(split="train", lines=lines[start : start + 4]) for start in range(0, len(lines), 4)]
    here, there = (list(render_chunks(renderer, chunks, num_bytes)) for num_bytes in (0, 10**12))
    assert [chunk.lines for chunk in there] == [chunk.lines for chunk in chunks]
    for one, other in zip(here, there, strict=True):
        for mine, theirs in zip(one.rendered, other.rendered, strict=True):
            assert mine.rows[0].ids.tolist() == theirs.rows[0].ids.tolist()
            assert mine.rows[0].supervised.tolist() == theirs.rows[0].supervised.tolist()
    assert example_from_json(lines[0]) == prepared.examples("train")[0]
