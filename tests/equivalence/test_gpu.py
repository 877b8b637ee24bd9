"""On a GPU packs go through FlexAttention and the kernels' twins are compiled: the same loss and gradients as padded rows on the CPU."""

from pathlib import Path

import pytest
import torch

from luthier.data.pack import bins, trees
from luthier.model.fuse import fuse
from luthier.model.load import load_model
from luthier.recipe.schema import Model
from luthier.train.batch import collate, of_pack
from luthier.train.objective import nll, nll_sum
from tests.equivalence.test_quantized import KINDS, plain
from tests.model.zoo import LONGEST, adapted, assert_plain, gradients, plain_loss, quantized, shared_rows, tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""FlexAttention sums in another order than sdpa; float32 products are full ones."""


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("packer", [bins, trees])
@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen2"])
def test_packs_on_a_gpu_are_padded_rows_on_the_cpu(family: str, packer: object, dtype: torch.dtype) -> None:
    torch.set_float32_matmul_precision("highest")
    rows = shared_rows()
    reference = adapted(tiny(family)).train()
    expected_loss = plain_loss(reference, rows)
    expected_loss.backward()  # type: ignore[no-untyped-call]
    device = torch.device("cuda", 0)
    model = adapted(tiny(family, dtype)).to(device).train()
    fusion = fuse(model, pack=True, longest=max(map(len, rows)))
    assert fusion.packs and not fusion.num_layers and fusion.num_linear == 2 * 7, str(fusion)
    (pack,) = packer(rows, range(len(rows)), 10**6)  # type: ignore[operator]
    batch = of_pack(pack, device)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        loss = nll_sum(model, batch) / batch.num_targets
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected_loss.item(), rel=TOLERANCE[dtype])
    found = {name: gradient.cpu().float() for name, gradient in gradients(model).items()}
    assert_plain(found, gradients(reference), tolerance=10 * TOLERANCE[dtype])


@pytest.mark.parametrize("packer", [bins, trees])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_few_bits_on_a_gpu_are_the_plain_twin_on_the_cpu(family: str, kind: str, packer: object) -> None:
    torch.set_float32_matmul_precision("highest")
    rows, device = shared_rows(), torch.device("cuda", 0)
    expected_loss, expected = plain(family, kind)
    name, double = KINDS[kind]
    model = adapted(quantized(tiny(family), name, double_quant=double)).to(device).train()
    fuse(model, pack=True, longest=LONGEST)
    (pack,) = packer(rows, range(len(rows)), 10**6)  # type: ignore[operator]
    batch = of_pack(pack, device)
    loss = nll_sum(model, batch) / batch.num_targets
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected_loss, rel=1e-4)
    assert_plain({name: gradient.cpu() for name, gradient in gradients(model).items()}, expected, tolerance=1e-3)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padded_rows_on_a_gpu_are_those_on_the_cpu_by_every_attention(attention: str, tmp_path: Path) -> None:
    """sdpa takes torch's flash kernel in 16 bits, where there is no mask to give; eager is the plain form."""
    tiny("qwen3").save_pretrained(tmp_path)
    asked, rows = Model.model_validate({"base": str(tmp_path), "attention": attention}), shared_rows()
    found = {}
    for device, dtype in ((torch.device("cpu"), torch.float32), (torch.device("cuda", 0), torch.bfloat16)):
        model = adapted(load_model(asked, dtype, device)).to(device).train()
        batch = collate(rows, range(len(rows)), device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = nll_sum(model, batch) / batch.num_targets
        loss.backward()  # type: ignore[no-untyped-call]
        found[device.type] = loss.item(), {name: gradient.cpu().float() for name, gradient in gradients(model).items()}
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], rel=TOLERANCE[torch.bfloat16])
    assert_plain(found["cuda"][1], found["cpu"][1], tolerance=10 * TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_layers_on_two_devices_answer_as_on_the_cpu(quantization: str, tmp_path: Path) -> None:
    """The second device is the host, whose layers accelerate brings to the GPU when it is their turn."""
    tiny("qwen3").save_pretrained(tmp_path)
    asked = Model.model_validate({"base": str(tmp_path), "quantization": quantization})
    whole = load_model(asked, torch.float32, torch.device("cpu"))
    num_bytes = sum(weight.nbytes for weight in whole.parameters())
    device = torch.device("cuda", 0)
    divided = load_model(asked, torch.float32, device, memory={0: 2 * num_bytes // 3, "cpu": num_bytes})
    assert len(set(divided.hf_device_map.values())) == 2
    rows = shared_rows()
    with torch.no_grad():
        expected, found = (
            nll(model, collate(rows, range(len(rows)), place)) for model, place in ((whole, torch.device("cpu")), (divided, device))
        )
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
