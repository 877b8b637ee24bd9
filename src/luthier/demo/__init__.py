"""The demo that the package carries: a tiny base model, an interactions log and the recipe that joins them.

`build.py` makes base and log from seeds; this file only says where they lie.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
BASE = FOLDER / "base"
DATA = FOLDER / "interactions.jsonl"
RECIPE = FOLDER / "quickstart.yaml"
BUILD_RECORD = FOLDER / "BUILD.json"
