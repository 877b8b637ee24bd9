"""Tiny models of every family that the engine knows, adapted, and rows for them; and the computation that the engine must equal."""

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from luthier.data.pack import bins, trees
from luthier.data.store import TokenRow
from luthier.model import attention, experts
from luthier.model.adapt import add_lora
from luthier.model.arrive import Bits, store
from luthier.model.quantize import QuantizedLinear
from luthier.recipe.schema import Lora
from luthier.train.batch import MicroBatch, collate, of_pack
from luthier.train.objective import nll_sum

CPU = torch.device("cpu")
VOCABULARY = 96
LONGEST = 90
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
WINDOW = 25
"""Shorter than most rows, and than what they share."""
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
"""Rotary angles whose sines and cosines are scaled as well."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4, "rope_parameters": YARN},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"tie_word_embeddings": True},
    "qwen3_moe": {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
    "gemma": {"num_key_value_heads": 1, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True},
}
FOREIGN: dict[str, dict[str, Any]] = {
    "gemma2": {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "sliding_window": WINDOW},
    "phi3": {"pad_token_id": 0, "original_max_position_embeddings": 256},
    "gpt2": {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 256, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "granite": {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "attention_multiplier": 0.2},
}
"""Families whose layers or logits differ from those that are fused."""
_EXPERTS = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 40}
_DELTA = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 16}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "qwen2_moe": _EXPERTS,
    "qwen3_moe": FAMILIES["qwen3_moe"],
    "qwen3_next": {**_EXPERTS, **_DELTA, "full_attention_interval": 2},
    "qwen3_5_moe_text": {**_EXPERTS, **_DELTA, "full_attention_interval": 2},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 512, "layer_types": ["full_attention"] * 2},
}
"""Families with experts: with a shared one, behind linear attention, or laid out the other way round with biases."""


def tiny(family: str, dtype: torch.dtype = torch.float32, **changed: Any) -> PreTrainedModel:
    """Random weights; norms and biases too, which a new model has at 1 and 0 and would hide what is done to them."""
    own = {**FAMILIES, **FOREIGN, **MIXTURES}.get(family, {})
    shape = {name: SHAPE[name] for name in ("vocab_size", "initializer_range", "tie_word_embeddings")} if family == "gpt2" else SHAPE
    config = CONFIG_MAPPING[family](**{**shape, **own, **changed})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if weight.ndim == 1:
                    weight += torch.randn_like(weight) * (0.3 if "norm" in name else 0.1)
    return model.to(dtype)


def adapted(model: PreTrainedModel, **lora: Any) -> PeftModel:
    """With an adapter that has learned something: a new one's B is zero, and leaves A without a gradient."""
    peft = add_lora(model, Lora.model_validate({"r": 4, "alpha": 8, **lora}), seed=1)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, weight in peft.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    return peft


def by_peft(model: PeftModel) -> PeftModel:
    """The model with PEFT's and transformers' own modules only: an adapter on experts is added to their weights."""
    for module in model.modules():
        vars(module).pop("forward", None)
    return model


def quantized(model: PreTrainedModel, kind: str, *, double_quant: bool = True) -> PreTrainedModel:
    """The model with its matrices in few bits, computed in the type that it had."""
    store(model, Bits(kind=kind, double_quant=double_quant, dtype=model.dtype))  # type: ignore[arg-type]  # a name of a kind
    return model


def in_numbers(model: PreTrainedModel) -> PreTrainedModel:
    """The plain twin of a quantised model: transformers' own, with the numbers that the bytes stand for."""
    twin: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), dtype=model.dtype)
    twin.config._experts_implementation = "eager"
    numbers = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            numbers[f"{name}.weight"] = module.dequantize()
        for parameter, form in experts.forms_of(module).items():
            stack = torch.stack([form.matrix(stored) for stored in getattr(module, parameter)])
            numbers[f"{name}.{parameter}"] = stack.mT if module.is_transposed else stack
    with torch.no_grad():
        for name, weight in twin.named_parameters():
            weight.copy_(numbers.pop(name))
    assert not numbers
    return twin.eval()


def row(ids: Sequence[int], supervised: Sequence[int] | Callable[[int], bool]) -> TokenRow:
    """A row supervised at these places, or where the function says so; never at its first token."""
    on = [index in supervised if isinstance(supervised, Sequence) else supervised(index) for index in range(len(ids))]
    return TokenRow(ids=np.array(ids, np.int32), supervised=np.array(on, np.bool_) & (np.arange(len(ids)) > 0))


def shared_rows() -> list[TokenRow]:
    """Dialogues under two system prompts, prefixes of others, twins, strangers, and rows of 1 and of LONGEST tokens."""
    random = np.random.default_rng(3)

    def text(length: int) -> list[int]:
        return random.integers(0, VOCABULARY, length).tolist()  # type: ignore[no-any-return]

    prompt, other, turn = text(30), text(20), text(18)
    dialogue = [*prompt, *turn, *text(17)]
    half = [row([*prompt, *text(length)], lambda index: index >= 30) for length in (1, 9, 23)]
    return [
        *half,
        row([*dialogue, *text(LONGEST - len(dialogue))], lambda index: index % 3 > 0),
        row([*dialogue, *text(4)], lambda index: 30 <= index < 48 or index >= 65),
        row([*prompt, *turn, *text(6)], lambda index: index >= 40),
        row([*prompt, *turn], lambda index: index >= 25),  # begins others
        row(prompt, lambda index: True),
        row([*other, *text(5)], lambda index: index >= 20),
        row([*other, *text(33)], lambda index: index >= 19),
        row(text(12), lambda index: index >= 4),
        row(text(40), lambda index: index % 5 == 0),
        row(twin := text(21), lambda index: index >= 15),
        row(twin, lambda index: index >= 15),
        row(twin, lambda index: index < 10),
        row(text(2), lambda index: True),
        row(text(1), lambda index: False),
        row(text(14), lambda index: False),
    ]


@contextmanager
def small_blocks() -> Iterator[None]:
    """Attention in blocks of a few tokens, so that a small tree has many, at all kinds of borders."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"OWN": 8, "ANCESTOR": 12, "ROUND": 4}.items():
            patch.setattr(attention, name, value)
        forget_blocks()
        yield
    forget_blocks()


def forget_blocks() -> None:
    """Of the trees that were seen."""
    for function in vars(attention).values():
        if isinstance(function, functools._lru_cache_wrapper):
            function.cache_clear()


def in_packs(rows: Sequence[TokenRow], packing: str, budget: int = 200) -> list[MicroBatch]:
    """All rows as `tree`, as `bins`, or padded (`off`), four at once."""
    if packing == "off":
        return [collate(rows[start : start + 4], range(start, min(start + 4, len(rows))), CPU) for start in range(0, len(rows), 4)]
    packer = trees if packing == "tree" else bins
    return [of_pack(pack, CPU) for pack in packer(rows, range(len(rows)), budget)]


def engine_loss(model: nn.Module, batches: Sequence[MicroBatch]) -> float:
    """The engine's mean over supervised tokens; leaves the gradient in the model."""
    num_targets, loss = sum(batch.num_targets for batch in batches), 0.0
    for batch in batches:
        part = nll_sum(model, batch) / num_targets
        part.backward()  # type: ignore[no-untyped-call]
        loss += part.item()
    return loss


def plain_loss(model: nn.Module, rows: Sequence[TokenRow]) -> Tensor:
    """What all must equal: rows padded, transformers' forward, the mean over supervised tokens of the logits' cross entropy."""
    longest = max(len(one) for one in rows)
    ids, mask = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), -100)
    for index, one in enumerate(rows):
        ids[index, : len(one)] = torch.from_numpy(one.ids.astype(np.int64))
        mask[index, : len(one)] = 1
        labels[index, : len(one)] = torch.where(torch.from_numpy(one.supervised), ids[index, : len(one)], -100)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    total = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    return total / sum(int(one.supervised.sum()) for one in rows)


def assert_plain(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Each tensor's difference is small against the tensor."""
    assert found.keys() == expected.keys()
    apart = {name: ((found[name] - other).norm() / other.norm()).item() for name, other in expected.items()}
    assert all(other.norm() > 0 for other in expected.values())
    assert {name: value for name, value in apart.items() if not value <= tolerance} == {}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of everything that is trained, which is then without one."""
    found = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            found[name], weight.grad = weight.grad if weight.grad is not None else torch.zeros_like(weight), None
    return found


def bytes_kept(model: nn.Module, batch: MicroBatch) -> tuple[Tensor, int]:
    """The loss, and the bytes that its forward pass keeps for the backward, weights apart."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = nll_sum(model, batch)
    return loss, sum(kept.values())
