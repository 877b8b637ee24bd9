"""What the package imports it names as a dependency: what comes along with another library may leave with it."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"luthier"}


EXTRAS = {
    "track": ("tensorboard", "wandb", "mlflow", "trackio"),
    "web": ("fastapi", "uvicorn"),
    "review": ("nltk",),
    "ray": ("ray",),
    "modal": ("modal",),
    "gguf": ("gguf",),
    "harness": ("lm_eval",),
}
"""Libraries of an extra."""
TRACKERS = dict.fromkeys(EXTRAS["track"], "watch/trackers.py")
FILES = {
    "ray": "launch/ray.py",
    "modal": "launch/modal.py",
    "gguf": "export/gguf.py",
    **TRACKERS,
    "fastapi": "web/app.py",
    "uvicorn": "serve/listen.py",
    "nltk": "review/agreement.py",
    "lm_eval": "evaluate/harness.py",
}
"""The one file behind which each is."""
REACHED_FROM = {"web/app.py": "web/serve.py", "evaluate/harness.py": "evaluate/run.py"}
"""A file that is its extra's as a whole, and the one that imports it, inside a function."""


def test_every_library_that_is_imported_is_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[<>=.\[]", line)[0].replace("-", "_") for line in project["dependencies"]}
    used = set().union(*map(imported, (ROOT / "src").rglob("*.py")))
    assert used and used <= declared | FILES.keys()
    for extra, libraries in EXTRAS.items():
        assert {re.split(r"[<>=\[-]", line)[0] for line in project["optional-dependencies"][extra]} == set(libraries)


def test_a_library_of_an_extra_is_imported_in_one_file_and_inside_functions() -> None:
    source = ROOT / "src" / "luthier"
    found = {(name, path.relative_to(source).as_posix()) for path in source.rglob("*.py") for name in imported(path) & FILES.keys()}
    assert found == set(FILES.items())
    for name, file in FILES.items():
        module = REACHED_FROM.get(file, file)[:-3].replace("/", ".")
        code = f"import sys, luthier.{module}; sys.exit({name!r} in sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
