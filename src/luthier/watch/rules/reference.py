"""The pages of findings about runs, docs/findings/run/: `python -m luthier.watch.rules.reference docs/findings/run`."""

import sys
from pathlib import Path

from luthier.core.pages import MADE, chapter, code_of, page, write
from luthier.watch.rules import RULES, device, proof, reinforcement, training, validation

CHAPTERS = {
    "Training loss and gradient": training.RULES,
    "Validation": validation.RULES,
    "Device and ranks": device.RULES,
    "Scores": proof.RULES,
    "Rewarded answers": reinforcement.RULES,
}
INTRODUCTION = """\
# Findings about a run

What a run's own folder tells of it, while it goes on and after it; `luthier train` says it at the end, too. *warn*: it works, and likely
not as you meant; *note*: worth knowing. Each names changes of the recipe, by what they help and cost: ways to choose from, one at a time.
`luthier plan R --apply CODE` writes the first of them into the recipe; the next `train` then begins a run of its own (NAME-2).
"""


def pages() -> dict[str, str]:
    """File name → Markdown: README.md, and a page for each code."""
    index = [MADE, INTRODUCTION, *(line for title, rules in CHAPTERS.items() for line in chapter(title, rules))]
    return {"README.md": "\n".join(index)} | {f"{code_of(rule)}.md": page(rule) for rule in RULES}


if __name__ == "__main__":
    write(Path(sys.argv[1]), pages())
