"""Files that are there whole or not at all, and what is said where they cannot be written."""

import errno
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from luthier.core import jsonl
from luthier.core.errors import RunError
from luthier.core.words import gigabytes

ADVICE = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room within the quota, or have it raised",
    errno.EFBIG: "raise the limit on a file's size (`ulimit -f unlimited`)",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "let the user who runs Luthier write there",
    errno.EPERM: "let the user who runs Luthier write there",
}
"""What mends it, by the system's reason."""
OF_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Reasons that nothing but writing has."""


Digest = dict[str, int | str]
"""`{bytes, sha256}` of a file."""
Stamp = frozenset[tuple[str, int, int, int]]
"""Path, inode, time of the last change and bytes of some files."""


class DiskError(RunError):
    """Something could not be written; what was there before still is."""


@contextmanager
def told(what: str, folder: Path) -> Iterator[None]:
    """Raise DiskError where the block raises OSError: what could not be written, where, why, and what mends it."""
    try:
        yield
    except OSError as error:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = f"{gigabytes(shutil.disk_usage(there).free)} are free there"
        mend = ADVICE.get(error.errno or 0, "see that the disk is there and sound")
        raise DiskError(
            f"{what} cannot be written: {error.strerror or error}",
            where=str(folder),
            change=f"{mend} ({free}), then the same command goes on",
        ) from error


def write(path: Path, content: str | bytes) -> None:
    """Write beside, flush to disk, rename: a crash leaves the old file or the new one, an error the old one."""
    part = path.with_name(path.name + ".part")
    data = content.encode() if isinstance(content, str) else content
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write` of indented strict JSON."""
    write(path, json_text(value))


def json_text(value: Any) -> str:
    """The text that `write_json` writes."""
    return jsonl.dumps(value, indent=2) + "\n"


@contextmanager
def replacing(folder: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` once it is flushed to disk; then `check` is given what the disk holds.

    Who may read its files is the umask's to say, whatever mode a library gave them: safetensors makes its own for their owner alone.

    Only after that the old folder goes. After an error, which may be `check`'s, nothing of the new one is left and `folder` is as it was.
    A crash may leave NAME.part, and NAME.old in place of `folder`: `put_back` is for that.
    """
    part = begin(folder)
    try:
        yield part
        take_place(folder)
        check(folder)
    except BaseException:
        take_back(folder)
        raise
    finish(folder)


def begin(folder: Path) -> Path:
    """An empty folder to fill, that is to take the place of another, in the steps of `replacing`."""
    part, _ = _beside(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def part_of(folder: Path) -> Path:
    """What `begin` begins."""
    part, _ = _beside(folder)
    return part


def take_place(folder: Path) -> None:
    """Flush what `begin` began, and give it the name of `folder`, which goes on as NAME.old; the next reading is the disk's."""
    part, old = _beside(folder)
    _open_as_usual(part)
    sync_folder(part)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    part.rename(folder)
    sync(folder.parent)
    drop_cached(folder)


def take_back(folder: Path) -> None:
    """Leave `folder` as it was before `begin`."""
    part, _ = _beside(folder)
    with suppress(OSError):
        if not part.exists():
            folder.rename(part)
        put_back(folder)
    shutil.rmtree(part, ignore_errors=True)


def finish(folder: Path) -> None:
    """Remove what `folder` has taken the place of."""
    _, old = _beside(folder)
    shutil.rmtree(old, ignore_errors=True)


def lock(file: TextIO, *, wait: bool) -> None:
    """Lock an open file for this process until it is closed or the process ends, however it ends.

    Raises BlockingIOError where another has it, unless it shall wait, and RunError on a file system without locks. Over NFS a lock holds
    between machines where the server's lock service runs.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError as error:
        what = f"this file system cannot lock files ({error.strerror}): two processes could write the same ones"
        raise RunError(what, where=file.name, change="set LUTHIER_RUNS to a folder on one that can") from error


def put_back(folder: Path) -> None:
    """Give the folder that a crash left as NAME.old its name again, where it has not got its successor."""
    _, old = _beside(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)


def remove(folder: Path) -> None:
    """Take a folder away: a crash leaves it whole, or as a NAME.part that nobody takes for it."""
    part, _ = _beside(folder)
    shutil.rmtree(part, ignore_errors=True)
    folder.rename(part)
    shutil.rmtree(part, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Flush a folder's entries, and every file in it, to disk."""
    for entry in [*(item for item in path.rglob("*") if item.is_file()), path]:
        sync(entry)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def stamp(*paths: Path) -> Stamp:
    """Which of these files are there, and as what: equal for as long as none is written, added, or taken away."""
    found = set()
    for path in paths:
        with suppress(OSError):
            now = path.stat()
            found.add((str(path), now.st_ino, now.st_mtime_ns, now.st_size))
    return frozenset(found)


def sha256(path: Path) -> str:
    """The file's sha256 as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(path: Path) -> Digest:
    """The file's size and sha256."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def digests(folder: Path) -> dict[str, Digest]:
    """`{name: {bytes, sha256}}` of what lies in a folder, by name."""
    return {path.name: digest(path) for path in sorted(folder.iterdir())}


def _beside(folder: Path) -> tuple[Path, Path]:
    """NAME.part and NAME.old."""
    return folder.with_name(folder.name + ".part"), folder.with_name(folder.name + ".old")


def _open_as_usual(folder: Path) -> None:
    """Give the files in it the mode of any new file."""
    umask = os.umask(0o077)  # it can only be read by setting it: files that another thread makes meanwhile are their owner's alone
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            with suppress(PermissionError):  # of a file system without modes
                path.chmod(0o666 & ~umask)


def drop_cached(folder: Path) -> None:
    """Let the next reading come from the disk and not from memory, where the system can do that."""
    if sys.platform != "linux":
        return
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
