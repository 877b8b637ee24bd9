"""The disk that runs lie on: how much is free, what kind it is, and whether locks hold there."""

import fcntl
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

IN_MEMORY = {"tmpfs", "ramfs"}
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "lustre", "ceph", "glusterfs", "beegfs", "gpfs", "afs", "virtiofs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder that will be written to, by the nearest parent that exists."""

    path: Path
    kind: str
    """Of its file system: `ext4`, `nfs4`, `fuse.sshfs`; empty where the system does not tell."""
    free_bytes: int
    free_files: int
    writable: bool
    locks: bool
    """A second lock on a file that is locked is refused."""

    @property
    def in_memory(self) -> bool:
        """Whether a reboot empties it."""
        return self.kind in IN_MEMORY

    @property
    def on_network(self) -> bool:
        """Whether another machine keeps it."""
        return self.kind in NETWORK or self.kind.startswith("fuse.")


def look(path: Path) -> Place:
    """What the folder lies on, or will; a small file is written there for a moment, and locked twice."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    free = os.statvfs(existing)
    writable, locks = _try(existing)
    return Place(
        path=path,
        kind=kind_of(existing.resolve(), [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]),
        free_bytes=free.f_bavail * free.f_frsize,
        free_files=free.f_favail if free.f_files else 10**9,  # btrfs and the like count no files
        writable=writable,
        locks=locks,
    )


def kind_of(path: Path, mounts: list[tuple[str, str]]) -> str:
    """The file system that is mounted nearest above a path; of two at one place the later, which hides the other."""
    above = [(len(Path(mount).parts), number, kind) for number, (mount, kind) in enumerate(mounts) if path.is_relative_to(mount)]
    return max(above)[2] if above else ""


def _try(folder: Path) -> tuple[bool, bool]:
    """Whether a file can be written there, and whether a lock on it holds."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".luthier-") as file:
            file.write(b"doctor")
            file.flush()
            os.fsync(file.fileno())
            return True, _lock_holds(Path(file.name))
    except OSError:
        return False, False


def _lock_holds(path: Path) -> bool:
    with path.open() as first, path.open() as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # ENOLCK, ENOTSUP
            return False
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
