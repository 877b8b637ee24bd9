"""The folder or hub repository that a base model lies in: its configuration files, and whether it can be reached at all."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from luthier.core import files
from luthier.core.errors import ModelError
from luthier.recipe.base import base_location
from luthier.recipe.schema import Model

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
HUB_SECONDS = 5
"""How long the hub may take to answer at all; its own client would retry for 23 s a file."""
TOKENIZER_FILES = (
    *("config.json", "generation_config.json", "tokenizer*.json", "tokenizer*.model", "*.tiktoken", "vocab.*", "merges.txt"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.*", "additional_chat_templates/*", "tokenization*.py"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """Where a base is. `cached_only`: a hub repository, but the hub does not answer, so that only its local cache can help."""

    location: str
    revision: str
    is_folder: bool
    cached_only: bool

    def json(self, name: str) -> dict[str, Any]:
        """One of its JSON files; empty where it has none."""
        if self.is_folder:
            path = Path(self.location) / name
            return _read_json(path) if path.exists() else {}
        from transformers.utils import cached_file  # 0.7 s, which a base in a folder need not pay

        found = cached_file(
            self.location, name, revision=self.revision, local_files_only=self.cached_only, _raise_exceptions_for_missing_entries=False
        )
        return _read_json(Path(found)) if found else {}

    def refuse_own_code(self) -> None:
        """Raise ModelError where config.json or tokenizer_config.json name Python code of the repository to run."""
        for name in ("config.json", "tokenizer_config.json"):
            if "auto_map" in self.json(name):
                change = "read that code, then set model.trust_remote_code: true; or take a base that transformers knows itself"
                raise ModelError(f"{name} names code of the repository to run (auto_map)", where=self.location, change=change)

    def eos_ids(self) -> tuple[int, ...]:
        """eos ids of generation_config.json and config.json (for some models in its text_config)."""
        found: list[int] = []
        for name in ("generation_config.json", "config.json"):
            config = self.json(name)
            for section in (config, config.get("text_config") or {}):
                eos = section.get("eos_token_id")
                found += eos if isinstance(eos, list) else [] if eos is None else [eos]
        return tuple(dict.fromkeys(found))

    def tokenizer_files(self) -> dict[str, str]:
        """Name → sha256 of the files of a folder that decide how text becomes ids."""
        folder = Path(self.location)
        found = {path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}
        return {path.relative_to(folder).as_posix(): files.sha256(path) for path in sorted(found)}

    def not_loaded(self, error: Exception) -> ModelError:
        """What to tell a user for whom transformers could load nothing from here."""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if self.is_folder:
            return ModelError(f"the folder has no tokenizer that transformers can load: {reason}", where=self.location)
        if self.cached_only:
            change = "without a network, set model.base to a folder with config.json, weights and tokenizer, or to `demo`"
            what = f"the hub cannot be reached, and revision {self.revision!r} is not in the local cache"
            return ModelError(what, where=self.location, change=change)
        return ModelError(f"the hub does not give it: {reason}", where=self.location, change="check the id, and HF_TOKEN for a gated model")


def open_repository(model: Model) -> Repository:
    """The repository of `model.base`, after a look at whether it can be there; raises ModelError."""
    location = base_location(model.base)
    if Path(location).is_dir():
        if model.revision != "main":
            raise ModelError(f"a folder has no revision {model.revision!r}", where=location, change="remove model.revision")
        return Repository(location=location, revision="main", is_folder=True, cached_only=False)
    if not HUB_ID.fullmatch(location):
        raise ModelError("there is no such folder, and it is no hub id", where=location, change="a hub id looks like `Qwen/Qwen3-0.6B`")
    return Repository(location=location, revision=model.revision, is_folder=False, cached_only=not _hub_answers())


def _hub_answers() -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_SECONDS).close()
    except HTTPError:
        return True  # an answer, if not a friendly one
    except OSError:
        return False
    return True


def _read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
