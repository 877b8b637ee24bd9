"""The canary finds arithmetic that is wrong, and nothing where it is only rounded otherwise."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.core.finding import Finding
from luthier.train import canary

CPU = torch.device("cpu")
RECORDED = json.loads(canary.RECORD.read_text())["losses"]


def found_in(losses: Sequence[float], dtype: str = "float32") -> list[Finding]:
    return list(canary.deviations(dtype, losses, RECORDED[dtype]))


@pytest.mark.parametrize("dtype", canary.compute_types(CPU))
def test_this_machine_gives_the_recorded_losses(dtype: str) -> None:
    trained = canary.train(dtype, CPU)
    assert found_in(trained.losses, dtype) == []
    assert trained.gave_way == ""


def test_a_learning_rate_that_is_wrong_by_a_hundredth_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    update = torch.optim.AdamW.step

    def too_fast(self: torch.optim.AdamW, *arguments: Any) -> Any:
        self.param_groups[0]["lr"] = canary.TRAINING.learning_rate * 1.01
        return update(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", too_fast)
    (finding,) = found_in(canary.train("float32", CPU).losses)
    assert (finding.code, finding.severity, finding.evidence["step"]) == ("canary-deviates", "refuse", 2)


def test_a_gradient_of_one_micro_batch_that_is_scaled_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    backward, calls = Tensor.backward, iter(range(10**6))
    monkeypatch.setattr(Tensor, "backward", lambda part, *given: backward(part * 1.05 if next(calls) % 2 else part, *given))
    (finding,) = found_in(canary.train("float32", CPU).losses)
    assert int(finding.evidence["step"]) <= 3


def test_a_wrong_forward_pass_is_found_in_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = Tensor.__matmul__
    monkeypatch.setattr(Tensor, "__matmul__", lambda left, right: multiply(left, right) * 1.001)
    (finding,) = found_in(canary.train("float32", CPU).losses)
    assert finding.evidence["step"] == 1


def test_rounding_is_not_found_but_a_loss_that_is_no_number_is() -> None:
    assert found_in([loss * (1 + 1e-6) for loss in RECORDED["float32"]]) == []
    (finding,) = found_in([*RECORDED["float32"][:-1], math.nan])
    assert finding.evidence["step"] == canary.STEPS
    assert "nan" in finding.message
