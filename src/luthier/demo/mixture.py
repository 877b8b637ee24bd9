"""A tiny mixture of experts with the demo's tokenizer and random weights: `python -m luthier.demo.mixture FOLDER [--family F]`.

The recipes of users who train mixtures run on it in a few steps; it knows nothing.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from luthier.demo import BASE

SHAPE: dict[str, Any] = {
    **{"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    **{"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "max_position_embeddings": 4096},
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"intermediate_size": 256},
    "qwen3_5_moe_text": {
        **{"shared_expert_intermediate_size": 64, "full_attention_interval": 2},
        **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16},
    },
}
"""Model types: Qwen3-Coder-30B-A3B's and Qwen3.5-35B-A3B's."""


def make_mixture(folder: Path, family: str = "qwen3_moe", seed: int = 0) -> None:
    """Write the model as a hub model would lie there."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": GenerationConfig.from_pretrained(BASE).eos_token_id,
        "bos_token_id": None,
    }
    config = AutoConfig.for_model(family, **SHAPE, **FAMILIES[family], vocab_size=len(tokenizer), **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Make the mixture that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m luthier.demo.mixture", description="Make a tiny mixture of experts, of random weights."
    )
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument("--family", choices=sorted(FAMILIES), default="qwen3_moe", help="model type (default: qwen3_moe)")
    options = parser.parse_args()
    make_mixture(options.folder, options.family)


if __name__ == "__main__":
    main()
