"""The pages of the findings, docs/findings/, out of the checks' docstrings: `python -m luthier.plan.check.reference docs/findings`."""

import inspect
import re
import sys
from pathlib import Path

from luthier.plan.check import CHECKS, adapter, compute, data, device, division, nodes, proof, steps, tensor
from luthier.plan.check.case import Check

CHAPTERS = {
    "Steps": steps.CHECKS,
    "Rows": data.CHECKS,
    "Adapter and method": adapter.CHECKS,
    "Computation": compute.CHECKS,
    "Division": (*division.CHECKS, *tensor.CHECKS),
    "Machine": device.CHECKS,
    "Several machines": nodes.CHECKS,
    "Decision": proof.CHECKS,
}
LEADS = re.compile(r"^(Severity|Arithmetic|What to do|Source):", re.MULTILINE)
MADE = "<!-- Made from the check's docstring: make docs -->"
INTRODUCTION = """\
# Findings

What `luthier plan` and `luthier train` find wrong with a recipe before it runs. *refuse*: it cannot work, and `train` stops with exit
code 3 unless `--force CODE` lets it pass; *warn*: it works, and likely not as you meant; *note*: worth knowing.
`luthier plan R --apply CODE` writes the recipe with the changes that a finding names.
"""


def code_of(check: Check) -> str:
    """The code of a check's findings, which is its name."""
    return check.__name__.replace("_", "-")


def pages() -> dict[str, str]:
    """File name → Markdown: README.md, and a page for each code."""
    return {"README.md": _index()} | {f"{code_of(check)}.md": _page(check) for check in CHECKS}


def _index() -> str:
    lines = [MADE, INTRODUCTION]
    for chapter, checks in CHAPTERS.items():
        lines += [f"## {chapter}\n", "| code | severity | what is found |", "|---|---|---|"]
        lines += [f"| [{code_of(check)}]({code_of(check)}.md) | {_severity(check)} | {_text(check).splitlines()[0]} |" for check in checks]
        lines.append("")
    return "\n".join(lines)


def _page(check: Check) -> str:
    title, _, rest = _text(check).partition("\n")
    return f"{MADE}\n# {code_of(check)}\n\n{title}\n" + LEADS.sub(r"**\1.**", rest) + "\n"


def _severity(check: Check) -> str:
    return next(line.removeprefix("Severity: ") for line in _text(check).splitlines() if line.startswith("Severity: ")).rstrip(".")


def _text(check: Check) -> str:
    return inspect.getdoc(check) or ""


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        (folder / name).write_text(page, encoding="utf-8")
