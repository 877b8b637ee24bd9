"""Rows per second with a closed set of labels: chosen among them, against written freely, on one model and the same rows.

    python bench/choice.py --pairs 5 --labels 10

Labels are a few words each, as names of categories are; free answers end at a stop token after as many tokens as the labels have, at most.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from bench.evaluate import MODEL, _rows
from luthier.core.chat import Completion
from luthier.data.tokenizer import load_tokenizer
from luthier.model.generate import LocalCompleter
from luthier.model.load import load_model

PARTS = (
    "data",
    "net",
    "misc",
    "devel",
    "libs",
    "doc",
    "games",
    "math",
    "admin",
    "utils",
    "sound",
    "video",
    "python",
    "perl",
    "mail",
    "web",
)


def main() -> None:
    """Pairs, and their medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--shared", type=int, default=250, help="words of the system prompt")
    options = parser.parse_args()
    torch.set_num_threads(1)
    completer, rows = (
        LocalCompleter(load_model(MODEL, torch.float32, torch.device("cpu")).eval(), load_tokenizer(MODEL)),
        _rows(options.rows, options.shared),
    )
    draw = random.Random(1)
    labels = sorted({"-".join(draw.choices(PARTS, k=draw.randrange(1, 4))) for _ in range(10 * options.labels)})[: options.labels]
    longest = max(len(completer.tokenizer.encode(label)) for label in labels) + 1
    sides: dict[str, Callable[[], list[Completion]]] = {
        "written": lambda: completer.complete(rows, max_new_tokens=longest),
        "chosen": lambda: completer.choose(rows, labels=labels),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    tokens: dict[str, float] = {}
    for pair in range(options.pairs + 1):  # the first warms up
        for name, answer in sides.items():
            start = time.process_time()
            tokens[name] = statistics.mean(each.num_tokens for each in answer())
            if pair:
                seconds[name].append(time.process_time() - start)
    ratios = [written / chosen for written, chosen in zip(*seconds.values(), strict=True)]
    rates = {f"{name}_rows_per_second": options.rows / statistics.median(values) for name, values in seconds.items()}
    ratio = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    print(json.dumps({**rates, "ratio": ratio, "tokens": tokens, "longest": longest, **vars(options)}, indent=1))


if __name__ == "__main__":
    main()
