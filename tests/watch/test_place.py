"""The disk that runs lie on is found, tried, and left as it was."""

import fcntl
from pathlib import Path

import pytest

from luthier.watch import place

KINDS = {"/home": "nfs4", "/dev": "devtmpfs", "/dev/shm": "tmpfs"}
MOUNTS = [("/", "rootfs"), ("/", "ext4"), *KINDS.items(), ("/data", "ext4"), ("/data", "xfs")]


def test_a_folder_that_is_not_there_yet_is_looked_at_by_its_parent_and_left_empty(tmp_path: Path) -> None:
    seen = place.look(tmp_path / "a" / "runs")
    assert seen.free_bytes > 0
    assert seen.writable and seen.locks
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_takes_no_files_is_not_writable() -> None:
    seen = place.look(Path("/proc/luthier"))
    assert (seen.kind, seen.writable, seen.locks) == ("proc", False, False)


def test_a_lock_that_does_not_hold_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda file, how: None)  # as NFS with nolock does
    assert not place.look(tmp_path).locks


def test_a_lock_that_is_refused_by_the_file_system_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    seen = place.look(tmp_path)
    assert (seen.writable, seen.locks) == (True, False)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/home/me/runs", "nfs4"), ("/homework", "ext4"), ("/dev/shm/runs", "tmpfs"), ("/", "ext4"), ("/data/runs", "xfs")],
)
def test_the_nearest_mount_above_decides_and_of_two_the_later(path: str, kind: str) -> None:
    mounts = [
        ("/", "rootfs"),
        ("/", "ext4"),
        ("/home", "nfs4"),
        ("/dev", "devtmpfs"),
        ("/dev/shm", "tmpfs"),
        ("/data", "ext4"),
        ("/data", "xfs"),
    ]
    assert place.kind_of(Path(path), mounts) == kind
