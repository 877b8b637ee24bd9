"""The process is settled before libraries load: by our values where the user has none, and for training from its very start."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.core import environment
from luthier.core.environment import AT_START, JEMALLOC, KEEPING, SETTINGS, allocator, blocks, installed, start_settings

NAMES = (*SETTINGS, *AT_START, "LD_PRELOAD", "MALLOC_CONF", "OMP_WAIT_POLICY")
CODE = "import json, os, sys; from luthier.core.environment import settle; settle(sys.argv[1:]); print(json.dumps(dict(os.environ)))"
ON_GLIBC = pytest.mark.skipif(
    sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="other C libraries are left alone"
)
OWN = pytest.mark.skipif(blocks().library is None, reason=f"our own allocator cannot be had here: {blocks().note}")
UNCOMPILED = {"LUTHIER_NATIVE": "0"}


def settled(*words: str, **given: str) -> dict[str, str]:
    """The process's environment in the end."""
    before = {name: value for name, value in os.environ.items() if name not in NAMES} | given
    done = subprocess.run([sys.executable, "-c", CODE, *words], env=before, capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    return {name: found[name] for name in NAMES if name in found}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The only one in which libraries are looked for; nothing is compiled, and the user preloads nothing."""
    monkeypatch.setattr(environment, "library_folders", lambda: iter([tmp_path]))
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setenv("LUTHIER_NATIVE", "0")
    blocks.cache_clear()
    yield tmp_path
    blocks.cache_clear()


@OWN
def test_a_verb_that_trains_is_started_anew_with_our_own_allocator() -> None:
    preload = ":".join([blocks().note, *list(installed())[:1]])
    assert settled("train", "recipe.yaml") == {**SETTINGS, "LD_PRELOAD": preload, "MALLOC_CONF": KEEPING}


@OWN
def test_the_process_that_was_started_anew_knows_whose_memory_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", blocks().note)
    assert allocator() == "luthier"


@OWN
def test_where_addresses_are_limited_or_nothing_can_be_compiled_the_reason_is_known() -> None:
    told = "from luthier.core.environment import allocator, blocks; print(allocator(), blocks().note)"
    for limit, reason in (("ulimit -v 50000000", "addresses are limited"), ("export PATH= CC=", "no C compiler")):
        command = ["/bin/sh", "-c", f'{limit}; exec "$0" -c "$1"', sys.executable, told]
        environ = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60).stdout
        assert said.split()[0] in ("jemalloc", "glibc")
        assert reason in said


@ON_GLIBC
def test_where_nothing_can_be_compiled_jemalloc_is_taken_if_it_is_installed(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (library := tmp_path / "lib" / JEMALLOC).touch()  # the loader says that it is too short, and goes on
    conda = {"CONDA_PREFIX": str(tmp_path)}
    given = {**conda, **UNCOMPILED}
    assert settled("train", "recipe.yaml", **given) == {**SETTINGS, "LD_PRELOAD": str(library), "MALLOC_CONF": KEEPING}
    own = {"MALLOC_CONF": "narenas:1"}
    assert settled("train", "recipe.yaml", **given, **own) == {**SETTINGS, "LD_PRELOAD": str(library), **own}


@ON_GLIBC
def test_where_jemalloc_is_not_installed_glibc_is_told(folder: Path) -> None:
    assert (allocator(), start_settings()) == ("glibc", AT_START)
    (folder / JEMALLOC).touch()
    assert (allocator(), start_settings()) == ("jemalloc", {"LD_PRELOAD": str(folder / JEMALLOC), "MALLOC_CONF": KEEPING})


@ON_GLIBC
@pytest.mark.parametrize(
    ("preloaded", "whose"),
    [
        ("", "glibc"),
        ("/opt/faketime.so", "glibc"),
        ("/opt/libjemalloc.so.2", "jemalloc"),
        ("/opt/libtcmalloc.so.4", "other"),
        ("/nowhere/blocks-01.so", "glibc"),
    ],
)
def test_what_the_user_preloads_goes_before(preloaded: str, whose: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / JEMALLOC).touch()
    monkeypatch.setenv("LD_PRELOAD", preloaded)
    assert allocator() == whose


@ON_GLIBC
def test_a_user_who_preloads_nothing_on_purpose_trains_with_glibc() -> None:
    assert settled("train", "recipe.yaml", LD_PRELOAD="") == {**SETTINGS, **AT_START, "LD_PRELOAD": ""}


def test_another_verb_is_not_started_anew() -> None:
    assert settled("plan", "recipe.yaml") == SETTINGS


def test_the_users_own_values_go_before() -> None:
    own = {"GOMP_SPINCOUNT": "7", "LRU_CACHE_CAPACITY": "9", "GLIBC_TUNABLES": "glibc.malloc.check=0", "LD_PRELOAD": ""}
    assert settled("train", "recipe.yaml", **own) == {**SETTINGS, **own}
    passive = {"OMP_WAIT_POLICY": "PASSIVE"}
    assert settled("plan", **passive) == {name: value for name, value in SETTINGS.items() if name != "GOMP_SPINCOUNT"} | passive
