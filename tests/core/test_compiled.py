"""C sources: built once, in a folder nobody else can write to; and where one cannot be, the reason is known."""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.core.compiled import Compiled, Source, built, cache_folder, compiled, compilers

without = not compilers() or os.environ.get("LUTHIER_NATIVE") == "0"
pytestmark = pytest.mark.skipif(without, reason="no C compiler on this machine, or switched off by LUTHIER_NATIVE=0")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "cache" / "luthier"


@pytest.fixture
def answer(tmp_path: Path) -> Source:
    """One that compiles in no time."""
    file = tmp_path / "answer.c"
    file.write_text("int answer(void) { return 42; }\n")
    return Source(file=file, compile=("-fPIC",), link=("-shared",))


def had(source: Source) -> Compiled:
    return compiled(source, lost="no answer")


def compiler(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_a_library_is_built_once_and_then_taken_from_the_cache(answer: Source, cache: Path) -> None:
    first = built(answer, compilers()[0])
    written = first.stat().st_mtime_ns
    assert built(answer, compilers()[0]) == first
    assert first.stat().st_mtime_ns == written
    assert list(cache.iterdir()) == [first]
    assert ctypes.CDLL(str(first)).answer() == 42


def test_another_source_or_flag_is_another_library(answer: Source, cache: Path) -> None:
    command = compilers()[0]
    first = built(answer, command)
    flagged = built(replace(answer, compile=(*answer.compile, "-DOTHER")), command)
    answer.file.write_text("int answer(void) { return 43; }\n")
    assert len({first, flagged, built(answer, command)}) == 3


def test_two_that_build_at_once_both_get_a_whole_library(answer: Source, cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(built, [answer] * 4, [compilers()[0]] * 4))
    assert list(cache.iterdir()) == list(paths)
    assert ctypes.CDLL(str(paths.pop())).answer() == 42


def test_it_can_be_switched_off(answer: Source, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_NATIVE", "0")
    assert had(answer).library is None
    assert had(answer).note == "switched off by LUTHIER_NATIVE=0"
    assert not cache.exists()


def test_without_a_compiler_the_note_says_so(answer: Source, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cache))
    assert had(answer) == Compiled(library=None, note="no C compiler ($CC, cc, gcc, clang): no answer")


def test_a_compiler_that_fails_is_named_with_its_error_and_the_next_is_tried(
    answer: Source, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiler(tmp_path / "bin", "cc", "echo 'warning: old' >&2; echo \"cc: error: unrecognized option '-fPIC'\" >&2; exit 1")
    search = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert had(answer).library is None
    assert had(answer).note == "cc: cc: error: unrecognized option '-fPIC'"
    monkeypatch.setenv("PATH", search)
    monkeypatch.setenv("CC", str(tmp_path / "bin" / "cc"))
    assert had(answer).library is not None


def test_a_source_with_an_unknown_symbol_is_refused_when_it_is_loaded(answer: Source, cache: Path) -> None:
    answer.file.write_text("int nowhere(void); int answer(void) { return nowhere(); }\n")
    assert had(answer).library is None
    assert "undefined symbol: nowhere" in had(answer).note


def test_a_cache_that_cannot_be_made_moves_to_the_temporary_folder(
    answer: Source, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(answer.file))  # a file
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
