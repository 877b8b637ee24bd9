"""The models that are trained: shapes, a tokenizer, and folders with random weights, all made here without a network."""

import shutil
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

BENCH = Path(__file__).parent
VOCABULARY = 32_000
"""Entries of the tokenizer; larger vocabularies of the models are reached by the head, not by the text."""
CORPUS_BYTES = 12_000_000
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder of Qwen3's kind."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def products(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one layer, input and output width."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        return {
            "q": (self.hidden, queries),
            "k": (self.hidden, keys),
            "v": (self.hidden, keys),
            "o": (queries, self.hidden),
            "gate": (self.hidden, self.intermediate),
            "up": (self.hidden, self.intermediate),
            "down": (self.intermediate, self.hidden),
        }

    @property
    def matrix_parameters(self) -> int:
        """Parameters that a token is multiplied with: all layers' products and the head; looking up an embedding multiplies nothing."""
        return self.layers * sum(width * out for width, out in self.products.values()) + self.hidden * self.vocabulary


SHAPES = {
    "S": Shape(hidden=512, layers=8, heads=8, kv_heads=4, head_width=128, intermediate=1536, vocabulary=32_000, tied=True),
    "0.6B": Shape(hidden=1024, layers=28, heads=16, kv_heads=8, head_width=128, intermediate=3072, vocabulary=151_936, tied=True),
    "4B": Shape(hidden=2560, layers=36, heads=32, kv_heads=8, head_width=128, intermediate=9728, vocabulary=151_936, tied=True),
    "8B": Shape(hidden=4096, layers=36, heads=32, kv_heads=8, head_width=128, intermediate=12_288, vocabulary=151_936, tied=False),
}
"""S: 30 M without its embedding; the others have the shapes of Qwen3-0.6B, 4B and 8B."""


def corpus() -> list[str]:
    """Text to learn a vocabulary from and to cut rows out of: the standard library's own sources, in the order of their names."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts: list[str] = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).parts
        if {"site-packages", "dist-packages", "test", "tests"}.intersection(inside) or not 2_000 < path.stat().st_size < 400_000:
            continue
        texts.append(path.read_text(encoding="utf-8", errors="ignore"))
        if sum(map(len, texts)) > CORPUS_BYTES:
            break
    return texts


def learn_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE with ChatML's special tokens, learnt from texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    pretrained = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    pretrained.chat_template = (BENCH / "chatml.jinja").read_text(encoding="utf-8")
    return pretrained


def make_tokenizer(work: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of all models, learnt once and kept in `work/tokenizer`."""
    folder = work / "tokenizer"
    if not folder.exists():
        _keep(folder, learn_tokenizer(corpus(), VOCABULARY))
    return PreTrainedTokenizerFast.from_pretrained(folder)


def make_model(size: str, work: Path) -> Path:
    """The folder of a model with random bfloat16 weights and the tokenizer, made once."""
    folder = work / "models" / size
    if not folder.exists():
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)  # 8B in float32 would need 33 GB for a moment
        model = Qwen3ForCausalLM(config_of(SHAPES[size]))
        torch.set_default_dtype(torch.float32)
        _keep(folder, model, make_tokenizer(work))
    return folder


def config_of(shape: Shape) -> Qwen3Config:
    """The shape as transformers has it."""
    return Qwen3Config(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=40_960,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=SPECIAL.index("<|im_end|>"),
        pad_token_id=SPECIAL.index("<|endoftext|>"),
        dtype="bfloat16",
    )


def _keep(folder: Path, *parts: PreTrainedTokenizerFast | Qwen3ForCausalLM) -> None:
    """Save into a folder that is there whole or not at all."""
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in parts:
        part.save_pretrained(unfinished)
    unfinished.replace(folder)
