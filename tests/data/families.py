"""Small tokenizers with the chat templates of real model families, made on the spot."""

from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from luthier.core.chat import Conversation, Message
from luthier.data.mask import draft_rows
from luthier.data.tokenizer import ChatTokenizer, chat_tokenizer
from luthier.recipe.schema import Data, Source

GOLDEN = Path(__file__).parents[1] / "golden"
CORPUS = [
    "You are a helpful assistant. Answer the question in one word.",
    "What is the capital of France?\n\nThe capital of France is Paris.\n",
    "<think>\nLet me think about it: 2 + 2 = 4.\n</think>\n\nThe answer is 4.",
    '{"name": "get_weather", "arguments": {"city": "Paris"}}\nthe weather is sunny, and the answer is yes\n\n',
] * 4

WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How Qwen2 and Llama 3 cut text before merging: line ends stay with the white space before them."""

SPECIAL: dict[str, dict[str, Any]] = {
    "chatml": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra": ["<|im_start|>"]},
    "qwen3": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra": ["<|im_start|>"]},
    "thinking": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "extra": ["<|im_start|>"]},
    "llama3": {
        "eos_token": "<|end_of_text|>",
        "bos_token": "<|begin_of_text|>",
        "extra": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    },
    "gemma": {"eos_token": "<eos>", "bos_token": "<bos>", "pad_token": "<pad>", "extra": ["<start_of_turn>", "<end_of_turn>"]},
    "mistral": {"eos_token": "</s>", "bos_token": "<s>", "extra": ["[INST]", "[/INST]"]},
    "alpaca": {"eos_token": "</s>", "extra": []},
}
"""Special tokens of each family; `qwen3` has `<think>` and `<tool_call>` as added tokens that are not special, as the original does."""


@cache
def family(name: str) -> ChatTokenizer:
    """The chat tokenizer of a family: byte-level BPE, for `mistral` with SentencePiece's `▁` at the beginning of every text."""
    named = {key: value for key, value in SPECIAL[name].items() if key != "extra"}
    special = [*named.values(), *SPECIAL[name]["extra"]]
    tokenizer = Tokenizer(models.BPE(byte_fallback=name == "mistral", unk_token=None))
    if name == "mistral":
        alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *alphabet], show_progress=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name == "alpaca")]
        )
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    if name == "qwen3":
        tokenizer.add_tokens(["<think>", "</think>", "<tool_call>", "</tool_call>"])
    pretrained = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named, additional_special_tokens=SPECIAL[name]["extra"])
    pretrained.chat_template = (GOLDEN / "templates" / f"{name}.jinja").read_text()
    return chat_tokenizer(pretrained)


WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}

TWO_TURNS = (
    Message(role="user", content="What is 2 + 2?"),
    Message(role="assistant", content="<think>\nLet me think\n</think>\n\nThe answer is 4."),
    Message(role="user", content="Sure?"),
    Message(role="assistant", content="yes"),
)
WITH_TOOLS = (
    Message(role="user", content="Is it sunny in Paris?"),
    Message(role="assistant", content="Let me look.", tool_calls=(CALL,)),
    Message(role="tool", content="sunny", tool_call_id="call_1"),
    Message(role="assistant", content="yes"),
)
SYSTEM = Message(role="system", content="Answer in one word.")


def dialogues(name: str) -> list[Conversation]:
    """What the golden dump of a family shows."""
    with_system = [] if name in ("gemma", "mistral") else [Conversation(messages=(SYSTEM, *TWO_TURNS[2:]))]
    with_tools = [Conversation(messages=(SYSTEM, *WITH_TOOLS), tools=(WEATHER,))] if name == "qwen3" else []
    return [Conversation(messages=TWO_TURNS), *with_system, *with_tools]


def dump(name: str) -> str:
    """The token rows of a family's dialogues as text, what is trained on between ⟦ and ⟧."""
    tokenizer = family(name)
    data = Data(sources=(Source(path="rows.jsonl"),))
    lines = []
    for place, conversation in enumerate(dialogues(name), start=1):
        for number, draft in enumerate(draft_rows(tokenizer, conversation, data), start=1):
            runs = groupby(zip(draft.ids, draft.supervised, strict=True), key=itemgetter(1))
            texts = [(tokenizer.decode(token for token, _ in run), trained) for trained, run in runs]
            lines.append(f"--- dialogue {place}, row {number}\n" + "".join(f"⟦{text}⟧" if trained else text for text, trained in texts))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":  # writes the dumps anew: read the difference before you keep it
    for name in SPECIAL:
        (GOLDEN / f"{name}.txt").write_text(dump(name), encoding="utf-8")
