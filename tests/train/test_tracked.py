"""A run beside a tracker that hangs takes as long as one without."""

import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from luthier.recipe.load import dump
from luthier.recipe.tracking import Tracking
from luthier.runs.store import RunFolder
from luthier.train.run import train
from luthier.watch.trackers import tracked
from tests.train.workshop import Workshop
from tests.watch.test_trackers import findings, stand_in

HANGS = """
from pathlib import Path
import time
def init(**settings): Path({begun!r}).touch()
def log(numbers, step): time.sleep(1)
def finish(): pass
"""
"""For a second at each step, so that a loop which waited for it would take half a minute longer."""


def test_training_takes_no_longer_beside_a_tracker_that_hangs(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pairs: other programs slow both of a pair."""
    stand_in(tmp_path, monkeypatch, "pass")
    begun = tmp_path / "begun"
    (tmp_path / "library" / "trackio.py").write_text(HANGS.format(begun=str(begun)))
    ratios = []
    for pair in range(3):
        seconds = []
        for name in ("alone", "beside"):
            job = workshop.job(f"{name}-{pair}", training={"max_steps": 30})
            job.folder.recipe.write_text(dump(job.recipe))
            hanging = tracked(job.folder, Tracking(report_to=("trackio",)), print, seconds_to_end=0.1)
            with hanging if name == "beside" else nullcontext():
                end = time.monotonic() + 60
                while name == "beside" and not begun.exists() and time.monotonic() < end:
                    time.sleep(0.05)
                began = time.monotonic()
                train(job)
                seconds.append(time.monotonic() - began)
        begun.unlink()
        assert told_nothing_in_time(job.folder)
        ratios.append(seconds[1] / seconds[0])
    assert min(ratios) < 1.5, ratios


def told_nothing_in_time(run: RunFolder) -> bool:
    """Whether the tracker hung, as it was made to."""
    return any("it did not answer within 0 s" in found["message"] for found in findings(run) if found["code"] == "tracker-behind")
