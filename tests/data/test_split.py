"""Sides of the split: stable by hash, to the row by quota, one key on one side."""

import random
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.split import SplitName, assign, quotas, shares, side_of, totals
from luthier.recipe.schema import Split

TENTHS = Split(train=0.8, validation=0.1, test=0.1)
SEED_004 = {"coder": 175, "tester": 74, "researcher": 26, "coordinator": 20, "reviewer": 3}


@dataclass(frozen=True)
class Row:
    key: str
    group: str = ""


def rows_of(groups: dict[str, int], rows_per_key: int = 1) -> list[Row]:
    return [Row(f"{group}-{number // rows_per_key}", group) for group, count in groups.items() for number in range(count)]


@st.composite
def splits(draw: st.DrawFn) -> Split:
    validation, test = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    return Split(train=(100 - validation - test) / 100, validation=validation / 100, test=test / 100)


ROWS = st.lists(st.builds(Row, key=st.integers(0, 60).map(str), group=st.sampled_from("abcd")), max_size=120)
SINGLE_ROWS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 40), max_size=6).map(rows_of)


@given(ROWS, ROWS, splits(), st.integers(0, 2**63 - 1))
def test_by_hash_added_rows_move_no_old_row(old: list[Row], new: list[Row], split: Split, seed: int) -> None:
    assert assign(old + new, split, "hash", seed)[: len(old)] == assign(old, split, "hash", seed)


def test_by_hash_the_side_of_a_key_is_fixed_for_good() -> None:
    """A change here moves every user's test rows into training: it must never come unnoticed."""
    sides = "".join({"train": ".", "validation": "v", "test": "t"}[side_of(f"row-{number}", shares(TENTHS), 42)] for number in range(40))
    assert sides == "..t..vv...v......v...t.........t.vv...t."


def test_by_hash_shares_are_met_on_average() -> None:
    counts = Counter(assign(rows_of({"a": 20_000}), TENTHS, "hash", 42))
    assert counts["train"] == pytest.approx(16_000, abs=230)  # 4 standard deviations: 4 · √(20,000 · 0.8 · 0.2)
    assert counts["test"] == pytest.approx(2_000, abs=170)


def test_by_hash_a_share_that_grows_takes_from_its_neighbour_only() -> None:
    rows = rows_of({"a": 2000})
    before = assign(rows, TENTHS, "hash", 42)
    after = assign(rows, Split(train=0.85, validation=0.05, test=0.1), "hash", 42)
    assert {pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]} == {("validation", "train")}


@pytest.mark.parametrize("method", ["hash", "exact"])
def test_another_seed_gives_another_split(method: str) -> None:
    rows = rows_of({"a": 100})
    assert assign(rows, TENTHS, method, 1) == assign(rows, TENTHS, method, 1) != assign(rows, TENTHS, method, 2)  # type: ignore[arg-type]


@given(ROWS, splits(), st.sampled_from(["hash", "exact"]), st.integers(0, 9))
def test_rows_of_one_key_stand_on_one_side(rows: list[Row], split: Split, method: str, seed: int) -> None:
    sides = assign(rows, split, method, seed)  # type: ignore[arg-type]
    assert len(sides) == len(rows)
    assert len(set(zip((row.key for row in rows), sides, strict=True))) == len({row.key for row in rows})
    assert set(sides) <= set(shares(split))


@given(ROWS, splits(), st.randoms())
def test_by_quota_the_order_of_the_rows_does_not_matter(rows: list[Row], split: Split, rng: random.Random) -> None:
    order = list(range(len(rows)))
    rng.shuffle(order)
    sides = assign(rows, split, "exact", 5)
    assert assign([rows[position] for position in order], split, "exact", 5) == [sides[position] for position in order]


def test_seed_004_is_split_238_29_31_with_the_groups_its_user_had() -> None:
    rows = rows_of(SEED_004)
    sides = assign(rows, TENTHS, "exact", 42)
    assert Counter(sides) == {"train": 238, "validation": 29, "test": 31}
    per_group = Counter((row.group, side) for row, side in zip(rows, sides, strict=True))
    assert {group: per_group[group, "train"] for group in SEED_004} == {
        "coder": 140,
        "tester": 59,
        "researcher": 21,
        "coordinator": 16,
        "reviewer": 2,
    }
    assert [per_group[group, "validation"] for group in SEED_004] == [17, 7, 2, 2, 1]
    assert [per_group[group, "test"] for group in SEED_004] == [18, 8, 3, 2, 0]


@settings(deadline=None)
@given(SINGLE_ROWS, splits(), st.integers(0, 9))
def test_by_quota_totals_are_met_to_the_row(rows: list[Row], split: Split, seed: int) -> None:
    wanted = totals(len(rows), shares(split))
    assert Counter(assign(rows, split, "exact", seed)) == {name: count for name, count in wanted.items() if count}


@settings(deadline=None)
@given(
    st.dictionaries(st.text(max_size=3), st.integers(1, 300), min_size=1, max_size=12),
    st.sampled_from([(80, 20, 0), (50, 50, 0), (70, 30, 0)]),
)
def test_by_quota_every_group_gets_its_share_rounded_down_or_up(groups: dict[str, int], percent: tuple[int, int, int]) -> None:
    parts = shares(Split(train=percent[0] / 100, validation=percent[1] / 100, test=0))
    found = quotas(groups, parts)
    for group, count in groups.items():
        assert sum(found[group].values()) == count
        assert all(abs(num - count * parts[name]) < 1 for name, num in found[group].items())
    assert {name: sum(cells[name] for cells in found.values()) for name in parts} == totals(sum(groups.values()), parts)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.integers(1, 300), min_size=1, max_size=12), splits())
def test_by_quota_rows_and_columns_add_up_whatever_the_shares(groups: dict[str, int], split: Split) -> None:
    parts = shares(split)
    found = quotas(groups, parts)
    assert {group: sum(cells.values()) for group, cells in found.items()} == groups
    assert {name: sum(cells[name] for cells in found.values()) for name in parts} == totals(sum(groups.values()), parts)
    assert all(num >= 0 for cells in found.values() for num in cells.values())


@pytest.mark.parametrize("seed", range(8))
def test_by_quota_large_keys_go_whole_and_small_ones_fill_up(seed: int) -> None:
    rows = [Row("large", "a")] * 30 + rows_of({"a": 70})
    sides = assign(rows, TENTHS, "exact", seed)
    assert set(sides[:30]) == {"train"}
    assert Counter(sides) == {"train": 80, "validation": 10, "test": 10}


def test_by_quota_held_out_rows_are_not_only_those_of_small_keys() -> None:
    rows = rows_of({"a": 2000}, rows_per_key=4) + [Row(f"single-{number}", "a") for number in range(2000)]
    sides = assign(rows, TENTHS, "exact", 3)
    assert Counter(sides) == {"train": 3200, "validation": 400, "test": 400}
    of_large_keys = sum(side == "test" for side in sides[:2000])
    assert 120 < of_large_keys < 280  # 200 on average; 50 keys of 4 rows, ± 3 · 4 · √(500 · 0.1 · 0.9) = 80


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        (Split(train=0.9, validation=0.1, test=0), {"train": 90, "validation": 11}),
        (Split(train=1, validation=0, test=0), {"train": 101}),
        (Split(train=0.9, validation=0, test=0.1), {"train": 90, "test": 11}),
        (Split(train=0.9, validation="held.jsonl", test=0.1), {"train": 90, "test": 11}),
    ],
)
def test_a_split_without_a_share_loses_no_row(split: Split, expected: dict[SplitName, int]) -> None:
    assert Counter(assign(rows_of({"a": 101}), split, "exact", 1)) == expected
    assert set(assign(rows_of({"a": 101}), split, "hash", 1)) == set(expected)


def test_no_rows_have_no_sides() -> None:
    assert assign([], TENTHS, "exact", 1) == assign([], TENTHS, "hash", 1) == []


def test_shares_are_exact_fractions() -> None:
    assert totals(100, shares(Split(train=0.29, validation=0.71, test=0))) == {
        "train": 29,
        "validation": 71,
    }  # 0.29 · 100 = 28.999… in floats
