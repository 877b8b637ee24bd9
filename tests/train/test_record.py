"""How busy the device was, as a step's line has it: a processor by its own clock, a GPU by what nvidia-smi told meanwhile."""

import time
from pathlib import Path

import pytest
import torch

from luthier.train.record import Stopwatch, device_use
from luthier.watch.busy import Sample, Samples, Unseen


def test_a_gpu_is_as_busy_as_its_samples_say_and_unknown_without_any() -> None:
    samples = Samples()
    watch = Stopwatch(torch.device("cuda"), samples)
    assert watch.utilization is None
    samples.add(Sample(at=time.perf_counter(), share=0.37))
    assert watch.utilization == 0.37
    assert Stopwatch(torch.device("cuda"), Unseen()).utilization is None


def test_of_a_processor_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\ntouch {tmp_path / 'asked'}\necho 12\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with device_use(torch.device("cpu")) as busy:
        watch, end = Stopwatch(torch.device("cpu"), busy), time.process_time() + 0.05
        while time.process_time() < end:
            pass
        assert watch.utilization is not None and 0 < watch.utilization <= 1 and watch.utilization != 0.12
    assert not (tmp_path / "asked").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_that_multiplies_without_a_pause_is_busy() -> None:
    device = torch.device("cuda", 0)
    numbers_NN = torch.randn(4096, 4096, device=device)
    with device_use(device) as busy:
        watch, end = Stopwatch(device, busy), time.monotonic() + 8
        while time.monotonic() < end:
            numbers_NN @ numbers_NN
            torch.cuda.synchronize(device)
        assert watch.utilization is not None and watch.utilization > 0.5
