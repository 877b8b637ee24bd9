"""Weights go straight to where they stay: the host never holds the files beside them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from luthier.core.errors import ModelError
from luthier.model.arrive import Bits, leave_of_few_bits, store
from luthier.model.experts import forms_of
from luthier.model.load import load_model
from luthier.model.quantize import QuantizedLinear
from luthier.recipe.schema import Model
from tests.model.zoo import CPU, FAMILIES, MIXTURES, in_numbers, quantized, tiny

MB = 10**6
WIDE: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 10, "num_attention_heads": 8, "head_dim": 128}
DENSE = {**WIDE, "num_key_value_heads": 8}
SPARSE = {**DENSE, "moe_intermediate_size": 512, "num_experts": 8, "num_experts_per_tok": 2}
SLACK = 70 * MB
"""Buffers of reading and casting, code that is loaded late, holes of the allocator."""
MEASURED = """
import contextlib, json, sys, torch
from pathlib import Path
from luthier.model import load
from luthier.model.load import load_model
from luthier.recipe.schema import Model

def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
base, small, quantization, dtype, mapped = sys.argv[1:]
if mapped == "mapped":
    load.weights_read_not_mapped = contextlib.nullcontext
load_model(Model(base=small, quantization=quantization), torch.bfloat16, torch.device("cpu"))  # code and caches
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
before = status("VmRSS")
model = load_model(Model(base=base, quantization=quantization), getattr(torch, dtype), torch.device("cpu"))
stays = sum(tensor.nbytes for tensor in model.parameters())
print(json.dumps({"peak": status("VmHWM") - before, "stays": stays}))
"""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of 340 and 340 MB in files of at most 40, and a small one."""
    folder = tmp_path_factory.mktemp("bases")
    for name, family, shape in (("dense", "qwen3", DENSE), ("sparse", "qwen3_moe", SPARSE), ("small", "qwen3_moe", {})):
        tiny(family, torch.bfloat16, **shape).save_pretrained(folder / name, max_shard_size="40MB")
    return {path.name: path for path in folder.iterdir()}


def measured(bases: dict[str, Path], name: str, quantization: str, dtype: str, mapped: str = "read") -> tuple[int, int]:
    """Bytes that loading added to the process at the most, and those that stay; in a process of its own."""
    arguments = [str(bases[name]), str(bases["small"]), quantization, dtype, mapped]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(MB)}  # glibc hands large tensors back when they go
    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, timeout=240, env=environment, check=True
    )
    found = json.loads(ended.stdout)
    return found["peak"], found["stays"]


def sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.glob("*.safetensors")]


LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the high-water mark is Linux's to tell")


@LINUX
@pytest.mark.parametrize(
    ("name", "quantization", "dtype"),
    [
        ("dense", "none", "bfloat16"),
        ("dense", "none", "float32"),
        ("dense", "int8", "bfloat16"),
        pytest.param("dense", "nf4", "bfloat16", marks=pytest.mark.slow),
        pytest.param("sparse", "none", "bfloat16", marks=pytest.mark.slow),
        ("sparse", "int8", "bfloat16"),
        pytest.param("sparse", "nf4", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_the_host_never_holds_more_than_what_stays_and_one_file(bases: dict[str, Path], name: str, quantization: str, dtype: str) -> None:
    """Measured: 3 to 90 MB more than what stays, of 340 MB of files; a loader that holds them all would take 340."""
    files = sizes(bases[name])
    assert len(files) >= 9 and max(files) + SLACK < sum(files) / 3
    peak, stays = measured(bases, name, quantization, dtype)
    assert peak <= stays + max(files) + SLACK


@LINUX
def test_transformers_still_maps_its_files_by_itself(bases: dict[str, Path]) -> None:
    """Else `patches.weights_read_not_mapped` has nothing left to do."""
    peak, stays = measured(bases, "dense", "int8", "bfloat16", "mapped")
    assert peak > stays + 0.9 * sum(sizes(bases["dense"]))


def saved(family: str, folder: Path) -> PreTrainedModel:
    model = tiny(family)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", [*FAMILIES, *(family for family in MIXTURES if family not in FAMILIES)])
def test_a_loaded_model_has_the_bytes_of_one_that_is_stored_later(family: str, tmp_path: Path) -> None:
    later = saved(family, tmp_path)
    loaded = load_model(Model(base=str(tmp_path), quantization="nf4", double_quant=False), torch.float32, CPU)
    store(later, Bits(kind="nf4", double_quant=False, dtype=torch.float32))
    for (name, one), (other_name, other) in zip(loaded.named_parameters(), later.named_parameters(), strict=True):
        assert name == other_name
        assert torch.equal(one, other), name


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "qwen3_5_moe_text"])
def test_all_matrices_below_the_head_are_in_few_bits_and_nothing_else(family: str, tmp_path: Path) -> None:
    saved(family, tmp_path)
    model = load_model(Model(base=str(tmp_path), quantization="int8"), torch.bfloat16, CPU)
    plain = {name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not isinstance(module, QuantizedLinear)}
    assert plain == {"lm_head"}
    left = {name.rpartition(".")[2] for name, weight in model.named_parameters() if weight.is_floating_point() and weight.ndim == 3}
    assert left <= {"conv1d", "weight"}
    assert all(forms_of(module).keys() == {"gate_up_proj", "down_proj"} for module in model.modules() if "Experts" in type(module).__name__)
    assert {weight.dtype for weight in model.parameters() if weight.is_floating_point()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen3_moe", "gpt_oss"])
def test_what_is_left_of_few_bits_are_the_numbers_that_are_computed_with(family: str, kind: Any, dtype: torch.dtype) -> None:
    plain, expected = tiny(family, dtype), in_numbers(quantized(tiny(family, dtype), kind))
    leave_of_few_bits(plain, Bits(kind=kind, double_quant=True, dtype=dtype))
    found = dict(plain.named_parameters())
    assert [name for name, weight in expected.named_parameters() if not torch.equal(weight, found[name])] == []
    assert not torch.equal(plain.model.layers[0].self_attn.q_proj.weight, tiny(family, dtype).model.layers[0].self_attn.q_proj.weight)


def test_weights_of_another_shape_are_an_error(tmp_path: Path) -> None:
    saved("qwen3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": 112}))
    with pytest.raises(ModelError, match=r"a matrix of \(80, 48\) is not of the config's \(112, 48\)|\(48, 80\)"):
        load_model(Model(base=str(tmp_path), quantization="nf4"), torch.float32, CPU)


def test_a_weight_that_lacks_is_an_error(tmp_path: Path) -> None:
    saved("qwen3", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 of the weights .* missing, first model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(Model(base=str(tmp_path), quantization="nf4"), torch.float32, CPU)


def test_a_base_that_is_quantised_already_is_refused(tmp_path: Path) -> None:
    saved("qwen3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": bits}))
    with pytest.raises(ModelError, match="quantized"):
        load_model(Model(base=str(tmp_path), quantization="nf4"), torch.float32, CPU)
