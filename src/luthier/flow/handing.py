"""Handing over: a run's model as others load it, and the comparison that says it is what was trained."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from luthier.core import files
from luthier.core.errors import UsageError
from luthier.core.progress import Progress
from luthier.flow.handed import FORMS, Exported, Finished, To, VerificationError, finished
from luthier.flow.planning import SILENT
from luthier.flow.vllm import packed

if TYPE_CHECKING:
    from luthier.export.verify import Verification


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A server to compare with: where it is, the model's name there (`run`: the run's), and the environment variable with its token."""

    url: str
    model: str = "run"
    token_env: str = "LUTHIER_TOKEN"


def export(name: str, out: Path | Literal["run"] = "run", progress: Progress = SILENT, to: To = "merged") -> Exported:
    """A finished run's model in one folder, `runs/NAME/FORM` or another, that others load.

    It is loaded anew and compared with the live adapter first: where it is another model, VerificationError is raised and nothing is left.
    """
    from luthier.train.final import check_written

    if to == "gguf":
        from luthier.export.gguf import checkout_of

        checkout_of()  # before anything slow
    found = finished(name, progress)
    folder = found.run.path / to if out == "run" else out.absolute()
    _refuse_foreign(folder)
    with files.told(f"the export to {to}", folder), files.replacing(folder, check_written) as part:
        exported = {"merged": _merged, "gguf": _gguf, "vllm": packed}[to](found, part, folder, progress)
        if not exported.verification.passed:
            raise VerificationError(exported.verification, folder)
    found.run.event("exported", to=to, **exported.to_json())
    return exported


def verify(
    name: str, merged: Path | Literal["run"] = "run", progress: Progress = SILENT, served: Address | Literal["none"] = "none"
) -> Verification:
    """A finished run's live adapter against its base and its merged model: the run's own, where there is one, or the one in a folder; and,
    where there is an address, against the server's."""
    from luthier.export.verify import listen, verify_served
    from luthier.export.verify import verify as compare

    found = finished(name, progress)
    folders = {"merged": _model_in(merged)} if merged != "run" else {"merged": found.run.merged} if found.run.merged.exists() else {}
    if served == "none":
        return compare(found.handed, found.sample, folders, progress)
    from luthier.serve.client import Remote

    model = found.run.name if served.model == "run" else served.model
    server = Remote.at(served.url, model, os.environ.get(served.token_env, ""))
    server.refuse_unknown()  # before anything slow
    return verify_served(listen(found.handed, found.sample.rows), found.handed, found.sample, server, folders)


def _merged(found: Finished, part: Path, folder: Path, progress: Progress) -> Exported:
    """Plain weights for plain transformers."""
    from luthier.export.merge import write
    from luthier.export.verify import verify as compare

    made = write(found.handed, part, found.known, progress)
    verification = compare(found.handed, found.sample, {"merged": part}, progress)
    return Exported(folder=folder, to="merged", made=made, verification=verification, told={})


def _gguf(found: Finished, part: Path, folder: Path, progress: Progress) -> Exported:
    """One file for llama.cpp, from the merged model, which does not stay."""
    from luthier.data.repository import read_json
    from luthier.export import gguf
    from luthier.export.merge import write
    from luthier.export.verify import verify as compare
    from luthier.model.adapt import PROVENANCE

    whole, name, tokenizer = part / "merged", f"{found.run.name}.gguf", found.handed.tokenizer
    whole.mkdir()
    made = write(found.handed, whole, found.known, progress)
    progress.say("llama.cpp's converter writes the file")
    gguf.convert(whole, part / name, found.handed.precision.dtype, tokenizer)
    tensors = gguf.compare(part / name, whole, tokenizer)
    verification = compare(found.handed, found.sample, {"merged": whole}, progress, gguf.runtimes(part / name))
    files.write(part / "Modelfile", gguf.modelfile(name, tokenizer))
    files.write(part / "README.md", (whole / "README.md").read_text(encoding="utf-8") + gguf.chapter(name, tensors))
    provenance = {**read_json(whole / PROVENANCE), "gguf": tensors.to_json()}
    shutil.rmtree(whole)
    files.write_json(part / PROVENANCE, provenance | {"files": files.digests(part)})
    return Exported(folder=folder, to="gguf", made=made, verification=verification, told={"tensors": tensors.to_json()})


def _refuse_foreign(folder: Path) -> None:
    """Raise UsageError where the folder holds something that was not exported: it would be replaced whole."""
    from luthier.data.repository import read_json
    from luthier.model.adapt import PROVENANCE

    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and not ((folder / PROVENANCE).exists() and set(FORMS) & set(read_json(folder / PROVENANCE))):
        raise UsageError("the folder is not empty, and no earlier export", where=str(folder), change="give --out another folder")


def _model_in(path: Path) -> Path:
    if not (path / "config.json").exists():
        raise UsageError("no model here: it has no config.json", where=str(path), change="give the folder that `luthier export` wrote")
    return path
