"""Whether reinforcement learns what supervised rows do not teach: two tasks on the demo base, after rows that teach it the style alone.

    python bench/reinforce.py --seeds 1,2,3 --json reinforce.json

larger   "Which number is larger, 37 or 52?" The rows answer with one of the two by chance; the reward is 1 for the right one.
bandit   "Try 17: which lamp?" The rows name each of four lamps as often as another; each pays by its own chance, 0.2, 0.4, 0.6 and 0.8.

Told is the mean reward of the likeliest answers to held-out rows, before and after, with 95 % intervals.
"""

import argparse
import hashlib
import os
import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luthier import flow
from luthier.core import jsonl

LAMPS = {"red": 0.2, "green": 0.4, "blue": 0.6, "white": 0.8}
"""What each pays with which chance."""
STYLE_ROWS, PROMPTS = 200, 1000


def pull(answer: str, reference: str) -> float:
    """What a lamp pays at this try: a reward of chance, and the same whenever it is asked."""
    drawn = int.from_bytes(hashlib.blake2b(f"{reference}/{answer}".encode(), digest_size=8).digest()) / 2**64
    return float(drawn < LAMPS.get(answer.strip(), 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was gained."""

    task: str
    seed: int
    before: Mapping[str, float]
    """value, low, high, n."""
    after: Mapping[str, float]
    steps: int
    seconds: float
    """Of the reinforcement alone."""


def larger(chance: random.Random) -> Iterator[tuple[str, str, str]]:
    """A question, an answer in the right style, and the right one. Numbers without a repeated digit: the demo base copies others badly."""
    numbers = [number for number in range(10, 100) if len(set(str(number))) == 2]
    pairs = [(one, other) for one in numbers for other in numbers if one != other]
    for one, other in chance.sample(pairs, STYLE_ROWS + PROMPTS):
        yield f"Which number is larger, {one} or {other}?", str(chance.choice((one, other))), str(max(one, other))


def bandit(chance: random.Random) -> Iterator[tuple[str, str, str]]:
    """The same; what is right is the number of the try, by which lamps pay."""
    for number in chance.sample(range(1000, 10000), STYLE_ROWS + PROMPTS):
        yield f"Try {number}: which lamp?", chance.choice(list(LAMPS)), str(number)


TASKS = {"larger": (larger, "number"), "bandit": (bandit, "bench.reinforce:pull")}


def learn(task: str, seed: int, steps: int, work: Path) -> Outcome:
    """Teach the style, reinforce, and tell both ends; runs lie in LUTHIER_RUNS."""
    make, reward = TASKS[task]
    rows = list(make(random.Random(seed)))
    for name, part, right in (("style", rows[:STYLE_ROWS], False), ("prompts", rows[STYLE_ROWS:], True)):
        lines = (jsonl.dumps({"prompt": row[0], "completion": row[2 if right else 1]}) + "\n" for row in part)
        (work / f"{task}-{seed}-{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    flow.train(_loaded(work, f"{task}-{seed}-style", seed, {"training": {"epochs": 3, "global_batch_size": 8, "learning_rate": 2e-3}}))
    reinforced: dict[str, Any] = {
        "rl": {"rewards": {reward: 1.0}, "group_size": 8, "max_new_tokens": 8},
        "lora": {"r": 16, "alpha": 32, "init_from": f"{task}-{seed}-style"},
        "training": {"max_steps": steps, "global_batch_size": 64, "learning_rate": 1e-3, "lr_scheduler": "constant"},
        "checkpoints": {"eval_steps": steps, "early_stopping_patience": "off", "final": "last"},
    }
    began = time.perf_counter()
    run = flow.rl(_loaded(work, f"{task}-{seed}-prompts", seed, reinforced)).run
    told = [event for event in jsonl.salvage(run.events).records if event.get("event") == "held_out"]
    before, after = ({key: event[key] for key in ("value", "low", "high", "n")} for event in (told[0], told[-1]))
    return Outcome(task=task, seed=seed, before=before, after=after, steps=steps, seconds=time.perf_counter() - began)


def _loaded(work: Path, name: str, seed: int, sections: Mapping[str, Any]) -> Any:
    validation = 0.2 if name.endswith("prompts") else 0
    recipe = {
        "name": name,
        "seed": seed,
        "model": {"base": "demo", "dtype": "float32"},
        "data": {
            "sources": [{"path": str(work / f"{name}.jsonl"), "format": "prompt_completion"}],
            "split": {"train": 1 - validation, "validation": validation, "test": 0},
        },
        **sections,
    }
    path = work / f"{name}.yaml"
    path.write_text(jsonl.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return flow.load(path)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python bench/reinforce.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", default="1,2,3", help="which (default: 1,2,3)")
    parser.add_argument("--steps", type=int, default=40, help="updates (default: 40)")
    parser.add_argument("--json", type=Path, help="where to write the outcomes")
    asked = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LUTHIER_RUNS"] = str(Path(folder) / "runs")
        for task in TASKS:
            for seed in map(int, asked.seeds.split(",")):
                found.append(outcome := learn(task, seed, asked.steps, Path(folder)))
                ends = " → ".join(f"{end['value']:.3f} ({end['low']:.3f} … {end['high']:.3f})" for end in (outcome.before, outcome.after))
                print(f"{task} {seed}: {ends}, n = {outcome.after['n']}, {outcome.seconds:.0f} s", flush=True)
    if asked.json:
        asked.json.write_text("".join(jsonl.dumps(asdict(each)) + "\n" for each in found), encoding="utf-8")


if __name__ == "__main__":
    main()
