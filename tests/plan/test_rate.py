"""The rate: earlier runs on this machine first, then a probe, then a share of the peak that says it is an estimate."""

from dataclasses import replace
from pathlib import Path

import pytest

from luthier.core.hardware import Hardware
from luthier.plan.hardware import here, table
from luthier.plan.rate import DRIFT, assumed_rate, circumstances, measured_rate
from luthier.plan.setup import Layout, Setup
from luthier.runs import rates
from luthier.runs.rates import Measured
from tests.plan.test_speed import ONE_STEP, SETUP, seven_b, shape

HOST = Hardware(processor="AMD EPYC", cores=2, memory_bytes=24 << 30, bfloat16=True, gpus=())
PROCESSOR, _ = here(HOST)
NOW = circumstances(PROCESSOR, 2, seven_b(), SETUP, ONE_STEP)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")


def kept(*flops: float, source: str = "run") -> None:
    for each in flops:
        rates.keep(Measured(source="probe" if source == "probe" else "run", name="", circumstances=NOW, flops=each, seconds=60.0))


def test_circumstances_are_read_off_setup_and_survey() -> None:
    assert (NOW.processor, NOW.threads, NOW.engine, NOW.trained, NOW.hidden, NOW.places) == ("AMD EPYC", 2, "fused", "adapter", 3584, 1000)
    gpu = circumstances(table()["H100"], 2, seven_b(), replace(SETUP, device="cuda", lora="none"), ONE_STEP)
    assert (gpu.processor, gpu.threads, gpu.trained) == ("NVIDIA H100 SXM", 0, "all")


def test_earlier_runs_give_their_median_and_the_machines_drift_around_them() -> None:
    kept(9e11, 4e11, 6e11, 5e11)
    found = measured_rate(NOW)
    assert found is not None
    assert (found.flops.mid, found.source) == (5e11, "earlier runs (3)")  # the oldest, 9e11, counts no more
    assert (found.flops.low, found.flops.high) == (pytest.approx(4e11 / (1 + DRIFT)), pytest.approx(6e11 * (1 + DRIFT)))


def test_a_probe_is_named_as_one() -> None:
    kept(5e11, source="probe")
    found = measured_rate(NOW)
    assert found is not None
    assert found.source == "probe"


def test_with_nothing_measured_there_is_no_measured_rate() -> None:
    assert measured_rate(NOW) is None


def test_small_models_mixtures_and_4_bits_reach_less_of_the_peak() -> None:
    h100, bf16 = table()["H100"], replace(SETUP, device="cuda", dtype="bfloat16", engine="packed")

    def mid(hub_id: str, setup: Setup = bf16) -> float:
        return assumed_rate(h100, 1, shape(hub_id), setup).flops.mid / 989e12

    large, small, mixture = (mid(hub_id) for hub_id in ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-30B-A3B-Instruct-2507"))
    assert large > small > mixture > 0
    assert mid("Qwen/Qwen2.5-7B-Instruct", replace(bf16, quantization="nf4")) < large


def test_a_t4_emulates_bfloat16_at_the_rate_of_float32() -> None:
    rate = assumed_rate(table()["T4"], 1, seven_b(), replace(SETUP, dtype="bfloat16"))
    assert rate.flops.high < 8.1e12
    assert "no bfloat16" in rate.source


def test_a_processor_that_nothing_was_measured_on_is_a_guess_and_says_so() -> None:
    rate = assumed_rate(PROCESSOR, 2, seven_b(), replace(SETUP, dtype="bfloat16"))
    assert "guess" in rate.source and not rate.measured
    assert rate.flops.high >= 10 * rate.flops.low


def test_ranks_divide_a_processors_threads() -> None:
    two = replace(SETUP, layout=Layout(data=2))
    assert circumstances(PROCESSOR, 4, seven_b(), two, ONE_STEP).threads == 2
    assert circumstances(PROCESSOR, 1, seven_b(), two, ONE_STEP).threads == 1
    alone, each = (assumed_rate(PROCESSOR, 4, seven_b(), setup).flops.mid for setup in (SETUP, two))
    assert alone == 2 * each
