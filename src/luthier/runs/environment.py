"""environment.json: with what a run was made, so that it can be made again."""

import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from luthier.core import files
from luthier.core.hardware import this_machine
from luthier.core.redact import redact
from luthier.runs.store import RunFolder
from luthier.runs.summary import DataSummary

PACKAGES = ("luthier", "torch", "transformers", "peft", "tokenizers", "safetensors", "numpy")
STARTED = {"main.py": "luthier"}
"""What a run in the background is started as (`python -m luthier.cli.main`), and what people type."""


def write_environment(folder: RunFolder, data: DataSummary) -> None:
    """Record versions, hardware, data and template hash, command and git commit of the folder the command ran in."""
    files.write_json(folder.environment, describe(data))


def describe(data: DataSummary) -> dict[str, Any]:
    """The record as plain JSON values. No environment variables: they hold secrets; a command line may, which are redacted."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "hardware": asdict(this_machine()),
        "data_hash": data.hash,
        "template_hash": data.template.sha256,
        "command": redact(shlex.join([STARTED.get(Path(sys.argv[0]).name, Path(sys.argv[0]).name), *sys.argv[1:]])),
        "git_commit": _git_commit(),
    }


def _git_commit() -> str:
    """Commit of the current folder's repository; empty outside one.

    Not whether files differ from it: to tell that, git runs what the repository's own configuration names (fsmonitor, filters, hooks).
    """
    if not (git := shutil.which("git")):
        return ""
    answer = subprocess.run([git, "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, timeout=20, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""
