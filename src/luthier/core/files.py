"""Files that are there whole or not at all."""

import hashlib
import os
from pathlib import Path
from typing import Any

from luthier.core import jsonl


def write(path: Path, content: str | bytes) -> None:
    """Write beside, flush to disk, rename: a crash leaves the old file or the new one."""
    part = path.with_name(path.name + ".part")
    data = content.encode() if isinstance(content, str) else content
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def write_json(path: Path, value: Any) -> None:
    """`write` of indented strict JSON."""
    write(path, jsonl.dumps(value, indent=2) + "\n")


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, and every file in it, to disk."""
    for entry in [*(item for item in path.rglob("*") if item.is_file()), path]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256(path: Path) -> str:
    """The file's sha256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
