"""Builds pointwise.c, which has slots.c in it, at first use, keeps the library in a cache folder, and loads it into torch's process."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch  # noqa: F401  brings the OpenMP runtime that the library takes its symbols from

SOURCE = Path(__file__).with_name("pointwise.c")
INCLUDED = SOURCE.with_name("slots.c")
COMPILE = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-std=c11", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
# Without -fopenmp, so that no OpenMP runtime is linked: torch has loaded one, its symbols global. A second one would have its own threads.
LINK = ("-shared", "-lm")
MOST_SECONDS = 120
"""For a compiler's call; a build takes 1.5 s."""

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Native:
    """The loaded library, or None; `note` says where it lies, or why there is none and what to change."""

    library: ctypes.CDLL | None
    note: str


@functools.cache
def native() -> Native:
    """The functions of pointwise.c, built now if the cache has none; LUTHIER_NATIVE=0 switches them off."""
    if os.environ.get("LUTHIER_NATIVE") == "0":
        return Native(library=None, note="switched off by LUTHIER_NATIVE=0")
    if sys.platform == "win32":
        return Native(library=None, note="not built on Windows")
    notes = []
    for compiler in compilers():
        try:
            path = built(compiler)
            return Native(library=ctypes.CDLL(str(path)), note=str(path))
        except (OSError, subprocess.SubprocessError) as error:
            notes.append(f"{shlex.join(compiler)}: {_fault(error)}")
    return Native(library=None, note="; ".join(notes) or "no C compiler ($CC, cc, gcc, clang): training on a CPU is faster with one")


def compilers() -> list[Command]:
    """The C compilers of this machine, in the order in which they are tried."""
    named = tuple(shlex.split(os.environ.get("CC", "")))
    return [command for command in (named, ("cc",), ("gcc",), ("clang",)) if command and shutil.which(command[0])]


def built(compiler: Command) -> Path:
    """The library in the cache; compiled first where source, flags, compiler or processor are new."""
    version = _run(*compiler, "--version")
    command = shlex.join((*compiler, *COMPILE, *LINK))
    key = hashlib.sha256(
        b"\n".join((SOURCE.read_bytes(), INCLUDED.read_bytes(), command.encode(), version, _processor().encode()))
    ).hexdigest()
    path = cache_folder() / f"pointwise-{key[:20]}.so"
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
            compiled, linked = Path(folder) / "pointwise.o", Path(folder) / "pointwise.so"
            _run(*compiler, *COMPILE, "-c", str(SOURCE), "-o", str(compiled))
            _run(*compiler, str(compiled), *LINK, "-o", str(linked))
            with linked.open("rb") as file:
                os.fsync(file.fileno())
            linked.replace(path)  # if two processes build at once, both make the same, and the later one stays
    return path


def cache_folder() -> Path:
    """The user's own folder for built libraries: in XDG_CACHE_HOME or ~/.cache, else in the temporary folder."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for folder in (Path(caches) / "luthier", Path(tempfile.gettempdir()) / f"luthier-{os.getuid()}"):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK) and _private(folder):
            return folder
    return Path(tempfile.mkdtemp(prefix="luthier-"))


def _private(folder: Path) -> bool:
    """Whether nobody else could have put a library there."""
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _processor() -> str:
    """What -march=native looks at: a cache folder on a shared disk serves unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    names = ("model name", "flags", "CPU part", "Features")
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(names)}))


def _run(*command: str) -> bytes:
    return subprocess.run(command, capture_output=True, timeout=MOST_SECONDS, check=True).stdout


def _fault(error: OSError | subprocess.SubprocessError) -> str:
    """The one line that says what went wrong."""
    if not isinstance(error, subprocess.CalledProcessError):
        return str(error)
    lines = error.stderr.decode(errors="replace").splitlines()
    return next((line for line in lines if "error" in line.lower()), f"exit code {error.returncode}")
