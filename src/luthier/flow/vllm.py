"""vLLM: a run or a model served by it, and a folder from which it serves a run elsewhere."""

from __future__ import annotations

import os
import secrets
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

if TYPE_CHECKING:
    from luthier.export.verify import Live, Verification
    from luthier.export.vllm import Deployment
    from luthier.recipe.schema import Recipe, Serving
    from luthier.serve.child import Child
    from luthier.serve.vllm import Served


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """A vLLM that answers: where, as what, and what was compared before it was called ready."""

    url: str
    model: str
    """The name of what was trained."""
    token: str
    log: Path
    command: tuple[str, ...]
    verification: Verification | Literal["none"]
    """`none`: a model that nobody trained here, or nobody wanted it compared."""
    child: Child


@contextmanager
def serving_run(name: str, changes: Sequence[str] = (), progress: Progress = SILENT, *, compared: bool = True) -> Iterator[Answering]:
    """A finished run served by vLLM while it is open. Of its recipe, changes `serving.key=value` (or `@FILE`) may change that section.

    It is compared with the live adapter before it is called ready, which is loaded, asked and freed before vLLM takes the device: raises
    VerificationError where what is served is not what was trained.
    """
    from luthier.data.repository import open_repository
    from luthier.export.verify import listen, verify_served
    from luthier.serve import vllm
    from luthier.serve.client import Remote

    found = finished(name, progress)
    recipe = _changed(found, changes)
    python, repository = vllm.python_of(recipe.serving), open_repository(recipe.model)
    served = vllm.of_run(found.run, recipe, repository, found.dtype)
    folder = vllm.serving_folder(found.run)
    folder.mkdir(exist_ok=True)
    files.write_json(folder / vllm.STOPS, vllm.stops(repository, found.handed.tokenizer.stop_ids))
    live: Live | Literal["none"] = listen(found.handed, found.sample.rows) if compared else "none"
    with _answering(served, recipe.serving, python, folder / "log.txt", progress) as answering:
        if live == "none":
            yield answering
            return
        server = Remote.at(answering.url, answering.model, answering.token)
        verification = verify_served(live, found.handed, found.sample, server, {})
        found.run.event("served", engine="vllm", url=answering.url, verification=verification.to_json())
        if not verification.passed:
            raise VerificationError(verification, folder)
        yield replace(answering, verification=verification)


@contextmanager
def serving_model(recipe: Recipe, progress: Progress = SILENT) -> Iterator[Answering]:
    """The recipe's base, as its files have it, served by vLLM while it is open: nothing was trained here, and nothing is compared."""
    from luthier.data.repository import open_repository
    from luthier.runs.store import runs_root
    from luthier.serve import vllm

    python, repository = vllm.python_of(recipe.serving), open_repository(recipe.model)
    if not recipe.model.trust_remote_code:
        repository.refuse_own_code()
    served = vllm.of_model(recipe.model, recipe.serving, repository)
    log = runs_root() / "serving" / f"{recipe.name}.txt"
    with _answering(served, recipe.serving, python, log, progress) as answering:
        yield answering


def serve_vllm(
    subject: str, changes: Sequence[str], tell: Callable[[Answering], None], progress: Progress = SILENT, *, compared: bool
) -> None:
    """Serve a run by its name, or the base of a recipe's file, until a signal comes or the server ends, which is an error."""
    from luthier.recipe.load import load

    recipe = Path(subject)
    with (
        serving_model(load(recipe, changes).recipe, progress)
        if recipe.suffix in (".yaml", ".yml", ".toml") and recipe.is_file()
        else serving_run(subject, changes, progress, compared=compared)
    ) as answering:
        tell(answering)
        answering.child.wait()


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
    options = vllm.options_of(recipe.serving)
    python = options.python or os.environ.get(vllm.PYTHON, "/opt/vllm/bin/python")
    return Deployment(
        name=run.name,
        folder=folder,
        here=vllm.command(served, recipe.serving, python),
        contained=vllm.command(contained, recipe.serving, "python3", host="0.0.0.0"),
        base=base,
        port=recipe.serving.port,
        devices=options.tensor_parallel,
    )


def _card_of_adapter(found: Finished, part: Path, licence: str) -> None:
    """All that is known of it by now, in place of what training knew."""
    from luthier.train.card import card

    files.write(part / "README.md", card(found.handed.origin, "adapter", replace(found.known, licence=licence)))


def _changed(found: Finished, changes: Sequence[str]) -> Recipe:
    """The run's recipe with another section `serving`; raises UsageError for changes of anything else."""
    from luthier.recipe.load import load

    own = found.handed.origin.recipe
    recipe = load(found.run.recipe, changes).recipe
    if recipe.model_copy(update={"serving": own.serving}) != own:
        raise UsageError("a run is served as it was trained: only its section `serving` can be changed", change="serving.port=8101")
    return recipe


@contextmanager
def _answering(served: Served, serving: Serving, python: str, log: Path, progress: Progress) -> Iterator[Answering]:
    """vLLM, started and healthy."""
    from luthier.serve import child, vllm

    port = child.free_port(serving.port)
    command = vllm.command(served, serving.model_copy(update={"port": port}), python)
    token = os.environ.get(vllm.TOKEN) or secrets.token_urlsafe(24)
    if served.note:
        progress.say(served.note)
    progress.say(f"vLLM starts; it prints into {log}")
    with child.running(command, {"VLLM_API_KEY": token, "VLLM_NO_USAGE_STATS": "1"}, log) as process:
        url = f"http://{vllm.HERE}:{port}"
        process.until_healthy(f"{url}/health")
        yield Answering(url=url, model=served.asked_as, token=token, log=log, command=command, verification="none", child=process)
