"""What the package imports it names as a dependency: what comes along with another library may leave with it."""

import ast
import re
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


def test_every_library_that_is_imported_is_a_dependency() -> None:
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    declared = {re.split(r"[<>=.\[]", line)[0].replace("-", "_") for line in lines}
    used = set().union(*map(imported, (ROOT / "src").rglob("*.py")))
    assert used and used <= declared
