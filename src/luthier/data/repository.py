"""The folder or hub repository that a base model lies in: its configuration files, and whether it can be reached at all."""

import json
import re
from collections.abc import Iterator
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
SHARD = re.compile(r"[\w.-]+\.safetensors")
"""What an index of weights may name: a file beside it. transformers would follow `../`, and unpickle what ends otherwise."""
INDEX = "model.safetensors.index.json"
KERNELS = re.compile(r"_?(?:attn|experts)_implementation(?:_internal)?")
"""Keys of config.json that can name a kernel: with a `/` it is a hub repository whose compiled code would be run (CVE-2026-4372)."""
FRONT, LICENCE = re.compile(r"---\n.*?\n---\n", re.DOTALL), re.compile(r"^license:\s*([\w.-]+)\s*$", re.MULTILINE)
"""What a model's card begins with, and the line in it that names the licence."""
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
        path = self.path(name)
        return read_json(path) if path else {}

    def path(self, name: str) -> Path | None:
        """One of its files, where it has it; fetched, where it lies on the hub."""
        if self.is_folder:
            path = Path(self.location) / name
            return path if path.exists() else None
        from transformers.utils import cached_file  # 0.7 s, which a base in a folder need not pay

        found = cached_file(
            self.location, name, revision=self.revision, local_files_only=self.cached_only, _raise_exceptions_for_missing_entries=False
        )
        return Path(found) if found else None

    def refuse_own_code(self) -> None:
        """Raise ModelError where config.json or tokenizer_config.json name code to run: the repository's own, or a kernel's."""
        for name in ("config.json", "tokenizer_config.json"):
            for key, value in _settings(self.json(name)):
                kernel = KERNELS.fullmatch(key) and "/" in json.dumps(value)
                if key == "auto_map" or kernel:
                    what = f"names a kernel of the hub to run ({key})" if kernel else "names code of the repository to run (auto_map)"
                    change = "read that code, then set model.trust_remote_code: true; or take a base that transformers knows itself"
                    raise ModelError(f"{name} {what}", where=self.location, change=change)

    def refuse_other_weights(self) -> None:
        """Raise ModelError where weights would be read that are not safetensors of this repository, whatever the recipe trusts."""
        if self.json("adapter_config.json"):  # transformers would load it unasked, over the base that it names, pickled or not
            change = "set model.base to the base it was trained on; lora.init_from takes the adapter"
            raise ModelError("this is an adapter, or holds one (adapter_config.json), not a base", where=self.location, change=change)
        if "transformers_weights" in self.json("config.json"):
            raise ModelError("config.json names its own file of weights (transformers_weights)", where=self.location, change="remove it")
        shards = self.json(INDEX).get("weight_map", {})
        strange = (
            [name for name in shards.values() if not (isinstance(name, str) and SHARD.fullmatch(name))]
            if isinstance(shards, dict)
            else [shards]
        )
        if strange:
            change = "convert the weights to safetensors, beside the index"
            raise ModelError(
                f"{INDEX} names {strange[0]!r:.80}, which is no safetensors file of the repository", where=self.location, change=change
            )

    def eos_ids(self) -> tuple[int, ...]:
        """eos ids of generation_config.json and config.json (for some models in its text_config)."""
        found: list[int] = []
        for name in ("generation_config.json", "config.json"):
            config = self.json(name)
            for section in (config, config.get("text_config")):
                eos = section.get("eos_token_id") if isinstance(section, dict) else None
                ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
                if wrong := [id for id in ids if not (isinstance(id, int) and 0 <= id < 2**31)]:
                    raise ModelError(f"{name} has eos_token_id {wrong[0]!r:.80}, which is no token id", where=self.location)
                found += ids
        return tuple(dict.fromkeys(found))

    def licence(self) -> str:
        """What its README.md names as `license:` in the hub's form; empty where there is none."""
        card = self.path("README.md")
        front = FRONT.match(card.read_text(encoding="utf-8", errors="replace")) if card else None
        named = LICENCE.search(front[0]) if front else None
        return named[1] if named else ""

    def tokenizer_files(self) -> dict[str, str]:
        """Name → sha256 of the files of a folder that decide how text becomes ids."""
        folder = Path(self.location)
        found = {path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}
        return {path.relative_to(folder).as_posix(): files.sha256(path) for path in sorted(found)}

    def not_loaded(self, error: BaseException) -> ModelError:
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


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file that may be a stranger's; raises ModelError where it holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"cannot be read as JSON: {error}", where=str(path), change="fetch the file anew") from error
    if not isinstance(content, dict):
        raise ModelError("holds no JSON object", where=str(path), change="fetch the file anew")
    return content


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


def _settings(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of nested objects with its value: text_config has settings of its own."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key, inner
        yield from _settings(inner)
    for inner in value if isinstance(value, list) else ():
        yield from _settings(inner)
