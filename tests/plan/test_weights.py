"""The bytes that the ledger counts are the bytes that are loaded, to the last one (trap 20)."""

from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.model.load import load_model
from luthier.plan.setup import Setup
from luthier.plan.shape import shape_of
from luthier.plan.weights import stored_weights, undivided
from luthier.recipe.schema import Lora, Model
from luthier.runs.workload import MicroBatchSize
from tests.model.zoo import FAMILIES, MIXTURES, tiny

FORMS = [("none", False), ("int8", False), ("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True)]


def counted(config: dict[str, Any], quantization: Any, double_quant: bool) -> int:
    setup = Setup(
        device="cpu",
        dtype="bfloat16",
        quantization=quantization,
        double_quant=double_quant,
        lora=Lora(),
        optimizer="adamw",
        engine="fused",
        chunked_head=True,
        micro_batch=MicroBatchSize(rows=1, tokens=64, packing="bins"),
        checkpoint_activations=False,
    )
    shape = shape_of(config)
    stage = undivided(shape)
    return sum(line.bytes for line in stored_weights(shape, setup, stage))


@pytest.mark.parametrize(("quantization", "double_quant"), FORMS)
@pytest.mark.parametrize("family", [*FAMILIES, *(family for family in MIXTURES if family not in FAMILIES)])
def test_the_ledger_counts_what_is_loaded(family: str, quantization: Any, double_quant: bool, tmp_path: Path) -> None:
    tiny(family).save_pretrained(tmp_path)
    base = Model(base=str(tmp_path), quantization=quantization, double_quant=double_quant)
    model = load_model(base, torch.bfloat16, torch.device("cpu"))
    assert counted(model.config.to_dict(), quantization, double_quant) == sum(weight.nbytes for weight in model.parameters())
