"""Rows answered per second: the engine, as evaluation uses it, against transformers' `generate` on padded batches of like length.

    python bench/evaluate.py --pairs 5 --json evaluate.json
    python bench/evaluate.py --size S --dtype bfloat16 --rows 64
    python bench/evaluate.py --base                    # without an adapter

Rows share a system prompt, as a task's do; answers end at a stop token, of which there are many, so that lengths are ragged as real ones
are. Both sides answer all rows in turns, in one process. In float32 the answers must be the same.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GenerationConfig, PreTrainedModel, Qwen3ForCausalLM

from bench.shapes import SHAPES, config_of
from luthier.core.chat import Completion, Conversation, Message
from luthier.data.tokenizer import ChatTokenizer, load_tokenizer
from luthier.model.generate import LocalCompleter
from luthier.model.load import load_model
from luthier.plan.asked import BATCH_TOKENS
from luthier.recipe.schema import Model

MODEL = Model(base="demo")
STOPS_EVERY = 40
"""One token in so many ends an answer."""
WORDS = (
    "the",
    "order",
    "was",
    "late",
    "and",
    "customer",
    "asks",
    "for",
    "refund",
    "because",
    "lamp",
    "broken",
    "please",
    "tell",
    "what",
    "do",
)


def main() -> None:
    """Pairs, and their medians."""
    options = _options()
    torch.set_num_threads(options.threads)
    model, tokenizer = _model(options), _tokenizer()
    rows = _rows(options.rows, options.shared)
    sides: dict[str, Callable[[], list[str]]] = {
        "generate": lambda: _generated(model, tokenizer, rows, options.tokens),
        "engine": lambda: _texts(LocalCompleter(model, tokenizer).complete(rows, max_new_tokens=options.tokens)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, list[str]] = {}
    for pair in range(options.pairs + 1):  # the first warms up
        for name, answer in sides.items():
            start = time.process_time() if options.processor else time.perf_counter()
            answers[name] = answer()
            if pair:
                seconds[name].append((time.process_time() if options.processor else time.perf_counter()) - start)
    same = sum(one == other for one, other in zip(*answers.values(), strict=True))
    ratios = [plain / ours for plain, ours in zip(*seconds.values(), strict=True)]
    result = {
        **{f"{name}_rows_per_second": options.rows / statistics.median(values) for name, values in seconds.items()},
        "ratio": {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)},
        "same_answers": same,
        **vars(options),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        Path(options.json).write_text(json.dumps(result), encoding="utf-8")
    if options.dtype == "float32" and same < options.rows:
        raise SystemExit(f"{options.rows - same} answers differ")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--size", default="demo", choices=["demo", *SHAPES])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--base", action="store_true", help="without an adapter")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--shared", type=int, default=250, help="words of the system prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processor", action="store_true", help="processor seconds, for a machine that others use too")
    parser.add_argument("--json")
    return parser.parse_args()


def _model(options: argparse.Namespace) -> PreTrainedModel | PeftModel:
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    if options.size == "demo":
        model = load_model(MODEL, dtype, torch.device("cpu"))
    else:
        model = Qwen3ForCausalLM(config_of(SHAPES[options.size])).to(dtype)
    if options.base:
        return model.eval()
    return get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False)).eval()


def _tokenizer() -> ChatTokenizer:
    tokenizer = load_tokenizer(MODEL)
    ends = range(100, len(tokenizer.pretrained), STOPS_EVERY)
    return replace(tokenizer, stop_ids=(*tokenizer.stop_ids, *ends))


def _rows(number: int, shared: int) -> list[Conversation]:
    draw = random.Random(0)

    def text(words: int) -> str:
        return " ".join(draw.choices(WORDS, k=words))

    system = Message(role="system", content=text(shared))
    return [Conversation(messages=(system, Message(role="user", content=text(draw.randrange(5, 40))))) for _ in range(number)]


def _texts(completions: Sequence[Completion]) -> list[str]:
    return [completion.text for completion in completions]


@torch.inference_mode()
def _generated(model: PreTrainedModel | PeftModel, tokenizer: ChatTokenizer, rows: Sequence[Conversation], tokens: int) -> list[str]:
    """Left-padded batches of like length, within the same budget of tokens."""
    prompts = [tokenizer.prompt_ids(row) for row in rows]
    order = sorted(range(len(rows)), key=lambda row: -len(prompts[row]))
    plain = GenerationConfig(max_new_tokens=tokens, eos_token_id=list(tokenizer.stop_ids), pad_token_id=tokenizer.pad_id, use_cache=True)
    answers: dict[int, str] = {}
    while order:
        longest = len(prompts[order[0]])
        batch, order = order[: (size := max(1, BATCH_TOKENS // (longest + tokens)))], order[size:]
        ids_BT = torch.tensor([[tokenizer.pad_id] * (longest - len(prompts[row])) + prompts[row] for row in batch])
        mask_BT = torch.tensor([[0] * (longest - len(prompts[row])) + [1] * len(prompts[row]) for row in batch])
        new_BN = model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=plain)[:, longest:].tolist()
        for row, new in zip(batch, new_BN, strict=True):
            end = next((place for place, token in enumerate(new) if token in tokenizer.stop_ids), len(new))
            answers[row] = tokenizer.pretrained.decode(new[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [answers[row] for row in range(len(rows))]


if __name__ == "__main__":
    main()
