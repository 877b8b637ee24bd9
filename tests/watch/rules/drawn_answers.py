"""Runs that never were, of answers that are rewarded: drawn from a seed, healthy ones, and each fault at several strengths."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from luthier.recipe.schema import Recipe
from luthier.watch.rollouts import STEPS, Answer
from luthier.watch.rules.case import Case
from luthier.watch.series import Series
from tests.watch.rules.drawn import Floats, lines, planned, recipe

GROUP = 8


def reinforced(**rl: Any) -> Recipe:
    return recipe(rl={"rewards": {"exact": 1.0}, "group_size": GROUP, **rl}, training={"global_batch_size": 64})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Policy:
    """How a model answers, from step to step: what share is right, how much prompts differ, how long and how various answers are."""

    total: int
    prompts: int
    right: Floats
    apart: float
    """Standard deviation of prompts' difficulty, in logits."""
    tokens: Floats
    scatter: float
    """Of the lengths of answers to one prompt, in logarithms."""
    entropy: Floats
    paid: Callable[[Floats], Floats] = lambda longer: np.zeros_like(longer)
    """What being so many times as long as its group adds to an answer's reward, in logits."""

    @classmethod
    def of(cls, random: np.random.Generator, *, shortest: int = 30) -> "Policy":
        """A healthy one."""
        total = int(np.exp(random.uniform(np.log(shortest), np.log(500))))
        share = np.arange(1, total + 1) / total
        begin = random.uniform(0.2, 0.6)
        learned = begin + random.uniform(0.0, 0.75 - begin) * (1 - np.exp(-random.uniform(1, 5) * share))
        return cls(
            total=total,
            prompts=int(random.choice([8, 16, 64])),
            right=learned,
            apart=random.uniform(0.3, 1.5),
            tokens=random.choice([12.0, 80.0, 400.0]) * (1 + random.choice([-0.3, 0.0, 1.0, 2.0]) * share),
            scatter=random.uniform(0.1, 0.4),
            entropy=random.uniform(0.2, 1.2) * (1 - random.uniform(-0.3, 0.7) * share),
        )


def run(random: np.random.Generator, policy: Policy, *, recipe: Recipe | None = None, **columns: Any) -> Case:
    """The case of a policy: what its steps tell, and the answers of its first steps and its newest."""
    steps, shape = np.arange(1, policy.total + 1), (policy.total, policy.prompts, GROUP)
    difficulty = random.normal(0, policy.apart, shape[:2])[..., None]
    longer = random.normal(0, policy.scatter, shape)
    logits = np.log(policy.right / (1 - policy.right))[:, None, None] + difficulty + policy.paid(longer)
    rewards = (random.random(shape) < 1 / (1 + np.exp(-logits))).astype(float)
    tokens = np.maximum(1, np.round(policy.tokens[:, None, None] * np.exp(longer)))
    told = {
        "step": steps,
        "epoch": steps / policy.total,
        "loss": random.normal(0, 0.08, policy.total),
        "learning_rate": 1e-5,
        "grad_norm": np.exp(random.normal(0.5, 0.4, policy.total)),
        "tokens": 4000,
        "supervised_tokens": 900,
        "seconds": 0.4,
        "data_seconds": 0.3,
        "memory_bytes": 4e10,
        "device_utilization": 0.3,
        "reward": rewards.mean((1, 2)),
        "answer_tokens": tokens.mean((1, 2)),
        "cut": random.uniform(0, 0.05, policy.total),
        "silent": (rewards.min(2) == rewards.max(2)).mean(1),
        "failed": 0.0,
        "entropy": policy.entropy * np.exp(random.normal(0, 0.2, policy.total)),
        "drift": 0.005 * np.exp(random.normal(0, 0.5, policy.total)),
        "clipped": 0.001,
    }
    looked_at = [*range(STEPS), *range(policy.total - STEPS, policy.total)]
    return Case(
        recipe=recipe or reinforced(),
        series=Series(train=lines(policy.total, **{**told, **columns})),
        planned=planned(policy.total, device_bytes=8 * 10**10),
        answers=[
            Answer(
                step=at + 1,
                origin=f"a.jsonl:{prompt}",
                reward=rewards[at, prompt, member],
                tokens=int(tokens[at, prompt, member]),
                cut=False,
            )
            for at in looked_at
            for prompt in range(min(8, policy.prompts))
            for member in range(GROUP)
        ],
    )


def healthy(random: np.random.Generator) -> Case:
    return run(random, Policy.of(random))


def no_signal(random: np.random.Generator) -> Case:
    policy = Policy.of(random)
    hard = random.random() < 0.5
    share = random.choice([0.005, 0.02])
    return run(random, replace(policy, right=np.full(policy.total, share if hard else 1 - share), apart=0.5))


def answers_cut(random: np.random.Generator) -> Case:
    policy = Policy.of(random)
    share = random.choice([0.3, 0.5, 0.9])
    return run(random, policy, cut=np.clip(random.normal(share, 0.05, policy.total), 0, 1))


def rewards_failed(random: np.random.Generator) -> Case:
    policy = Policy.of(random)
    found = run(random, policy, failed=random.binomial(64, random.choice([0.03, 0.1, 0.5]), policy.total) / 64)
    failure = Answer(
        step=policy.total, origin="a.jsonl:9", reward=None, tokens=9, cut=False, failure="my_rewards:polite took more than 10 s"
    )
    return replace(found, answers=[*found.answers, failure])


def sampler_drift(random: np.random.Generator) -> Case:
    policy = Policy.of(random)
    rl = {"sampler": "http://gpu1:8000/v1"} if random.random() < 0.5 else {}
    drift = random.choice([0.1, 0.3, 1.0]) * np.exp(random.normal(0, 0.3, policy.total))
    return run(random, policy, recipe=reinforced(**rl), drift=drift)


def entropy_collapse(random: np.random.Generator) -> Case:
    policy = Policy.of(random, shortest=60)
    share = np.arange(1, policy.total + 1) / policy.total
    turn = random.uniform(0.15, 0.4)
    fallen = policy.entropy[0] * np.maximum(random.choice([0.01, 0.05]), 1 - share / turn)
    stands = 0.3 + random.uniform(0.1, 0.35) * np.minimum(1, share / turn)
    return run(random, replace(policy, entropy=fallen, right=stands, apart=0.5))


def reward_by_length(random: np.random.Generator) -> Case:
    policy = Policy.of(random, shortest=100)
    share = np.arange(1, policy.total + 1) / policy.total
    grown = random.choice([2.0, 4.0])
    tokens = random.choice([40.0, 200.0]) * (1 + (grown - 1) * share)
    right = 0.3 + 0.35 * np.log(tokens / tokens[0]) / np.log(grown)
    return run(
        random, replace(policy, tokens=tokens, right=right, apart=0.5, scatter=0.3, paid=lambda longer: random.choice([6.0, 10.0]) * longer)
    )


FAULTS: tuple[Callable[[np.random.Generator], Case], ...] = (
    no_signal,
    answers_cut,
    rewards_failed,
    sampler_drift,
    entropy_collapse,
    reward_by_length,
)
