"""Only safetensors are loaded, nobody's code is run unasked, and `auto` is told."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from luthier.core.errors import ModelError, PlanRefused
from luthier.model.load import load_model, resolve_dtype
from luthier.recipe.schema import Model
from luthier.train.batch import collate
from luthier.train.objective import nll
from tests.train.workshop import ragged_rows, tiny_model

CPU = torch.device("cpu")
CLOSED = "http://127.0.0.1:9"
"""Nothing listens there."""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load(base: Path | str) -> torch.nn.Module:
    return load_model(Model(base=str(base)), torch.float32, CPU)


def test_weights_come_in_the_type_that_was_asked_for(base: Path) -> None:
    model = load_model(Model(base=str(base), attention="eager"), torch.bfloat16, CPU)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert load(base).config._attn_implementation == "sdpa"


def test_pickled_weights_are_not_read(base: Path) -> None:
    (base / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), base / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights only"):
        load(base)


def test_a_folder_that_is_no_model_is_named(base: Path, tmp_path: Path) -> None:
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        load(base)
    shutil.rmtree(base)
    base.mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load(base)


def test_a_model_with_its_own_code_is_refused(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}))
    (base / "evil.py").write_text("raise SystemExit('ran the model's code')")
    with pytest.raises(ModelError, match="trust_remote_code"):
        load(base)


def test_a_hub_model_without_a_network_is_said_plainly() -> None:
    with pytest.raises(ModelError, match="the hub cannot be reached"):
        load("Qwen/Qwen3-0.6B")


def test_a_hub_that_does_not_answer_is_asked_once_and_not_waited_for(tmp_path: Path) -> None:
    program = (
        "import torch; from luthier.model.load import load_model; from luthier.recipe.schema import Model; "
        "load_model(Model(base='Qwen/Qwen3-0.6B'), torch.float32, torch.device('cpu'))"
    )
    environment = {**os.environ, "HF_ENDPOINT": CLOSED, "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
    environment.pop("HF_HUB_OFFLINE")
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert time.monotonic() - start < 20
    assert "the hub cannot be reached" in done.stderr
    assert "Retrying" not in done.stderr


def test_the_type_is_resolved_with_its_reason() -> None:
    dtype, resolved = resolve_dtype("auto", CPU)
    has_bfloat16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))
    assert dtype == (torch.bfloat16 if has_bfloat16 else torch.float32)
    assert resolved.value == str(dtype).removeprefix("torch.")
    assert "bfloat16" in resolved.why
    assert resolve_dtype("float32", CPU)[0] == torch.float32
    with pytest.raises(PlanRefused):
        resolve_dtype("float16", CPU)


def test_layers_divided_among_devices_answer_as_the_whole_model(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the second device is the disk, from which accelerate reads a layer when it is its turn; of GPUs, which have their own memory, it
    moves what goes in. The head is called as a module in either case."""
    monkeypatch.chdir(tmp_path)
    tiny_model(num_hidden_layers=6, intermediate_size=256).save_pretrained(base)
    asked = Model(base=str(base))
    whole = load_model(asked, torch.float32, CPU)
    num_bytes = sum(weight.nbytes for weight in whole.parameters())
    halved: dict[int | str, int] = {"cpu": 2 * num_bytes // 3, "disk": num_bytes}
    divided = load_model(asked, torch.float32, CPU, memory=halved)
    assert {str(place) for place in divided.hf_device_map.values()} == {"cpu", "disk"}
    batch = collate(ragged_rows(), range(8), CPU)
    with torch.no_grad():
        torch.testing.assert_close(nll(divided, batch), nll(whole, batch))
