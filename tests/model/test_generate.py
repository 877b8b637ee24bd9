"""Answers of a tiny model: the argmax continuation, whatever the batch, ended by every stop token."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from luthier.core.chat import Completion, Conversation, Message
from luthier.data.tokenizer import ChatTokenizer, chat_tokenizer
from luthier.model.generate import LocalCompleter, Opening

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = ["hi", "a much longer question than the others, on and on and on", "what?", "seven", "", "and what is the third letter?"]


def ask(*questions: str) -> list[Conversation]:
    return [Conversation(messages=(Message(role="user", content=question),)) for question in questions]


@pytest.fixture(scope="module")
def tokenizer() -> ChatTokenizer:
    """Bytes as tokens, ChatML."""
    alphabet = {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    fast.chat_template = TEMPLATE
    return chat_tokenizer(fast)


@pytest.fixture
def model(tokenizer: ChatTokenizer) -> Qwen3ForCausalLM:
    """Random weights, large enough that its answers vary; float32."""
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=len(tokenizer.pretrained),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config).eval()


def texts(completions: Sequence[Completion]) -> list[str]:
    return [completion.text for completion in completions]


@torch.no_grad()
def argmax_continuation(model: Qwen3ForCausalLM, tokenizer: ChatTokenizer, question: str, tokens: int) -> list[int]:
    """The oracle: no cache, no batch, no library."""
    ids = tokenizer.prompt_ids(ask(question)[0])
    prompt = len(ids)
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in tokenizer.stop_ids:
            break
    return ids[prompt:]


def test_an_answer_is_the_argmax_continuation(model: Qwen3ForCausalLM, tokenizer: ChatTokenizer) -> None:
    completions = LocalCompleter(model, tokenizer).complete(ask(*QUESTIONS), max_new_tokens=12)
    expected = [argmax_continuation(model, tokenizer, question, 12) for question in QUESTIONS]
    assert [completion.num_tokens for completion in completions] == [len(ids) for ids in expected]
    for completion, ids in zip(completions, expected, strict=True):
        stopped = ids[-1] in tokenizer.stop_ids
        assert completion.stopped == stopped
        assert completion.text == tokenizer.pretrained.decode(ids[:-1] if stopped else ids, skip_special_tokens=True)
    assert len(set(texts(completions))) > 1


def test_answers_do_not_depend_on_the_batch_and_come_in_order(model: Qwen3ForCausalLM, tokenizer: ChatTokenizer) -> None:
    def answers(batch_tokens: int) -> list[tuple[str, int, int, bool]]:
        made = LocalCompleter(model, tokenizer, batch_tokens=batch_tokens).complete(ask(*QUESTIONS), max_new_tokens=16)
        return [(item.text, item.num_prompt_tokens, item.num_tokens, item.stopped) for item in made]

    assert answers(1) == answers(300) == answers(100_000)
    assert [prompt for _, prompt, _, _ in answers(1)] == [len(tokenizer.prompt_ids(question)) for question in ask(*QUESTIONS)]


def test_a_batch_stays_within_its_token_budget(model: Qwen3ForCausalLM, tokenizer: ChatTokenizer) -> None:
    LocalCompleter(model, tokenizer).complete(ask("hi"), max_new_tokens=1)  # the first use tries the model
    shapes: list[tuple[int, int]] = []
    handle = model.model.embed_tokens.register_forward_pre_hook(lambda _, arguments: shapes.append(tuple(arguments[0].shape)))
    LocalCompleter(model, tokenizer, batch_tokens=200).complete(ask(*QUESTIONS), max_new_tokens=4)
    handle.remove()
    prefills = [shape for shape in shapes if shape[1] > 1]
    assert sum(rows for rows, _ in prefills) == len(QUESTIONS) and len(prefills) > 1
    assert all(rows == 1 or rows * (length + 4) <= 200 for rows, length in prefills)
    assert prefills == sorted(prefills, key=lambda shape: -shape[1])  # the longest first


def test_padding_is_masked_by_position_so_pad_may_be_a_letter_of_the_text(model: Qwen3ForCausalLM, tokenizer: ChatTokenizer) -> None:
    letter = replace(tokenizer, pad_id=tokenizer.encode("a")[0])
    conversations = ask("banana", "a", "an apple a day keeps the doctor away")
    plain = LocalCompleter(model, tokenizer).complete(conversations, max_new_tokens=12)
    assert texts(LocalCompleter(model, letter).complete(conversations, max_new_tokens=12)) == texts(plain)


def test_generation_ends_on_every_stop_token_and_only_then_is_it_stopped(model: Qwen3ForCausalLM, tokenizer: ChatTokenizer) -> None:
    (ids,) = [argmax_continuation(model, tokenizer, "seven", 8)]
    assert len(ids) == 8
    place = next(place for place in range(2, 8) if ids[place] not in ids[:place])
    LocalCompleter(model, tokenizer).complete(ask("hi"), max_new_tokens=1)  # the first use tries the model
    forwards: list[int] = []
    model.model.embed_tokens.register_forward_pre_hook(lambda *_: forwards.append(1))
    for stops in ((ids[place], 999), (999, ids[place])):  # eos of the base and end-of-turn of the template, in either order
        forwards.clear()
        (answer,) = LocalCompleter(model, replace(tokenizer, stop_ids=stops)).complete(ask("seven"), max_new_tokens=8)
        assert (answer.stopped, answer.num_tokens, len(forwards)) == (True, place + 1, place + 1)
        assert answer.text == tokenizer.pretrained.decode(ids[:place], skip_special_tokens=True)
    (cut,) = LocalCompleter(model, tokenizer).complete(ask("seven"), max_new_tokens=8)
    assert (cut.stopped, cut.num_tokens) == (False, 8)


def test_an_opening_is_gone_on_with_until_a_text_or_a_stop_token(model: Qwen3ForCausalLM, tokenizer: ChatTokenizer) -> None:
    """A text may begin within a token, and be a special token's; each opening has its own. Who has ended makes room at once."""
    ids = tuple(tokenizer.prompt_ids(ask("seven")[0]))
    completer = LocalCompleter(model, tokenizer)
    (whole,) = completer.go_on([Opening(ids=ids, max_new_tokens=8)])
    assert whole.text == completer.complete(ask("seven"), max_new_tokens=8)[0].text and not whole.stopped
    end = whole.text[3:5]
    assert end not in whole.text[:4]
    cut, other = completer.go_on([Opening(ids=ids, max_new_tokens=8, until=("never", end)), Opening(ids=ids, max_new_tokens=8)])
    assert (cut.text, cut.stopped) == (whole.text[:3], True) and cut.num_tokens < 8
    assert other == replace(whole, first_token_seconds=other.first_token_seconds, seconds=other.seconds)


def test_rows_are_told_how_probable_they_are_side_by_side(model: Qwen3ForCausalLM, tokenizer: ChatTokenizer) -> None:
    rows = [tokenizer.prompt_ids(question) for question in ask(*QUESTIONS)]
    completer = LocalCompleter(model, tokenizer)
    completer.complete(ask("hi"), max_new_tokens=1)  # the first use tries the model
    widths: list[int] = []
    handle = model.model.embed_tokens.register_forward_pre_hook(lambda _, arguments: widths.append(len(arguments[0])))
    told = completer.told([*rows, [5]])
    handle.remove()
    assert max(widths) > 1 and sum(widths) == len(rows) + 1
    for row, tokens in zip(rows, told, strict=False):
        with torch.no_grad():
            logprobs_TV = model(torch.tensor([row])).logits[0].log_softmax(-1)
        assert [token.id for token in tokens] == row[1:]
        assert [token.logprob for token in tokens] == pytest.approx(logprobs_TV[range(len(row) - 1), row[1:]].tolist(), abs=1e-4)
        assert [token.top[0][0] for token in tokens] == logprobs_TV[:-1].argmax(-1).tolist()
    assert told[-1] == ()


def test_a_models_own_sampling_and_penalties_are_left_out_without_a_word(
    model: Qwen3ForCausalLM, tokenizer: ChatTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    plain = texts(LocalCompleter(model, tokenizer).complete(ask(*QUESTIONS), max_new_tokens=12))
    own = GenerationConfig(do_sample=True, temperature=0.6, top_k=20, top_p=0.9, repetition_penalty=1.8, max_length=7, min_new_tokens=9)
    model.generation_config = own
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert texts(LocalCompleter(model, tokenizer).complete(ask(*QUESTIONS), max_new_tokens=12)) == plain
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records == [] and model.generation_config is own


def test_every_module_is_left_in_the_mode_it_was_in(model: Qwen3ForCausalLM, tokenizer: ChatTokenizer) -> None:
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    LocalCompleter(model, tokenizer).complete(ask("hi"), max_new_tokens=2)
    assert [module.training for module in model.modules()] == before
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


def test_an_adapter_answers_too_and_training_may_go_on(model: Qwen3ForCausalLM, tokenizer: ChatTokenizer) -> None:
    plain = texts(LocalCompleter(model, tokenizer).complete(ask(*QUESTIONS), max_new_tokens=12))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.5)).train()
    first = texts(LocalCompleter(adapted, tokenizer).complete(ask(*QUESTIONS), max_new_tokens=12))
    assert first != plain
    with adapted.disable_adapter():
        assert texts(LocalCompleter(adapted, tokenizer).complete(ask(*QUESTIONS), max_new_tokens=12)) == plain
    assert texts(LocalCompleter(adapted, tokenizer, batch_tokens=1).complete(ask(*QUESTIONS), max_new_tokens=12)) == first  # no dropout
    ids = torch.tensor([tokenizer.prompt_ids(ask("hi")[0])])
    adapted(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for name, parameter in adapted.named_parameters() if "lora" in name)


def test_times_count_from_when_the_batch_was_asked(model: Qwen3ForCausalLM, tokenizer: ChatTokenizer) -> None:
    one, other = LocalCompleter(model, tokenizer, batch_tokens=1).complete(ask("a longer question", "what?"), max_new_tokens=8)
    assert 0 < one.first_token_seconds < one.seconds < other.first_token_seconds < other.seconds < 60


def test_nothing_asked_is_nothing_answered(model: Qwen3ForCausalLM, tokenizer: ChatTokenizer) -> None:
    assert LocalCompleter(model, tokenizer).complete([], max_new_tokens=8) == []
