"""The next token of each row: the likeliest, or one that is drawn by its row's seed and its place, and how probable it was.

B = rows, V = vocabulary, S = rows that draw.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from luthier.core.generation import Asked, Choices, Token

LIKELY = 512
"""Of these the nucleus (Holtzman et al. 2020, arXiv 1904.09751) is looked for first: sorting 152,000 takes 8 ms a row, these 0.4 ms."""
MASK = 2**64 - 1


def chosen(logits_BV: Tensor, asked: Sequence[Asked], places: Sequence[int], left: Sequence[Choices] = ()) -> list[Token]:
    """What follows in each row, whose answer has `places` tokens so far, and `left` to choose from where it is held to anything.

    A log-probability is that among all tokens, after temperature where a row wants it so; one that is not finite is the caller's to refuse.
    """
    logits_BV = logits_BV.float()
    left = left or [{}] * len(asked)
    may_BV = _held(logits_BV, left)
    ids_B = may_BV.argmax(-1)
    drawing = [row for row, one in enumerate(asked) if one.sampling.temperature > 0]
    for rows in ([row for row in drawing if asked[row].sampling.top_p >= 1], [row for row in drawing if asked[row].sampling.top_p < 1]):
        if rows:
            at_S = torch.tensor(rows, device=ids_B.device)
            ids_B[at_S] = _drawn(may_BV[at_S], [asked[row] for row in rows], [places[row] for row in rows])
    ids: list[int] = ids_B.tolist()
    return [
        Token(id=id, logprob=logprob, top=top, end="stop" if choices and not choices[id] else _end(one, id, place))
        for id, (logprob, top), one, place, choices in zip(
            ids, told(_tempered(logits_BV, asked), ids_B, asked), asked, places, left, strict=True
        )
    ]


def told(logits_BV: Tensor, ids_B: Tensor, asked: Sequence[Asked]) -> list[tuple[float, tuple[tuple[int, float], ...]]]:
    """Each token's log-probability, and the likeliest in its place, as many as its row wants."""
    lse_B1 = logits_BV.float().logsumexp(-1, keepdim=True)
    logprobs: list[float] = (logits_BV.gather(-1, ids_B[:, None]).float() - lse_B1)[:, 0].tolist()
    most = max((one.num_top for one in asked), default=0)
    if not most:
        return [(logprob, ()) for logprob in logprobs]
    values_BK, ids_BK = logits_BV.topk(min(most, logits_BV.shape[-1]), -1)
    likeliest = zip(ids_BK.tolist(), (values_BK.float() - lse_B1).tolist(), strict=True)
    pairs = [tuple(zip(ids, values, strict=True)) for ids, values in likeliest]
    return [(logprob, top[: one.num_top]) for logprob, top, one in zip(logprobs, pairs, asked, strict=True)]


def _tempered(logits_BV: Tensor, asked: Sequence[Asked]) -> Tensor:
    """Of rows that want their log-probabilities so, over their temperature; there is none where the likeliest is taken."""
    rows = [row for row, one in enumerate(asked) if one.tempered and one.sampling.temperature > 0]
    if not rows:
        return logits_BV
    told_BV = logits_BV.clone()
    told_BV[rows] = _colder(logits_BV[rows], logits_BV.new_tensor([asked[row].sampling.temperature for row in rows])[:, None])
    return told_BV


def _colder(logits_SV: Tensor, temperature_S1: Tensor) -> Tensor:
    """Below the least float32, or far above the largest quotient, there would be no number: so cold, the likeliest is all there is."""
    return (logits_SV - logits_SV.amax(-1, keepdim=True)) / temperature_S1.float().clamp_min(torch.finfo(torch.float32).tiny)


def _held(logits_BV: Tensor, left: Sequence[Choices]) -> Tensor:
    """Minus infinity for what may not follow, in rows that are held to anything."""
    held = {row: list(choices) for row, choices in enumerate(left) if choices}
    if not held:
        return logits_BV
    may_BV = logits_BV.clone()
    for row, ids in held.items():
        may_BV[row] = -torch.inf
        may_BV[row, ids] = logits_BV[row, ids]
    return may_BV


def _end(asked: Asked, id: int, place: int) -> Literal["", "stop", "length"]:
    return "stop" if id in asked.stop_ids else "length" if place + 1 >= asked.sampling.max_new_tokens else ""


def _drawn(logits_SV: Tensor, asked: Sequence[Asked], places: Sequence[int]) -> Tensor:
    """Where the sum of probabilities, likeliest first where there is a nucleus, passes the row's share of all that may be drawn."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits_SV.device)[:, None]

    temperature_S1, top_p_S1 = column([one.sampling.temperature for one in asked]), column([one.sampling.top_p for one in asked])
    share_S1 = column([uniform(one.sampling.seed, place) for one, place in zip(asked, places, strict=True)])
    probabilities_SV = _colder(logits_SV, temperature_S1).softmax(-1)
    if asked[0].sampling.top_p >= 1:
        return _passing(probabilities_SV, share_S1)[:, 0]
    values_SK, ids_SK = probabilities_SV.topk(min(LIKELY, probabilities_SV.shape[-1]), -1)
    ids_S = _of_nucleus(values_SK, ids_SK, top_p_S1, share_S1)
    short = (values_SK.double().sum(-1) < top_p_S1[:, 0]).nonzero()[:, 0]
    if len(short):
        values_SV, order_SV = probabilities_SV[short].sort(stable=True, dim=-1, descending=True)
        ids_S[short] = _of_nucleus(values_SV, order_SV, top_p_S1[short], share_S1[short])
    return ids_S


def _of_nucleus(values_SK: Tensor, ids_SK: Tensor, top_p_S1: Tensor, share_S1: Tensor) -> Tensor:
    """Drawn among the fewest whose probabilities reach top_p."""
    before_SK = values_SK.double().cumsum(-1) - values_SK
    kept_SK = values_SK.masked_fill((before_SK >= top_p_S1) & (before_SK > 0), 0.0)
    return ids_SK.gather(-1, _passing(kept_SK, share_S1))[:, 0]


def _passing(values_SK: Tensor, share_S1: Tensor) -> Tensor:
    """The first place at which the sum so far exceeds the share of the whole sum [S, 1]."""
    sums_SK = values_SK.double().cumsum(-1)
    last_S1 = (values_SK > 0).long().cumsum(-1).argmax(-1, keepdim=True)  # a share just below 1 may be rounded up to all
    return torch.minimum(torch.searchsorted(sums_SK, share_S1 * sums_SK[:, -1:], right=True), last_S1)


def uniform(seed: int, place: int) -> float:
    """A number in [0, 1) for a place of an answer: SplitMix64 (Steele et al. 2014) of both."""
    return (_mixed(_mixed(seed & MASK) + place) >> 11) / 2**53


def _mixed(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)
