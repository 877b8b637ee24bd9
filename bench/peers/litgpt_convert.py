"""A model folder as LitGPT's checkpoint: `python -m bench.peers.litgpt_convert MODEL TARGET`, once per model."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from litgpt.config import Config
from litgpt.scripts.convert_hf_checkpoint import copy_weights_qwen_3
from litgpt.utils import save_config
from safetensors.torch import load_file


def config_of(fields: dict[str, Any]) -> Config:
    """transformers' config.json in LitGPT's words."""
    return Config(
        name="Qwen3-bench",
        block_size=fields["max_position_embeddings"],
        vocab_size=fields["vocab_size"],
        padded_vocab_size=fields["vocab_size"],
        n_layer=fields["num_hidden_layers"],
        n_head=fields["num_attention_heads"],
        n_embd=fields["hidden_size"],
        n_query_groups=fields["num_key_value_heads"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=fields["intermediate_size"],
        norm_eps=fields["rms_norm_eps"],
        rope_base=1_000_000,
        head_size=fields["head_dim"],
        norm_qk=True,
    )


def main() -> None:
    """Convert by LitGPT's own functions."""
    model, target = Path(sys.argv[1]), Path(sys.argv[2])
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    config = config_of(json.loads((model / "config.json").read_text(encoding="utf-8")))
    save_config(config, part)
    state: dict[str, torch.Tensor] = {}
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(model.glob("*.safetensors")):
        weights |= load_file(file)
    copy_weights_qwen_3(config, {}, state, weights)
    torch.save(state, part / "lit_model.pth")  # LitGPT's format; written and read in the benchmark's own folder only
    for file in (*model.glob("tokenizer*.json"), model / "generation_config.json"):
        shutil.copy(file, part)
    part.replace(target)


if __name__ == "__main__":
    main()
