"""Latency one row at a time, and memory while it is used."""

import mmap
import time
from dataclasses import replace

import pytest
import torch

from luthier.core.progress import Silent
from luthier.evaluate.measure import latency_rows, measure_in_turn, measure_latency
from luthier.model.peak import peak_memory
from luthier.recipe.proof import Decision
from tests.evaluate.test_task import EXAMPLES, Rule


def test_rows_are_answered_one_at_a_time_after_a_warm_up() -> None:
    completer = Rule(lambda question: "x" * (2 + len(question)))  # 0.1 s a character, the first after 0.1 s
    latency = measure_latency(EXAMPLES, completer, num_rows=16, max_new_tokens=64, seed=0, progress=Silent())
    assert completer.asked == [1] * (1 + 16) and len(latency.rows) == 16
    assert latency.first_token.p50.value == pytest.approx(0.1) and latency.per_token.mean.value == pytest.approx(0.1)
    assert 0.5 <= latency.answer.p50.value <= latency.answer.p95.value <= 0.61
    assert latency.answer.mean.low <= latency.answer.mean.value <= latency.answer.mean.high


def test_a_bound_on_a_95th_percentile_is_given_the_rows_it_needs() -> None:
    assert latency_rows(Decision(deploy={"latency_mean": "< 12 s"})) == 16
    assert latency_rows(Decision(deploy={"latency_p95": "< 12 s"})) == 72
    assert latency_rows(Decision(abort={"first_token_p95": "> 1 s"}, confidence=0.9)) == 59


def test_answers_of_one_token_have_no_time_per_further_token() -> None:
    latency = measure_latency(EXAMPLES[:3], Rule(lambda question: "x"), num_rows=16, max_new_tokens=8, seed=0, progress=Silent())
    assert latency.per_token.mean.n == 0 and latency.answer.mean.n == 3


def test_memory_is_seen_while_it_is_used_and_forgotten_afterwards() -> None:
    with peak_memory(torch.device("cpu")) as before:
        time.sleep(0.03)
    with peak_memory(torch.device("cpu")) as during, mmap.mmap(-1, 100_000_000) as block:  # not malloc, which may keep what is freed
        block.write(bytes(len(block)))
        time.sleep(0.05)
    with peak_memory(torch.device("cpu")) as after:
        time.sleep(0.03)
    assert during.num_bytes - before.num_bytes > 90_000_000
    assert during.num_bytes - after.num_bytes > 90_000_000


def test_two_are_timed_in_turn_on_the_same_rows() -> None:
    order: list[str] = []

    def named(name: str) -> Rule:
        def answer(question: str) -> str:
            order.append(f"{name} {question}")
            return "x" * 4

        return Rule(answer)

    first, second = measure_in_turn(EXAMPLES, (named("tuned"), named("base")), num_rows=4, max_new_tokens=8, seed=0, progress=Silent())
    asked = order[2:]  # after the warm-up
    assert [row.origin for row in first.rows] == [row.origin for row in second.rows]
    assert [turn.split()[0] for turn in asked] == ["tuned", "base", "base", "tuned"] * 2  # who is first changes
    assert all(one.split(" ", 1)[1] == other.split(" ", 1)[1] for one, other in zip(asked[::2], asked[1::2], strict=True))


def test_of_rows_that_belong_together_one_is_timed() -> None:
    twins = [replace(row, key="one source") for row in EXAMPLES[:5]] + list(EXAMPLES[5:8])
    latency = measure_latency(twins, Rule(lambda question: "x"), num_rows=16, max_new_tokens=8, seed=0, progress=Silent())
    assert len(latency.rows) == 4
