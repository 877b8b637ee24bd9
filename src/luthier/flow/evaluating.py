"""Evaluation in this process, or in ranks that each have the whole model and answer their share of the rows."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from luthier.core import files, hardware
from luthier.core.errors import ModelError
from luthier.core.hardware import Gpu
from luthier.core.progress import Progress, Silent, Told
from luthier.core.signals import Interrupted, ending_at_once
from luthier.flow.handed import model_of, refuse_unfinished
from luthier.flow.training import Alive, rank_command, shown

if TYPE_CHECKING:
    from luthier.core.chat import Completer
    from luthier.data.store import Prepared
    from luthier.evaluate.report import InTurn, Report
    from luthier.evaluate.run import Subject
    from luthier.plan.setup import Dtype
    from luthier.recipe.schema import Recipe
    from luthier.runs.store import RunFolder
    from luthier.serve.completer import RemoteCompleter

REQUEST, REPORT = "evaluation.json", "report"


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """A model on a server: its address, with the model's name there behind a # where it has several."""

    name: str
    typed: bool = False
    """By who calls. Any other address is a recipe's, which could be a stranger's: it is given no token that is not the host's own."""

    @property
    def token(self) -> str:
        """What `LUTHIER_HOST_TOKEN` holds, of its host (`LUTHIER_API_EXAMPLE_ORG_TOKEN`); where there is none, LUTHIER_TOKEN."""
        host = re.sub(r"\W", "_", urlsplit(self.name).netloc).upper()
        return os.environ.get(f"LUTHIER_{host}_TOKEN") or (os.environ.get("LUTHIER_TOKEN", "") if self.typed else "")

    def completer(self, recipe: Recipe) -> RemoteCompleter:
        """It, ready to be asked; raises UsageError for what is no address, ModelError where one of several models is not named."""
        from luthier.data.tokenizer import load_tokenizer
        from luthier.serve.completer import RemoteCompleter
        from luthier.serve.wire import Wire

        url, _, model = self.name.partition("#")
        return RemoteCompleter.at(Wire.to(url, self.token), model, load_tokenizer(recipe.model).spoken)


def evaluated(subject: Subject | Elsewhere, recipe: Recipe, prepared: Prepared, folder: Path, progress: Progress) -> Report:
    """The report on a subject, made by as many ranks as the recipe has replicas; what they leave in `folder` stays only where they fail."""
    if isinstance(subject, Elsewhere):
        from luthier.evaluate.asking import evaluate_elsewhere

        completer = subject.completer(recipe)
        return evaluate_elsewhere(completer.name, completer, recipe, prepared, progress)
    from luthier.evaluate.run import evaluate

    here = hardware.this_machine()
    subject = replace(subject, num_devices=_devices_needed(subject, here.gpus))
    replicas = _replicas(recipe, len(here.gpus) // subject.num_devices or here.cores, progress)
    if replicas <= 1:
        return evaluate(subject, recipe, prepared, progress)
    return _in_ranks(_request(subject, recipe, prepared), folder / "ranks", replicas, progress)


def timed(tuned: Subject, other: Subject | Elsewhere, recipe: Recipe, prepared: Prepared, progress: Progress) -> InTurn:
    """Single answers of both, in turn, on as many devices as the larger takes."""
    from luthier.evaluate.in_turn import time_in_turn

    here = hardware.this_machine()
    if isinstance(other, Elsewhere):
        alone = replace(tuned, num_devices=_devices_needed(tuned, here.gpus))
        return time_in_turn(alone, other.completer(recipe), recipe, prepared, progress)
    needed = max(_devices_needed(subject, here.gpus) for subject in (tuned, other))
    return time_in_turn(replace(tuned, num_devices=needed), replace(other, num_devices=needed), recipe, prepared, progress)


def on_devices(subject: Subject) -> Completer:
    """A model that answers in this process, on as many devices as it takes."""
    from luthier.evaluate.run import loaded
    from luthier.model.load import resolve_devices

    return loaded(subject, resolve_devices(_devices_needed(subject, hardware.this_machine().gpus), 0))


def evaluate_rank(folder: Path) -> None:
    """Answer, as one of the ranks that torchrun started, what the request in `folder` asks; rank 0 leaves the report."""
    from luthier.data.store import Prepared
    from luthier.evaluate.run import Subject, evaluate
    from luthier.plan.setup import Layout
    from luthier.recipe.schema import Model, Recipe
    from luthier.runs.heartbeat import Heartbeat, listen
    from luthier.runs.store import RunFolder, prepared_root
    from luthier.train.ranks import join, part

    rank = int(os.environ["RANK"])
    run = RunFolder(folder, read_only=rank > 0)
    listen(run, rank)
    with ending_at_once(), Heartbeat(run, rank) as heart, run.progress.open("a", encoding="utf-8") as told:
        heart.beat("scoring", 0)
        ranks = join(Layout(data=int(os.environ["WORLD_SIZE"])), heart.waiting)
        asked = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        subject = Subject(
            name=asked["subject"],
            model=Model.model_validate(asked["model"]),
            adapters=tuple(Path(adapter) for adapter in asked["adapters"]),
            num_devices=asked["num_devices"],
        )
        progress = Alive(heart, Told(told) if ranks.first else Silent())
        prepared = Prepared(prepared_root() / asked["prepared"])
        report = evaluate(subject, Recipe.model_validate(asked["recipe"]), prepared, progress, ranks)
        if ranks.first:
            report.write(folder / REPORT)
        part(ranks)


def is_address(name: str) -> bool:
    """Whether it is a server that is named."""
    return name.startswith(("http://", "https://"))


def tuned_by(run: RunFolder, recipe: Recipe) -> Subject:
    """What a finished run left: its adapter over its base, or its whole model."""
    from luthier.evaluate.run import Subject

    refuse_unfinished(run)
    return Subject(name=run.name, model=model_of(run, recipe), adapters=() if recipe.lora == "none" else (run.adapter,))


def model_or_adapter(name: str, recipe: Recipe) -> Subject:
    """A folder with an adapter goes over the recipe's base; anything else is itself a model."""
    from luthier.evaluate.run import Subject

    if (Path(name) / "adapter_config.json").exists():
        return Subject(name=name, model=recipe.model, adapters=(Path(name),))
    if name == recipe.model.base:
        return Subject(name=name, model=recipe.model)
    model = recipe.model
    return Subject(name=name, model=model.in_folder(Path(name)) if Path(name).is_dir() else model.model_copy(update={"base": name}))


def _devices_needed(subject: Subject, gpus: Sequence[Gpu]) -> int:
    """How many of these GPUs have the weights and a batch's caches together, its layers divided among them; 1 on a CPU."""
    from luthier.data.repository import open_repository
    from luthier.model.load import resolve_device, resolve_dtype
    from luthier.plan.asked import BATCH_TOKENS
    from luthier.plan.serving import serving_needs
    from luthier.plan.shape import shape_of

    if len(gpus) <= 1:
        return 1
    _, dtype = resolve_dtype(subject.model.dtype, resolve_device())
    try:
        shape = shape_of(open_repository(subject.model).json("config.json"))
    except ModelError:  # transformers may know it; how large it is shows when it is loaded
        return 1
    needs = serving_needs(shape, cast("Dtype", dtype.value), subject.model.quantization, BATCH_TOKENS, 1)
    return needs.devices(min(gpu.memory_bytes for gpu in gpus), len(gpus))


def _replicas(recipe: Recipe, places: int, progress: Progress) -> int:
    """Those that the recipe has on one machine, as far as there are places here, each a core or the GPUs that have the whole model."""
    wanted = 1 if recipe.parallel.data == "auto" else recipe.parallel.data // recipe.parallel.nodes
    if 1 < wanted > places:
        progress.say(f"answered by {places} of the recipe's {wanted} replicas: there are no more devices here")
    return min(wanted, places)


def _request(subject: Subject, recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    return {
        "subject": subject.name,
        "model": subject.model.model_dump(mode="json"),
        "adapters": [str(adapter.absolute()) for adapter in subject.adapters],
        "num_devices": subject.num_devices,
        "recipe": recipe.model_dump(mode="json"),
        "prepared": prepared.summary.hash,
    }


def _in_ranks(request: dict[str, Any], place: Path, num_ranks: int, progress: Progress) -> Report:
    from luthier.core.hardware import free_memory_bytes
    from luthier.evaluate import report
    from luthier.launch.group import run_group
    from luthier.launch.nodes import Node
    from luthier.launch.torchrun import start_words
    from luthier.runs.store import RunFolder, alone

    place.mkdir(parents=True, exist_ok=True)
    run = RunFolder(place)
    with alone(run):
        files.write_json(place / REQUEST, request)
        with shown(run.progress, progress):
            command = rank_command("evaluate", run, free_memory_bytes(), start_words(num_ranks, Node()))
            ended = run_group(command, run, ranks=num_ranks, restarts=0, progress=progress)
        if ended.code:
            raise Interrupted(ended.code - 128)
        made = report.read(place / REPORT)
    shutil.rmtree(place)
    return made
