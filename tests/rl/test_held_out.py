"""What is measured of validation rows: the likeliest answers, and nothing gained by an answer that cannot be rewarded."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from luthier.core import jsonl
from luthier.data.rows import Example
from luthier.model.generate import LocalCompleter
from luthier.recipe.rl import Rl
from luthier.rl.held_out import HeldOut
from luthier.rl.rewards import Rewarding
from luthier.runs.store import RunFolder
from luthier.train.ranks import ALONE
from tests.data.families import family
from tests.train.workshop import Workshop, tiny_model


@pytest.fixture
def examples(tmp_path: Path) -> list[Example]:
    return Workshop(tmp_path).job().prepared.examples("validation")


def held_out(examples: list[Example], rewards: Mapping[str, float], run: RunFolder) -> float:
    """The reward of a model of random weights."""
    rl = Rl(rewards=dict(rewards), max_new_tokens=8)
    with Rewarding(rl) as rewarding:
        measure = HeldOut(rl=rl, examples=examples, tokenizer=family("chatml"), rewarding=rewarding, ranks=ALONE, folder=run)
        return measure(tiny_model(vocabulary=len(family("chatml").pretrained)), 5)["reward"]


def test_held_out_answers_are_the_likeliest(examples: list[Example], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "run")
    held_out(examples, {"length": 1.0}, run)
    told = [line["answers"] for line in jsonl.salvage(run.answers(5) / "rewarded.jsonl").records]
    completer = LocalCompleter(tiny_model(vocabulary=len(family("chatml").pretrained)), family("chatml"))
    assert told == [[answer.text] for answer in completer.complete([example.prompt for example in examples], max_new_tokens=8)]


def test_an_answer_that_cannot_be_rewarded_counts_as_the_least_that_any_got(examples: list[Example], tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "run")
    found = held_out(examples, {"tests.rl.wishes:choosy": 1.0}, run)
    given = [line["reward"] for line in jsonl.salvage(run.answers(5) / "rewarded.jsonl").records]
    rewarded = [reward for reward in given if reward is not None]
    assert 0 < len(rewarded) < len(given)
    least = min(rewarded)
    assert found == pytest.approx(sum(least if reward is None else reward for reward in given) / len(given))
