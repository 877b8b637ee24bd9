"""The command line starts without torch, and about as fast as the libraries it cannot do without."""

import subprocess
import sys
import time

HEAVY = ("torch", "transformers", "peft", "scipy", "pyarrow", "datasketch")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_command_line_and_the_light_packages_load_nothing_heavy() -> None:
    modules = "luthier.cli.main, luthier.flow, luthier.recipe.load, luthier.runs.store, luthier.plan.steps, luthier.evaluate.gate, luthier.score.scorers"
    assert run(f"import sys, {modules}; print([name for name in {HEAVY} if name in sys.modules])").strip() == "[]"


def test_help_takes_at_most_twice_the_import_of_typer_and_pydantic() -> None:
    def seconds(code: str) -> float:
        start = time.perf_counter()
        run(code)
        return time.perf_counter() - start

    libraries = "import typer, pydantic, rich.console, ruamel.yaml"
    help_page = "import sys; sys.argv = ['luthier', '--help']; from luthier.cli.main import main; main()"
    pairs = [(seconds(libraries), seconds(help_page.replace("main()", "\ntry: main()\nexcept SystemExit: pass"))) for _ in range(5)]
    assert sorted(ours / theirs for theirs, ours in pairs)[2] <= 2.0
