"""Serving in this process: runs over one base, or a model, each run's adapter compared with what was trained before it answers."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core.errors import ModelError, UsageError
from luthier.core.progress import Progress
from luthier.flow.handed import Ready, VerificationError, handed_of, ready
from luthier.flow.planning import SILENT

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from luthier.data.tokenizer import ChatTokenizer
    from luthier.export.merge import Handed
    from luthier.export.verify import Live, Sample
    from luthier.model.decode import Decoder
    from luthier.recipe.schema import Model
    from luthier.serve.adapters import Adapters
    from luthier.serve.dialogue import Dialogue
    from luthier.serve.served import Served

ROWS = 32
"""Answers that are written at once."""
CACHE_SHARE = 0.5
"""Of the memory that is free beside the weights, for keys and values."""

PARTS = ("base", "revision", "type", "quantization", "double_quant", "chat template", "stop ids")
"""What runs that are served together have in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Where a server listens, who may ask, and how long an answer may take."""

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: Path | Literal["none"] = "none"
    """Holds the token, or gets it; `none`: a new one each time, told once."""
    seconds: float = 600.0
    adapters_from: Path | Literal["nowhere"] = "nowhere"
    """The folder whose adapters may come and go while it answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What is to be said of a server: its address, its token where that was drawn, and what it answers as once it does."""

    url: str
    token: str
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What a run's model told of its own rows, as training computes it."""

    run: Ready
    handed: Handed
    sample: Sample
    live: Live


def serve(
    names: Sequence[str], opening: Opening, tell: Callable[[Standing], None], progress: Progress = SILENT, *, verified: bool = True
) -> None:
    """Answer OpenAI's clients with runs over one base, or with a model, until a signal ends it.

    `tell` hears that it listens, and then that it answers. Raises VerificationError, before anything is answered, where what would be
    served is not what was trained.
    """
    from luthier.serve.listen import Listening
    from luthier.serve.site import Limits, Site

    listening = Listening(opening.host, opening.port)
    token = token_in(opening.token_file)
    host = f"[{opening.host}]" if ":" in opening.host else opening.host
    url, shown = f"http://{host}:{listening.port}/v1", token if opening.token_file == "none" else ""
    site = Site(token, Limits(seconds=opening.seconds))
    with ExitStack() as engine, listening.answering(site) as server:
        tell(Standing(url=url, token=shown))
        site.served = served = engine.enter_context(embedded(names, progress, verified=verified, adapters_from=opening.adapters_from))
        tell(Standing(url=url, token=shown, models=tuple(served.models)))
        server.join()


@contextmanager
def talking(name: str, progress: Progress = SILENT, *, temperature: float = 0.0) -> Iterator[Dialogue]:
    """A dialogue with a finished run, or a model, in this process; its base answers on demand."""
    from luthier.core.generation import Sampling
    from luthier.serve.dialogue import Dialogue

    with embedded([name], progress, verified=False) as served:
        names = list(served.models)
        sampling = Sampling(max_new_tokens=served.engine.max_length, temperature=temperature, seed=secrets.randbits(62))
        yield Dialogue(served, names[0], names[-1], sampling)


@contextmanager
def embedded(
    names: Sequence[str], progress: Progress = SILENT, *, verified: bool = True, adapters_from: Path | Literal["nowhere"] = "nowhere"
) -> Iterator[Served]:
    """Models that answer here, by their names; raises UsageError where runs are not over one base, and VerificationError."""
    from luthier.model.load import load_model
    from luthier.recipe.base import base_name
    from luthier.serve.served import Served

    runs = _runs(names)
    if not runs:
        with _model_alone(names[0], adapters_from) as served:
            yield served
        return
    first = runs[0]
    _refuse_apart(runs)
    adapters = {run.run.name: _engine_name(place) for place, run in enumerate(runs)}
    if first.recipe.lora == "none":
        heard = _whole_live(first, progress) if verified else []
        model: PreTrainedModel | PeftModel = load_model(first.model, first.precision.dtype, first.precision.device)
        models = {first.run.name: ""}
    else:
        model = _adapted(runs, adapters)
        heard = _lives(model, runs, adapters, progress) if verified else []
        models = adapters | ({} if (base := base_name(first.recipe.model.base)) in adapters else {base: ""})
    with _decoding(model, first.recipe.model, _max_length(runs)) as engine:
        further = _further(engine, first.model, first.tokenizer, adapters_from)
        served = Served(engine=engine, tokenizer=first.tokenizer, models=models, adapters=further)
        for each in heard:
            _verify(each, served, progress)
        yield served


def _runs(names: Sequence[str]) -> list[Ready]:
    """The runs of these names; none where the only name is a model's. A run's name goes before a model's."""
    from luthier.runs.store import find

    if double := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"{', '.join(sorted(double))} is named twice")
    try:
        for name in names:
            find(name)
    except UsageError as error:
        if len(names) > 1:
            raise UsageError(error.what, change=f"several names must all be runs over one base; {error.change}") from error
        return []
    return [ready(name) for name in names]


def _refuse_apart(runs: Sequence[Ready]) -> None:
    """Raise UsageError where runs are not over one base, read in one way."""
    first = runs[0]
    for run in runs[1:]:
        if "none" in (first.recipe.lora, run.recipe.lora):
            whole = next(each.run.name for each in (first, run) if each.recipe.lora == "none")
            raise UsageError(f"run {whole} is a whole model, and no adapter beside others", change="serve it alone")
        for what, one, other in zip(PARTS, _parts(first), _parts(run), strict=True):
            if one != other:
                told = f": {one} and {other}" if max(len(str(one)), len(str(other))) < 60 else ""
                raise UsageError(f"runs {first.run.name} and {run.run.name} differ in {what}{told}", change="serve them one by one")


def _parts(run: Ready) -> tuple[object, ...]:
    """By PARTS."""
    from luthier.recipe.base import base_location

    model, tokenizer = run.recipe.model, run.tokenizer
    stored = (str(run.precision.dtype), model.quantization, model.double_quant)
    return (base_location(model.base), model.revision, *stored, tokenizer.template_hash, tokenizer.stop_ids)


def _engine_name(place: int) -> str:
    """PEFT's name of an adapter; a run's may have dots in it, which torch does not take."""
    from luthier.model.dropout import ADAPTER

    return ADAPTER if not place else f"{ADAPTER}-{place}"


def _adapted(runs: Sequence[Ready], adapters: dict[str, str]) -> PeftModel:
    from luthier.model.adapt import load_adapter
    from luthier.model.load import load_model

    first, *others = runs
    adapted = load_adapter(load_model(first.recipe.model, first.precision.dtype, first.precision.device), first.run.adapter)
    for run in others:
        load_adapter(adapted, run.run.adapter, adapters[run.run.name])
    return adapted


def _lives(model: PeftModel, runs: Sequence[Ready], adapters: dict[str, str], progress: Progress) -> list[Heard]:
    """What each adapter, and its base, tell of rows of its own run: before the engine has the model."""
    from luthier.export.verify import live_of

    heard = []
    for run in runs:
        handed, sample = handed_of(run, progress)
        model.set_adapter(adapters[run.run.name])
        heard.append(Heard(run=run, handed=handed, sample=sample, live=live_of(model, run.precision, sample.rows)))
    return heard


def _whole_live(run: Ready, progress: Progress) -> list[Heard]:
    from luthier.export.verify import listen

    handed, sample = handed_of(run, progress)
    return [Heard(run=run, handed=handed, sample=sample, live=listen(handed, sample.rows))]


def _verify(heard: Heard, served: Served, progress: Progress) -> None:
    """Compare what the engine tells of the run's rows; raises VerificationError where that is not what was trained."""
    from luthier.export.verify import compared
    from luthier.serve.speaker import EngineSpeaker

    run = heard.run.run
    told = EngineSpeaker(engine=served.engine, adapter=served.models[run.name]).log_probabilities(heard.sample.rows)
    verification = compared(heard.handed, heard.sample, heard.live, {"served": told})
    if not verification.passed:
        raise VerificationError(verification, run.path)
    apart = verification.apart["served"]
    progress.say(f"{run.name}: trained = served: {apart.mean:.3g} nats a token apart, {verification.allowed:.3g} are allowed")


@contextmanager
def _model_alone(name: str, adapters_from: Path | Literal["nowhere"]) -> Iterator[Served]:
    """A model that no run is of: the demo's, a folder's, such as one that was exported, or the hub's."""
    from luthier.data.tokenizer import load_tokenizer
    from luthier.model.load import load_model, resolve_device, resolve_dtype
    from luthier.plan.serving import ENOUGH
    from luthier.recipe.base import base_name
    from luthier.recipe.schema import Model
    from luthier.serve.served import Served

    model, device = Model(base=name), resolve_device()
    try:
        tokenizer = load_tokenizer(model)
    except ModelError as error:
        raise UsageError(f"neither a run nor a model: {error.what}", where=name, change=error.change) from error
    dtype, _ = resolve_dtype(model.dtype, device)
    with _decoding(load_model(model, dtype, device), model, ENOUGH) as engine:
        further = _further(engine, model, tokenizer, adapters_from)
        yield Served(engine=engine, tokenizer=tokenizer, models={base_name(model.base): ""}, adapters=further)


def _further(engine: Decoder, model: Model, tokenizer: ChatTokenizer, below: Path | Literal["nowhere"]) -> Adapters | Literal["fixed"]:
    """What may come and go, each over the base, template and stop ids that are served."""
    from luthier.model.adapt import check_provenance
    from luthier.serve.adapters import Adapters

    if isinstance(below, str):
        return "fixed"
    return Adapters(engine=engine, below=below.resolve(), check=lambda folder: check_provenance(folder, model, tokenizer))


@contextmanager
def _decoding(model: PreTrainedModel | PeftModel, of: Model, max_length: int) -> Iterator[Decoder]:
    """The engine over a model that is loaded; its caches take what memory allows."""
    from luthier.data.repository import open_repository
    from luthier.model.decode import Decoder
    from luthier.plan.asked import BATCH_TOKENS
    from luthier.plan.shape import shape_of

    shape = shape_of(open_repository(of).json("config.json"))
    longest = min(max_length, shape.max_positions)
    weight = next(model.parameters())
    each = shape.cache_numbers(longest) / longest * weight.dtype.itemsize
    most = int(CACHE_SHARE * _free_bytes(weight.device) / each)
    engine = Decoder(model, slots=ROWS, max_length=longest, cache_tokens=min(ROWS * longest, max(most, BATCH_TOKENS)))
    try:
        yield engine.start()
    finally:
        engine.close()


def _max_length(runs: Sequence[Ready]) -> int:
    """Tokens of a prompt and its answer: what one of the recipes says, or as long as its longest row and answer, and a dialogue."""
    from luthier.plan.serving import answerable
    from luthier.runs.summary import DataSummary

    return max(answerable(run.recipe, DataSummary.read(run.run.data).max_length) for run in runs)


def _free_bytes(device: torch.device) -> int:
    import torch

    from luthier.core.hardware import free_memory_bytes

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory_bytes()


def token_in(file: Path | Literal["none"]) -> str:
    """The token in a file, or a new one, which the file then has for its owner alone."""
    if file == "none":
        return secrets.token_urlsafe(24)
    try:
        if not file.exists():
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as new:
                new.write(secrets.token_urlsafe(24) + "\n")
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the token cannot be had from there: {error}", where=str(file)) from error
    if not token:
        raise UsageError("the file is empty: without a token nobody could ask", where=str(file), change="write one into it, or remove it")
    return token
