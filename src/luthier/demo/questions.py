"""What the demo base could do before it was tuned, as rows to ask: `python -m luthier.demo.questions FILE`. A guard against forgetting."""

import argparse
from collections.abc import Iterator
from pathlib import Path

from luthier.core import jsonl
from luthier.demo.text import TURN_END, TURN_START, documents

SEED, ROWS = 2026, 300  # not the seed of its pre-training


def questions(seed: int) -> Iterator[dict[str, object]]:
    """Orders to write facts of a passage in a given form, each with one right answer: such as it was pre-trained on, but new."""
    for document in documents(seed):
        turns = [turn.split("\n", 1) for turn in document.replace(TURN_END, "").split(TURN_START) if "\n" in turn]
        messages = [{"role": role, "content": content.strip()} for role, content in turns if content.strip()]
        roles = [message["role"] for message in messages]
        ordered = document.startswith(TURN_START) and any("[" in message["content"] for message in messages[:-1])
        if ordered and roles in (["user", "assistant"], ["system", "user", "assistant"]):
            yield {"messages": messages}


def main() -> None:
    """Write the rows to the file that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m luthier.demo.questions", description="Write rows that the demo base can answer.")
    parser.add_argument("file", type=Path, help="JSON lines")
    rows = questions(SEED)
    parser.parse_args().file.write_text("".join(jsonl.dumps(next(rows)) + "\n" for _ in range(ROWS)), encoding="utf-8")


if __name__ == "__main__":
    main()
