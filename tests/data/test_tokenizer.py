"""What the tokenizer says about its template is what the server will do with it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.chat import Conversation, Message
from luthier.core.errors import ModelError
from luthier.data.tokenizer import ChatTokenizer, TemplateRefused, chat_tokenizer, fingerprint, load_tokenizer
from luthier.recipe.schema import Model
from tests.data.families import SPECIAL, TWO_TURNS, WITH_TOOLS, family

FAMILIES = sorted(SPECIAL)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model's folder, as far as the tokenizer needs it."""
    family("chatml").save(tmp_path / "base")
    write_config(tmp_path / "base", "config.json", {"model_type": "qwen3"})
    return tmp_path / "base"


def write_config(folder: Path, name: str, fields: dict[str, Any]) -> None:
    (folder / name).write_text(json.dumps(fields))


def load(base: Path, **fields: Any) -> ChatTokenizer:
    return load_tokenizer(Model(base=str(base), **fields))


@pytest.mark.parametrize(
    ("name", "end_of_turn", "prefix_stable"),
    [
        ("chatml", "<|im_end|>", True),
        ("qwen3", "<|im_end|>", False),
        ("thinking", "<|im_end|>", False),
        ("llama3", "<|eot_id|>", True),
        ("gemma", "<end_of_turn>", True),
        ("mistral", "</s>", True),
        ("alpaca", "</s>", False),
    ],
)
def test_end_of_turn_and_stability_are_read_off_the_template(name: str, end_of_turn: str, prefix_stable: bool) -> None:
    tokenizer = family(name)
    assert (tokenizer.end_of_turn, tokenizer.prefix_stable) == (end_of_turn, prefix_stable)


def test_generation_stops_on_the_models_eos_and_on_the_templates_end_of_turn(base: Path) -> None:
    family("llama3").save(base)
    end_of_text, end_of_turn, call = family("llama3").pretrained.convert_tokens_to_ids(
        ["<|end_of_text|>", "<|eot_id|>", "<|end_header_id|>"]
    )
    assert load(base).stop_ids == (end_of_text, end_of_turn)
    write_config(base, "generation_config.json", {"eos_token_id": [call]})
    assert load(base).stop_ids == (end_of_text, call, end_of_turn)


@pytest.mark.parametrize("name", FAMILIES)
def test_prompt_ids_are_what_transformers_serves(name: str) -> None:
    tokenizer = family(name)
    conversation = Conversation(messages=TWO_TURNS[:3])
    messages = [message.to_template() for message in TWO_TURNS[:3]]
    served = tokenizer.pretrained.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert tokenizer.prompt_ids(conversation) == served


@pytest.mark.parametrize("name", ["llama3", "gemma", "mistral"])
def test_bos_stands_once(name: str) -> None:
    tokenizer = family(name)
    ids = tokenizer.prompt_ids(Conversation(messages=TWO_TURNS[:1]))
    assert ids.count(tokenizer.pretrained.bos_token_id) == 1
    assert ids[0] == tokenizer.pretrained.bos_token_id


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(prompt=st.text(" \n\tab<é世", max_size=8), answer=st.text(" \n\tab<é世", max_size=8), special=st.booleans())
def test_a_turn_is_encoded_as_the_prompt_alone_and_what_follows_it(name: str, prompt: str, answer: str, special: bool) -> None:
    tokenizer = family(name)
    prompt = prompt + (tokenizer.end_of_turn if special else "") + prompt
    turn = tokenizer.encode_turn(prompt, answer)
    assert turn.prompt == tokenizer.encode(prompt)
    assert turn.answer == tokenizer.encode_after(prompt, turn.prompt, answer)
    if name != "mistral":  # SentencePiece shows a space at the beginning of every text
        assert tokenizer.decode(turn.prompt + turn.answer) == prompt + answer


def test_answer_and_prompt_are_not_merged_into_one_token() -> None:
    """`\\n\\n` is one token of this vocabulary, but the server's prompt ends after the first line end, and so does the row's."""
    tokenizer = family("chatml")
    assert len(tokenizer.encode("\n\n")) == 1
    turn = tokenizer.encode_turn("<|im_start|>assistant\n", "\nyes<|im_end|>")
    assert tokenizer.decode(turn.prompt) == "<|im_start|>assistant\n"
    assert tokenizer.decode(turn.answer) == "\nyes<|im_end|>"


def test_a_text_is_cut_after_whole_tokens() -> None:
    tokenizer = family("chatml")
    text = "The capital of France is Paris."
    for number in range(len(tokenizer.encode(text)) + 1):
        assert tokenizer.encode(tokenizer.beginning(text, number)) == tokenizer.encode(text)[:number]


def test_what_the_template_refuses_is_said_in_its_words() -> None:
    system = Message(role="system", content="Answer in one word.")
    with pytest.raises(TemplateRefused, match="System role not supported"):
        family("gemma").render(Conversation(messages=(system, *TWO_TURNS)), add_generation_prompt=False)


def test_a_saved_tokenizer_loads_as_the_same(base: Path, tmp_path: Path) -> None:
    load(base).save(tmp_path / "copy")
    again = load(tmp_path / "copy")
    assert again.template_hash == load(base).template_hash
    assert again.prompt_ids(Conversation(messages=TWO_TURNS)) == load(base).prompt_ids(Conversation(messages=TWO_TURNS))


def test_a_template_file_takes_the_place_of_the_tokenizers_own(base: Path, tmp_path: Path) -> None:
    template = tmp_path / "mine.jinja"
    template.write_text("{% for message in messages %}[{{ message.role }}]{{ message.content }}<|im_end|>{% endfor %}[assistant]")
    tokenizer = load(base, chat_template=str(template))
    assert tokenizer.render(Conversation(messages=TWO_TURNS[:1]), add_generation_prompt=True) == "[user]What is 2 + 2?<|im_end|>[assistant]"
    assert tokenizer.template_hash != load(base).template_hash


def test_a_tokenizer_without_template_says_what_to_set(base: Path) -> None:
    (base / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"has no chat template\n  set model\.chat_template"):
        load(base)


def test_a_template_that_leaves_out_the_answer_is_refused(base: Path) -> None:
    (base / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(ModelError, match="leaves out what the assistant says"):
        load(base)


def test_a_template_without_end_of_turn_and_a_tokenizer_without_eos_are_refused() -> None:
    pretrained = family("alpaca").pretrained.__class__(tokenizer_object=family("alpaca").pretrained.backend_tokenizer)
    pretrained.chat_template = family("alpaca").pretrained.chat_template
    with pytest.raises(ModelError, match="no special token, and the tokenizer has no eos"):
        chat_tokenizer(pretrained)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_base_with_code_of_its_own_is_refused(base: Path, name: str) -> None:
    fields = json.loads((base / name).read_text())
    write_config(base, name, {**fields, "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", "null"]}})
    with pytest.raises(ModelError, match=f"{name} names code"):
        load(base)


def test_a_folder_has_no_revision(base: Path) -> None:
    with pytest.raises(ModelError, match="no revision 'v2'"):
        load(base, revision="v2")


def test_an_empty_folder_is_told_from_a_missing_hub(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the folder has no tokenizer"):
        load(tmp_path)


def test_without_network_a_hub_id_is_told_plainly() -> None:
    with pytest.raises(
        ModelError, match=r"^Qwen/Qwen3-0\.6B: the hub cannot be reached.*\n  without a network, set model\.base to a folder"
    ):
        load_tokenizer(Model(base="Qwen/Qwen3-0.6B"))


def test_the_fingerprint_changes_with_vocabulary_template_and_configuration_but_not_with_weights(base: Path, tmp_path: Path) -> None:
    model = Model(base=str(base))
    before = fingerprint(model)
    (base / "model.safetensors").write_bytes(b"weights")
    assert fingerprint(model) == before
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0].content }}")
    assert fingerprint(Model(base=str(base), chat_template=str(template))) != before
    for name in ("tokenizer.json", "chat_template.jinja", "config.json"):
        other = tmp_path / f"other-{name}"
        shutil.copytree(base, other)
        (other / name).write_text((other / name).read_text() + " ")
        assert fingerprint(Model(base=str(other))) != before


@pytest.mark.parametrize("name", ["chatml", "thinking"])
def test_a_template_that_drops_tool_calls_is_refused_rather_than_trained_on_half(name: str) -> None:
    tokenizer, dialogue = family(name), Conversation(messages=WITH_TOOLS[:2])
    prompt = tokenizer.render(Conversation(messages=WITH_TOOLS[:1]), add_generation_prompt=True)
    with pytest.raises(TemplateRefused, match="leaves out the assistant's tool calls"):
        tokenizer.answer_text(prompt, dialogue)
