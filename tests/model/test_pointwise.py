"""The C functions equal their twins in torch: all types, odd sizes, columns of wider matrices, and values that are no numbers."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from luthier.core.compiled import compilers
from luthier.model import pointwise, twins
from luthier.model.native import native
from luthier.model.pointwise import Angles, HeadNorm, Stacked, Visible

without = not compilers() or os.environ.get("LUTHIER_NATIVE") == "0"
needs_library = pytest.mark.skipif(without, reason="no C compiler on this machine, or switched off by LUTHIER_NATIVE=0")

FAR = 1 << 40
UNTOUCHED = 7.0
"""What buffers hold before: an element that is not written, or written beside the view that was given, differs from its twin's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """Inputs of one type and size, the same for both sides."""

    dtype: torch.dtype
    rows: int
    width: int
    random: torch.Generator

    def values(self, *shape: int) -> Tensor:
        """Columns of a wider matrix, its first element at an odd address."""
        *rows, width = shape
        return (2 * torch.randn(*rows, width + 5, generator=self.random)).to(self.dtype)[..., 3 : 3 + width]

    def floats(self, *shape: int) -> Tensor:
        """Weights and statistics."""
        return torch.randn(*shape, generator=self.random)

    def buffer(self, *shape: int) -> Tensor:
        """To write into, all of it."""
        return torch.full(shape, UNTOUCHED, dtype=self.dtype)

    @property
    def matrix(self) -> Tensor:
        """[rows, width]."""
        return self.values(self.rows, self.width)


def norm(module: ModuleType, make: Maker) -> tuple[Tensor, ...]:
    buffer = make.buffer(make.rows, make.width + 9)
    rstd_T = module.rms_norm(make.matrix, make.floats(make.width), 1e-6, buffer[:, 4:-5])
    return buffer, rstd_T


def norm_backward(module: ModuleType, make: Maker) -> tuple[Tensor, ...]:
    given = (make.matrix, make.matrix, make.floats(make.width), make.floats(make.rows).abs())
    return module.rms_norm_backward(*given, None), module.rms_norm_backward(*given, make.matrix)


def rotation(make: Maker, num_heads: int, *, normed: bool) -> tuple[Tensor, HeadNorm | None, Angles]:
    size = 2 * make.width
    head_norm = HeadNorm(weight_d=make.floats(size), eps=1e-5) if normed else None
    angles = Angles(cos_Td2=make.floats(make.rows, make.width), sin_Td2=make.floats(make.rows, make.width))
    return make.values(make.rows, num_heads * size), head_norm, angles


def two_nodes(num_rows: int) -> Tensor:
    """Tokens 1 … in a first node, then token 0 in one of its own, and two empty places after each."""
    places = [(token, 0, place, num_rows + 1) for place, token in enumerate((*range(1, num_rows), -1, -1))]
    return torch.tensor([*places, *((token, num_rows + 1, place, 3) for place, token in enumerate((0, -1, -1)))])


def rotated(module: ModuleType, make: Maker) -> tuple[Tensor, ...]:
    outs, places_P4 = [], two_nodes(make.rows)
    for normed, turned in ((False, True), (True, True), (False, False)):
        outs.append(make.buffer(len(places_P4), 6 * make.width))
        x_TC, norm, angles = rotation(make, 3, normed=normed)
        module.rotate(x_TC, norm, angles if turned else None, Stacked(flat_PC=outs[-1], num_heads=3, places_P4=places_P4))
    return tuple(outs)


def rotated_back(module: ModuleType, make: Maker) -> tuple[Tensor, ...]:
    buffers, places_P4 = [], two_nodes(make.rows)
    for normed, turned in ((False, True), (True, True), (False, False)):
        buffers.append(make.buffer(make.rows, 6 * make.width + 3))
        g = Stacked(flat_PC=make.values(len(places_P4), 6 * make.width).contiguous(), num_heads=3, places_P4=places_P4)
        x_TC, norm, angles = rotation(make, 3, normed=normed)
        module.rotate_backward(g, x_TC, norm, angles if turned else None, buffers[-1][:, 1:-2])
    return tuple(buffers)


def gated(module: ModuleType, make: Maker) -> tuple[Tensor, ...]:
    buffer = make.buffer(2, make.rows, make.width + 1)
    for out_TF, activation in zip(buffer, ("silu", "gelu_tanh"), strict=True):
        module.gate(make.values(make.rows, 2 * make.width), out_TF[:, 1:], activation)
    return (buffer,)


def gated_back(module: ModuleType, make: Maker) -> tuple[Tensor, ...]:
    gradients, hidden = make.buffer(2, make.rows, 2 * make.width + 3), make.buffer(2, make.rows, make.width + 1)
    for index, activation in enumerate(("silu", "gelu_tanh")):
        into = (gradients[index][:, 2:-1], hidden[index][:, 1:])
        module.gate_backward(make.matrix, make.values(make.rows, 2 * make.width), *into, activation)
    return gradients, hidden


def visibles(make: Maker) -> Iterator[Visible]:
    queries, keys = make.rows, make.width
    yield Visible(queries=queries, keys=keys, low=-FAR, high=keys - queries)
    yield Visible(queries=queries, keys=keys, low=-FAR, high=FAR)
    yield Visible(queries=queries, keys=keys, low=keys - queries - 4, high=keys - queries)  # a window of 5
    yield Visible(queries=max(1, queries - 2), keys=max(1, keys - 3), low=1, high=2)
    yield Visible(queries=queries, keys=keys, low=-FAR, high=-2)  # the first two queries see nothing


def probabilities(module: ModuleType, make: Maker) -> tuple[Tensor, ...]:
    found: list[Tensor] = []
    for visible in visibles(make):
        scores_KML = make.values(2, 3 * (make.rows + 1), make.width).contiguous()
        lse_HM = module.softmax_(scores_KML, 0.7, visible, 6)
        found += scores_KML, lse_HM
    return tuple(found)


def probabilities_back(module: ModuleType, make: Maker) -> tuple[Tensor, ...]:
    found: list[Tensor] = []
    for visible in visibles(make):
        scores_KML, dp_KML = (make.values(2, 3 * (make.rows + 1), make.width).contiguous() for _ in range(2))
        lse_HM = module.softmax_(scores_KML.clone(), 0.7, visible, 6)
        stats = (torch.cat((lse_HM, lse_HM), 1)[:, : make.rows], make.floats(6, make.rows + 3))
        module.softmax_backward_(scores_KML, dp_KML, stats, 0.7, visible)
        found += scores_KML, dp_KML
    return tuple(found)


def merged(module: ModuleType, make: Maker) -> tuple[Tensor, ...]:
    whole, lse = make.buffer(3, make.rows + 4, make.width), make.floats(3, make.rows + 4)
    part, part_lse = make.values(3, make.rows, make.width), 3 * make.floats(3, make.rows)
    whole[:, 2:-2] = make.values(3, make.rows, make.width)
    lse[0, 2], part_lse[1, 0], lse[2, 2], part_lse[2, 0] = (-torch.inf,) * 4
    whole[0, 2], part[1, 0] = torch.nan, torch.nan  # where nothing was seen
    module.merge_(whole[:, 2:-2], lse[:, 2:-2], part, part_lse)
    return whole, lse


def dotted(module: ModuleType, make: Maker) -> tuple[Tensor, ...]:
    one, other = make.buffer(make.rows, 3 * make.width + 5)[:, 2:-3], make.values(make.rows, 3 * make.width)
    one.copy_(make.values(make.rows, 3 * make.width))
    return (module.head_dots(one, other, 3),)


def attended(module: ModuleType, make: Maker) -> tuple[Tensor, ...]:
    """Rows of one token to more than a tile, some of which read the beginning from another; with a window and without."""
    keys, values = (make.values(3 * 150 * 3, make.width).reshape(3, 150, 3, make.width).contiguous() for _ in range(2))
    queries = make.values(make.rows, 6 * make.width).contiguous()
    rows = torch.tensor([(150 * (row % 3), (1, 64, 147)[row % 3], 150, (0, 17, 64)[row % 3]) for row in range(make.rows)])
    whole, windowed = make.buffer(make.rows, 6 * make.width), make.buffer(make.rows, 6 * make.width)
    module.attend(queries, keys, values, rows, (make.width**-0.5, FAR), whole)
    module.attend(queries, keys, values, rows, (make.width**-0.5, 20), windowed)
    return whole, windowed


def losses(module: ModuleType, make: Maker) -> tuple[Tensor, ...]:
    logits_NV, targets_N = make.matrix, torch.arange(make.rows) % make.width
    return module.cross_entropy_(logits_NV, targets_N, 1 + targets_N % 3), logits_NV


def dropped(module: ModuleType, make: Maker) -> tuple[Tensor, ...]:
    keys_T = torch.randint(-(2**63), 2**63 - 1, (make.rows,), generator=make.random)
    buffer = make.buffer(make.rows, make.width + 2)
    module.drop(make.matrix, keys_T, 2**63 - 5, 0.3, buffer[:, 1:-1])
    module.drop_add_(buffer[:, 1:-1], make.matrix, keys_T, 11, 0.05)
    return (buffer,)


Run = Callable[[ModuleType, Maker], tuple[Tensor, ...]]
RUNS = (
    norm,
    norm_backward,
    rotated,
    rotated_back,
    gated,
    gated_back,
    probabilities,
    probabilities_back,
    dotted,
    merged,
    attended,
    losses,
    dropped,
)


def assert_same(found: Tensor, expected: Tensor) -> None:
    """To a few units in the last place of float32, measured at the largest element; of bfloat16 to at most one, and that seldom."""
    atol = 1e-6 * float(expected[expected.isfinite()].abs().max()) if expected.isfinite().any() else 0.0
    torch.testing.assert_close(found, expected, rtol=2**-7 if found.dtype is torch.bfloat16 else 2e-6, atol=atol, equal_nan=True)
    if found.dtype is torch.bfloat16:
        assert (found != expected).sum() <= 1 + found.numel() // 500


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 48), (6, 37), (5, 128)])
@pytest.mark.parametrize("run", RUNS)
def test_the_c_function_equals_its_twin(run: Run, rows: int, width: int, dtype: torch.dtype) -> None:
    both = []
    for module in (pointwise, twins):
        both.append(run(module, Maker(dtype=dtype, rows=rows, width=width, random=torch.Generator().manual_seed(rows + width))))
    assert len(both[0]) == len(both[1]) > 0
    for found, expected in zip(*both, strict=True):
        assert_same(found, expected)


@needs_library
@pytest.mark.parametrize("run", [probabilities, losses])
def test_rows_may_be_longer_than_what_is_kept_of_them(run: Run) -> None:
    both = [
        run(module, Maker(dtype=torch.float32, rows=2, width=8209, random=torch.Generator().manual_seed(0)))
        for module in (pointwise, twins)
    ]
    for found, expected in zip(*both, strict=True):
        assert_same(found, expected)


@needs_library
def test_a_compiler_is_all_the_library_needs() -> None:
    assert native().library is not None, native().note


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_does_not_become_one(bad: float, dtype: torch.dtype) -> None:
    x = torch.randn(4, 40).to(dtype)
    x[1, 33] = bad
    out, ones = torch.empty_like(x), torch.ones(40)

    def only_in_row_1(*results: Tensor) -> bool:
        finite = [result.view(4, -1).isfinite().all(1).tolist() for result in results]
        return finite == [[True, False, True, True]] * len(results)

    assert only_in_row_1(pointwise.rms_norm(x, ones, 1e-6, out) * out[:, 33])  # inf / inf
    assert only_in_row_1(pointwise.rms_norm_backward(x, torch.ones_like(x), ones, torch.ones(4), None))
    pointwise.drop(x, torch.arange(4), 0, 0.5, out)
    assert only_in_row_1(out)
    by_token = Stacked(flat_PC=out, num_heads=1, places_P4=torch.tensor([(token, 0, token, 4) for token in range(4)]))
    pointwise.rotate(x, None, Angles(cos_Td2=torch.ones(4, 20), sin_Td2=torch.ones(4, 20)), by_token)
    assert only_in_row_1(out)
    half = out[:, :20]
    pointwise.gate(x.flip(1), half, "silu")
    assert only_in_row_1(half) or bad == -torch.inf  # of which silu is 0 times inf
    if bad != -torch.inf:
        assert only_in_row_1(pointwise.cross_entropy_(x.clone(), torch.arange(4), torch.ones(4, dtype=torch.long)))
        everything = Visible(queries=4, keys=40, low=-FAR, high=FAR)
        assert only_in_row_1(pointwise.softmax_(x.clone()[None], 1.0, everything, 1).view(4))


@needs_library
def test_the_exponential_is_good_to_a_few_units_and_goes_to_nothing() -> None:
    scores = torch.linspace(0, -100, 10_001)
    expected = scores.double().exp()
    found = pointwise_exponential(scores)
    error = (found - expected).abs() / expected
    assert error[scores > -4].max() < 4e-7
    assert error[scores > -87].max() < 6e-6  # 4e-7 where the processor fuses products and sums
    assert found[scores <= -87].max() < 2e-38


def pointwise_exponential(scores: Tensor) -> Tensor:
    """e^score by way of the softmax's backward with lse = 0."""
    p, everything = scores.clone().view(1, 1, -1), Visible(queries=1, keys=len(scores), low=-FAR, high=FAR)
    pointwise.softmax_backward_(p, torch.zeros_like(p), (torch.zeros(1, 1), torch.zeros(1, 1)), 1.0, everything)
    return p.view(-1).double()


@needs_library
def test_the_gate_holds_far_out() -> None:
    gate_TF = torch.tensor([[-1e4, -500.0, -100.0, -89.0, -88.0, -30.0, 30.0, 88.0, 500.0, 1e4]])
    gate_up_T2F = torch.cat((gate_TF, torch.ones_like(gate_TF)), 1)
    for activation, expected in (("silu", functional.silu(gate_TF)), ("gelu_tanh", functional.gelu(gate_TF, approximate="tanh"))):
        out_TF = torch.empty_like(gate_TF)
        pointwise.gate(gate_up_T2F, out_TF, activation)
        torch.testing.assert_close(out_TF, expected, rtol=1e-6, atol=1e-35)


@needs_library
@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 0.999])
def test_every_bit_of_a_mask_is_the_same_in_c_and_in_torch(p: float) -> None:
    keys_T = torch.randint(-(2**63), 2**63 - 1, (500,))
    masks_TD = torch.empty(2, 500, 700)
    for module, mask_TD in zip((pointwise, twins), masks_TD, strict=True):
        module.drop(torch.ones(500, 700), keys_T, 1234567890123456789, p, mask_TD)
    assert torch.equal(*masks_TD)


@needs_library
def test_a_mask_of_later_columns_is_the_same_in_c_and_in_torch() -> None:
    keys_T = torch.randint(-(2**63), 2**63 - 1, (500,))
    masks_TD, sums_TD = torch.empty(2, 500, 70), torch.zeros(2, 500, 70)
    for module, mask_TD, sum_TD in zip((pointwise, twins), masks_TD, sums_TD, strict=True):
        module.drop(torch.ones(500, 70), keys_T, 1234567890123456789, 0.3, mask_TD, 4_294_967_290)  # where 32 bits end
        module.drop_add_(sum_TD, torch.ones(500, 70), keys_T, 1234567890123456789, 0.3, 630)
    assert torch.equal(*masks_TD)
    assert torch.equal(*sums_TD)
    whole_TD = torch.empty(500, 700)
    pointwise.drop(torch.ones(500, 700), keys_T, 1234567890123456789, 0.3, whole_TD)
    assert torch.equal(whole_TD[:, 630:], sums_TD[0])


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 2e-3), (torch.float64, 1e-12)])
def test_other_types_go_to_the_twin(dtype: torch.dtype, error: float) -> None:
    x, out = torch.randn(3, 8, dtype=torch.float64), torch.empty(3, 8, dtype=dtype)
    pointwise.rms_norm(x.to(dtype), torch.ones(8), 0.0, out)
    torch.testing.assert_close(out.double(), x / x.square().mean(1, keepdim=True).sqrt(), rtol=0, atol=error)


@needs_library
def test_it_works_with_as_many_threads_as_torch_and_gives_the_same() -> None:
    x = torch.randn(512, 128)
    one, four, before = torch.empty_like(x), torch.empty_like(x), torch.get_num_threads()
    num_started = []

    def norm_into(out: Tensor) -> None:
        at_first = set(os.listdir("/proc/self/task"))
        pointwise.rms_norm(x, torch.ones(128), 1e-6, out)
        num_started.append(len(set(os.listdir("/proc/self/task")) - at_first))

    try:
        for num_threads, out in ((1, one), (4, four)):
            torch.set_num_threads(num_threads)
            thread = threading.Thread(target=norm_into, args=(out,))  # a new one: OpenMP gives it workers of its own
            thread.start()
            thread.join(timeout=60)
    finally:
        torch.set_num_threads(before)
    assert num_started == [0, 3]
    assert torch.equal(one, four)


@needs_library
def test_what_c_would_misread_is_refused() -> None:
    x, keys_T = torch.ones(4, 6), torch.arange(4)
    for wrong in (x.double(), x.bfloat16(), torch.ones(6, 4).T, torch.ones(4, 1).expand(4, 6)):
        with pytest.raises(ValueError, match="matrices of one type whose rows lie in one piece"):
            pointwise.drop(x, keys_T, 0, 0.5, wrong)
    with pytest.raises(ValueError, match="keys for 3 tokens, not for 4"):
        pointwise.drop(x, keys_T[:3], 0, 0.5, torch.empty(4, 6))
    pointwise.drop(torch.ones(6, 4).T[:, :1], keys_T, 0, 0.5, torch.empty(4, 1))  # rows of one element always do
