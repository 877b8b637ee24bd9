"""Rows divided into packs: streams of tokens without padding, in which leading tokens that rows share may stand once. numpy only.

A pack of `bins` has its rows end to end. A pack of `trees` is a prefix tree, here of three rows that begin with 20 equal tokens P0 … P19:

    rows                   stream             position    nodes, depth first
    P0 … P19 a b c          0 … 19  P0 … P19   0 … 19     Node(start=0,  stop=20, end=25)
    P0 … P19 d e           20 … 22  a b c     20 … 22     Node(start=20, stop=23, end=23)
    P0 … P19               23 … 24  d e       20 … 21     Node(start=23, stop=25, end=25)

65 tokens became 25; the last row is a prefix of the others and costs nothing. If all are supervised from P19 on, then place 18 predicts P19
for three rows (count 3), and place 19 both a and d (count 1 each): one source, two targets.

R = rows, A = all tokens of the rows end to end, T = places of the stream, N = targets, M = supervised tokens of the rows.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from luthier.data.store import Ids, TokenRow

Ints = npt.NDArray[np.int64]

MIN_SHARED = 16
"""Rows fork only where they share so many tokens beyond the fork above: a smaller node costs more in small products than it saves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A run of tokens [start, stop) without a fork, and its descendants' tokens [stop, end); for a leaf end = stop.

    The tokens see each other causally, and every descendant sees all of them.
    """

    start: int
    stop: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """One stream of tokens, which of them see each other, and what is to be predicted where."""

    ids_T: Ints
    positions_T: Ints
    """From 0 in each root; a branch goes on from its parent."""
    nodes: tuple[Node, ...]
    """Depth first, which is by `start`. They cover the stream, and an inner one has two children or more."""
    sources_N: Ints
    """Where in the stream each target is predicted: at the token before it. Sorted; at a fork a source has several targets."""
    targets_N: Ints
    counts_N: Ints
    """How many rows supervise this target at this source."""
    rows_M: Ints
    """Each row's supervised tokens one by one: the row's number in its split …"""
    targets_M: Ints
    """… and which of the N it is."""
    keys_T: Ints
    """What each token is to dropout, however the rows are divided into packs."""
    num_rows: int
    num_tokens: int
    """Of the rows, before sharing."""

    @property
    def num_targets(self) -> int:
        """Supervised tokens of the rows."""
        return int(self.counts_N.sum())


def bins(rows: Sequence[TokenRow], numbers: Sequence[int], budget: int) -> list[Pack]:
    """Packs of at most `budget` tokens by best-fit decreasing, every row a root; a longer row has a pack of its own.

    `numbers` are the rows' numbers in their split: a token's key is a hash of its row's number and its position.
    """
    members: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # what is left in each pack, and which pack; sorted
    for row in sorted(range(len(rows)), key=lambda row: -len(rows[row])):
        tightest = bisect_left(rooms, (len(rows[row]), 0))
        if tightest == len(rooms):
            rooms.append((budget, len(members)))
            members.append([])
        room, pack = rooms.pop(tightest)
        insort(rooms, (room - len(rows[row]), pack))
        members[pack].append(row)
    words = [int(number) << 32 | np.arange(len(row)) for number, row in zip(numbers, rows, strict=True)]
    return [
        _pack([rows[row] for row in pack], [numbers[row] for row in pack], [0] * len(pack), [words[row] for row in pack])
        for pack in members
    ]


def trees(rows: Sequence[TokenRow], numbers: Sequence[int], budget: int) -> list[Pack]:
    """Packs of at most `budget` tokens after sharing, each a prefix tree; a longer row has a pack of its own, with its prefixes.

    A token's key is a hash of its row's ids up to and with it; the rows' `numbers` change nothing of it.
    """
    order = _order(rows)
    ordered, numbers = [rows[row] for row in order], [numbers[row] for row in order]
    shared = _shared(ordered, MIN_SHARED)
    words = [np.cumsum(_mixed(np.arange(len(row)) << 32 | row.ids)) for row in ordered]
    parts = _divided(np.array([len(row) for row in ordered], np.int64), shared, budget)
    return [_pack(ordered[part], numbers[part], [0, *shared[part][1:].tolist()], words[part]) for part in parts]


def row_keys(number: int, length: int) -> Ints:
    """The keys that the tokens of a row by itself have in `bins`, for rows that are not packed."""
    return _mixed(number << 32 | np.arange(length))


def shared_share(rows: Sequence[TokenRow]) -> float:
    """The share of these rows' tokens that one tree of them all would not compute."""
    return float(_shared(_ordered(rows), MIN_SHARED).sum()) / max(1, sum(map(len, rows)))


def _pack(rows: Sequence[TokenRow], numbers: Sequence[int], shared: Sequence[int], words: Sequence[Ints]) -> Pack:
    """The pack in which each row takes over its `shared` first tokens from the row before, and adds the others to the stream.

    `words` are what the tokens' keys are hashes of.
    """
    lengths = [len(row) for row in rows]
    ids_A = np.concatenate([row.ids for row in rows], dtype=np.int64)
    positions_A = np.concatenate([np.arange(length) for length in lengths])
    own_A = positions_A >= np.repeat(shared, lengths)
    place_A = np.cumsum(own_A) - 1
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    for (before, start), length in zip(pairwise(starts), shared[1:], strict=True):
        place_A[start : start + length] = place_A[before : before + length]
    supervised_A = np.concatenate([row.supervised for row in rows])
    at_M = np.flatnonzero(supervised_A & (positions_A > 0))  # nothing predicts a row's first token
    pairs_N, targets_M, counts_N = np.unique(place_A[at_M - 1] << 32 | ids_A[at_M], return_inverse=True, return_counts=True)
    return Pack(
        ids_T=ids_A[own_A],
        positions_T=positions_A[own_A],
        nodes=_nodes(lengths, shared),
        sources_N=pairs_N >> 32,
        targets_N=pairs_N & 0xFFFF_FFFF,
        counts_N=counts_N,
        rows_M=np.repeat(np.asarray(numbers, np.int64), lengths)[at_M],
        targets_M=targets_M,
        keys_T=_mixed(np.concatenate(words)[own_A]),
        num_rows=len(rows),
        num_tokens=len(ids_A),
    )


def _nodes(lengths: Sequence[int], shared: Sequence[int]) -> tuple[Node, ...]:
    """The tree of rows of which each takes over its `shared` first tokens from the row before."""
    nodes: list[Node] = []
    path: list[tuple[int, int, int]] = []  # what the row before runs through, from the root: start, stop, and position at the stop
    end = 0  # of the stream so far
    for length, depth in zip((*lengths, 0), (*shared, 0), strict=True):  # a last row without tokens ends all nodes
        while path and path[-1][2] > depth:
            start, stop, position = path.pop()
            fork = max(start, stop - (position - depth))
            nodes.append(Node(start=fork, stop=stop, end=end))
            if fork > start:
                path.append((start, fork, depth))
        start = path.pop()[0] if path and path[-1][1] == end else end  # no fork if the row before is a prefix: its last node grows
        end += length - depth
        path.append((start, end, length))
    return tuple(sorted(nodes, key=lambda node: node.start))


def _ordered(rows: Sequence[TokenRow]) -> list[TokenRow]:
    return [rows[row] for row in _order(rows)]


def _order(rows: Sequence[TokenRow]) -> list[int]:
    """The rows with those that share most side by side, and a prefix before what it begins: for this, bytes sort as well as numbers."""
    return sorted(range(len(rows)), key=lambda row: rows[row].ids.tobytes())


def _shared(ordered: Sequence[TokenRow], least: int) -> Ints:
    """How many first tokens each row takes over from the row before: all of them if that row is a prefix, else those above their fork.

    Forks are taken from the root down, where rows have `least` tokens or more in common beyond the fork above.
    """
    shared_R = np.array([0, *(_common(row.ids, following.ids) for row, following in pairwise(ordered))], np.int64)[: len(ordered)]
    forking = [index for index, row in enumerate(ordered[:-1], start=1) if shared_R[index] < len(row)]
    common = np.array([-1, *shared_R[forking], -1])
    depths = np.zeros_like(common)
    for fork in np.argsort(common, kind="stable")[2:]:
        if common[fork] >= depths[fork] + least:
            less = np.flatnonzero(common < common[fork])
            after = np.searchsorted(less, fork)
            depths[less[after - 1] + 1 : less[after]] = common[fork]  # all neighbours with so many tokens in common pass this fork
    shared_R[forking] = depths[1:-1]
    return shared_R


def _common(ids: Ids, others: Ids) -> int:
    length = min(len(ids), len(others))
    return int(np.append(ids[:length] != others[:length], True).argmax())


def _divided(lengths_R: Ints, shared_R: Ints, budget: int) -> list[slice]:
    """Parts of ordered rows within the budget: the fewest; of those, where the fewest tokens are computed again; of those, the evenest.

    A part computes its first row whole. One row and its prefixes, which stand before it, may be above the budget.
    """
    ends_R = np.cumsum(lengths_R - shared_R)
    begins_R = ends_R - lengths_R  # a part's tokens: ends[its last row] - begins[its first]
    price = 1 + int(shared_R.sum())  # of a part; more than all that can be computed again
    prices, squares, last = np.zeros((3, len(lengths_R) + 1), np.int64)  # of the best division of the first rows, and its last part's start
    first = 0
    for stop in range(1, len(lengths_R) + 1):
        end = ends_R[stop - 1]
        while end - begins_R[first] > max(budget, lengths_R[stop - 1]):
            first += 1
        options = prices[first:stop] + shared_R[first:stop]
        cheapest = first + np.flatnonzero(options == options.min())
        evenness = squares[cheapest] + (end - begins_R[cheapest]) ** 2
        last[stop] = cheapest[evenness.argmin()]
        prices[stop], squares[stop] = options.min() + price, evenness.min()
    parts, stop = [], len(lengths_R)
    while stop:
        parts.append(slice(last[stop], stop))
        stop = last[stop]
    return parts[::-1]


def _mixed(words: Ints) -> Ints:
    """A bijection of 64-bit words after which each bit depends on all: the finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    bits = words.view(np.uint64) + np.uint64(0x9E37_79B9_7F4A_7C15)
    bits = (bits ^ bits >> np.uint64(30)) * np.uint64(0xBF58_476D_1CE4_E5B9)
    bits = (bits ^ bits >> np.uint64(27)) * np.uint64(0x94D0_49BB_1331_11EB)
    return (bits ^ bits >> np.uint64(31)).view(np.int64)
