"""Runs that never were: curves drawn from a seed, healthy ones of many shapes, and each fault at several strengths."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from luthier.recipe.schema import Recipe
from luthier.runs.planned import Planned
from luthier.watch.rows import Rows
from luthier.watch.rules.case import Case, Scored
from luthier.watch.series import COLUMNS, REWARDED, Column, Lines, Series

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator], Case]


def recipe(**sections: Any) -> Recipe:
    plain = {"name": "a", "model": {"base": "demo"}, "data": {"sources": [{"path": "rows.jsonl"}]}}
    return Recipe.model_validate({**plain, **sections})


def planned(total: int, *, device: str = "L4", device_bytes: int = 24 * 10**9, **rate: Any) -> Planned:
    """A plan of steps of 0.4 s and 4,000 tokens, which may take 1.3 × as long."""
    return Planned.model_validate(
        {
            "device": {"id": device},
            "steps": {"total": total, "global_batch_size": 8, "tokens_per_step": 4000},
            "memory": {"peak_bytes": device_bytes / 2, "device_bytes": device_bytes},
            "time": {"low": 0.3 * total, "mid": 0.4 * total, "high": 0.52 * total, "step": 0.4, "rate": {"source": "probe", **rate}},
        }
    )


def lines(num: int, **columns: Any) -> Lines:
    """Lines with these columns; what is not named is NaN."""
    given: Mapping[Column, Any] = columns  # type: ignore[assignment]

    def column(name: Column) -> Floats:
        return np.broadcast_to(np.asarray(given.get(name, np.nan), float), num).copy()

    return Lines(np.stack([column(name) for name in COLUMNS]), {name: column(name) for name in REWARDED if name in given})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Course:
    """What is drawn before anything goes wrong: a run's length, its rates, and how far the weights have gone (0…1) after each step."""

    total: int
    rates: Floats
    way: Floats
    start: float
    floor: float
    noise: float
    validations: npt.NDArray[np.int64]
    epochs: float

    @classmethod
    def of(cls, random: np.random.Generator, *, shortest: int = 40, validations: tuple[int, ...] = (0, 3, 4, 6, 10, 20)) -> "Course":
        total = int(np.exp(random.uniform(np.log(shortest), np.log(4000))))
        share = np.arange(1, total + 1) / total
        warmup = random.choice([0.0, 0.03, 0.1])
        falling = {"cosine": 0.5 * (1 + np.cos(np.pi * share)), "linear": 1 - share, "constant": np.ones(total)}
        rates = 3e-4 * np.minimum(1, share / max(warmup, 1 / total)) * falling[random.choice(list(falling))]
        start, num = random.uniform(1.2, 3.5), int(random.choice(validations))
        return cls(
            total=total,
            rates=rates,
            way=np.cumsum(rates) / rates.sum(),
            start=start,
            floor=start * random.uniform(0.3, 0.75),
            noise=random.choice([0.01, 0.05, 0.1, 0.2]),
            validations=np.unique(np.linspace(0, total, num + 1)[1:].astype(int)) if num else np.zeros(0, int),
            epochs=random.choice([1.0, 2.0, 3.0, 5.0]),
        )

    def clear(self, error: float) -> "Course":
        """With no more noise than leaves the mean of a twentieth of its steps so uncertain: what is told of must be there to be seen."""
        return replace(self, noise=min(self.noise, error * math.sqrt(self.total / 20)))

    def learned(self, random: np.random.Generator) -> Floats:
        """A healthy curve: an exponential, a power law, or a fast and a slow fall."""
        way, depth = self.way, self.start - self.floor
        match random.integers(3):
            case 0:
                return self.floor + depth * np.exp(-random.uniform(2, 4) * way)
            case 1:
                return self.floor + depth * (1 + 20 * way) ** -random.uniform(0.5, 0.9)
        fast = random.uniform(0.3, 0.6)
        return self.floor + depth * (fast * np.exp(-40 * way) + (1 - fast) * np.exp(-random.uniform(1.5, 3) * way))


def run(random: np.random.Generator, course: Course, curve: Floats, held_out: Floats, **changed: Any) -> Case:
    """The case of a curve: its steps with noise, and its validations with rows of their own."""
    steps, total = np.arange(1, course.total + 1), course.total
    seconds = 0.4 * np.exp(random.normal(0, 0.05, total))
    columns: dict[str, Any] = {
        "step": steps,
        "epoch": steps / total * course.epochs,
        "loss": curve * np.exp(random.normal(0, course.noise, total)),
        "learning_rate": course.rates,
        "grad_norm": random.uniform(0.1, 1.5) * np.exp(random.normal(0, 0.3, total)) * (1 + 5 * np.exp(-steps / 5)),
        "tokens": np.round(4000 * np.exp(random.normal(0, 0.1, total))),
        "supervised_tokens": np.round(900 * np.exp(random.normal(0, 0.1, total))),
        "seconds": seconds,
        "data_seconds": seconds * random.uniform(0, 0.03),
        "memory_bytes": random.uniform(0.3, 0.9) * 8e10,
        "device_utilization": np.clip(random.normal(0.9, 0.05, total), 0, 1),
    }
    validation, rows = _validated(random, course, held_out)
    return Case(
        recipe=changed.pop("recipe", recipe()),
        series=Series(train=lines(total, **{**columns, **changed.pop("columns", {})}), validation=validation),
        planned=changed.pop("planned", planned(total, device_bytes=8 * 10**10)),
        rows=rows,
        **changed,
    )


def _validated(random: np.random.Generator, course: Course, held_out: Floats) -> tuple[Lines, dict[int, Rows]]:
    """Each row has its own loss, differs from itself at each checkpoint, and all move a little with each checkpoint."""
    num_rows = int(random.choice([30, 100, 400, 1500]))
    tokens = random.integers(5, 200, num_rows)
    own = np.exp(random.normal(0, 0.4, num_rows))
    own /= (own * tokens).sum() / tokens.sum()
    rows: dict[int, Rows] = {}
    for step in course.validations.tolist():
        level = held_out[step - 1] * (1 + random.normal(0, 0.0015))
        scatter = random.normal(0, 0.02 * held_out[step - 1], num_rows) * np.sqrt(60 / tokens)
        rows[step] = Rows(losses=np.maximum(own * level + scatter, 1e-3) * tokens, tokens=tokens)
    steps = course.validations.astype(float)
    found = lines(len(steps), step=steps, epoch=steps / course.total * course.epochs, loss=[each.mean for each in rows.values()])
    return found, rows


def healthy(random: np.random.Generator) -> Case:
    course = Course.of(random)
    curve = course.learned(random)
    staircase = 1 - random.choice([0.0, 0.02, 0.05]) * np.floor(course.epochs * (np.arange(course.total) / course.total))
    gap = random.uniform(1.0, 1.1)
    return run(random, course, curve * staircase, curve * gap)


def overfitting(random: np.random.Generator) -> Case:
    course = Course.of(random, shortest=100, validations=(6, 10, 20))
    curve, share = course.learned(random), np.arange(1, course.total + 1) / course.total
    turn, rise = random.uniform(0.25, 0.6), random.choice([0.04, 0.08, 0.15, 0.4])
    best = curve[int(turn * course.total)]
    held_out = np.where(share < turn, curve, best * (1 + rise * (share - turn) / (1 - turn)))
    return run(random, course, curve * (1 - 0.3 * share), held_out)


def plateau(random: np.random.Generator) -> Case:
    course = Course.of(random, shortest=150, validations=(0, 10, 20))
    curve = course.floor + (course.start - course.floor) * np.exp(-random.uniform(15, 50) * course.way)
    return run(random, course.clear(0.0025), curve, curve * 1.02)


def spikes(random: np.random.Generator) -> Case:
    course = Course.of(random, shortest=100)
    curve = course.learned(random)
    for at in random.integers(40, course.total, random.integers(1, 8)):
        curve[at : at + random.integers(1, 4)] *= random.uniform(2, 6) * (1 + 4 * course.noise)
    return run(random, course, curve, course.learned(random))


def diverged(random: np.random.Generator) -> Case:
    course = Course.of(random, shortest=60, validations=(0, 3))
    curve, share = course.learned(random), np.arange(1, course.total + 1) / course.total
    turn, rise = random.uniform(0.3, 0.7), random.choice([0.4, 1.0, 3.0])
    curve = np.where(share < turn, curve, curve[int(turn * course.total)] * (1 + rise * np.clip((share - turn) / 0.15, 0, 1)))
    return run(random, course, curve, curve)


def learning_rate_high(random: np.random.Generator) -> Case:
    course = Course.of(random, shortest=150)
    share = np.arange(1, course.total + 1) / course.total
    course = replace(course, rates=3e-3 * np.minimum(1, share / 0.05) * (1 - share))
    early, peak = course.start * random.uniform(0.6, 0.8), random.choice([0.12, 0.25, 0.5])
    curve = np.interp(share, [0, 0.06, 0.2, 0.35, 1.0], [course.start, early, early * (1 + peak), early * (1 + peak), early * 0.9])
    return run(random, course.clear(0.005), curve, np.interp(share, [0, 1], [course.start, early]))


def learning_rate_low(random: np.random.Generator) -> Case:
    course = Course.of(random, shortest=150, validations=(0, 3, 4, 6))
    fall = random.choice([0.1, 0.2, 0.35])
    curve = course.start * (1 - fall * (1 - np.exp(-0.2 * course.way)) / (1 - np.exp(-0.2)))
    return run(random, course.clear(0.005), curve, curve)


def gradient_large(random: np.random.Generator) -> Case:
    course = Course.of(random)
    large = random.random(course.total) < random.choice([0.15, 0.4])
    norms = np.where(large, random.uniform(11, 60, course.total), random.uniform(0.5, 8, course.total))
    curve = course.learned(random)
    return run(random, course, curve, curve, columns={"grad_norm": norms})


def not_finite(random: np.random.Generator) -> Case:
    course = Course.of(random)
    curve, at = course.learned(random), int(random.integers(1, course.total))
    curve[at - 1] = np.nan
    return run(
        random, course, curve, course.learned(random), events=[{"event": "nonfinite", "of": "train", "step": at, "origins": ["a.jsonl:3"]}]
    )


def masked_to_nothing(random: np.random.Generator) -> Case:
    course = Course.of(random)
    tokens = np.where(random.random(course.total) < random.choice([0.05, 0.5]), 0, 900.0)
    tokens[random.integers(course.total)] = 0
    curve = course.learned(random)
    return run(random, course, curve, curve, columns={"supervised_tokens": tokens})


def data_bound(random: np.random.Generator) -> Case:
    course = Course.of(random)
    seconds = 0.4 * np.exp(random.normal(0, 0.05, course.total))
    columns = {"seconds": seconds, "data_seconds": seconds * random.choice([0.15, 0.3]), "device_utilization": 0.4}
    curve = course.learned(random)
    return run(random, course, curve, curve, columns=columns)


def device_idle(random: np.random.Generator) -> Case:
    course = Course.of(random)
    used = np.clip(random.normal(random.choice([0.15, 0.3, 0.4]), 0.05, course.total), 0, 1)
    curve = course.learned(random)
    return run(random, course, curve, curve, columns={"device_utilization": used})


def device_memory_unused(random: np.random.Generator) -> Case:
    course = Course.of(random)
    small = recipe(training={"micro_batch_size": 1})
    curve = course.learned(random)
    return run(random, course, curve, curve, columns={"memory_bytes": random.choice([0.05, 0.15]) * 8e10}, recipe=small)


def rank_slow(random: np.random.Generator) -> Case:
    course = Course.of(random)
    slow, ratio, num = int(random.integers(4)), random.choice([1.3, 1.6, 3.0]), max(3, course.total // 10)
    work = 3.0 * np.exp(random.normal(0, 0.03, (num, 4)))
    work[:, slow] *= ratio
    told = [
        {
            "step": 10 * (at + 1),
            "rank": rank,
            "host": f"node{rank // 2}",
            "seconds": float(each.max()),
            "waiting_seconds": float(each.max() - each[rank]),
        }
        for at, each in enumerate(work)
        for rank in range(4)
    ]
    curve = course.learned(random)
    return run(random, course, curve, curve, ranks=told)


def slower_than_planned(random: np.random.Generator) -> Case:
    course = Course.of(random)
    curve, slower = course.learned(random), random.choice([1.5, 3.0])
    return run(random, course, curve, curve, columns={"seconds": 0.4 * slower * np.exp(random.normal(0, 0.05, course.total))})


def perfect_on_few(random: np.random.Generator) -> Case:
    course = Course.of(random)
    curve, n = course.learned(random), int(random.choice([5, 20, 100]))
    scored = Scored(evaluation="run", task="answers", metric="exact", value=1.0, low=0.025 ** (1 / n), n=n)
    return run(random, course, curve, curve, scores=(scored,))


FAULTS: tuple[Draw, ...] = (
    overfitting,
    plateau,
    spikes,
    diverged,
    learning_rate_high,
    learning_rate_low,
    gradient_large,
    not_finite,
    masked_to_nothing,
    data_bound,
    device_idle,
    device_memory_unused,
    rank_slow,
    slower_than_planned,
    perfect_on_few,
)
