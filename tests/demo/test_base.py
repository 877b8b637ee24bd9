"""The shipped base: small, loaded like a hub model, with a tokenizer that loses nothing and a prefix-stable ChatML template."""

import hashlib
import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from luthier.demo import BASE, BUILD_RECORD
from luthier.demo.pretrain import text_sha256
from luthier.demo.text import documents

TOKENIZER = AutoTokenizer.from_pretrained(BASE)
RECORD = json.loads(BUILD_RECORD.read_text(encoding="utf-8"))["base"]
CALL = {"type": "function", "function": {"name": "find", "arguments": {"file": "mixer.py"}}}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which file?"},
    {"role": "assistant", "content": "<think>\nI look.\n</think>", "tool_calls": [CALL]},
    {"role": "tool", "content": "mixer.py"},
    {"role": "tool", "content": "beat.py"},
    {"role": "assistant", "content": "mixer.py"},
    {"role": "user", "content": "And now?"},
    {"role": "assistant", "content": ""},
]


def render(messages, **options) -> str:
    return TOKENIZER.apply_chat_template(messages, tokenize=False, **options)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(BASE)


def test_the_model_loads_as_qwen3_within_its_budgets(model):
    assert type(model) is Qwen3ForCausalLM
    assert model.num_parameters() == RECORD["outcome"]["parameters"] <= 4_000_000
    assert sum(path.stat().st_size for path in BASE.iterdir()) <= 10_000_000
    assert model.config.tie_word_embeddings and model.config.max_position_embeddings >= 2048


def test_the_weights_are_stored_in_bf16():
    with safe_open(BASE / "model.safetensors", framework="pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_the_record_names_every_file_with_its_hash():
    assert RECORD["sha256"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in BASE.iterdir()}


def test_the_tokenizer_was_trained_on_the_text_that_text_py_still_makes():
    schedule = RECORD["schedule"]
    assert (
        text_sha256(list(itertools.islice(documents(schedule["seed"]), schedule["tokenizer_documents"])))
        == RECORD["outcome"]["tokenizer_text_sha256"]
    )


def test_generation_stops_at_the_end_of_a_turn_and_of_the_text(model):
    stops = TOKENIZER.convert_ids_to_tokens(model.generation_config.eos_token_id)
    assert set(stops) == {"<|im_end|>", "<|endoftext|>"} and TOKENIZER.pad_token == "<|endoftext|>" and TOKENIZER.eos_token == "<|im_end|>"


def test_the_base_answers_in_chatml_and_stops(model):
    prompt = render(
        [{"role": "user", "content": "Look at tempo_mixer.py, which needs the track.\nName the file."}], add_generation_prompt=True
    )
    ids = TOKENIZER(prompt, return_tensors="pt", add_special_tokens=False)
    answer = model.generate(**ids, max_new_tokens=24)[0, ids["input_ids"].shape[1] :]
    assert "tempo_mixer.py" in TOKENIZER.decode(answer) and answer[-1] == TOKENIZER.eos_token_id


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_comes_back_as_it_went_in(text):
    assert TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"]) == text


def test_digits_are_tokens_of_their_own():
    assert TOKENIZER.tokenize("v12.345") == ["v", "1", "2", ".", "3", "4", "5"]


def test_a_dialogue_renders_as_chatml():
    assert render(MESSAGES[:2], add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhich file?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_no_system_prompt_is_added():
    assert render(MESSAGES[1:2]) == "<|im_start|>user\nWhich file?<|im_end|>\n"


def test_calls_thoughts_and_tool_answers_render_in_place():
    assert render(MESSAGES[2:4]) == (
        "<|im_start|>assistant\n<think>\nI look.\n</think>\n"
        '<tool_call>\n{"name": "find", "arguments": {"file": "mixer.py"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nmixer.py\n</tool_response><|im_end|>\n"
    )


def test_tools_stand_in_the_system_turn_once():
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}
    text = render(MESSAGES[:2], tools=[tool])
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools") and text.count("<|im_start|>system") == 1
    assert json.dumps(tool) in text and render(MESSAGES[1:2], tools=[tool]).startswith("<|im_start|>system\n# Tools")


def test_an_unknown_role_is_refused():
    with pytest.raises(Exception, match="unknown role critic"):
        render([{"role": "critic", "content": "no"}])


@pytest.mark.parametrize("tools", [None, [{"type": "function", "function": {"name": "find", "parameters": {}}}]])
@pytest.mark.parametrize("count", range(1, len(MESSAGES)))
def test_the_beginning_of_a_dialogue_renders_as_the_beginning_of_its_rendering(count, tools):
    whole, part = render(MESSAGES, tools=tools), render(MESSAGES[:count], tools=tools)
    assert whole.startswith(part)
    if MESSAGES[count]["role"] == "assistant":
        assert whole.startswith(render(MESSAGES[:count], tools=tools, add_generation_prompt=True))
