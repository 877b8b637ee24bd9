"""`flow.export` and `flow.verify`: a finished run becomes a folder that others load, or nothing at all."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier import flow
from luthier.core import jsonl
from luthier.core.errors import ModelError, RunError, UsageError
from luthier.runs.store import RunFolder
from tests.export.handed import trained
from tests.train.workshop import Workshop

TASK = {"evaluation": {"tasks": [{"name": "answers", "split": "validation", "scorer": "exact", "max_new_tokens": 4}]}}


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    return Workshop(tmp_path)


def changed(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def luthier(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "luthier.cli.main", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False)


def test_an_exported_run_answers_in_plain_transformers_and_stops_at_the_end_of_its_turn(workshop: Workshop) -> None:
    run = trained(workshop, training={"max_steps": 30})
    exported = flow.export(run.name)
    assert exported.folder == run.path / "merged" and exported.verification.passed
    tokenizer, model = AutoTokenizer.from_pretrained(exported.folder), AutoModelForCausalLM.from_pretrained(exported.folder)
    messages = [{"role": "user", "content": "What is question number 0?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    new = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
    assert new[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>") and len(new) < 20
    assert not list(exported.folder.glob("adapter*"))
    assert {record["event"] for record in jsonl.records(run.events)} >= {"finished", "exported"}


def test_its_card_has_recipe_data_results_with_intervals_licence_and_limits(workshop: Workshop) -> None:
    base = workshop.base()
    (base / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# Base\nlicense: none of this\n")
    run = trained(workshop, **TASK)
    flow.evaluate(run.name)
    scores = flow.kept_report(run.evaluation("tuned")).scores.tasks["answers"]
    card = (flow.export(run.name).folder / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n") and "library_name: transformers" in card
    assert "LoRA r 4, alpha 8, dropout 0.1; 12 steps of 4 rows, learning rate 0.01 (cosine)" in card
    assert f"| tuned | answers | exact | {scores.value:.1%} | {scores.low:.1%} … {scores.high:.1%} | {scores.n} |" in card
    (source,) = json.loads(run.data.read_text())["sources"]
    assert f"- `rows-30.jsonl`: 30 rows, sha256 `{source['sha256']}`" in card
    assert "| train | 24 |" in card and "| validation | 6 |" in card and "| test |" not in card
    assert "licence goes on to hold: `apache-2.0`" in card and "no row of more than" in card
    assert str(workshop.folder / "rows-30.jsonl") not in card


def test_over_few_bits_the_nearer_of_two_merges_is_written_and_both_figures_are_told(workshop: Workshop) -> None:
    run = trained(workshop, model={"quantization": "nf4"})
    exported = flow.export(run.name)
    kl = exported.made.kl
    assert kl.keys() == {"trained", "plain"} and exported.made.over == min(kl, key=lambda over: kl[over]) == "trained"
    told = json.loads((exported.folder / "provenance.json").read_text())
    assert told["merged"] == {"over": "trained", "kl": kl} and told["template_hash"]
    assert f"{kl['trained']:.3g}; the base's own weights {kl['plain']:.3g}" in (exported.folder / "README.md").read_text()
    config = json.loads((exported.folder / "config.json").read_text())
    assert "quantization_config" not in config


def test_sampling_settings_that_transformers_would_not_save_stay_as_the_base_has_them(workshop: Workshop) -> None:
    (workshop.base() / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": false, "eos_token_id": 2}')
    run = trained(workshop)
    told = json.loads((flow.export(run.name).folder / "generation_config.json").read_text())
    assert told["temperature"] == 0.6
    assert set(told["eos_token_id"]) == set(json.loads((run.adapter / "provenance.json").read_text())["stop_ids"]) > {2}


def test_a_run_in_bfloat16_is_merged_into_bfloat16(workshop: Workshop) -> None:
    run = trained(workshop, model={"dtype": "bfloat16"})
    weights = load_file(flow.export(run.name).folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_a_whole_model_is_copied_as_it_was_trained(workshop: Workshop) -> None:
    run = trained(workshop, lora="none", training={"learning_rate": 1e-3})
    exported = flow.export(run.name)
    assert exported.made.over == "copied" and exported.made.kl == {}
    assert (exported.folder / "model.safetensors").read_bytes() == (run.adapter / "model.safetensors").read_bytes()
    assert "all weights; 12 steps" in (exported.folder / "README.md").read_text()


def test_what_is_not_what_was_trained_is_not_left_behind_and_an_earlier_export_stays(workshop: Workshop) -> None:
    run = trained(workshop)
    folder = flow.export(run.name).folder
    before = (folder / "model.safetensors").read_bytes()
    weights = load_file(run.adapter / "adapter_model.safetensors")
    save_file(
        {name: torch.zeros_like(tensor) if "lora_B" in name else tensor for name, tensor in weights.items()},
        run.adapter / "adapter_model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(flow.VerificationError, match="the adapter changes nothing") as raised:
        flow.export(run.name)
    assert raised.value.exit_code == 1 and raised.value.verification.change.mean == 0
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in folder.parent.glob("merged*")] == ["merged"]
    with pytest.raises(flow.VerificationError):
        flow.export(run.name, workshop.folder / "elsewhere")
    assert not list(workshop.folder.glob("elsewhere*"))


def test_a_folder_with_other_things_in_it_is_not_replaced(workshop: Workshop) -> None:
    run = trained(workshop, training={"max_steps": 1})
    mine = workshop.folder / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not empty, and no earlier export"):
        flow.export(run.name, mine)
    assert (mine / "thesis.txt").read_text() == "years of work"


def test_an_adapter_of_another_template_or_base_is_refused(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(workshop, training={"max_steps": 1})
    changed(run.adapter / "provenance.json", template_hash="0" * 64)
    for verb in (flow.export, flow.verify):
        with pytest.raises(ModelError, match="trained with chat template 0000"):
            verb(run.name)
    demo = trained(workshop, "demo-run", model={"base": "demo"}, training={"max_steps": 1})
    changed(demo.adapter / "provenance.json", base="Qwen/Qwen3-0.6B")
    with pytest.raises(ModelError, match=r"trained with base Qwen/Qwen3-0.6B, not demo"):
        flow.export(demo.name)


def test_only_a_finished_run_is_handed_over_and_only_with_its_own_rows(workshop: Workshop) -> None:
    run: RunFolder = trained(workshop, training={"max_steps": 1})
    events = run.events.read_text()
    run.events.write_text(events.replace('"finished"', '"stopped"'))
    with pytest.raises(UsageError, match="not finished"):
        flow.export(run.name)
    run.events.write_text(events)
    changed(run.data, hash="0123456789abcdef")
    with pytest.raises(RunError, match="rows have changed"):
        flow.export(run.name)


def test_verify_compares_the_runs_own_merged_model_or_a_folders_or_the_live_adapter_alone(workshop: Workshop) -> None:
    run = trained(workshop)
    assert flow.verify(run.name).apart == {}
    flow.export(run.name)
    assert flow.verify(run.name).apart.keys() == {"merged"}
    assert not flow.verify(run.name, workshop.base()).passed
    with pytest.raises(UsageError, match=r"no config\.json"):
        flow.verify(run.name, workshop.folder)


def test_the_command_line_exports_and_fails_with_the_figures(workshop: Workshop) -> None:
    run = trained(workshop)
    ended = luthier("export", run.name, "--to", "merged", "--json")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert told["verification"]["passed"] and told["merged"] == {"over": "plain", "kl": {}}
    assert "trained = merged" in ended.stderr
    ended = luthier("verify", run.name, "--merged", str(workshop.base()), "--json")
    assert ended.returncode == 1
    told = json.loads(ended.stdout)
    assert told["apart"]["merged"]["mean"] == pytest.approx(told["change"]["mean"], rel=1e-5)
    assert "merged is not what was trained" in ended.stderr
