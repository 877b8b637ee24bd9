"""The row-wise functions of a training step, forward and backward, without autograd: in C where that can be, else their twins in torch.

On a CPU pointwise.c does float32 and bfloat16; twins.py does the rest, compiled on CUDA. A matrix has a contiguous last dimension and its
rows at any distance: it may be columns of a wider one. Weights, angles and statistics are float32; targets, counts and keys are int64;
vectors are contiguous. Axes as in twins.py.
"""

import functools
import importlib.util
import itertools
from collections.abc import Callable
from ctypes import c_float, c_int, c_int64, c_long, c_uint32, c_void_p
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from luthier.core.compiled import compilers
from luthier.model import twins
from luthier.model.native import native
from luthier.model.twins import Activation, Angles, HeadNorm, Stacked, Visible

__all__ = [
    "Activation",
    "Angles",
    "HeadNorm",
    "Stacked",
    "Visible",
    "attend",
    "cross_entropy_",
    "drop",
    "drop_add_",
    "gate",
    "gate_backward",
    "head_dots",
    "merge_",
    "rms_norm",
    "rms_norm_backward",
    "rotate",
    "rotate_backward",
    "softmax_",
    "softmax_backward_",
]

# What each function of pointwise.c takes: p a pointer, n a count or a distance, f a float, i a flag, s a salt, u 32 bits.
PARAMETERS = {
    "rms_norm": "pn p pn p nn f",
    "rms_norm_backward": "pn pn p p pn p nn",
    "rotate": "pn p f pp pp nnn",
    "rotate_backward": "pp pn p f pp pn nnn",
    "gate": "pn pn nn i",
    "gate_backward": "pn pn pn pn nn i",
    "softmax": "p p nnn f nnnn",
    "softmax_backward": "p p pn pn nnn f nnnn",
    "head_dots": "pn pn p nnn",
    "merge": "pnn pn pnn pn nnn",
    "cross_entropy": "pn p p p nn",
    "attend": "p p p p p nnnnn f",
    "drop": "pn p pn nn suf n",
    "drop_add": "pn pn p nn suf n",
}
C_TYPES: dict[str, Any] = {"p": c_void_p, "n": c_long, "f": c_float, "i": c_int, "s": c_int64, "u": c_uint32}
REALS = {torch.float32: "float", torch.bfloat16: "bfloat16"}

Given = ParamSpec("Given")
Result = TypeVar("Result")


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float, out_TD: Tensor) -> Tensor:
    """Each row over its root mean square, times weight, into out; returns rstd_T, which the backward wants (Zhang and Sennrich 2019)."""
    call = _call("rms_norm", x_TD, out_TD)
    if not call:
        return _twin(twins.rms_norm, x_TD)(x_TD, weight_D, eps, out_TD)
    rstd_T = torch.empty(len(x_TD))
    call(*_rows(x_TD), weight_D.data_ptr(), *_rows(out_TD), rstd_T.data_ptr(), *x_TD.shape, eps)
    return rstd_T


def rms_norm_backward(dy_TD: Tensor, x_TD: Tensor, weight_D: Tensor, rstd_T: Tensor, residual_TD: Tensor | None) -> Tensor:
    """The gradient of rms_norm's input, plus the residual's if there is one."""
    call = _call("rms_norm_backward", dy_TD, x_TD)
    if not call:
        return _twin(twins.rms_norm_backward, x_TD)(dy_TD, x_TD, weight_D, rstd_T, residual_TD)
    dx_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype)
    residual = (None, 0) if residual_TD is None else _rows(residual_TD)
    call(*_rows(dy_TD), *_rows(x_TD), weight_D.data_ptr(), rstd_T.data_ptr(), *residual, dx_TD.data_ptr(), *x_TD.shape)
    return dx_TD


def rotate(x_TC: Tensor, norm: HeadNorm | None, angles: Angles | None, out: Stacked) -> None:
    """Rows to heads by node, each normed if asked and turned by its token's angles if there are any (Su et al. 2021)."""
    call = _call("rotate", x_TC, out.flat_PC)
    if not call:
        return _twin(twins.rotate, x_TC)(x_TC, norm, angles, out)
    call(*_rows(x_TC), *_turning(norm, angles), out.places_P4.data_ptr(), out.flat_PC.data_ptr(), *_sizes(out))


def rotate_backward(g: Stacked, x_TC: Tensor, norm: HeadNorm | None, angles: Angles | None, out_TC: Tensor) -> None:
    """The gradient of rotate's input, by rows, into out."""
    call = _call("rotate_backward", x_TC, g.flat_PC, out_TC)
    if not call:
        return _twin(twins.rotate_backward, x_TC)(g, x_TC, norm, angles, out_TC)
    call(g.flat_PC.data_ptr(), g.places_P4.data_ptr(), *_rows(x_TC), *_turning(norm, angles), *_rows(out_TC), *_sizes(g))


def gate(gate_up_T2F: Tensor, out_TF: Tensor, activation: Activation) -> None:
    """activation(gate) · up, into out (Shazeer 2020)."""
    call = _call("gate", gate_up_T2F, out_TF)
    if not call:
        return _twin(twins.gate, gate_up_T2F)(gate_up_T2F, out_TF, activation)
    call(*_rows(gate_up_T2F), *_rows(out_TF), *out_TF.shape, activation == "gelu_tanh")


def gate_backward(dh_TF: Tensor, gate_up_T2F: Tensor, d_gate_up_T2F: Tensor, hidden_TF: Tensor, activation: Activation) -> None:
    """The gradients of gate and up into d_gate_up; and activation(gate) · up once more, into hidden."""
    call = _call("gate_backward", dh_TF, gate_up_T2F, d_gate_up_T2F, hidden_TF)
    if not call:
        return _twin(twins.gate_backward, gate_up_T2F)(dh_TF, gate_up_T2F, d_gate_up_T2F, hidden_TF, activation)
    into = (*_rows(d_gate_up_T2F), *_rows(hidden_TF))
    call(*_rows(dh_TF), *_rows(gate_up_T2F), *into, *dh_TF.shape, activation == "gelu_tanh")


def softmax_(scores_KML: Tensor, scale: float, visible: Visible, num_heads: int) -> Tensor:
    """Scores to probabilities of the visible keys, 0 elsewhere; returns lse_HM, -inf where nothing is visible.

    Contiguous [K key heads, H/K·M, L]: the queries of the heads that share keys stand one below the other.
    """
    call = _call("softmax", scores_KML)
    if not call:
        return _twin(twins.softmax_, scores_KML)(scores_KML, scale, visible, num_heads)
    lse_HM = torch.empty(num_heads, len(scores_KML) * scores_KML.shape[1] // num_heads)
    call(scores_KML.data_ptr(), lse_HM.data_ptr(), *lse_HM.shape, scores_KML.shape[2], scale, *_limits(visible))
    return lse_HM


def softmax_backward_(scores_KML: Tensor, dp_KML: Tensor, stats: tuple[Tensor, Tensor], scale: float, visible: Visible) -> None:
    """Scores to probabilities P, and dP to the scores' gradient P · (dP - delta) · scale; stats are (lse_Hm, delta_Hm), m ≥ queries."""
    call = _call("softmax_backward", scores_KML, dp_KML)
    if not call:
        return _twin(twins.softmax_backward_, scores_KML)(scores_KML, dp_KML, stats, scale, visible)
    num_heads, width = len(stats[0]), scores_KML.shape[2]
    sizes = (num_heads, len(scores_KML) * scores_KML.shape[1] // num_heads, width)
    call(scores_KML.data_ptr(), dp_KML.data_ptr(), *_rows(stats[0]), *_rows(stats[1]), *sizes, scale, *_limits(visible))


def attend(q_BC: Tensor, keys_SLHd: Tensor, values_SLHd: Tensor, rows_B4: Tensor, shape: tuple[float, int], out_BC: Tensor) -> None:
    """Attention of a row's newest token to its row, into out; of each row: the place of its first token, counted through all slots, its
    tokens, the place from where it reads the first of them, and how many it reads there. `shape` is the scale and the window."""
    (scale, window), (groups, size) = shape, keys_SLHd.shape[2:]
    call = _call("attend", q_BC, keys_SLHd, values_SLHd, out_BC)
    if not call:
        return _twin(twins.attend, q_BC)(q_BC, keys_SLHd, values_SLHd, rows_B4, shape, out_BC)
    tensors = (q_BC, keys_SLHd, values_SLHd, rows_B4, out_BC)
    call(*(each.data_ptr() for each in tensors), len(q_BC), q_BC.shape[1] // size, groups, size, window, scale)


def head_dots(a_TC: Tensor, b_TC: Tensor, num_heads: int) -> Tensor:
    """Each head's dot product of a and b, [H, T]: attention's delta, of the output and its gradient."""
    call = _call("head_dots", a_TC, b_TC)
    if not call:
        return _twin(twins.head_dots, a_TC)(a_TC, b_TC, num_heads)
    num_tokens, width = a_TC.shape
    dots_HT = torch.empty(num_heads, num_tokens)
    call(*_rows(a_TC), *_rows(b_TC), dots_HT.data_ptr(), num_tokens, num_heads, width // num_heads)
    return dots_HT


def merge_(out_HMd: Tensor, lse_HM: Tensor, part_HMd: Tensor, part_lse_HM: Tensor) -> None:
    """Adds a partial attention to out and lse; what saw nothing (lse = -inf) may hold anything (Milakov and Gimelshein 2018)."""
    call = _call("merge", out_HMd, part_HMd)
    if not call:
        return _twin(twins.merge_, out_HMd)(out_HMd, lse_HM, part_HMd, part_lse_HM)
    call(*_heads(out_HMd), *_rows(lse_HM), *_heads(part_HMd), *_rows(part_lse_HM), *out_HMd.shape)


def cross_entropy_(logits_NV: Tensor, targets_N: Tensor, counts_N: Tensor) -> Tensor:
    """Logits to their gradient count · (softmax - onehot); returns the loss of each target, count · -log softmax."""
    call = _call("cross_entropy", logits_NV)
    if not call:
        return _twin(twins.cross_entropy_, logits_NV)(logits_NV, targets_N, counts_N)
    loss_N = torch.empty(len(logits_NV))
    call(*_rows(logits_NV), targets_N.data_ptr(), counts_N.data_ptr(), loss_N.data_ptr(), *logits_NV.shape)
    return loss_N


def drop(x_TD: Tensor, keys_T: Tensor, salt: int, p: float, out_TD: Tensor, first: int = 0) -> None:
    """x, a share p of it set to zero and the rest over 1 - p, into out. Which, follows from the token's key, the salt and the column.

    Keys and salts should be hashes of 64 and 63 bits. p counts in steps of 2⁻³². x may be columns of a wider matrix, from `first` on.
    """
    _check_keys(keys_T, x_TD)
    call = _call("drop", x_TD, out_TD)
    if not call:
        return _twin(twins.drop, x_TD)(x_TD, keys_T, salt, p, out_TD, first)
    call(*_rows(x_TD), keys_T.data_ptr(), *_rows(out_TD), *x_TD.shape, salt, twins.drop_threshold(p), twins.drop_scale(p), first)


def drop_add_(out_TD: Tensor, x_TD: Tensor, keys_T: Tensor, salt: int, p: float, first: int = 0) -> None:
    """Adds what drop would give to out."""
    _check_keys(keys_T, x_TD)
    call = _call("drop_add", out_TD, x_TD)
    if not call:
        return _twin(twins.drop_add_, x_TD)(out_TD, x_TD, keys_T, salt, p, first)
    call(*_rows(out_TD), *_rows(x_TD), keys_T.data_ptr(), *x_TD.shape, salt, twins.drop_threshold(p), twins.drop_scale(p), first)


def _call(name: str, *matrices: Tensor) -> Callable[..., None] | None:
    """The C function for these matrices; raises ValueError for what it would read as something else."""
    like = matrices[0]
    call = _calls().get((name, like.dtype)) if like.is_cpu else None
    if call and any(matrix.dtype is not like.dtype or (matrix.stride(-1) != 1 and matrix.shape[-1] > 1) for matrix in matrices):
        told = ", ".join(f"{matrix.dtype} with strides {matrix.stride()}" for matrix in matrices)
        raise ValueError(f"{name} wants matrices of one type whose rows lie in one piece, not {told}")
    torch.get_num_threads()  # in a thread that torch has not worked in, this tells OpenMP what set_num_threads said
    return call


@functools.cache
def _calls() -> dict[tuple[str, torch.dtype], Callable[..., None]]:
    calls: dict[tuple[str, torch.dtype], Callable[..., None]] = {}
    library = native().library
    if library is None:
        return calls
    for (name, parameters), (dtype, real) in itertools.product(PARAMETERS.items(), REALS.items()):
        call = calls[name, dtype] = library[f"{name}_{real}"]
        call.argtypes = [C_TYPES[letter] for letter in parameters.replace(" ", "")]
        call.restype = None
    return calls


def _check_keys(keys_T: Tensor, x_TD: Tensor) -> None:
    if len(keys_T) != len(x_TD):
        raise ValueError(f"dropout has keys for {len(keys_T)} tokens, not for {len(x_TD)}")


def _twin(function: Callable[Given, Result], like: Tensor) -> Callable[Given, Result]:
    return _compiled(function) if like.is_cuda else function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Where torch can compile for a GPU: its compiler is there, and the C compiler that this one calls."""
    return torch.compile(function) if importlib.util.find_spec("triton") and compilers() else function


def _rows(x: Tensor) -> tuple[int, int]:
    return x.data_ptr(), x.stride(0)


def _heads(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.stride(0), x.stride(1)


def _turning(norm: HeadNorm | None, angles: Angles | None) -> tuple[int | None, float, int | None, int | None]:
    weight, eps = (norm.weight_d.data_ptr(), norm.eps) if norm else (None, 0.0)
    cosine, sine = (angles.cos_Td2.data_ptr(), angles.sin_Td2.data_ptr()) if angles else (None, None)
    return weight, eps, cosine, sine


def _sizes(stacked: Stacked) -> tuple[int, int, int]:
    return len(stacked.places_P4), stacked.num_heads, stacked.flat_PC.shape[1] // stacked.num_heads


def _limits(visible: Visible) -> tuple[int, int, int, int]:
    return visible.queries, visible.keys, visible.low, visible.high
