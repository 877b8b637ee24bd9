"""A fixed tiny training whose losses are known: what is wrong with a processor, a driver or a library shows in them within seconds.

`python -m luthier.train.canary` prints what is found as one JSON object; `luthier doctor` runs it so, in a process that may crash.
"""

import json
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.core import files
from luthier.core.finding import Finding
from luthier.core.hardware import this_machine
from luthier.data.pack import bins
from luthier.data.store import TokenRow
from luthier.model.adapt import add_lora
from luthier.model.fuse import fuse
from luthier.model.load import DTYPES, load_model, resolve_device, resolve_dtype
from luthier.model.native import native
from luthier.model.place import trained_of
from luthier.recipe.schema import Lora, Model, Training
from luthier.train.batch import MicroBatch, collate, of_pack
from luthier.train.host import prepare_host
from luthier.train.optim import make_optimizer
from luthier.train.precision import Precision
from luthier.train.step import train_step
from luthier.watch.health import Health

RECORD = Path(__file__).with_name("canary.json")
"""The losses, and where they were recorded: `python -m luthier.train.canary --record` writes them anew, after a change of maths only."""
BASE, LORA = Model(base="demo"), Lora(r=8, alpha=16, dropout=0.1)
TRAINING = Training(learning_rate=3e-3)
STEPS, SEED = 10, 5
TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2}
"""Relative, of each loss. On the processor of canary.json, plain layers for fused ones, torch without vectors, oneDNN as on SSE4.1 or AVX2,
two threads, no C kernels were at most 6e-7 (float32) and 1.7e-3 (bfloat16) apart; a learning rate wrong by 0.1 % shows as 6e-5, one micro
batch of two that counts 5 % too much as 3e-4 (2026-11-20). Nobody has measured it on a GPU yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """The loss before each update, and why layers were not fused where they should have been."""

    losses: tuple[float, ...]
    gave_way: str


def canary() -> Health:
    """The losses of this machine against the recorded ones, in every compute type that its device has; 2 s, after 5 s of imports."""
    torch.set_num_threads(1)  # more would wait for each other, over products as small as these
    device = resolve_device()
    prepare_host(device)
    recorded = json.loads(RECORD.read_text(encoding="utf-8"))["losses"]
    trained = {name: train(name, device) for name in compute_types(device)}
    found = [finding for name, run in trained.items() for finding in deviations(name, run.losses, recorded[name])]
    fine = () if found else (f"canary: {STEPS} steps on the {device.type} give the recorded losses in {' and '.join(trained)}",)
    if device.type == "cpu":
        found += _slow_paths(trained["float32"].gave_way)
    return Health(findings=tuple(found), fine=fine)


def compute_types(device: torch.device) -> tuple[str, ...]:
    """float32, and bfloat16 where the device has instructions for it."""
    return ("float32", "bfloat16") if resolve_dtype("auto", device)[0] == torch.bfloat16 else ("float32",)


def train(dtype: str, device: torch.device) -> Trained:
    """Steps of the demo base's adapter; the losses are a function of this file alone, but for rounding."""
    model = add_lora(load_model(BASE, DTYPES[dtype], device), LORA, SEED)
    packed = device.type == "cpu"  # a GPU would first compile FlexAttention, for longer than all the rest takes
    fusion = fuse(model, pack=packed, longest=max(map(len, _rows())))
    model.train()
    optimizer, batches = make_optimizer(trained_of(model), TRAINING), _batches(device, packed)
    precision = Precision.of(DTYPES[dtype], device)
    losses = tuple(
        train_step(model, optimizer, batches, precision=precision, max_norm=TRAINING.max_grad_norm, seeds=(SEED, step)).loss
        for step in range(1, STEPS + 1)
    )
    return Trained(losses=losses, gave_way="; ".join(fusion.reasons) if packed and not fusion.num_layers else "")


def deviations(dtype: str, measured: Sequence[float], recorded: Sequence[float]) -> Iterator[Finding]:
    """A finding at the first loss that is further from the recorded one than rounding explains."""
    for step, (loss, wanted) in enumerate(zip(measured, recorded, strict=True), start=1):
        apart, allowed = abs(loss - wanted) / wanted, TOLERANCE[dtype]
        if apart <= allowed:  # false for a loss that is no number
            continue
        yield Finding(
            code="canary-deviates",
            severity="refuse",
            message=f"The canary's {dtype} loss in step {step} is {loss:.6g} and was recorded as {wanted:.6g}: {apart:.0e} apart, where "
            f"rounding explains {allowed:.0e}. What is trained here is not what the recipe says",
            evidence={"dtype": dtype, "step": step, "loss": str(loss), "recorded": wanted, "tolerance": allowed},
            fix="install the tested versions again (pip install --force-reinstall -c constraints.txt luthier); if it stays, "
            "LUTHIER_NATIVE=0 luthier doctor does without the C kernels; else suspect memory or device (nvidia-smi -q -d ECC)",
        )
        return


def _slow_paths(gave_way: str) -> list[Finding]:
    """Findings where training on this CPU is right, but slower than it could be."""
    found = []
    if gave_way:
        found.append(
            Finding(
                code="fused-layers-off",
                severity="warn",
                message=f"The fused layers do not give here what the model's own give, which are slower and take their place: {gave_way}",
                fix="rm -r ~/.cache/luthier, so that the C kernels are built anew; LUTHIER_NATIVE=0 luthier doctor does without them",
            )
        )
    if native().library is None:
        found.append(
            Finding(
                code="no-kernels",
                severity="warn",
                message=f"Training on this CPU does without its C kernels, and is slower for it ({native().note})",
                fix="sudo apt-get install gcc libc6-dev, or name a compiler in CC; unset LUTHIER_NATIVE where it is 0",
            )
        )
    return found


def _rows() -> list[TokenRow]:
    """Eight ragged rows; the ids are a polynomial, which no library's random generator can change."""
    rows = []
    for row in range(8):
        places = np.arange(36 + 7 * row % 23)
        ids = 3 + (31 * places * places + (97 * row + 1) * (places + 11)) % 3000
        rows.append(TokenRow(ids=ids.astype(np.int32), supervised=places >= 16))
    return rows


def _batches(device: torch.device, packed: bool) -> list[MicroBatch]:
    """Two micro batches, so that sums over them are tried too: packs, or padded rows."""
    rows = _rows()
    halves = ((rows[:4], range(4)), (rows[4:], range(4, 8)))
    if not packed:
        return [collate(half, numbers, device) for half, numbers in halves]
    return [of_pack(pack, device) for half, numbers in halves for pack in bins(half, numbers, budget=1024)]


def _record() -> None:
    torch.set_num_threads(1)
    device = resolve_device()
    prepare_host(device)
    kept: Mapping[str, Any] = {
        "date": date.today().isoformat(),
        "device": this_machine().processor,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in ("torch", "transformers", "peft")}},
        "losses": {name: train(name, device).losses for name in compute_types(device)},
    }
    files.write_json(RECORD, kept)


if __name__ == "__main__":
    if "--record" in sys.argv:
        _record()
    else:
        sys.stdout.write(json.dumps(canary().to_json()) + "\n")
