"""vLLM: a run or a model served by it, and a folder from which it serves a run elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core import files
from luthier.core.errors import UsageError
from luthier.core.progress import Progress
from luthier.flow.handed import Exported, Finished, VerificationError, finished
from luthier.flow.planning import SILENT
from luthier.flow.serving import Opening, token_in

if TYPE_CHECKING:
    from luthier.export.verify import Live, Verification
    from luthier.export.vllm import Deployment
    from luthier.recipe.draft import Draft
    from luthier.recipe.schema import Model
    from luthier.recipe.serving import Serving
    from luthier.serve.child import Child
    from luthier.serve.vllm import Served


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """A vLLM that answers: where, as what, and what was compared before it was called ready."""

    url: str
    """Up to, and without, `/v1`."""
    models: tuple[str, ...]
    """What was trained, then its base."""
    token: str
    log: Path
    verification: Verification | Literal["none"]
    """`none`: a model that nobody trained here, or nobody wanted it compared."""
    child: Child


def serving_of(name: str, changes: Sequence[str]) -> Serving:
    """How a run, the model of a recipe's file, or a model is to be served: its section `serving`, with changes `serving.key=value`.

    Raises UsageError for changes of anything else: a run is served as it was trained.
    """
    return chosen(name, changes).serving


def serve_vllm(
    name: str, changes: Sequence[str], opening: Opening, tell: Callable[[Answering], None], progress: Progress, *, verified: bool = True
) -> None:
    """Serve a run, the model of a recipe's file, or a model, by vLLM, until a signal comes or vLLM ends, which is an error."""
    with answering(name, changes, opening, progress, verified=verified) as found:
        tell(found)
        found.child.wait()


@contextmanager
def answering(
    name: str, changes: Sequence[str], opening: Opening, progress: Progress = SILENT, *, verified: bool = True
) -> Iterator[Answering]:
    """vLLM with a model, while it is open.

    A run is compared with its live adapter before it is called ready: that is loaded, asked and freed before vLLM takes the device. Raises
    VerificationError where what is served is not what was trained.
    """
    from luthier.serve.listen import HERE

    what = chosen(name, changes)
    if opening.seconds != Opening().seconds:
        raise UsageError("vLLM ends no request by the time that it takes", change="leave out --timeout")
    if opening.host != HERE:
        raise UsageError("vLLM asks for its token under /v1 alone", change=f"leave --host at {HERE}, with a proxy of your own before it")
    serving = what.serving.model_copy(update={"port": opening.port})
    with (
        _of_model(what.model, serving, opening, progress)
        if what.run == "none"
        else _of_run(what.run, serving, opening, progress, verified) as found
    ):
        yield found


def packed(found: Finished, part: Path, folder: Path, progress: Progress) -> Exported:
    """`export --to vllm`: what vLLM loads, and what starts it, in one flat folder."""
    from luthier.data.repository import open_repository, read_json
    from luthier.export.merge import Merged, write
    from luthier.export.verify import verify as compare
    from luthier.model.adapt import PROVENANCE
    from luthier.serve import vllm

    recipe, repository = found.handed.origin.recipe, open_repository(found.handed.model)
    reasons = ("the whole model was trained",) if recipe.lora == "none" else vllm.unservable(found.run, recipe)
    if reasons:
        made = write(found.handed, part, found.known, progress)
    else:
        made = Merged(over="copied")
        shutil.copytree(found.handed.adapter, part, dirs_exist_ok=True)
        _card_of_adapter(found, part, repository.licence())
    files.write_json(part / vllm.STOPS, vllm.stops(repository, found.handed.tokenizer.stop_ids))
    deployment = _deployment(found, folder, whole=bool(reasons))
    for name, text in deployment.texts().items():
        files.write(part / name, text)
    card = (part / "README.md").read_text(encoding="utf-8")
    files.write(part / "README.md", card + deployment.chapter())
    verification = compare(found.handed, found.sample, {"exported": part}, progress)
    told = {"merged_because": list(reasons), "command": list(deployment.here)}
    provenance = {**read_json(part / PROVENANCE), "vllm": told}
    (part / PROVENANCE).unlink()
    files.write_json(part / PROVENANCE, provenance | {"files": files.digests(part)})
    return Exported(folder=folder, to="vllm", made=made, verification=verification, told=told)


def _deployment(found: Finished, folder: Path, *, whole: bool) -> Deployment:
    """The commands that serve the exported folder, on this machine and in a container."""
    from luthier.data.repository import open_repository
    from luthier.export.vllm import BASE, MOUNTED, Deployment
    from luthier.serve import vllm

    run, recipe, repository = found.run, found.handed.origin.recipe, open_repository(found.handed.model)
    served = (
        vllm.of_whole(run, recipe, repository, found.dtype, folder)
        if whole
        else replace(vllm.of_adapter(run, recipe, repository, found.dtype), adapter=folder)
    )
    served = replace(served, chat_template=folder / "chat_template.jinja", stops=folder)
    inside = Path(MOUNTED)
    base: Path | Literal["hub"] = Path(repository.location) if repository.is_folder and not whole else "hub"
    contained = replace(
        served,
        model=MOUNTED if whole else BASE if repository.is_folder else served.model,
        adapter="none" if whole else inside,
        chat_template=inside / "chat_template.jinja",
        stops=inside,
    )
    port = recipe.serving.port or Opening().port  # what is written down cannot be drawn each time
    serving, options = recipe.serving.model_copy(update={"port": port}), vllm.options_of(recipe.serving)
    python = options.python or os.environ.get(vllm.PYTHON, "/opt/vllm/bin/python")
    return Deployment(
        name=run.name,
        folder=folder,
        here=vllm.command(served, serving, python),
        contained=vllm.command(contained, serving, "python3", host="0.0.0.0"),
        base=base,
        port=port,
        devices=options.tensor_parallel,
    )


def _card_of_adapter(found: Finished, part: Path, licence: str) -> None:
    """All that is known of it by now, in place of what training knew."""
    from luthier.train.card import card

    files.write(part / "README.md", card(found.handed.origin, "adapter", replace(found.known, licence=licence)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a name stands for, and how it is to be served."""

    run: str
    """`none`: no run's model."""
    model: Model
    serving: Serving


def chosen(name: str, changes: Sequence[str]) -> Chosen:
    """A run by its name or folder, the model of a recipe's file, or a model; raises UsageError as `serving_of` does."""
    from luthier.recipe.draft import Draft
    from luthier.recipe.load import load
    from luthier.recipe.parse import parse
    from luthier.runs.store import find

    file = Path(name)
    if file.suffix in (".yaml", ".yml", ".toml") and file.is_file():
        draft = parse(file)
        if "data" not in draft.values:
            return _to_serve(draft, changes)
        recipe = load(file, changes).recipe
        return Chosen(run="none", model=recipe.model, serving=recipe.serving)
    try:
        run = find(name)
    except UsageError:
        return _to_serve(Draft(file=file, values={"model": {"base": name}}), changes)
    own, recipe = load(run.recipe).recipe, load(run.recipe, changes).recipe
    if recipe.model_copy(update={"serving": own.serving}) != own:
        raise UsageError("a run is served as it was trained: only its section `serving` can be changed", change="serving.port=8101")
    return Chosen(run=name, model=recipe.model, serving=recipe.serving)


def _to_serve(draft: Draft, changes: Sequence[str]) -> Chosen:
    """A model without rows: sections `model` and `serving`, of a file or of the command line."""
    from pydantic import ValidationError

    from luthier.recipe.load import make_absolute
    from luthier.recipe.override import override
    from luthier.recipe.schema import Model
    from luthier.recipe.serving import Serving

    for change in changes:
        override(draft, change)
    if other := draft.values.keys() - {"model", "serving"}:
        what = f"a model is served by the sections `model` and `serving`, not by `{min(other)}`"
        raise UsageError(what, where=str(draft.file), change="leave it out; or serve a run, or a recipe with `data`")
    make_absolute(draft)
    try:
        model, serving = Model.model_validate(draft.values["model"]), Serving.model_validate(draft.values.get("serving", {}))
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        what = f"{'.'.join(map(str, wrong['loc'])) or 'serving'}: {wrong['msg'].removeprefix('Value error, ')}"
        raise UsageError(what, where=str(draft.file), change="docs/reference/recipe.md tells more") from error
    return Chosen(run="none", model=model, serving=serving)


@contextmanager
def _of_run(name: str, serving: Serving, opening: Opening, progress: Progress, verified: bool) -> Iterator[Answering]:
    from luthier.data.repository import open_repository
    from luthier.export.verify import listen, verify_served
    from luthier.serve import vllm
    from luthier.serve.client import Remote

    found = finished(name, progress)
    recipe = found.handed.origin.recipe.model_copy(update={"serving": serving})
    python, repository = vllm.python_of(serving), open_repository(recipe.model)
    served = vllm.of_run(found.run, recipe, repository, found.dtype)
    folder = vllm.serving_folder(found.run)
    folder.mkdir(exist_ok=True)
    files.write_json(folder / vllm.STOPS, vllm.stops(repository, found.handed.tokenizer.stop_ids))
    live: Live | Literal["none"] = listen(found.handed, found.sample.rows) if verified else "none"
    with _started(served, serving, python, folder / "log.txt", opening, progress) as answers:
        if live == "none":
            yield answers
            return
        server = Remote.at(answers.url, answers.models[0], answers.token)
        verification = verify_served(live, found.handed, found.sample, server, {})
        found.run.event("served", engine="vllm", verification=verification.to_json())
        if not verification.passed:
            raise VerificationError(verification, folder)
        yield replace(answers, verification=verification)


@contextmanager
def _of_model(model: Model, serving: Serving, opening: Opening, progress: Progress) -> Iterator[Answering]:
    """As its files have it: nothing was trained here, and nothing is compared."""
    from luthier.data.repository import open_repository
    from luthier.runs.store import runs_root
    from luthier.serve import vllm

    python, repository = vllm.python_of(serving), open_repository(model)
    if not model.trust_remote_code:
        repository.refuse_own_code()
    served = vllm.of_model(model, serving, repository)
    log = runs_root() / "serving" / f"{served.name.replace('/', '-')}.txt"
    with _started(served, serving, python, log, opening, progress) as answers:
        yield answers


@contextmanager
def _started(served: Served, serving: Serving, python: str, log: Path, opening: Opening, progress: Progress) -> Iterator[Answering]:
    """vLLM, once it is healthy."""
    from luthier.serve import child, vllm
    from luthier.serve.listen import HERE

    port, token = child.free_port(serving.port), token_in(opening.token_file)
    command = vllm.command(served, serving.model_copy(update={"port": port}), python)
    if served.note:
        progress.say(served.note)
    progress.say(f"vLLM starts; it prints into {log}")
    with child.running(command, {"VLLM_API_KEY": token, "VLLM_NO_USAGE_STATS": "1"}, log) as process:
        url = f"http://{HERE}:{port}"
        process.until_healthy(f"{url}/health")
        models = tuple(dict.fromkeys((served.asked_as, served.name)))
        yield Answering(url=url, models=models, token=token, log=log, verification="none", child=process)
