"""`python -m tests.faults.guided CORPUS [libFuzzer's options]`: inputs that atheris makes by what of Luthier's code they reach.

An input's first byte says which way in it takes (`test_fuzz.TARGETS`, those that are Python all the way). Ends with code 0, or at the
first exception that is no LuthierError, with its traceback.
"""

import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["luthier"]):
    from luthier.core.errors import LuthierError
    from tests.faults.test_fuzz import TARGETS

WAYS = (
    *("recipe.yaml", "recipe.toml", "override", "rows.jsonl", "rows.csv", "events.jsonl", "plan.json", "data.json", "rates.jsonl"),
    *("scores.json, predictions.jsonl", "adapter_config.json", "provenance.json", "config.json, planned"),
)


def main() -> None:
    """Leave the seeds in the corpus, then let atheris go on from them."""
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(WAYS):
        for number, seed in enumerate(TARGETS[name].seeds()):
            (corpus / f"{place}-{number}").write_bytes(bytes([place]) + seed)
    with tempfile.TemporaryDirectory() as scratch:

        def one(data: bytes) -> None:
            if not data:
                return
            name = WAYS[data[0] % len(WAYS)]
            folder = Path(scratch) / str(WAYS.index(name))
            folder.mkdir(exist_ok=True)
            with suppress(LuthierError):
                TARGETS[name].read(folder, data[1:])

        atheris.Setup([sys.argv[0], *sys.argv[2:], str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
