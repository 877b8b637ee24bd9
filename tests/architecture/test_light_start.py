"""The command line starts without torch, and about as fast as the libraries it cannot do without."""

import resource
import statistics
import subprocess
import sys

HEAVY = ("torch", "transformers", "peft", "scipy", "pyarrow", "datasketch", "nltk")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_command_line_and_the_light_packages_load_nothing_heavy() -> None:
    light = (
        "cli.main",
        "cli.show",
        "flow",
        "recipe.load",
        "runs.store",
        "runs.environment",
        "runs.heartbeat",
        "launch.backends",
        "launch.follow",
        "launch.group",
        "launch.ray",
        "launch.torchrun",
        "watch.health",
        "watch.failures",
        "watch.rules",
        "plan.steps",
        "evaluate.gate",
        "serve.vllm",
        "serve.child",
        "serve.client",
        "serve.completer",
        "report.page",
        "review.export",
        "review.asking",
        "sweep.table",
        "sweep.folder",
        "web.app",
        "serve.listen",
        "score.scorers",
    )
    modules = ", ".join(f"luthier.{name}" for name in light)
    assert run(f"import sys, {modules}; print([name for name in {HEAVY} if name in sys.modules])").strip() == "[]"


def test_the_command_line_does_not_wait_for_numpy() -> None:
    assert run("import sys, luthier.cli.main; print('numpy' in sys.modules)").strip() == "False"


def test_help_takes_at_most_twice_the_import_of_typer_and_pydantic() -> None:
    def cpu_seconds(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], capture_output=True, check=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    pairs = [(cpu_seconds("-c", "import typer, pydantic"), cpu_seconds("-m", "luthier.cli.main", "--help")) for _ in range(7)]
    assert statistics.median(ours / theirs for theirs, ours in pairs) <= 2.0
