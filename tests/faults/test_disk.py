"""A disk that takes no more: a clear error, the checkpoints before it whole, and the same command goes on once there is room.

Each test says what it causes it with: RLIMIT_FSIZE (which stands for a quota), a tmpfs in a mount namespace of its own, or another user.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.core import jsonl
from luthier.core.errors import RunError
from luthier.runs.store import RunFolder
from luthier.train import checkpoint
from tests.faults.harness import Ended, Start, Starter, may_mount, outcome, write_recipe

NOBODY = 65534
GOES_ON = "then the same command goes on"


class Home:
    """A recipe, and runs of it that share prepared data; everybody may read it."""

    def __init__(self, folder: Path, processes: Starter) -> None:
        self.folder, self.processes = folder, processes
        self.recipe = write_recipe(folder)

    def train(self, runs: str, *overrides: str, **limits: object) -> Ended:
        return self.processes.run(Start(words=("train", str(self.recipe), *overrides), runs=str(self.folder / runs), **limits))  # type: ignore[arg-type]

    def run(self, runs: str) -> RunFolder:
        return RunFolder(self.processes.seen(self.folder / runs) / "run")


@pytest.fixture(scope="module")
def home(processes: Starter) -> Iterator[Home]:
    folder = Path(tempfile.mkdtemp(prefix="luthier-disk-"))  # not pytest's, which no other user may enter
    folder.chmod(0o755)
    begun = Home(folder, processes)
    assert begun.train("whole").code == 0
    yield begun
    shutil.rmtree(folder)


def whole_checkpoints(run: RunFolder) -> list[int]:
    """Steps of the checkpoints; every one is whole, and nothing else lies beside them."""
    found = sorted(run.checkpoints.iterdir())
    for folder in found:
        checkpoint.verify(folder)
    return [int(folder.name.removeprefix("step-")) for folder in found]


def told(ended: Ended, what: str, mend: str) -> bool:
    """Whether it failed with one message of what, where and what to change, and no traceback."""
    assert ended.code == 1, ended.said
    assert "Traceback" not in ended.said
    return re.search(rf"{what}.*\n  {mend} \([\d.e+]+ [kMG]B are free there\), {GOES_ON}", ended.said) is not None


def test_a_limit_on_file_size_is_met_before_step_1(home: Home) -> None:
    ended = home.train("small", file_bytes=300_000)
    assert told(ended, "a checkpoint of .* [kM]B cannot be written: File too large", "raise the limit on a file's size .*")
    assert not home.run("small").checkpoints.exists()
    assert not list(home.run("small").path.rglob("*.part"))


def test_a_quota_that_is_met_in_a_later_save_stops_the_run_and_spares_the_one_before(home: Home) -> None:
    """RLIMIT_FSIZE, set when the save of step 4 begins."""
    ended = home.train("quota", file_bytes=300_000, limit_from="os.mkdir /run/checkpoints/step-000004.part")
    assert told(ended, "step-000004: a checkpoint of .* cannot be written: File too large", "raise the limit on a file's size .*")
    assert whole_checkpoints(home.run("quota")) == [3]
    assert home.train("quota").code == 0
    assert outcome(home.run("quota"), 6) == outcome(home.run("whole"), 6)


def test_a_run_that_may_go_on_without_checkpoints_warns_and_ends_with_the_same_adapter(home: Home) -> None:
    """RLIMIT_FSIZE, set when the save of step 4 begins; an adapter without an optimizer's state is small enough."""
    limits = {"file_bytes": 300_000, "limit_from": "os.mkdir /run/checkpoints/step-000004.part"}
    ended = home.train("on", "checkpoints.on_failed_save=continue", **limits)
    assert ended.code == 0, ended.said
    warned = re.findall(r"warn: .*step-00000(\d): a checkpoint of .* [kM]B cannot be written: File too large", ended.said)
    assert warned == ["4", "6"]
    assert whole_checkpoints(home.run("on")) == [3]
    weights = "adapter_model.safetensors"
    assert (home.run("on").adapter / weights).read_bytes() == (home.run("whole").adapter / weights).read_bytes()
    findings = [record["code"] for record in jsonl.records(home.run("on").events) if record["event"] == "finding"]
    assert findings.count("save-failed") == 2


def test_metrics_that_cannot_be_written_stop_the_run_and_lose_no_line(home: Home) -> None:
    """RLIMIT_FSIZE, set when the first line is written."""
    ended = home.train("lines", file_bytes=100, limit_from="open /run/metrics.jsonl")
    assert told(ended, r"metrics\.jsonl cannot be written: File too large", "raise the limit on a file's size .*")
    assert home.train("lines").code == 0
    assert outcome(home.run("lines"), 6) == outcome(home.run("whole"), 6)


def test_an_adapter_that_cannot_be_written_leaves_no_part_of_one(home: Home) -> None:
    """RLIMIT_FSIZE, set when the adapter is begun."""
    ended = home.train("final", file_bytes=100_000, limit_from="os.mkdir /run/adapter.part")
    assert told(ended, "adapter: the adapter cannot be written: File too large", "raise the limit on a file's size .*")
    run = home.run("final")
    assert not run.finished
    assert not list(run.path.glob("adapter*"))
    assert home.train("final").code == 0
    assert outcome(run, 6) == outcome(home.run("whole"), 6)


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="mounting a tmpfs is not permitted here")
def test_a_full_disk_spares_the_checkpoints_before_and_the_run_goes_on_with_more_room(home: Home) -> None:
    """A tmpfs of 2.0 MB in a mount namespace of its own: checkpoints take 0.7 MB, and the third beside the best does not fit."""
    (home.folder / "full").mkdir()
    home.processes.mount(home.folder / "full", 2_000_000)
    run = home.run("full")
    ended = home.train("full")
    assert told(ended, "step-000006: a checkpoint of .* cannot be written: No space left on device", "make room")
    assert whole_checkpoints(run) == [3, 4]
    assert run.recipe.read_bytes() == home.run("whole").recipe.read_bytes()
    home.processes.mount(home.folder / "full", 10_000_000)
    assert home.train("full").code == 0
    assert outcome(run, 6) == outcome(home.run("whole"), 6)


@pytest.mark.skipif(not may_mount(), reason="mounting a tmpfs is not permitted here")
def test_a_disk_that_is_mounted_read_only_is_told_and_left_as_it_is(home: Home) -> None:
    """A tmpfs in a mount namespace of its own, remounted read-only between two commands (EROFS)."""
    (home.folder / "sealed").mkdir()
    home.processes.mount(home.folder / "sealed", 10_000_000)
    assert home.train("sealed", kill_before="os.mkdir /run/checkpoints/step-000004.part").killed
    home.processes.remount(home.folder / "sealed", "ro")
    assert told(home.train("sealed"), "run: the lock cannot be written: Read-only file system", "mount it for writing")
    assert whole_checkpoints(home.run("sealed")) == [3]
    home.processes.remount(home.folder / "sealed", "rw")
    assert home.train("sealed").code == 0
    assert outcome(home.run("sealed"), 6) == outcome(home.run("whole"), 6)


@pytest.mark.skipif(not may_mount(), reason="mounting a tmpfs is not permitted here")
def test_what_is_prepared_on_a_disk_that_is_read_only_is_planned_with_and_what_is_not_is_told(home: Home) -> None:
    """A tmpfs in a mount namespace of its own, remounted read-only (EROFS); runs and prepared data both lie on it."""
    folder = home.folder / "archive"
    folder.mkdir()
    home.processes.mount(folder, 10_000_000)

    def luthier(*words: str) -> Ended:
        return home.processes.run(Start(words=(words[0], str(home.recipe), *words[1:]), runs=str(folder / "runs")))

    assert luthier("prepare").code == 0
    home.processes.remount(folder, "ro")
    ended = luthier("plan")
    assert ended.code == 0, ended.said
    assert "steps an epoch" in ended.said
    assert re.search(r"not kept: .*plan\.json cannot be written: Read-only file system", ended.said)
    assert "what was measured here is not kept for later plans" in ended.said
    assert told(luthier("prepare", "seed=7"), "prepared: prepared data cannot be written: Read-only file system", "mount it for writing")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_written_is_told_and_left_as_it_is(home: Home) -> None:
    """Another user, without permission to write in checkpoints/, then in the run folder."""
    (home.folder / "other").mkdir()
    os.chown(home.folder / "other", NOBODY, NOBODY)
    for path in (home.folder / "prepared", *(home.folder / "prepared").rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    assert home.train("other", user=NOBODY, kill_before="os.mkdir /run/checkpoints/step-000004.part").killed
    run, mend = home.run("other"), "let the user who runs Luthier write there"

    run.checkpoints.chmod(0o555)
    ended = home.train("other", user=NOBODY)
    assert told(ended, "step-000004: a checkpoint of .* cannot be written: Permission denied", mend)
    assert whole_checkpoints(run) == [3]

    run.path.chmod(0o555)
    assert told(home.train("other", user=NOBODY), "run: the lock cannot be written: Permission denied", mend)

    run.path.chmod(0o755)
    run.checkpoints.chmod(0o755)
    assert home.train("other", user=NOBODY).code == 0
    assert outcome(run, 6) == outcome(home.run("whole"), 6)
    assert "damaged" not in {record["event"] for record in jsonl.records(run.events)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_damaged(home: Home) -> None:
    """Another user, without permission to read it."""
    folder = home.run("whole").checkpoint(6)
    folder.chmod(0o700)
    child = os.fork()
    if child == 0:
        os.setuid(NOBODY)
        try:
            checkpoint.verify(folder)
        except RunError as error:
            os._exit(10 if type(error) is RunError and "a checkpoint cannot be read: Permission denied" in str(error) else 1)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 10
    folder.chmod(0o755)
