"""`flow.embedded`: runs over one base answer by their names, once what would answer is known to be what was trained."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from luthier import flow
from luthier.core.chat import Conversation, Message
from luthier.core.errors import ModelError, UsageError
from luthier.core.generation import Sampling
from luthier.core.progress import Silent
from luthier.data.tokenizer import load_tokenizer
from luthier.flow.handed import ready
from luthier.flow.serving import _adapted, _lives, _verify, embedded, token_in
from luthier.model.adapt import load_adapter
from luthier.model.decode import Decoder
from luthier.model.generate import LocalCompleter
from luthier.model.load import load_model
from luthier.runs.store import RunFolder, own_recipe
from luthier.serve.dialogue import Dialogue
from luthier.serve.refused import Refused
from luthier.serve.served import Served
from tests.export.handed import trained
from tests.train.workshop import FLOAT32, Workshop

QUESTION = "What is the question number 3?"


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    return Workshop(tmp_path)


def said(name: str, *lines: str) -> list[str]:
    """Answers of a dialogue in this process."""
    with flow.talking(name) as dialogue:
        return ["".join(dialogue.say(line)) for line in lines]


def evaluated(run: RunFolder) -> str:
    """What evaluation hears from the run's adapter."""
    recipe = own_recipe(run)
    model = load_adapter(load_model(recipe.model, FLOAT32.dtype, FLOAT32.device), run.adapter)
    asked = Conversation(messages=(Message(role="user", content=QUESTION),))
    (found,) = LocalCompleter(model, load_tokenizer(recipe.model)).complete([asked], max_new_tokens=30)
    return found.text


class Told(Silent):
    """Progress that is kept."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def test_runs_over_one_base_answer_by_their_names_and_the_base_by_its_own(workshop: Workshop) -> None:
    runs = [trained(workshop, "one", training={"max_steps": 30}), trained(workshop, "v1.5", lora={"r": 8, "alpha": 4}, seed=4)]
    told = Told()
    with embedded(["one", "v1.5"], told) as served:
        assert list(served.models) == ["one", "v1.5", "base"] and served.models["base"] == ""
        texts = {}
        for model in served.models:
            dialogue = Dialogue(served, model, "base", Sampling(max_new_tokens=30))
            texts[model] = "".join(dialogue.say(QUESTION))
    assert [texts["one"], texts["v1.5"]] == [evaluated(run) for run in runs]
    assert len(set(texts.values())) == 3
    assert [line.partition(" nats")[0].rpartition(": ")[0] for line in told.lines if "served" in line] == [
        "one: trained = served",
        "v1.5: trained = served",
    ]


@pytest.mark.parametrize(
    "sections",
    [{"model": {"quantization": "nf4"}}, {"model": {"base": "mixture"}, "lora": {"target_parameters": "experts"}}, {"lora": "none"}],
    ids=["nf4", "experts", "whole"],
)
def test_it_is_served_as_it_was_trained_however_that_was(workshop: Workshop, sections: dict[str, Any]) -> None:
    run, told = trained(workshop, **sections), Told()
    with embedded([run.name], told) as served:
        assert list(served.models) == (
            ["tiny"] if "none" in sections.values() else ["tiny", Path(workshop.recipe(**sections).model.base).name]
        )
    (line,) = [line for line in told.lines if "served" in line]
    assert line.startswith("tiny: trained = served")


def test_two_runs_with_adapted_experts_answer_each_with_its_own(workshop: Workshop) -> None:
    sections: dict[str, Any] = {"model": {"base": "mixture"}, "lora": {"target_parameters": "experts"}}
    for name, seed in (("one", 3), ("two", 4)):
        trained(workshop, name, seed=seed, **sections)
    told = Told()
    with embedded(["one", "two"], told):
        assert [line.partition(":")[0] for line in told.lines if "trained = served" in line] == ["one", "two"]


def test_further_adapters_are_held_to_the_base_and_template_that_are_served(workshop: Workshop) -> None:
    one, two = trained(workshop, "one", training={"max_steps": 30}), trained(workshop, "two", seed=4, training={"max_steps": 30})
    with embedded(["one"], verified=False, adapters_from=one.path.parent) as served:
        adapters = served.changeable()
        models = {"one": served.models["one"], "again": adapters.load("one/adapter"), "two": adapters.load(str(two.adapter))}
        texts = {}
        for model in models:
            dialogue = Dialogue(replace(served, models=models), model, "one", Sampling(max_new_tokens=30))
            texts[model] = "".join(dialogue.say(QUESTION))
        place = two.adapter / "provenance.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), "stop_ids": [5]}))
        with pytest.raises(Refused, match="trained with stop ids"):
            adapters.load(str(two.adapter))
    assert texts["one"] == texts["again"] == evaluated(one) and texts["two"] == evaluated(two)
    with embedded(["one"], verified=False) as served, pytest.raises(Refused, match="stays as it was started"):
        served.changeable()


def test_an_engine_that_scales_an_adapter_otherwise_is_found_before_it_answers(workshop: Workshop) -> None:
    """As a server that reads alpha or rsLoRA wrongly, or drops some of the adapter (traps 19, 24)."""
    run = ready(trained(workshop).name)
    model = _adapted([run], {"tiny": "default"})
    (heard,) = _lives(model, [run], {"tiny": "default"}, Silent())
    for scaled, passes in ((1.0, True), (1.05, False)):
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.scaling["default"] *= scaled
        engine = Decoder(model, max_length=4096).start()
        served = Served(engine=engine, tokenizer=run.tokenizer, models={"tiny": "default"})
        with nullcontext() if passes else pytest.raises(flow.VerificationError, match="served is not what was trained"):
            _verify(heard, served, Silent())
        engine.close()


def test_an_adapter_that_changes_nothing_is_found(workshop: Workshop) -> None:
    run = trained(workshop)
    weights = load_file(run.adapter / "adapter_model.safetensors")
    save_file({name: tensor * ("lora_A" in name) for name, tensor in weights.items()}, run.adapter / "adapter_model.safetensors")
    with pytest.raises(flow.VerificationError, match="the adapter changes nothing"), embedded([run.name]):
        pass


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [("template_hash", "0" * 64, "chat template"), ("stop_ids", [5], "stop ids"), ("quantization", "int8", "model.quantization")],
)
def test_an_adapter_of_another_template_tokenizer_or_base_is_refused(workshop: Workshop, field: str, value: object, told: str) -> None:
    run = trained(workshop)
    place = run.adapter / "provenance.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), field: value}))
    with pytest.raises(ModelError, match=told), embedded([run.name]):
        pass


def test_runs_that_are_not_over_one_base_are_refused_with_what_differs(workshop: Workshop) -> None:
    trained(workshop, "one")
    for name, sections, told in (
        ("moe", {"model": {"base": "mixture"}}, "differ in base"),
        ("few", {"model": {"quantization": "int8"}}, "differ in quantization: none and int8"),
        ("whole", {"lora": "none"}, "whole model"),
    ):
        trained(workshop, name, training={"max_steps": 1}, **sections)
        with pytest.raises(UsageError, match=told), embedded(["one", name]):
            pass
    with pytest.raises(UsageError, match="named twice"), embedded(["one", "one"]):
        pass
    with pytest.raises(UsageError, match="no run called 'two'"), embedded(["one", "two"]):
        pass


def test_a_run_that_is_not_finished_and_what_is_nothing_are_refused(workshop: Workshop) -> None:
    run = trained(workshop)
    (run.adapter / "adapter_model.safetensors").unlink()
    (run.adapter / "adapter_model.safetensors").parent.rename(run.path / "elsewhere")
    with pytest.raises(UsageError, match="is not finished"), embedded([run.name]):
        pass
    with pytest.raises(UsageError, match="neither a run nor a model"), embedded(["no-such-thing"]):
        pass


def test_a_merged_model_answers_as_its_run_does(workshop: Workshop) -> None:
    run = trained(workshop, training={"max_steps": 30})
    merged = flow.export(run.name).folder
    assert said(str(merged), QUESTION) == said(run.name, QUESTION) == [evaluated(run)]


def test_the_token_file_is_made_for_its_owner_and_keeps_its_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    token = token_in(file)
    assert len(token) >= 32 and token_in(file) == token and file.stat().st_mode & 0o777 == 0o600
    file.write_text("\n")
    with pytest.raises(UsageError, match="the file is empty"):
        token_in(file)
    assert token_in("none") != token_in("none")


def test_a_dialogue_remembers_forgets_and_shows_the_base(workshop: Workshop) -> None:
    run = trained(workshop, training={"max_steps": 30})
    with flow.talking(run.name) as dialogue:
        with pytest.raises(UsageError, match="nothing was said yet"):
            next(dialogue.base_says())
        first = "".join(dialogue.say(QUESTION))
        assert "".join(dialogue.base_says()) != first
        again = "".join(dialogue.say(QUESTION))
        with pytest.raises(UsageError, match=r"the dialogue has .* tokens; the model takes 256"):
            next(dialogue.say("What? " * 300))
        dialogue.reset()
        assert "".join(dialogue.say(QUESTION)) == first
        dialogue.system = "You are a helpful assistant."
        dialogue.reset()
        changed = "".join(dialogue.say(QUESTION))
    assert first == evaluated(run) and (again != first or changed != first)
