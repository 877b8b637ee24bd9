"""Checkpoints: weights, optimizer and the loop's state, whole or not at all. safetensors and JSON, never pickle.

checkpoints/step-000050/
    adapter.safetensors      every trained parameter, by its name
    optimizer.safetensors    `exp_avg/NAME`, `exp_avg_sq/NAME`, `step/NAME`; in 8 bits `state1/NAME`, `absmax1/NAME` and so on
    state.json               State
    manifest.json            the run and the step it belongs to, size and sha256 of the other three

Beside them may lie NAME.part and NAME.old, which a save that was killed left, and NAME.damaged, which a resumed run refused.
"""

import errno
import functools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError

from luthier.core import files, jsonl
from luthier.core.errors import NonFiniteError, RunError
from luthier.core.files import Digest, DiskError
from luthier.core.progress import Progress, Silent
from luthier.core.words import gigabytes
from luthier.model.place import Trained
from luthier.runs.store import RunFolder
from luthier.train.contents import Contents, load_optimizer, load_weights, names_among
from luthier.train.ranks import ALONE, Ranks

STATE, MANIFEST = "state.json", "manifest.json"
Acting = Callable[[], AbstractContextManager[None]]
UNSOUND = "look for faults of the disk and of memory (the system's log, smartctl, memtest); the same command goes on elsewhere"
OTHER_VERSION = "finish the run with the version of Luthier that began it, or give it another name"
SILENT = Silent()


class Damaged(RunError):
    """A checkpoint is not what was written for its run and step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best validation so far."""

    step: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where the loop stands after `step`. Row order and dropout follow from the step and plan.json's sizes: no generator state is in it."""

    step: int = 0
    validated: int = 0
    """The last step whose validation was made; one that a signal broke off is owed."""
    skipped: int = 0
    """Steps in a row, up to this one, whose update was not applied because it was not finite."""
    rolled_back: bool = False
    """Whether a checkpoint's weights were taken again after such steps, which is done once in a run."""
    best: Best | None = None
    validations_since_best: int = 0
    stopped_early: bool = False
    scaler: Mapping[str, float | int] = field(default_factory=dict)
    """State of float16's loss scaler; empty for other types."""

    @classmethod
    def read(cls, path: Path) -> "State":
        """The state in a state.json; raises RunError where it is not one, to the key: another version's."""
        text = path.read_bytes()
        try:
            if json.loads(text).keys() == {item.name for item in fields(cls)}:
                return cls.of_json(text)
        except (ValueError, AttributeError, RecursionError) as error:  # pydantic's is a ValueError
            raise RunError(f"{path.name} is not a state: {_first_line(error)}", where=str(path), change=OTHER_VERSION) from error
        raise RunError(f"{path.name} does not have the keys of a state", where=str(path), change=OTHER_VERSION)

    @classmethod
    def of_json(cls, text: bytes | str) -> "State":
        """The state that a JSON object describes; raises ValueError where it is none."""
        return TypeAdapter(cls).validate_json(text, strict=True)


def check_finite(trained: Trained, where: str) -> None:
    """Raise NonFiniteError where a trained weight is not a finite number."""
    bad = [name for name, weight in trained.items() if not weight.detach().isfinite().all()]
    if bad:
        change = "nothing was saved; lower training.learning_rate and start again from an earlier checkpoint"
        raise NonFiniteError(f"{len(bad)} trained weights are not finite, first {bad[0]}", where=where, change=change)


def save(run: RunFolder, state: State, trained: Trained, optimizer: torch.optim.Optimizer, *, keep: int, ranks: Ranks = ALONE) -> Path:
    """Write the checkpoint of `state.step`, read it back from the disk, point at it, and only then remove what is no longer kept.

    Raises DiskError where it cannot be written, NonFiniteError where it should not; the checkpoints before it stay as they are.
    """
    with ranks.agreeing():
        check_finite(trained, f"step {state.step}")
    folder, contents = run.checkpoint(state.step), Contents.of(trained, optimizer, ranks)
    acting = functools.partial(_acting, ranks, f"a checkpoint of {gigabytes(contents.num_bytes)}", folder)
    with acting():
        if ranks.first:
            for lines in (run.metrics, run.events):  # no power cut shall leave a checkpoint without the lines that led to it
                if lines.exists():
                    files.sync(lines)
            files.begin(folder)
    try:
        _fill(run, state, contents, acting, ranks)
    except BaseException:
        if ranks.first:
            files.take_back(folder)
        raise
    with acting():
        if ranks.first:
            files.finish(folder)
            _point(run, state)
            _retire(run, state, keep)
    return folder


def _fill(run: RunFolder, state: State, contents: Contents, acting: Acting, ranks: Ranks) -> None:
    """What all ranks do for one checkpoint between its folder's beginning and its end."""
    folder = run.checkpoint(state.step)
    part = files.part_of(folder)
    digests: dict[str, Digest] = {}
    with acting():
        contents.write(part)
        digests = {name: files.digest(part / name) for name in contents.names}
    digests = {name: digest for told in ranks.every(digests) for name, digest in told.items()}
    with acting():
        if ranks.first:
            files.write_json(part / STATE, asdict(state))
            digests[STATE] = files.digest(part / STATE)
            files.write_json(part / MANIFEST, _manifest(run, state.step, digests))
            files.take_place(folder)
    with acting():
        _check_written(run, state.step, (*contents.names, *((STATE,) if ranks.first else ())))


@contextmanager
def _acting(ranks: Ranks, what: str, folder: Path) -> Iterator[None]:
    """A block of every rank's; what cannot be written by one is a DiskError of all."""
    with ranks.agreeing(), writing(what, folder):
        yield


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Raise DiskError where the block, or safetensors in it, cannot write."""
    with files.told(what, folder):
        try:
            yield
        except SafetensorError as error:
            number = re.search(r"\(os error (\d+)\)", str(error))
            raise (OSError(int(number[1]), os.strerror(int(number[1]))) if number else OSError(str(error))) from error


def resume(
    run: RunFolder, trained: Trained, optimizer: torch.optim.Optimizer, progress: Progress = SILENT, *, ranks: Ranks = ALONE
) -> State:
    """Load the newest checkpoint that is whole and forget what was recorded after it; State() where there is none.

    A damaged one is set aside and passed over for the one before, which events.jsonl says; so are damaged lines of metrics.jsonl. Raises
    RunError where a whole one is of another model, or may not be read.
    """
    if ranks.first:
        with files.told("the run folder", run.path):
            for old in run.checkpoints.glob("*.old"):
                files.put_back(old.with_suffix(""))
    state = restore(run, trained, optimizer, progress, ranks=ranks)
    if ranks.first:
        with files.told("the run folder", run.path):
            _sweep(run)
            if state.step:
                _point(run, state)
            _forget_after(run, state, progress)
    return state


def restore(
    run: RunFolder,
    trained: Trained,
    optimizer: torch.optim.Optimizer,
    progress: Progress = SILENT,
    *,
    before_skips: bool = False,
    ranks: Ranks = ALONE,
) -> State:
    """Load the newest checkpoint that is whole; State(), and nothing is loaded, where there is none. A damaged one is set aside.

    `before_skips` passes over those of steps that were skipped, whose weights are those of now. Rank 0 chooses for all.
    """
    state = State.of_json(ranks.same(json.dumps(asdict(_newest(run, progress, before_skips=before_skips)) if ranks.first else "")))
    if state.step:
        load(run.checkpoint(state.step), trained, optimizer, ranks)
    return state


def _newest(run: RunFolder, progress: Progress, *, before_skips: bool) -> State:
    for folder in _whole(run, progress):
        state = State.read(folder / STATE)
        if not (before_skips and state.skipped):
            return _whole_best(run, state, progress)
    return State()


def _whole(run: RunFolder, progress: Progress) -> Iterator[Path]:
    """The checkpoints that are whole, the newest first; of one that is damaged, what it had taken the place of, if that is still there."""
    for folder in run.saved:
        while folder.exists():
            try:
                verify(folder)
            except Damaged as damage:
                _set_aside(run, folder, damage, progress)
                files.put_back(folder)
            else:
                yield folder
                break


def verify(folder: Path) -> None:
    """Raise Damaged unless a checkpoint is, to the byte, what `save` wrote for this run and step; RunError where it may not be read."""
    try:
        written = (folder / MANIFEST).read_bytes()
        digests = {name: digest for name, digest in files.digests(folder).items() if name != MANIFEST}
        found = _manifest(RunFolder(folder.parents[1]), _step_of(folder), digests)
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError) or error.errno == errno.EIO:
            raise Damaged(f"it cannot be read: {error.strerror}: {Path(error.filename or folder).name}", where=str(folder)) from error
        change = "let the user who trains read it, then the same command goes on"
        raise RunError(f"a checkpoint cannot be read: {error.strerror}", where=str(folder), change=change) from error
    if digests.keys() != _content(digests) or written != files.json_text(found).encode():
        raise Damaged(_difference(written, found), where=str(folder))


def load(folder: Path, trained: Trained, optimizer: torch.optim.Optimizer, ranks: Ranks = ALONE) -> None:
    """Copy what this rank holds of a checkpoint's weights and its optimizer's state to where it belongs, whichever ranks wrote it."""
    load_weights(folder, trained, ranks)
    load_optimizer(folder, trained, optimizer, ranks)


def _manifest(run: RunFolder, step: int, digests: Mapping[str, Digest]) -> dict[str, Any]:
    """What a manifest says, or should say, of these files."""
    return {"run": run.identity, "step": step, "files": dict(sorted(digests.items()))}


def _content(names: Iterable[str]) -> set[str]:
    """The files that a checkpoint has beside its manifest, some of whose names these are."""
    return {*names_among(names), STATE}


def _difference(written: bytes, found: Mapping[str, Any]) -> str:
    """Why a manifest is not that of what was found, in words."""
    names, content = found["files"].keys(), _content(found["files"])
    for name in sorted(names ^ content):
        return f"{name} is missing" if name in content else f"{name} does not belong to it"
    try:
        said = json.loads(written)
        for key in ("run", "step"):
            if said[key] != found[key]:
                return f"its manifest is of another {key}"
        for name in sorted(names):
            if said["files"][name]["bytes"] != found["files"][name]["bytes"]:
                return f"{name} has {found['files'][name]['bytes']} bytes, and {said['files'][name]['bytes']} were written"
            if said["files"][name]["sha256"] != found["files"][name]["sha256"]:
                return f"{name} is not what was written"
    except (ValueError, KeyError, TypeError, RecursionError):  # not even a manifest
        pass
    return f"{MANIFEST} is not what was written"


def _check_written(run: RunFolder, step: int, names: Iterable[str]) -> None:
    """Raise DiskError unless what this rank wrote, and what the manifest says of it, is what the disk holds."""
    folder = run.checkpoint(step)
    files.drop_cached(folder)
    written = (folder / MANIFEST).read_bytes()
    try:
        said: Mapping[str, Digest] = json.loads(written)["files"]
    except (ValueError, KeyError, TypeError, RecursionError):
        said = {}
    found = _manifest(run, step, {**said, **{name: files.digest(folder / name) for name in names}})
    if written != files.json_text(found).encode():
        what = f"a checkpoint was written, and reads back otherwise: {_difference(written, found)}"
        raise DiskError(what, where=str(folder), change=UNSOUND)


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _set_aside(run: RunFolder, folder: Path, damage: Damaged, progress: Progress) -> None:
    """Let a damaged checkpoint be one no more: it takes no place among those that are kept, and is there to be looked at."""
    aside = folder.with_name(folder.name + ".damaged")
    with files.told("the name of a damaged checkpoint", folder):
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    run.event("damaged", checkpoint=folder.name, why=damage.what, now=aside.name)
    progress.say(f"checkpoint {folder.name} is damaged ({damage.what}): set aside as {aside.name}, and the one before it is looked for")


def _whole_best(run: RunFolder, state: State, progress: Progress) -> State:
    """The state, or one that has no best yet where the best checkpoint is gone or damaged."""
    if state.best is None or state.best.step == state.step:
        return state
    folder = run.checkpoint(state.best.step)
    try:
        verify(folder)
    except Damaged as damage:
        if folder.exists():
            _set_aside(run, folder, damage, progress)
        else:
            run.event("damaged", checkpoint=folder.name, why=damage.what)
        return replace(state, best=None, validations_since_best=0, stopped_early=False)
    return state


def _point(run: RunFolder, state: State) -> None:
    files.write_json(run.pointer("latest"), {"step": state.step, "checkpoint": run.checkpoint(state.step).name})
    if state.best:
        best = {"step": state.best.step, "checkpoint": run.checkpoint(state.best.step).name, "value": state.best.value}
        files.write_json(run.pointer("best"), best)
    else:
        run.pointer("best").unlink(missing_ok=True)


def _retire(run: RunFolder, state: State, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and the best."""
    best = run.checkpoint(state.best.step if state.best else state.step)
    for folder in run.saved[keep:]:
        if folder != best:
            files.remove(folder)
    _sweep(run)


def _sweep(run: RunFolder) -> None:
    """Remove what a save that was killed left."""
    for left in (*run.checkpoints.glob("*.part"), *run.checkpoints.glob("*.old")):
        shutil.rmtree(left, ignore_errors=True)  # the new one is whole: that an old one stays must not end the run


def _forget_after(run: RunFolder, state: State, progress: Progress) -> None:
    """Drop the lines of what will be computed again, a torn last line, and damaged ones; tell of those, and of steps without a line."""
    found = jsonl.salvage(run.metrics)
    lines = [record for record in found.records if isinstance(record.get("step"), int)]
    kept = [record for record in lines if record["step"] <= (state.validated if record.get("kind") == "validation" else state.step)]
    damaged = found.num_damaged + len(found.records) - len(lines)
    lost = sorted({*range(1, state.step + 1)} - {record["step"] for record in kept if record.get("kind") != "validation"})
    if damaged or lost:
        run.event("damaged", file=run.metrics.name, lines=damaged, lost=len(lost))
        dropped = f"{damaged} damaged line{'s were' if damaged > 1 else ' was'} dropped" if damaged else "lines are missing"
        steps = f"; steps {', '.join(map(str, lost[:5]))}{' …' if len(lost) > 5 else ''} are no longer recorded" if lost else ""
        progress.say(f"{run.metrics.name}: {dropped}{steps} (the training itself is not touched)")
    if run.ranks.exists():
        told = [record for record in jsonl.salvage(run.ranks).records if isinstance(record.get("step"), int)]
        files.write(run.ranks, "".join(jsonl.dumps(record) + "\n" for record in told if record["step"] <= state.step))
    for step in run.validated_steps:
        if step > state.validated:
            run.validation(step).unlink()
    if run.metrics.exists():
        files.write(run.metrics, "".join(jsonl.dumps(record) + "\n" for record in kept))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
