"""Packs: every supervised token is predicted once per row, from exactly the tokens before it, however rows are packed."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.pack import MIN_SHARED, Node, Pack, _divided, _ordered, _shared, bins, shared_share, trees
from luthier.data.store import TokenRow

Packer = Callable[[Sequence[TokenRow], Sequence[int], int], list[Pack]]
Prefix = tuple[int, ...]

PROMPT = list(range(100, 120))
A, B, C, D, E = range(200, 205)
ALL = 1 << 40
"""A budget that divides nothing."""


def row(ids: Sequence[int], first_target: int = 1) -> TokenRow:
    """A row that is trained on from `first_target` on."""
    return TokenRow(ids=np.array(ids, np.int32), supervised=np.arange(len(ids)) >= first_target)


SEGMENTS = st.sampled_from([[1], [2], [0], [1, 1], [2] * 15, [1] * 16, [2, 1] * 9, [3] * 17, list(range(30))])
MASKS = st.sampled_from([0b1, 0b11111111, 0b11010010])


@st.composite
def families(draw: st.DrawFn) -> list[TokenRow]:
    """Each row goes on from somewhere in an earlier one, or is its prefix, or the same: forks at any depth, close together or far apart."""
    lines: list[list[int]] = [[]]
    for _ in range(draw(st.integers(0, 9))):
        parent = draw(st.sampled_from(lines))
        kept = parent[: draw(st.integers(0, len(parent)))]
        lines.append([*kept, *chain(*draw(st.lists(SEGMENTS, min_size=not kept, max_size=3)))])
    patterns = [draw(MASKS) >> np.arange(len(ids)) % 8 & 1 for ids in lines]
    rows = [TokenRow(ids=np.array(ids, np.int32), supervised=on.astype(np.bool_)) for ids, on in zip(lines, patterns, strict=True)]
    return rows[1:]


FAMILIES = families()
BUDGETS = st.sampled_from([1, 20, 50, 100, 200, ALL])
both = pytest.mark.parametrize("packer", [bins, trees])


def pack_all(packer: Packer, rows: Sequence[TokenRow], budget: int = ALL) -> list[Pack]:
    return packer(rows, range(len(rows)), budget)


def prefixes(pack: Pack) -> list[Prefix]:
    """What each token of the stream sees, itself last, by the rule that attention follows."""
    end_T = np.concatenate([np.full(node.stop - node.start, node.end) for node in pack.nodes])
    places = np.arange(len(end_T))
    sees_TT = (places <= places[:, None]) & (places[:, None] < end_T)
    for sees_T in sees_TT:
        assert pack.positions_T[sees_T].tolist() == list(range(sees_T.sum()))
    return [tuple(pack.ids_T[sees_T].tolist()) for sees_T in sees_TT]


def predictions(packs: Sequence[Pack]) -> Counter[tuple[Prefix, int]]:
    """What is predicted from which tokens, and how often."""
    found: Counter[tuple[Prefix, int]] = Counter()
    for pack in packs:
        seen = prefixes(pack)
        for source, target, count in zip(pack.sources_N, pack.targets_N, pack.counts_N, strict=True):
            found[seen[source], int(target)] += int(count)
    return found


def supervision(rows: Sequence[TokenRow]) -> Counter[tuple[Prefix, int]]:
    """The same of rows."""
    return Counter(
        (tuple(row.ids[:index].tolist()), int(row.ids[index])) for row in rows for index in range(1, len(row)) if row.supervised[index]
    )


def leaves(packs: Sequence[Pack]) -> Iterator[Prefix]:
    """The tokens from the root to the end of each leaf."""
    for pack in packs:
        seen = prefixes(pack)
        yield from (seen[node.stop - 1] for node in pack.nodes if node.stop == node.end)


def ids_of(rows: Sequence[TokenRow]) -> list[Prefix]:
    return [tuple(row.ids.tolist()) for row in rows]


def keys(packs: Sequence[Pack]) -> dict[Prefix, set[int]]:
    """The keys that each prefix has anywhere."""
    found: dict[Prefix, set[int]] = {}
    for pack in packs:
        for prefix, key in zip(prefixes(pack), pack.keys_T.tolist(), strict=True):
            found.setdefault(prefix, set()).add(key)
    return found


def test_the_tree_of_the_docstring() -> None:
    rows = [row([*PROMPT, A, B, C], 19), row([*PROMPT, D, E], 19), row(PROMPT, 19)]
    (pack,) = pack_all(trees, rows)
    assert pack.ids_T.tolist() == [*PROMPT, A, B, C, D, E]
    assert pack.positions_T.tolist() == [*range(20), 20, 21, 22, 20, 21]
    assert [astuple(node) for node in pack.nodes] == [(0, 20, 25), (20, 23, 23), (23, 25, 25)]
    assert list(zip(pack.sources_N.tolist(), pack.targets_N.tolist(), pack.counts_N.tolist(), strict=True)) == [
        (18, PROMPT[19], 3),
        (19, A, 1),
        (19, D, 1),
        (20, B, 1),
        (21, C, 1),
        (23, E, 1),
    ]
    assert (pack.num_rows, pack.num_tokens, pack.num_targets) == (3, 65, 8)
    assert shared_share(rows) == 40 / 65


def test_bins_lay_the_same_rows_end_to_end() -> None:
    rows = [row([*PROMPT, D, E], 19), row([*PROMPT, A, B, C], 19), row(PROMPT, 19)]
    (pack,) = pack_all(bins, rows)
    assert pack.ids_T.tolist() == [*PROMPT, A, B, C, *PROMPT, D, E, *PROMPT]
    assert pack.positions_T.tolist() == [*range(23), *range(22), *range(20)]
    assert [astuple(node) for node in pack.nodes] == [(0, 23, 23), (23, 45, 45), (45, 65, 65)]
    assert pack.sources_N.tolist() == [18, 19, 20, 21, 41, 42, 43, 63]
    assert pack.targets_N.tolist() == [PROMPT[19], A, B, C, PROMPT[19], D, E, PROMPT[19]]
    assert pack.counts_N.tolist() == [1] * 8


@both
def test_no_rows_give_no_packs(packer: Packer) -> None:
    assert packer([], [], 100) == []
    assert shared_share([]) == 0


@both
def test_a_row_of_one_token_has_no_target(packer: Packer) -> None:
    (pack,) = pack_all(packer, [row([7], first_target=0), row([8, 9], first_target=2)])
    assert (sorted(pack.ids_T.tolist()), len(pack.nodes), pack.num_targets) == ([7, 8, 9], 2, 0)
    assert pack.sources_N.tolist() == pack.targets_N.tolist() == pack.counts_N.tolist() == []


@both
def test_a_first_token_is_never_a_target(packer: Packer) -> None:
    (pack,) = pack_all(packer, [row([7, 8], first_target=0), row([9, 5], first_target=0)])
    assert sorted(pack.targets_N.tolist()) == [5, 8]


def test_what_one_row_supervises_and_another_does_not_counts_once() -> None:
    (pack,) = pack_all(trees, [row([*PROMPT, A], 20), row([*PROMPT, A], 21), row([*PROMPT, A, B], 20), row([*PROMPT, A, B, C], 22)])
    assert pack.ids_T.tolist() == [*PROMPT, A, B, C]
    assert pack.nodes == (Node(start=0, stop=23, end=23),)
    assert list(zip(pack.sources_N, pack.targets_N, pack.counts_N, strict=True)) == [(19, A, 2), (20, B, 1), (21, C, 1)]


def test_a_short_prefix_is_shared_because_it_needs_no_fork() -> None:
    (pack,) = pack_all(trees, [row([A, B]), row([A, B, C, D])])
    assert (pack.ids_T.tolist(), pack.nodes) == ([A, B, C, D], (Node(start=0, stop=4, end=4),))


@pytest.mark.parametrize("common", [0, MIN_SHARED - 1, MIN_SHARED])
def test_rows_fork_only_where_they_share_enough(common: int) -> None:
    (pack,) = pack_all(trees, [row([*range(common), A, B]), row([*range(common), C, D])])
    shared = common if common >= MIN_SHARED else 0
    assert len(pack.ids_T) == 2 * (common + 2) - shared
    assert len(pack.nodes) == (3 if shared else 2)


def test_a_dialogue_trained_turn_by_turn_is_a_tree_of_any_depth() -> None:
    """Each answer's thoughts are gone from the rows of later turns (trap 12), so each row ends beside the next: 40 rows, 39 forks."""
    turns = [[turn] * 20 for turn in range(40)]
    rows = [row([*chain(*turns[: turn + 1]), 1000 + turn]) for turn in range(40)]
    (pack,) = pack_all(trees, rows)
    assert len(pack.ids_T) == 40 * 20 + 40
    assert len(pack.nodes) == 39 + 40
    assert predictions([pack]) == supervision(rows)


@both
@settings(deadline=None)
@given(rows=FAMILIES, budget=BUDGETS)
def test_each_target_is_predicted_from_the_tokens_before_it_as_often_as_rows_supervise_it(
    packer: Packer, rows: list[TokenRow], budget: int
) -> None:
    packs = pack_all(packer, rows, budget)
    assert predictions(packs) == supervision(rows)
    for pack in packs:
        pairs = list(zip(pack.sources_N.tolist(), pack.targets_N.tolist(), strict=True))
        assert pairs == sorted(set(pairs))


@both
@settings(deadline=None)
@given(rows=FAMILIES, budget=BUDGETS)
def test_no_row_is_lost_or_doubled(packer: Packer, rows: list[TokenRow], budget: int) -> None:
    packs = pack_all(packer, rows, budget)
    assert sum(pack.num_rows for pack in packs) == len(rows)
    assert sum(pack.num_tokens for pack in packs) == sum(map(len, rows))
    ends = Counter(leaves(packs))
    if packer is bins:
        assert ends == Counter(ids_of(rows))
    else:
        assert ends <= Counter(ids_of(rows))
        assert all(any(end[: len(ids)] == ids for end in ends) for ids in ids_of(rows))


@both
@settings(deadline=None)
@given(rows=FAMILIES, budget=BUDGETS)
def test_a_pack_above_the_budget_is_one_row(packer: Packer, rows: list[TokenRow], budget: int) -> None:
    for pack in pack_all(packer, rows, budget):
        assert len(pack.ids_T) <= budget or len(pack.nodes) == 1


def siblings(pack: Pack) -> list[list[Node]]:
    """The roots, and the children of each node, found by where they must begin."""
    starting = {node.start: node for node in pack.nodes}
    groups: list[list[Node]] = []
    for place, end in [(0, len(pack.ids_T)), *((node.stop, node.end) for node in pack.nodes)]:
        groups.append([])
        while place < end:
            groups[-1].append(starting[place])
            place = starting[place].end
        assert place == end
    return groups


@both
@settings(deadline=None)
@given(rows=FAMILIES, budget=BUDGETS)
def test_nodes_cover_the_stream_depth_first(packer: Packer, rows: list[TokenRow], budget: int) -> None:
    for pack in pack_all(packer, rows, budget):
        starts = [node.start for node in pack.nodes]
        assert starts == sorted(starts)
        assert starts == sorted(node.start for group in siblings(pack) for node in group)


@settings(deadline=None)
@given(rows=FAMILIES, budget=BUDGETS)
def test_a_fork_ends_as_many_tokens_as_are_worth_sharing_and_leaves_no_more_to_share(rows: list[TokenRow], budget: int) -> None:
    for pack in pack_all(trees, rows, budget):
        roots, *children = siblings(pack)
        for node, below in zip(pack.nodes, children, strict=True):
            assert not below or (len(below) > 1 and node.stop - node.start >= MIN_SHARED)
        for group in (roots, *children):
            begins = [tuple(pack.ids_T[node.start : min(node.stop, node.start + MIN_SHARED)]) for node in group]
            assert len(set(begins)) == len(begins)


@settings(deadline=None)
@given(rows=FAMILIES)
def test_with_forks_anywhere_each_prefix_is_computed_once(rows: list[TokenRow]) -> None:
    trie = {ids[:length] for ids in ids_of(rows) for length in range(1, len(ids) + 1)}
    assert sum(map(len, rows)) - _shared(_ordered(rows), 1).sum() == len(trie)


@settings(deadline=None)
@given(rows=FAMILIES.filter(len))
def test_the_shared_share_is_what_one_tree_saves(rows: list[TokenRow]) -> None:
    (pack,) = pack_all(trees, rows)
    assert shared_share(rows) == pytest.approx(1 - len(pack.ids_T) / pack.num_tokens)


def test_packs_are_balanced() -> None:
    rows = [row([number] * 100) for number in range(7)]
    assert sorted(len(pack.ids_T) for pack in pack_all(trees, rows, 350)) == [200, 200, 300]


def test_rows_that_share_stay_together_where_the_budget_allows() -> None:
    """Two agents' prompts of 20 tokens with 12 and 2 questions of 10: an even 100 and 100 would compute 20 tokens again."""
    rows = [row([agent] * 20 + [number] * 10) for agent, questions in ((1, 12), (2, 2)) for number in range(10, 10 + questions)]
    random.Random(0).shuffle(rows)
    assert [len(pack.ids_T) for pack in pack_all(trees, rows, 150)] == [20 + 120, 20 + 20]
    assert [len(pack.ids_T) for pack in pack_all(trees, rows, 130)] == [20 + 80, 20 + 40 + 20 + 20]


@settings(deadline=None)
@given(rows=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=7), budget=st.integers(20, 120))
def test_no_other_division_has_fewer_packs_or_then_fewer_tokens_or_is_then_more_even(rows: list[tuple[int, int]], budget: int) -> None:
    lengths = np.array([length for length, _ in rows])
    shared = np.array([0, *(min(before, length - 1) * thirds // 3 for (before, _), (length, thirds) in pairwise(rows))])

    def cost(cuts: Sequence[int]) -> tuple[int, int, int]:
        parts = [slice(*ends) for ends in zip((0, *cuts), (*cuts, len(rows)), strict=True)]
        sizes = [int(lengths[part].sum() - shared[part][1:].sum()) for part in parts]
        fits = all(size <= max(budget, lengths[part].max()) for size, part in zip(sizes, parts, strict=True))
        return (len(parts), sum(sizes), sum(size**2 for size in sizes)) if fits else (ALL, ALL, ALL)

    divisions = [[cut for cut in range(1, len(rows)) if chosen >> cut & 1] for chosen in range(0, 1 << len(rows), 2)]
    assert cost([part.start for part in _divided(lengths, shared, budget)][1:]) == min(map(cost, divisions))


def test_bins_put_a_row_where_it_fits_best() -> None:
    rows = [row([number] * length) for number, length in enumerate((5, 85, 120, 110, 300))]
    packs = pack_all(bins, rows, 200)
    assert [np.bincount(pack.ids_T[pack.positions_T == 0], minlength=5).nonzero()[0].tolist() for pack in packs] == [[4], [2], [0, 1, 3]]


@settings(deadline=None)
@given(rows=FAMILIES, budget=BUDGETS)
def test_no_two_bins_fit_in_one(rows: list[TokenRow], budget: int) -> None:
    sizes = sorted(len(pack.ids_T) for pack in pack_all(bins, rows, budget))
    assert sum(sizes[:2]) > budget or len(sizes) < 2


@settings(deadline=None)
@given(rows=FAMILIES, budget=BUDGETS, seed=st.integers(0, 9))
def test_in_trees_a_key_is_a_function_of_the_tokens_up_to_it(rows: list[TokenRow], budget: int, seed: int) -> None:
    expected = keys(pack_all(trees, rows))
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert keys(trees(shuffled, range(50, 50 + len(rows)), budget)) == expected
    assert all(len(found) == 1 for found in expected.values())
    assert len(set.union(set(), *expected.values())) == len(expected)


@settings(deadline=None)
@given(rows=FAMILIES, budget=BUDGETS, seed=st.integers(0, 9))
def test_in_bins_a_key_is_a_function_of_row_number_and_position(rows: list[TokenRow], budget: int, seed: int) -> None:
    """Alone in its packs, each row shows its keys."""
    numbers = random.Random(seed).sample(range(1000), len(rows))
    alone = [bins([row], [number], ALL)[0].keys_T.tolist() for row, number in zip(rows, numbers, strict=True)]
    assert len(set(chain(*alone))) == sum(map(len, rows))
    together = [pack.keys_T[node.start : node.stop].tolist() for pack in bins(rows, numbers, budget) for node in pack.nodes]
    assert sorted(together) == sorted(alone)


def test_keys_are_the_same_on_every_machine() -> None:
    """A change here changes the dropout of a run that is resumed."""
    assert bins([row([5, 6])], [3], ALL)[0].keys_T.tolist() == [5741395155545305595, -9149155157483130494]
    assert trees([row([5, 6])], [3], ALL)[0].keys_T.tolist() == [-371861127037631947, -3417603982529448846]
