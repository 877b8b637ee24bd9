"""How busy a GPU is, by an nvidia-smi that stands in for one: its answers, and what there is where it gives none."""

import time
from pathlib import Path

import pytest

from luthier.watch.busy import FRESH_SECONDS, Busy, Sample, Samples, sampled, share_of

ANSWERS = """#!/bin/sh
echo "$@" >> {told}
read -r number < {number}
echo $((number + 1)) > {number}
{act}
"""


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path in which nvidia-smi can be put."""
    (tmp_path / "number").write_text("0\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def answering(card: Path, act: str) -> None:
    path = card / "nvidia-smi"
    path.write_text(ANSWERS.format(told=card / "told", number=card / "number", act=act))
    path.chmod(0o755)


def known(busy: Busy, began: float, seconds: float = 10) -> float | None:
    end = time.monotonic() + seconds
    while (share := busy.since(began)) is None and time.monotonic() < end:
        time.sleep(0.01)
    return share


def test_a_card_is_asked_by_its_id_beside_what_is_measured(card: Path) -> None:
    answering(card, "echo 37")
    began = time.perf_counter()
    with sampled("GPU-1234", seconds_between=0.02) as busy:
        assert known(busy, began) == 0.37
    assert (card / "told").read_text().splitlines()[0] == "--id=GPU-1234 --query-gpu=utilization.gpu --format=csv,noheader,nounits"
    asked = (card / "number").read_text()
    time.sleep(0.1)
    assert (card / "number").read_text() == asked  # nobody asks any more


@pytest.mark.parametrize("act", ["echo '[N/A]'", "echo No devices were found; exit 6", "echo NVIDIA-SMI has failed >&2; exit 9", "exit 0"])
def test_a_card_that_does_not_tell_is_asked_once(card: Path, act: str) -> None:
    answering(card, act)
    with sampled("GPU-1234", seconds_between=0.01) as busy:
        assert known(busy, 0.0, seconds=0.3) is None
    assert (card / "number").read_text() == "1\n"


def test_without_nvidia_smi_nobody_knows(card: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(card))
    with sampled("GPU-1234") as busy:
        assert busy.since(0.0) is None


def test_a_card_that_hangs_holds_up_neither_a_step_nor_for_long_the_end(card: Path) -> None:
    answering(card, "exec sleep 60")
    began = time.monotonic()
    with sampled("GPU-1234") as busy:
        assert busy.since(0.0) is None
        assert time.monotonic() - began < 1
    assert time.monotonic() - began < 8


def test_a_step_has_the_mean_of_its_samples_and_a_short_one_the_last_that_is_fresh() -> None:
    now, samples = time.perf_counter(), Samples()
    assert samples.since(now) is None
    for at, share in ((now - 4, 1.0), (now - 2, 0.4), (now - 1, 0.6)):
        samples.add(Sample(at=at, share=share))
    assert samples.since(now - 3) == pytest.approx(0.5)
    assert samples.since(now) == 0.6
    old = Samples()
    old.add(Sample(at=now - FRESH_SECONDS - 1, share=0.9))
    assert old.since(now) is None
    for _ in range(1000):
        samples.add(Sample(at=now, share=0.2))
    assert samples.since(now - 5) == pytest.approx(0.2)


@pytest.mark.parametrize(("answer", "share"), [("37\n", 0.37), ("0", 0.0), (" 100 ", 1.0), ("[N/A]", None), ("", None), ("3\n4\n", None)])
def test_an_answer_is_a_whole_number_of_percent(answer: str, share: float | None) -> None:
    assert share_of(answer) == share
