"""A rate holds for the same processor, threads, type and engine, and for a model and micro batches of about the same size."""

from dataclasses import replace
from pathlib import Path

import pytest

from luthier.core.hardware import Hardware
from luthier.runs import rates
from luthier.runs.rates import Circumstances, Measured

HERE = Circumstances(
    processor="AMD EPYC",
    threads=2,
    dtype="bfloat16",
    quantization="none",
    engine="fused",
    trained="adapter",
    hidden=1024,
    places=4000.0,
)
RUN = Measured(source="run", name="first", circumstances=HERE, flops=5e11, seconds=600.0)
MACHINE = Hardware(processor="AMD EPYC", cores=8, memory_bytes=1, bfloat16=True, gpus=())


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))


def test_without_a_file_nothing_is_known() -> None:
    assert rates.known(HERE) == ()


def test_a_kept_rate_is_known_again_the_newest_first() -> None:
    rates.keep(RUN)
    rates.keep(replace(RUN, name="second"))
    assert [measured.name for measured in rates.known(HERE)] == ["second", "first"]
    assert rates.known(HERE)[1] == RUN


@pytest.mark.parametrize(
    "other",
    [
        replace(HERE, processor="Intel Xeon"),
        replace(HERE, threads=1),
        replace(HERE, dtype="float32"),
        replace(HERE, quantization="nf4"),
        replace(HERE, engine="plain"),
        replace(HERE, trained="all"),
        replace(HERE, hidden=2560),
        replace(HERE, hidden=511),
        replace(HERE, places=1000.0),
    ],
)
def test_a_rate_of_other_circumstances_does_not_hold(other: Circumstances) -> None:
    rates.keep(RUN)
    assert rates.known(other) == ()


def test_a_model_of_up_to_twice_the_width_is_alike() -> None:
    rates.keep(RUN)
    assert rates.known(replace(HERE, hidden=2048, places=2000.0)) == (RUN,)


def test_a_run_goes_before_a_newer_probe() -> None:
    probe = replace(RUN, source="probe")
    rates.keep(probe)
    assert rates.known(HERE) == (probe,)
    rates.keep(RUN)
    rates.keep(probe)
    assert rates.known(HERE) == (RUN,)


def test_a_torn_last_line_is_passed_over() -> None:
    rates.keep(RUN)
    with rates.rates_file().open("a") as file:
        file.write('{"time": 1, "sour')
    assert rates.known(HERE) == (RUN,)


def test_threads_are_those_that_the_environment_says_or_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert rates.threads_here(MACHINE) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert rates.threads_here(MACHINE) == 8
