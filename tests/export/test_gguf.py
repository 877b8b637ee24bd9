"""One file for llama.cpp: what its converter made is read back, and compared before it is called the model.

Here a small converter stands for llama.cpp's: it writes real GGUF with llama.cpp's own writer, and can be wrong. `pytest -m llama` runs
the one of a checkout.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from luthier import flow
from luthier.core.errors import ModelError, RunError, UsageError
from luthier.data.tokenizer import load_tokenizer
from luthier.export import gguf
from luthier.recipe.schema import Model
from tests.data.families import family
from tests.export.handed import trained
from tests.train.workshop import Workshop

CONVERTER = """\
import json, pathlib, sys
import gguf, numpy
from safetensors.numpy import load_file

class TextModel:
    def get_vocab_base_pre(self, tokenizer):
        raise NotImplementedError("BPE pre-tokenizer was not recognized - update get_vocab_base_pre()")

def main():
    model, out = pathlib.Path(sys.argv[1]), sys.argv[sys.argv.index("--outfile") + 1]
    way = pathlib.Path(__file__).with_name("way").read_text()
    writer = gguf.GGUFWriter(out, "qwen3")
    writer.add_tokenizer_pre(TextModel().get_vocab_base_pre(None))
    template = (model / "chat_template.jinja").read_text()
    writer.add_chat_template(template + (" " if way == "template" else ""))
    ends = json.loads((model / "generation_config.json").read_text())["eos_token_id"]
    writer.add_eos_token_id(1 if way == "eos" else ends[-1])
    for number, (name, weight) in enumerate(load_file(model / "model.safetensors").items()):
        if way == "llama" and name.endswith("q_proj.weight"):
            weight = weight[::-1].copy()
        if way == "gemma" and name.endswith("norm.weight"):
            weight = weight + 1
        if way == "changed" and number == 3:
            weight = weight * 1.01
        if way == "lost" and number == 3:
            continue
        writer.add_tensor(f"t{number}", weight)
    if way == "llama":
        writer.add_tensor("rope_freqs.weight", numpy.ones(4, numpy.float32))
    writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
"""


WRONG = {
    "changed": "none of the merged model's",
    "lost": "are not in the file",
    "template": "chat template",
    "eos": "would end on",
}


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    checkout = tmp_path / "llama.cpp"
    checkout.mkdir()
    (checkout / gguf.CONVERTER).write_text(CONVERTER)
    monkeypatch.setenv("LUTHIER_LLAMA_CPP", str(checkout))
    be("right")
    return Workshop(tmp_path)


def be(way: str) -> None:
    """Make the converter wrong, or right, or as it is for an architecture."""
    Path(os.environ["LUTHIER_LLAMA_CPP"], "way").write_text(way)


def cut_strangely(workshop: Workshop) -> None:
    """Let the base's tokenizer cut text by a rule of its own."""
    file = workshop.base() / "tokenizer.json"
    told = json.loads(file.read_text())
    split, bytes_alone = told["pre_tokenizer"]["pretokenizers"]
    split["pattern"] = {"Regex": r"\d|\D+"}
    told["pre_tokenizer"]["pretokenizers"] = [split, bytes_alone]
    file.write_text(json.dumps(told))


def test_a_run_becomes_one_file_with_its_template_stop_tokens_and_a_modelfile(workshop: Workshop) -> None:
    run = trained(workshop)
    exported = flow.export(run.name, to="gguf")
    assert exported.verification.passed and exported.verification.apart.keys() == {"merged"}
    assert {path.name for path in exported.folder.iterdir()} == {"tiny.gguf", "Modelfile", "README.md", "provenance.json"}
    modelfile = (exported.folder / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./tiny.gguf\n") and 'PARAMETER stop "<|im_end|>"' in modelfile
    told = json.loads((exported.folder / "provenance.json").read_text())
    assert told["gguf"]["equal"] == 24 and told["gguf"]["reordered"] == told["gguf"]["shifted"] == 0
    assert "24 tensors were read back and compared" in (exported.folder / "README.md").read_text()

    whole = workshop.folder / "whole"
    flow.export(run.name, whole)
    tokenizer, file = load_tokenizer(Model(base=str(whole))), workshop.folder / "other.gguf"
    for way, told_of in (
        ("changed", "none of the merged model's"),
        ("lost", "are not in the file"),
        ("template", "chat template"),
        ("eos", "would end on"),
    ):
        be(way)
        gguf.convert(whole, file, torch.float32, tokenizer)
        with pytest.raises(RunError, match=told_of):
            gguf.compare(file, whole, tokenizer)
    be("llama")
    gguf.convert(whole, file, torch.float32, tokenizer)
    found = gguf.compare(file, whole, tokenizer)
    assert (found.reordered, found.added) == (2, ("rope_freqs.weight",))
    be("gemma")
    gguf.convert(whole, file, torch.float32, tokenizer)
    norms = [name for name in load_file(whole / "model.safetensors") if name.endswith("norm.weight")]
    assert gguf.compare(file, whole, tokenizer).shifted == len(norms)

    be("changed")
    before = (exported.folder / "tiny.gguf").read_bytes()
    with pytest.raises(RunError, match="none of the merged model's"):
        flow.export(run.name, to="gguf")
    assert (exported.folder / "tiny.gguf").read_bytes() == before  # an earlier export stays


def test_a_tokenizer_that_the_converter_does_not_know_ends_in_its_words(workshop: Workshop) -> None:
    cut_strangely(workshop)
    run = trained(workshop)
    assert gguf.pre_tokenizer(load_tokenizer(Model(base=str(workshop.base())))) == ""
    with pytest.raises(ModelError, match="pre-tokenizer was not recognized"):
        flow.export(run.name, to="gguf")
    assert not list(run.path.glob("gguf*"))


def test_without_the_converter_the_error_says_how_to_get_it(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUTHIER_LLAMA_CPP")
    with pytest.raises(UsageError, match=r"llama.cpp's converter \(convert_hf_to_gguf.py\) is not here") as refused:
        flow.export("no-such-run", to="gguf")
    assert "git clone" in refused.value.change and "LUTHIER_LLAMA_CPP" in refused.value.change


def test_experts_that_lie_one_by_one_are_found_in_the_files_stacks() -> None:
    one, other = np.ones((2, 3), np.float32), np.full((2, 3), 2, np.float32)
    weights = [other, one]
    assert [gguf._alike(each, weights) for each in np.stack([one, other])] == ["equal", "equal"] and weights == []
    assert gguf._alike(one, [other]) == ""


def test_how_the_demo_and_qwen_cut_text_is_known() -> None:
    assert gguf.pre_tokenizer(load_tokenizer(Model(base="demo"))) == "qwen2"
    assert gguf.pre_tokenizer(family("chatml")) == "qwen2"


RUNTIME = """\
import os, torch
from transformers import AutoModelForCausalLM

class Llama:
    def __init__(self, model_path, n_ctx, logits_all, verbose):
        assert open(model_path, "rb").read(4) == b"GGUF" and logits_all
        self.model = AutoModelForCausalLM.from_pretrained(os.environ["TWIN"])
    def reset(self):
        self.scores = None
    def eval(self, ids):
        with torch.no_grad():
            self.scores = self.model(torch.tensor([ids])).logits[0].numpy()
"""
"""What stands for llama-cpp-python: its three words, over a model that transformers computes."""


def test_where_llama_cpp_can_run_the_file_its_log_probabilities_are_compared_too(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(workshop)
    merged = flow.export(run.name).folder
    checkout = Path(os.environ["LUTHIER_LLAMA_CPP"])
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / "llama_cpp.py").write_text(RUNTIME)
    python = checkout / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={checkout} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("TWIN", str(merged))
    found = flow.export(run.name, to="gguf").verification
    assert found.passed and found.apart.keys() == {"merged", "gguf"} and found.apart["gguf"].mean < 1e-5
    monkeypatch.setenv("TWIN", str(workshop.base()))
    with pytest.raises(flow.VerificationError, match="gguf is not what was trained"):
        flow.export(run.name, to="gguf")


@pytest.mark.llama
def test_llama_cpps_own_converter_makes_the_quickstarts_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    run = trained(Workshop(tmp_path), model={"base": "demo"}, training={"max_steps": 30})
    exported = flow.export(run.name, to="gguf")
    print(exported.verification.to_json()["apart"])
    assert exported.told["tensors"]["equal"] == 46 and exported.told["tensors"]["added"] == ()
