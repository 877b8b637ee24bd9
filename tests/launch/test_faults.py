"""What a dead rank died of, and how long a silent one is borne."""

from pathlib import Path

import pytest

from luthier.launch.faults import out_of_memory_kills
from luthier.runs.heartbeat import Beat, Patience, Phase


@pytest.mark.parametrize(
    ("group", "file", "text"),
    [
        ("0::/user.slice/job", "user.slice/job/memory.events", "low 0\nmax 7\noom 2\noom_kill 3\noom_group_kill 0\n"),
        ("0::/of/the/host", "memory.events", "oom 2\noom_kill 3\n"),
        ("8:pids:/\n4:cpu,memory:/job\n", "memory/job/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        ("4:memory:/docker/1a\n0::/\n", "memory/memory.oom_control", "oom_kill_disable 0\noom_kill 3\n"),
    ],
    ids=["version 2", "version 2 in a container", "version 1", "version 1 in a container"],
)
def test_the_kernels_kills_for_want_of_memory_are_counted(tmp_path: Path, group: str, file: str, text: str) -> None:
    counted = tmp_path / "sys/fs/cgroup" / file
    counted.parent.mkdir(parents=True)
    counted.write_text(text)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(group)
    assert out_of_memory_kills(tmp_path) == 3


def test_where_they_cannot_be_read_there_are_none(tmp_path: Path) -> None:
    assert out_of_memory_kills(tmp_path) == 0


@pytest.mark.parametrize(
    ("phase", "usual_seconds", "seconds"),
    [
        ("computing", 0.8, 60),
        ("computing", 30, 300),
        ("computing", 0, 600),
        ("loading", 0, 1800),
        ("saving", 0.8, 900),
        ("saving", 200, 2000),
    ],
)
def test_patience_follows_the_phase_and_the_usual_step(phase: Phase, usual_seconds: float, seconds: float) -> None:
    beat = Beat(rank=0, pid=1, host="", started=0, phase=phase, step=5, time=0, usual_seconds=usual_seconds)
    assert Patience().of(beat) == seconds
