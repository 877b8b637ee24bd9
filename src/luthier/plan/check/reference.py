"""The pages of the findings, docs/findings/, out of the checks' docstrings: `python -m luthier.plan.check.reference docs/findings`."""

import sys
from pathlib import Path

from luthier.core.pages import MADE, chapter, code_of, page, write
from luthier.plan.check import CHECKS, adapter, compute, data, device, division, nodes, proof, reinforcement, steps, tensor

CHAPTERS = {
    "Steps": steps.CHECKS,
    "Rows": data.CHECKS,
    "Adapter and method": adapter.CHECKS,
    "Computation": compute.CHECKS,
    "Division": (*division.CHECKS, *tensor.CHECKS),
    "Machine": device.CHECKS,
    "Several machines": nodes.CHECKS,
    "Decision": proof.CHECKS,
    "Rewarded answers": reinforcement.CHECKS,
}
INTRODUCTION = """\
# Findings

What `luthier plan` and `luthier train` find wrong with a recipe before it runs. *refuse*: it cannot work, and `train` stops with exit
code 3 unless `--force CODE` lets it pass; *warn*: it works, and likely not as you meant; *note*: worth knowing.
`luthier plan R --apply CODE` writes the recipe with the changes that a finding names.

What is found of a run while it goes on, and after it: [run/](run/README.md).
"""


def pages() -> dict[str, str]:
    """File name → Markdown: README.md, and a page for each code."""
    index = [MADE, INTRODUCTION, *(line for title, checks in CHAPTERS.items() for line in chapter(title, checks))]
    return {"README.md": "\n".join(index)} | {f"{code_of(check)}.md": page(check) for check in CHECKS}


if __name__ == "__main__":
    write(Path(sys.argv[1]), pages())
