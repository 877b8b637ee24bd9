"""The C library: built once, in a folder nobody else can write to, with torch's OpenMP; and where it cannot be, the reason is known."""

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from luthier.model import native as module
from luthier.model.native import built, cache_folder, compilers, native

without = not compilers() or os.environ.get("LUTHIER_NATIVE") == "0"
pytestmark = pytest.mark.skipif(without, reason="no C compiler on this machine, or switched off by LUTHIER_NATIVE=0")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and a source that compiles in no time."""
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    monkeypatch.setattr(module, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    native.cache_clear()
    yield tmp_path / "cache" / "luthier"
    native.cache_clear()


def compiler(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_library_is_built_once_and_then_taken_from_the_cache(cache: Path) -> None:
    first = built(compilers()[0])
    written = first.stat().st_mtime_ns
    assert built(compilers()[0]) == first
    assert first.stat().st_mtime_ns == written
    assert list(cache.iterdir()) == [first]
    assert ctypes.CDLL(str(first)).answer() == 42


def test_another_source_or_flag_is_another_library(cache: Path) -> None:
    command = compilers()[0]
    first = built(command)
    flagged = built((*command, "-DOTHER"))
    module.SOURCE.write_text("int answer(void) { return 43; }\n")
    assert len({first, flagged, built(command)}) == 3


def test_two_that_build_at_once_both_get_a_whole_library(cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(built, [compilers()[0]] * 4))
    assert list(cache.iterdir()) == list(paths)
    assert ctypes.CDLL(str(paths.pop())).answer() == 42


def test_it_can_be_switched_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_NATIVE", "0")
    assert native().library is None
    assert native().note == "switched off by LUTHIER_NATIVE=0"
    assert not cache.exists()


def test_without_a_compiler_the_note_says_so(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cache))
    assert native().library is None
    assert native().note.startswith("no C compiler ($CC, cc, gcc, clang)")


def test_a_compiler_that_fails_is_named_with_its_error_and_the_next_is_tried(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler(tmp_path / "bin", "cc", "echo 'warning: old' >&2; echo \"cc: error: unrecognized option '-fopenmp'\" >&2; exit 1")
    search = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert native().library is None
    assert native().note == "cc: cc: error: unrecognized option '-fopenmp'"
    native.cache_clear()
    monkeypatch.setenv("PATH", search)
    monkeypatch.setenv("CC", str(tmp_path / "bin" / "cc"))
    assert native().library is not None


def test_a_source_with_an_unknown_symbol_is_refused_when_it_is_loaded(cache: Path) -> None:
    module.SOURCE.write_text("int nowhere(void); int answer(void) { return nowhere(); }\n")
    assert native().library is None
    assert "undefined symbol: nowhere" in native().note


def test_a_cache_that_cannot_be_made_moves_to_the_temporary_folder(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(module.SOURCE))  # a file
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = cache_folder()
    assert folder == tmp_path / f"luthier-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_all_may_write_to_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for folder in (cache, tmp_path / f"luthier-{os.getuid()}"):
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    assert cache_folder().name not in (cache.name, f"luthier-{os.getuid()}")
    assert cache_folder().stat().st_mode & 0o077 == 0


def test_it_shares_the_openmp_runtime_that_torch_brought() -> None:
    assert native().library is not None
    maps = Path("/proc/self/maps").read_text().splitlines()
    runtimes = {line.split()[-1] for line in maps if Path(line.split()[-1]).name.startswith(("libgomp", "libomp", "libiomp"))}
    assert len(runtimes) == 1
    assert Path(torch.__file__).parent in Path(runtimes.pop()).parents


def test_denormal_numbers_still_count() -> None:
    """A library linked with -ffast-math would turn them off for the whole process when it is loaded."""
    assert native().library is not None
    assert (torch.tensor([1e-40]) * torch.tensor([0.5])).item() > 0
