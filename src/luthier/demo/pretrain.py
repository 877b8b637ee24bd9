"""The demo base: a byte-level BPE tokenizer and a small Qwen3, trained from nothing on the text of `text.py`.

Axes: B rows, T tokens of a row.
"""

import hashlib
import itertools
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from luthier.demo import FOLDER
from luthier.demo.copying import install_copying
from luthier.demo.text import TEXT_END, TURN_END, TURN_START, documents

VOCABULARY = 3072
MAX_POSITIONS = 4096
NUM_BYTE_TOKENS = 259  # 256 bytes and three special tokens
# Qwen's pattern: words with their leading space, digits one by one (so that numbers can be copied), line breaks apart.
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How the base is trained; the defaults made the base that is shipped."""

    seed: int = 20261120
    tokenizer_documents: int = 12_000
    held_out_rows: int = 64
    rows: int = 8
    row_tokens: int = 256
    steps: int = 4500
    warmup_steps: int = 300
    learning_rate: float = 1.5e-3  # at 2e-3 without repeats the copying heads were lost
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    repeats: float = 0.25  # share of rows that repeat random tokens, at first; it falls to 0 at the last step
    threads: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a pre-training run says of itself."""

    parameters: int
    tokens_seen: int
    train_loss: float  # nats per token, mean of the last 50 steps
    held_out_loss: float  # nats per token, of the stored bf16 weights
    seconds: float
    tokenizer_text_sha256: str


def build_base(folder: Path, schedule: Schedule) -> Outcome:
    """The base in `folder`, as a hub model would lie there."""
    torch.manual_seed(schedule.seed)
    torch.set_num_threads(schedule.threads)
    text = list(itertools.islice(documents(schedule.seed), schedule.tokenizer_documents))
    tokenizer = train_tokenizer(text)
    model = new_model(tokenizer)
    install_copying(model)
    started = time.monotonic()
    train_loss = _train(model, tokenizer, schedule)
    seconds = time.monotonic() - started
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.convert_tokens_to_ids([TURN_END, TEXT_END]), pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Outcome(
        parameters=model.num_parameters(),
        tokens_seen=schedule.steps * schedule.rows * schedule.row_tokens,
        train_loss=round(train_loss, 4),
        held_out_loss=round(held_out_loss(model, tokenizer, schedule), 4),
        seconds=round(seconds, 1),
        tokenizer_text_sha256=text_sha256(text),
    )


def text_sha256(text: list[str]) -> str:
    """One hash for a list of documents."""
    return hashlib.sha256(TEXT_END.join(text).encode()).hexdigest()


def train_tokenizer(text: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer over all 256 bytes, so that any text comes back as it went in."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[TEXT_END, TURN_START, TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=TURN_END,
        pad_token=TEXT_END,
        additional_special_tokens=[TURN_START],
        model_max_length=MAX_POSITIONS,
        chat_template=(FOLDER / "chat_template.jinja").read_text(encoding="utf-8"),
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """An untrained Qwen3 of 2.2 M parameters: 0.59 M in the tied embedding, 0.41 M in each of four layers."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=3,
            head_dim=32,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def token_rows(tokenizer: PreTrainedTokenizerFast, seed: int, schedule: Schedule) -> Iterator[torch.Tensor]:
    """Documents one after another, each closed by the end of text, cut into rows of T + 1 token ids."""
    stream, rest = documents(seed), list[int]()
    while True:
        for ids in tokenizer(list(itertools.islice(stream, 1000)), add_special_tokens=False)["input_ids"]:
            rest += [*ids, tokenizer.pad_token_id]
        width = schedule.row_tokens + 1
        full = len(rest) // width
        yield from torch.tensor(rest[: full * width]).view(full, width)
        rest = rest[full * width :]


@torch.inference_mode()
def held_out_loss(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, schedule: Schedule) -> float:
    """Nats per token on documents of another seed."""
    rows = itertools.islice(token_rows(tokenizer, schedule.seed + 1, schedule), schedule.held_out_rows)
    return sum(_loss(model, row[None]).item() for row in rows) / schedule.held_out_rows


def _loss(model: Qwen3ForCausalLM, ids_BT: torch.Tensor) -> torch.Tensor:
    logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), ids_BT[:, 1:].flatten())


def _repeats(rng: random.Random, num_tokens: int) -> torch.Tensor:
    """Random tokens in runs, each run two or three times: it keeps the copying heads alive while the words are learned."""
    ids = list[int]()
    while len(ids) < num_tokens:
        ids += [rng.randrange(NUM_BYTE_TOKENS, VOCABULARY) for _ in range(rng.randrange(4, 30))] * rng.choice((2, 2, 3))
    return torch.tensor(ids[:num_tokens])


def _rate(step: int, schedule: Schedule) -> float:
    """Linear warm-up, then half a cosine down to a twentieth."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    share = (step - schedule.warmup_steps) / (schedule.steps - schedule.warmup_steps)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share))


def _train(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, schedule: Schedule) -> float:
    """Train in place, weights and AdamW in float32, products in bf16; the mean loss of the last 50 steps."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": schedule.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=schedule.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    rows, losses = token_rows(tokenizer, schedule.seed, schedule), list[float]()
    rng = random.Random(schedule.seed)
    model.train()
    for step in range(schedule.steps):
        share = schedule.repeats * (1 - step / schedule.steps)
        ids_BT = torch.stack([_repeats(rng, schedule.row_tokens + 1) if rng.random() < share else next(rows) for _ in range(schedule.rows)])
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * _rate(step, schedule)
        with torch.autocast("cpu", torch.bfloat16):
            loss = _loss(model, ids_BT)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{schedule.steps} loss {sum(losses[-50:]) / 50:.4f}", flush=True)
    model.eval()
    return sum(losses[-50:]) / 50
