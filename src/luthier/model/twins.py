"""The row-wise functions of a training step in plain torch: what pointwise.c must equal, and what runs where that cannot.

Arithmetic is in float32 (float64 for float64), rounded once, when the result is written: into `out`, or in place if the name ends in `_`.
Axes: T tokens, D hidden, F gated, H heads of d, K heads of the keys, C = H·d, M queries, L keys, N targets, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Activation = Literal["silu", "gelu_tanh"]

WORD = 0xFFFFFFFF
"""The lowest 32 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadNorm:
    """RMSNorm of each head: y = x / sqrt(mean(x²) + eps) · weight."""

    weight_d: Tensor
    eps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Angles:
    """Cosine and sine of each token's rotary angles, [T, d/2] float32, contiguous."""

    cos_Td2: Tensor
    sin_Td2: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacked:
    """Heads by node: for each node [H, its places, d], contiguous, one node after the other.

    `places_P4` says of each place in memory: which token is there (-1: none, but zeros), its node's first place, the place counted from
    there, and how many places the node has.
    """

    flat_PC: Tensor
    num_heads: int
    places_P4: Tensor

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """The memory as rows [P·H, d]; the tokens that are there; and the rows in which each of these has its heads."""
        places_F4 = self.places_P4[self.places_P4[:, 0] >= 0]
        token_F, first_F, place_F, size_F = places_F4.unbind(1)
        heads_H = torch.arange(self.num_heads, device=places_F4.device)
        rows_FH = (first_F * self.num_heads + place_F)[:, None] + size_F[:, None] * heads_H
        return self.flat_PC.view(len(self.flat_PC) * self.num_heads, -1), token_F, rows_FH


@dataclass(frozen=True, slots=True, kw_only=True)
class Visible:
    """Query i sees key j if i < queries, 0 ≤ j < keys and low + i ≤ j ≤ high + i."""

    queries: int
    keys: int
    low: int
    high: int


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, out_TD: Tensor) -> Tensor:
    """Each row over its root mean square, times weight; returns rstd_T."""
    x = wide(x_TD)
    rstd_T = (x.square().mean(-1) + eps).rsqrt()
    out_TD.copy_(x * rstd_T[:, None] * weight_D)
    return rstd_T


def rms_norm_backward(dy_TD: Tensor, x_TD: Tensor, weight_D: Tensor, rstd_T: Tensor, residual_TD: Tensor | None) -> Tensor:
    """The gradient of rms_norm's input, plus the residual's."""
    x = wide(x_TD)
    dx = norm_gradient(wide(dy_TD) * weight_D, x, rstd_T[:, None])
    return (dx if residual_TD is None else dx + wide(residual_TD)).to(x_TD.dtype)


def rotate(x_TC: Tensor, norm: HeadNorm | None, angles: Angles | None, out: Stacked) -> None:
    """Rows to heads by node, each normed and turned by its token's angles."""
    x_THd = wide(x_TC).view(len(x_TC), out.num_heads, -1)
    if norm is not None:
        x_THd = x_THd * head_rstd(x_THd, norm) * norm.weight_d
    if angles is not None:
        x_THd = turned(x_THd, angles.cos_Td2, angles.sin_Td2)
    filled, tokens_F, rows_FH = out.rows()
    out.flat_PC.zero_()
    filled[rows_FH] = x_THd[tokens_F].to(filled.dtype)


def rotate_backward(g: Stacked, x_TC: Tensor, norm: HeadNorm | None, angles: Angles | None, out_TC: Tensor) -> None:
    """The gradient of rotate's input, by rows."""
    filled, tokens_F, rows_FH = g.rows()
    x_THd = wide(x_TC).view(len(x_TC), g.num_heads, -1)
    g_THd = torch.empty_like(x_THd)
    g_THd[tokens_F] = wide(filled[rows_FH])
    if angles is not None:
        g_THd = turned(g_THd, angles.cos_Td2, -angles.sin_Td2)
    if norm is not None:
        g_THd = norm_gradient(g_THd * norm.weight_d, x_THd, head_rstd(x_THd, norm))
    out_TC.copy_(g_THd.flatten(1))


def gate(gate_up_T2F: Tensor, out_TF: Tensor, activation: Activation) -> None:
    """activation(gate) · up."""
    gate_TF, up_TF = wide(gate_up_T2F).chunk(2, 1)
    out_TF.copy_(gate_TF * sigmoid_of(gate_TF, activation)[0] * up_TF)


def gate_backward(dh_TF: Tensor, gate_up_T2F: Tensor, d_gate_up_T2F: Tensor, hidden_TF: Tensor, activation: Activation) -> None:
    """The gradients of gate and up, and the hidden values once more."""
    gate_TF, up_TF = wide(gate_up_T2F).chunk(2, 1)
    dh, width = wide(dh_TF), dh_TF.shape[1]
    share, slope = sigmoid_of(gate_TF, activation)
    active = gate_TF * share
    hidden_TF.copy_(active * up_TF)
    d_gate_up_T2F[:, :width].copy_(dh * up_TF * share * (1 + gate_TF * (1 - share) * slope))
    d_gate_up_T2F[:, width:].copy_(dh * active)


def softmax_(scores_KML: Tensor, scale: float, visible: Visible, num_heads: int) -> Tensor:
    """Scores to probabilities of the visible keys; returns lse_HM, -inf where nothing is visible."""
    scores_HML = scores_KML.view(num_heads, -1, scores_KML.shape[2])
    scores = (wide(scores_HML) * scale).masked_fill(~seen(scores_HML, visible), -torch.inf)
    lse_HM = scores.logsumexp(-1)
    scores_HML.copy_((scores - lse_HM[..., None]).exp().masked_fill(scores == -torch.inf, 0))
    return lse_HM


def softmax_backward_(scores_KML: Tensor, dp_KML: Tensor, stats: tuple[Tensor, Tensor], scale: float, visible: Visible) -> None:
    """Scores to probabilities P, and dP to the scores' gradient P · (dP - delta) · scale."""
    scores_HML, dp_HML = (each.view(len(stats[0]), -1, each.shape[2]) for each in (scores_KML, dp_KML))
    mask_ML = seen(scores_HML, visible)
    beyond = scores_HML.shape[1] - visible.queries
    lse_HM1, delta_HM1 = (torch.nn.functional.pad(each_Hm[:, : visible.queries], (0, beyond))[..., None] for each_Hm in stats)
    p = (wide(scores_HML) * scale - lse_HM1).exp().masked_fill(~mask_ML, 0)
    dp_HML.copy_((p * (wide(dp_HML) - delta_HM1) * scale).masked_fill(~mask_ML, 0))
    scores_HML.copy_(p)


def attend(q_BC: Tensor, keys_SLHd: Tensor, values_SLHd: Tensor, rows_B4: Tensor, shape: tuple[float, int], out_BC: Tensor) -> None:
    """Attention of one token of each row to its row."""
    (scale, window), (groups, size) = shape, keys_SLHd.shape[2:]
    keys_PHd, values_PHd = wide(keys_SLHd).flatten(0, 1), wide(values_SLHd).flatten(0, 1)
    for q_C, out_C, (own, num, other, lent) in zip(wide(q_BC), out_BC, rows_B4.tolist(), strict=True):
        places = [(other if place < lent else own) + place for place in range(max(0, num - window), num)]
        q_HMd = q_C.view(groups, -1, size) * scale
        shares_HML = (q_HMd @ keys_PHd[places].permute(1, 2, 0)).softmax(-1)
        out_C.copy_((shares_HML @ values_PHd[places].transpose(0, 1)).flatten())


def head_dots(a_TC: Tensor, b_TC: Tensor, num_heads: int) -> Tensor:
    """Each head's dot product of a and b, [H, T]."""
    return (wide(a_TC) * wide(b_TC)).reshape(len(a_TC), num_heads, -1).sum(-1).T.contiguous()


def merge_(out_HMd: Tensor, lse_HM: Tensor, part_HMd: Tensor, part_lse_HM: Tensor) -> None:
    """Adds a partial attention to out and lse; what saw nothing (lse = -inf) may hold anything."""
    total = torch.logaddexp(lse_HM, part_lse_HM)
    merged = wide(out_HMd) * (lse_HM - total).exp()[..., None] + wide(part_HMd) * (part_lse_HM - total).exp()[..., None]
    merged = torch.where((lse_HM == -torch.inf)[..., None], wide(part_HMd), merged)
    out_HMd.copy_(torch.where((part_lse_HM == -torch.inf)[..., None], wide(out_HMd), merged))
    lse_HM.copy_(total)


def cross_entropy_(logits_NV: Tensor, targets_N: Tensor, counts_N: Tensor) -> Tensor:
    """Logits to their gradient count · (softmax - onehot); returns the summed loss of each target, count · -log softmax."""
    logits, targets_N1 = wide(logits_NV), targets_N[:, None]
    counts_N1 = counts_N[:, None].to(logits.dtype)
    log_p = logits.log_softmax(-1)
    logits_NV.copy_(log_p.exp().scatter_add_(1, targets_N1, -torch.ones_like(counts_N1)) * counts_N1)
    return -log_p.gather(1, targets_N1)[:, 0] * counts_N1[:, 0]


def drop(x_TD: Tensor, keys_T: Tensor, salt: int, p: float, out_TD: Tensor, first: int = 0) -> None:
    """x times 0 or 1 / (1 - p), as the hash of (key, salt, column) has it."""
    out_TD.copy_(wide(x_TD) * drop_factors(x_TD, keys_T, salt, p, first))


def drop_add_(out_TD: Tensor, x_TD: Tensor, keys_T: Tensor, salt: int, p: float, first: int = 0) -> None:
    """Adds what drop would give."""
    out_TD.copy_(wide(out_TD) + wide(x_TD) * drop_factors(x_TD, keys_T, salt, p, first))


def drop_factors(x_TD: Tensor, keys_T: Tensor, salt: int, p: float, first: int = 0) -> Tensor:
    """0 where the hash is below the threshold, else the scale; arithmetic of 32 bits in int64, so that it is the same everywhere."""
    key_T = keys_T ^ salt
    word_T = mixed(mixed(key_T & WORD) ^ ((key_T >> 32) & WORD))
    hash_TD = mixed((word_T[:, None] + torch.arange(first, first + x_TD.shape[1], device=x_TD.device)) & WORD)
    return (hash_TD >= drop_threshold(p)).to(wide(x_TD).dtype) * drop_scale(p)


def drop_threshold(p: float) -> int:
    """Hashes below it are dropped, of 2³²."""
    return min(round(p * 2**32), WORD)


def drop_scale(p: float) -> float:
    """What keeps the mean, by the share that is really dropped."""
    return 1 / (1 - drop_threshold(p) / 2**32)


def mixed(x: Tensor) -> Tensor:
    """lowbias32 (Wellons): each bit of x flips each bit of the result with a chance of a half."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & WORD
    x = ((x ^ (x >> 15)) * 0x846CA68B) & WORD
    return x ^ (x >> 16)


def wide(x: Tensor) -> Tensor:
    """x as the arithmetic has it."""
    return x if x.dtype is torch.float64 else x.float()


def norm_gradient(t: Tensor, x: Tensor, rstd: Tensor) -> Tensor:
    """With t the gradient of x · rstd, the gradient of x: t · rstd - x · rstd³ · mean(t · x)."""
    return t * rstd - x * (rstd.pow(3) * (t * x).mean(-1, keepdim=True))


def head_rstd(x_THd: Tensor, norm: HeadNorm) -> Tensor:
    """1 / root mean square of each head, [T, H, 1]."""
    return (x_THd.square().mean(-1, keepdim=True) + norm.eps).rsqrt()


def turned(x_THd: Tensor, cos_Td2: Tensor, sin_Td2: Tensor) -> Tensor:
    """Each head's halves as real and imaginary part, times e^(i · angle)."""
    u, v = x_THd.chunk(2, -1)
    cos, sin = cos_Td2[:, None], sin_Td2[:, None]
    return torch.cat((u * cos - v * sin, v * cos + u * sin), -1)


def sigmoid_of(gate_TF: Tensor, activation: Activation) -> tuple[Tensor, Tensor | float]:
    """Either activation is a · sigmoid(s(a)): the sigmoid, and s'(a)."""
    if activation == "silu":
        return gate_TF.sigmoid(), 1.0
    first = 1.5957691216057308  # 2 · sqrt(2 / pi), because 1 + tanh(z) = 2 · sigmoid(2 · z)
    third = 0.044715 * first
    square = gate_TF.square()
    return (gate_TF * (first + third * square)).sigmoid(), first + 3 * third * square


def seen(scores_HML: Tensor, visible: Visible) -> Tensor:
    """Which keys each query sees, [M, L]."""
    query = torch.arange(scores_HML.shape[1], device=scores_HML.device)[:, None]
    key = torch.arange(scores_HML.shape[2], device=scores_HML.device)
    return (query < visible.queries) & (key < visible.keys) & (key >= visible.low + query) & (key <= visible.high + query)
