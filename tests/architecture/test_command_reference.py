"""docs/reference/commands.md says what `luthier --help` says."""

import subprocess
import sys
from pathlib import Path

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "commands.md"


def test_the_command_reference_is_up_to_date(tmp_path: Path) -> None:
    made = tmp_path / "commands.md"
    make = ["-m", "typer", "luthier.cli.main", "utils", "docs", "--name", "luthier", "--title", "luthier: commands", "--output", str(made)]
    subprocess.run([sys.executable, *make], check=True, capture_output=True, timeout=60)
    assert REFERENCE.read_text() == made.read_text(), "run: make docs"
