"""Build what the demo ships: `python -m luthier.demo.build [--only data|base]`.

The base is trained from nothing on one core (18 minutes beside other work on 2026-11-20, Zen 5), the log takes seconds. Both are
committed; `BUILD.json` beside them records seeds, versions, losses and the sha256 of every file, and the tests hold the files to it.
"""

import argparse
import json
import platform
import shutil
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from luthier.core import files
from luthier.demo import BASE, BUILD_RECORD, DATA, interactions

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors")


def build_data() -> dict[str, object]:
    """What BUILD.json says of the log, after writing it."""
    interactions.write_log(DATA)
    return {"seed": interactions.SEED, "lines": len(DATA.read_text(encoding="utf-8").splitlines()), "sha256": files.sha256(DATA)}


def build_base() -> dict[str, object]:
    """What BUILD.json says of the base, after training it; the old base stays until the new one is whole."""
    from luthier.demo.pretrain import Schedule, build_base  # torch and transformers, which the data alone does not need

    schedule = Schedule()
    with tempfile.TemporaryDirectory(dir=BASE.parent) as scratch:
        made = Path(scratch) / BASE.name
        made.mkdir()
        outcome = build_base(made, schedule)
        if BASE.exists():
            shutil.rmtree(BASE)
        made.rename(BASE)
    return {
        "schedule": asdict(schedule),
        "outcome": asdict(outcome),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "machine": platform.machine(),
        "sha256": {path.name: files.sha256(path) for path in sorted(BASE.iterdir())},
    }


def main() -> None:
    """Build the parts that the command line names and bring the record up to date."""
    parser = argparse.ArgumentParser(prog="python -m luthier.demo.build", description="Build the demo's base model and data.")
    parser.add_argument("--only", choices=("data", "base"), help="build only this part (default: both)")
    only = parser.parse_args().only
    record = json.loads(BUILD_RECORD.read_text(encoding="utf-8")) if BUILD_RECORD.exists() else {}
    if only != "base":
        record["data"] = build_data()
    if only != "data":
        record["base"] = build_base()
    files.write_json(BUILD_RECORD, dict(sorted(record.items())))


if __name__ == "__main__":
    main()
