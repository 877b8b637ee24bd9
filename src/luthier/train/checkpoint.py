"""Checkpoints: weights, optimizer and the loop's state, whole or not at all. safetensors and JSON, never pickle.

checkpoints/step-000050/
    adapter.safetensors      every trained parameter, by its name
    optimizer.safetensors    `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`
    state.json               State
    manifest.json            size and sha256 of the other three
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from luthier.core import files, jsonl
from luthier.core.errors import NonFiniteError, RunError
from luthier.runs.store import RunFolder

WEIGHTS, OPTIMIZER, STATE, MANIFEST = "adapter.safetensors", "optimizer.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best validation so far."""

    step: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where the loop stands after `step`. Row order and dropout follow from the step and plan.json's sizes: no generator state is in it."""

    step: int = 0
    best: Best | None = None
    validations_since_best: int = 0
    stopped_early: bool = False
    scaler: Mapping[str, float | int] = field(default_factory=dict)
    """State of float16's loss scaler; empty for other types."""

    @classmethod
    def read(cls, path: Path) -> "State":
        """The state in a state.json."""
        values = json.loads(path.read_text(encoding="utf-8"))
        best = values.pop("best")
        return cls(**values, best=Best(**best) if best else None)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every trained parameter by name."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def check_finite(model: nn.Module, where: str) -> None:
    """Raise NonFiniteError where a trained weight is not a finite number."""
    bad = [name for name, weight in trained_weights(model).items() if not weight.isfinite().all()]
    if bad:
        change = "nothing was saved; lower training.learning_rate and start again from an earlier checkpoint"
        raise NonFiniteError(f"{len(bad)} trained weights are not finite, first {bad[0]}", where=where, change=change)


def save(run: RunFolder, state: State, model: nn.Module, optimizer: torch.optim.Optimizer, *, keep: int) -> Path:
    """Write the checkpoint of `state.step`, point latest.json and best.json at what they name, and remove what is no longer kept."""
    check_finite(model, f"step {state.step}")
    folder = run.checkpoint(state.step)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file({name: weight.contiguous() for name, weight in trained_weights(model).items()}, part / WEIGHTS)
    save_file(_optimizer_tensors(model, optimizer), part / OPTIMIZER)
    files.write_json(part / STATE, asdict(state))
    sizes = {name: {"bytes": (part / name).stat().st_size, "sha256": files.sha256(part / name)} for name in (WEIGHTS, OPTIMIZER, STATE)}
    files.write_json(part / MANIFEST, {"files": sizes})
    files.sync_folder(part)
    shutil.rmtree(folder, ignore_errors=True)  # one of the same step that was found damaged
    part.rename(folder)
    _point(run, state)
    _retire(run, state, keep)
    return folder


def resume(run: RunFolder, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Load the newest checkpoint that is whole and forget what was recorded after it; State() where there is none.

    A damaged checkpoint is passed over for the one before, which events.jsonl says.
    """
    state = State()
    for folder in _newest_first(run):
        try:
            verify(folder)
        except RunError as damage:
            run.event("damaged", checkpoint=folder.name, why=damage.what)
            continue
        load_weights(folder, model)
        _load_optimizer(folder, model, optimizer)
        state = State.read(folder / STATE)
        break
    if state.best and state.best.step != state.step:
        state = _without_lost_best(run, state)
    if state.step:
        _point(run, state)
    _forget_after(run.metrics, state.step)
    return state


def verify(folder: Path) -> None:
    """Raise RunError unless every file is there as it was written."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        if set(manifest) != {WEIGHTS, OPTIMIZER, STATE}:
            raise RunError("its manifest does not name the three files", where=str(folder))
        for name, expected in manifest.items():
            if (folder / name).stat().st_size != expected["bytes"]:
                raise RunError(f"{name} is cut short", where=str(folder))
            if files.sha256(folder / name) != expected["sha256"]:
                raise RunError(f"{name} is not what was written", where=str(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # a missing file, or a manifest that is none
        raise RunError(f"its files or manifest cannot be read: {error}", where=str(folder)) from error


def load_weights(folder: Path, model: nn.Module) -> None:
    """Copy a checkpoint's weights into the model."""
    saved = load_file(folder / WEIGHTS)
    own = trained_weights(model)
    if {name: weight.shape for name, weight in saved.items()} != {name: weight.shape for name, weight in own.items()}:
        raise RunError("the checkpoint was made of another model or adapter", where=str(folder), change="give the run another name")
    for name, weight in own.items():
        weight.copy_(saved[name])


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {f"{key}/{names[parameter]}": value for parameter, values in optimizer.state.items() for key, value in values.items()}


def _load_optimizer(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    values: dict[str, dict[str, Tensor]] = {}
    for entry, tensor in load_file(folder / OPTIMIZER).items():
        key, _, name = entry.partition("/")
        values.setdefault(name, {})[key] = tensor
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = {index: values[name] for index, name in enumerate(order) if name in values}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _newest_first(run: RunFolder) -> list[Path]:
    folders = (path for path in run.checkpoints.glob("step-*") if path.suffix != ".part")
    return sorted(folders, key=lambda path: path.name, reverse=True)


def _without_lost_best(run: RunFolder, state: State) -> State:
    """The state, or one that has no best yet where the best checkpoint is gone or damaged."""
    if state.best is None:
        return state
    folder = run.checkpoint(state.best.step)
    try:
        verify(folder)
    except RunError as damage:
        run.event("damaged", checkpoint=folder.name, why=damage.what)
        return State(step=state.step, scaler=state.scaler)
    return state


def _point(run: RunFolder, state: State) -> None:
    files.write_json(run.pointer("latest"), {"step": state.step, "checkpoint": run.checkpoint(state.step).name})
    if state.best:
        best = {"step": state.best.step, "checkpoint": run.checkpoint(state.best.step).name, "value": state.best.value}
        files.write_json(run.pointer("best"), best)
    else:
        run.pointer("best").unlink(missing_ok=True)


def _retire(run: RunFolder, state: State, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the best, and what an interrupted save left.

    A later step's folder is one that was found damaged: it takes no place among the newest, and will be written again.
    """
    current = run.checkpoint(state.step)
    best = run.checkpoint(state.best.step) if state.best else current
    reached = [path for path in _newest_first(run) if path.name <= current.name]
    for folder in [path for path in reached[keep:] if path != best] + list(run.checkpoints.glob("*.part")):
        shutil.rmtree(folder)


def _forget_after(metrics: Path, step: int) -> None:
    """Drop the lines of steps that will be computed again, and a torn last line."""
    if metrics.exists():
        kept = [record for record in jsonl.records(metrics) if record["step"] <= step]
        files.write(metrics, "".join(jsonl.dumps(record) + "\n" for record in kept))
