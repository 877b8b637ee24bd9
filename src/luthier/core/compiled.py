"""C sources that lie in the package: built at first use, kept in a cache folder, loaded."""

import ctypes
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

MOST_SECONDS = 120
"""For a compiler's call; a build takes 0.2 to 1.5 s."""

Command = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file, what it includes, and how it is compiled and linked."""

    file: Path
    included: tuple[Path, ...] = ()
    compile: Command
    link: Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """The loaded library, or None; `note` says where it lies, or why there is none and what to change."""

    library: ctypes.CDLL | None
    note: str


def compiled(source: Source, *, lost: str) -> Compiled:
    """The source's library, built now if the cache has none; LUTHIER_NATIVE=0 switches it off. `lost`: what is not had without."""
    if os.environ.get("LUTHIER_NATIVE") == "0":
        return Compiled(library=None, note="switched off by LUTHIER_NATIVE=0")
    if sys.platform == "win32":
        return Compiled(library=None, note="not built on Windows")
    notes = []
    for compiler in compilers():
        try:
            path = built(source, compiler)
            return Compiled(library=ctypes.CDLL(str(path)), note=str(path))
        except (OSError, subprocess.SubprocessError) as error:
            notes.append(f"{shlex.join(compiler)}: {_fault(error)}")
    return Compiled(library=None, note="; ".join(notes) or f"no C compiler ($CC, cc, gcc, clang): {lost}")


def compilers() -> list[Command]:
    """The C compilers of this machine, in the order in which they are tried."""
    named = tuple(shlex.split(os.environ.get("CC", "")))
    return [command for command in (named, ("cc",), ("gcc",), ("clang",)) if command and shutil.which(command[0])]


def built(source: Source, compiler: Command) -> Path:
    """The library in the cache; compiled first where source, flags, compiler or processor are new."""
    version = _run(*compiler, "--version")
    command = shlex.join((*compiler, *source.compile, *source.link))
    texts = [file.read_bytes() for file in (source.file, *source.included)]
    key = hashlib.sha256(b"\n".join((*texts, command.encode(), version, _processor().encode()))).hexdigest()
    path = cache_folder() / f"{source.file.stem}-{key[:20]}.so"
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
            made, linked = Path(folder) / "made.o", Path(folder) / "made.so"
            _run(*compiler, *source.compile, "-c", str(source.file), "-o", str(made))
            _run(*compiler, str(made), *source.link, "-o", str(linked))
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
