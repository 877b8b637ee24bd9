"""llama.cpp, in a process and a Python of its own: `PYTHON gguf_tell.py FILE`, rows in and log-probabilities out, as JSON.

A row is its ids and the places of the tokens that are asked for. Of Luthier it knows nothing: that Python has llama-cpp-python, and numpy.
"""

import json
import sys
from importlib import import_module
from typing import Any


def main() -> None:
    """Answer the rows on standard input."""
    sys.path.pop(0)  # this file's folder, which has a gguf.py of its own
    import numpy as np

    llama: Any = import_module("llama_cpp").Llama
    rows = json.load(sys.stdin)
    model = llama(model_path=sys.argv[1], n_ctx=max(len(row["ids"]) for row in rows) + 1, logits_all=True, verbose=False)
    told = []
    for row in rows:
        model.reset()
        model.eval(row["ids"])
        logits = np.asarray(model.scores[: len(row["ids"])], dtype=np.float64)
        highest = logits.max(-1, keepdims=True)
        logs = logits - highest - np.log(np.exp(logits - highest).sum(-1, keepdims=True))
        told.append([float(logs[place - 1, row["ids"][place]]) for place in row["places"]])
    json.dump(told, sys.stdout)


if __name__ == "__main__":
    main()
