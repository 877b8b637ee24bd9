"""Draws have the distribution that was asked for, and follow from seed, place and probabilities alone."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from luthier.core.generation import Asked, Sampling
from luthier.model import sample
from luthier.model.sample import chosen, uniform


def asked(**sampling: float) -> Asked:
    return Asked(ids=(1,), sampling=Sampling(max_new_tokens=9, **{"temperature": 1.0, **sampling}))  # type: ignore[arg-type]


def logits(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


def drawn(row: Tensor, request: Asked, number: int) -> Counter[int]:
    """One token for each of many places."""
    return Counter(token.id for token in chosen(row.expand(number, -1), [request] * number, range(number)))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, (0.1, 0.5, 0.15, 0.25)),
        ({"temperature": 0.5}, (0.01 / 0.345, 0.25 / 0.345, 0.0225 / 0.345, 0.0625 / 0.345)),
        ({"top_p": 0.7}, (0, 2 / 3, 0, 1 / 3)),
        ({"top_p": 0.76}, (0, 0.5 / 0.9, 0.15 / 0.9, 0.25 / 0.9)),
        ({"top_p": 0.0}, (0, 1, 0, 0)),
        ({"temperature": 0.0}, (0, 1, 0, 0)),
    ],
)
def test_tokens_come_as_often_as_they_are_probable(sampling: dict[str, float], expected: Sequence[float]) -> None:
    counts = drawn(logits(0.1, 0.5, 0.15, 0.25), asked(seed=3, **sampling), 20_000)
    assert [counts[id] / 20_000 for id in range(4)] == pytest.approx(expected, abs=0.012)
    assert all(counts[id] == 0 for id in range(4) if expected[id] == 0)


def test_a_wide_nucleus_is_drawn_from_as_a_narrow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the likeliest, all are sorted."""
    row = torch.randn(1, 60, generator=torch.Generator().manual_seed(0))
    requests = [asked(top_p=0.95, seed=seed) for seed in range(200)]
    found = [token.id for token in chosen(row.expand(200, -1), requests, [0] * 200)]
    monkeypatch.setattr(sample, "LIKELY", 4)
    assert [token.id for token in chosen(row.expand(200, -1), requests, [0] * 200)] == found


def test_a_draw_does_not_depend_on_the_rows_beside_it() -> None:
    rows_BV = torch.randn(8, 50, generator=torch.Generator().manual_seed(1))
    requests = [asked(seed=row, top_p=(1.0, 0.5, 0.99)[row % 3], temperature=0.3 * row) for row in range(8)]
    together = chosen(rows_BV, requests, range(8))
    assert together == [chosen(rows_BV[row : row + 1], [requests[row]], [row])[0] for row in range(8)]


def test_log_probabilities_are_before_temperature_and_as_many_likeliest_are_told_as_are_wanted() -> None:
    request = Asked(ids=(1,), sampling=Sampling(max_new_tokens=9, temperature=3.0, top_p=0.1), num_top=2)
    two, none = chosen(logits(0.1, 0.5, 0.4).expand(2, -1), [request, asked(temperature=0.0)], [0, 0])
    assert two.logprob == pytest.approx(-0.693147, abs=1e-5)
    assert [id for id, _ in two.top] == [1, 2] and [value for _, value in two.top] == pytest.approx([-0.693147, -0.916291], abs=1e-5)
    assert none.top == ()


def test_log_probabilities_are_those_after_temperature_where_that_is_asked() -> None:
    row = logits(0.1, 0.5, 0.15, 0.25)
    colder = [0.01 / 0.345, 0.25 / 0.345, 0.0225 / 0.345, 0.0625 / 0.345]
    requests = [replace(asked(temperature=0.5, seed=seed), tempered=seed % 2 == 0, num_top=1) for seed in range(200)]
    tokens = chosen(row.expand(200, -1), requests, [0] * 200)
    assert {token.id for token in tokens[::2]} == {0, 1, 2, 3}
    for token, request in zip(tokens, requests, strict=True):
        told = colder if request.tempered else row[0].exp().tolist()
        assert math.exp(token.logprob) == pytest.approx(told[token.id], rel=1e-5)
        assert math.exp(token.top[0][1]) == pytest.approx(told[1], rel=1e-5)
    assert [token.id for token in tokens] == [
        token.id for token in chosen(row.expand(200, -1), [replace(each, tempered=False) for each in requests], [0] * 200)
    ]
    (greedy,) = chosen(row, [replace(asked(temperature=0.0), tempered=True)], [0])
    assert math.exp(greedy.logprob) == pytest.approx(0.5)
    (coldest,) = chosen(row, [replace(asked(temperature=1e-300), tempered=True)], [0])
    assert (coldest.id, coldest.logprob) == (1, 0.0)


def test_numbers_are_spread_evenly_and_each_seed_and_place_has_its_own() -> None:
    numbers = [uniform(seed, place) for seed in range(-50, 50) for place in range(100)]
    assert len(set(numbers)) == 10_000 and min(numbers) >= 0 and max(numbers) < 1
    assert torch.histc(torch.tensor(numbers), 10, 0, 1).tolist() == pytest.approx([1_000] * 10, abs=120)
