"""Ranks and supervisors as small real processes, without torch. `python crew.py RUN RANK SCENE`: a rank that plays a scene.

`python crew.py RUN launch SCENE SCENE`: what torchrun does: a rank for each scene in a session of its own, and exit code 1 if one fails.
`python crew.py RUN supervise SCENE …`: a supervisor of either, which prints the exit code.
`python crew.py RUN node NUMBER COUNT SCENE`: a supervisor on one of several machines, with one rank; the first one's may begin again twice.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from luthier.core.errors import NonFiniteError, RecipeError
from luthier.core.progress import Silent
from luthier.launch.attempt import NODE
from luthier.launch.follow import follow
from luthier.launch.group import run_group
from luthier.launch.group import supervise as supervise_group
from luthier.launch.nodes import Following, Leading, Node
from luthier.runs.heartbeat import Heartbeat, Patience, listen
from luthier.runs.store import RunFolder

SELF = Path(__file__)
PATIENT = Patience(back_off=0.05, grace=1.0)
HASTY = Patience(usual=1.0, first_step=1.0, phases={"loading": 30.0}, back_off=0.05, grace=1.0)
JOIN = 20.0
LONGEST = 60
"""Seconds after which a rank ends by itself, whatever a test got wrong."""


def command(run: RunFolder, *scenes: str) -> list[str]:
    """One rank itself, or what launches several."""
    return [sys.executable, str(SELF), str(run.path), *(["0"] if len(scenes) == 1 else ["launch"]), *scenes]


def take_steps(heart: Heartbeat, first: int, last: int) -> None:
    for step in range(first, last + 1):
        heart.beat("computing", step)
        time.sleep(0.02)


def attempt(run: RunFolder) -> int:
    """Which attempt this is, from 1."""
    file = run.path / "attempts"
    with file.open("a") as log:
        log.write("x")
    return file.stat().st_size


def finish(run: RunFolder, heart: Heartbeat) -> None:
    take_steps(heart, 1, 3)


def count_sheep() -> None:
    time.sleep(LONGEST)


def stall(run: RunFolder, heart: Heartbeat) -> None:
    attempt(run)
    take_steps(heart, 1, 7)
    count_sheep()


def stall_once(run: RunFolder, heart: Heartbeat) -> None:
    take_steps(heart, 1, 7)
    if attempt(run) == 1:
        count_sheep()


def be_killed_further_each_time(run: RunFolder, heart: Heartbeat) -> None:
    take_steps(heart, 1, attempt(run))
    os.kill(os.getpid(), signal.SIGKILL)


def stall_when_done(run: RunFolder, heart: Heartbeat) -> None:
    take_steps(heart, 1, 3)
    heart.__exit__(None, None, None)
    count_sheep()


def abort_when_done(run: RunFolder, heart: Heartbeat) -> None:
    """As torch does now and then, when it takes its threads down."""
    take_steps(heart, 1, 3)
    heart.__exit__(None, None, None)
    os.abort()


def stop_oneself(run: RunFolder, heart: Heartbeat) -> None:
    take_steps(heart, 1, 7)
    os.kill(os.getpid(), signal.SIGSTOP)


def wait(run: RunFolder, heart: Heartbeat) -> None:
    take_steps(heart, 1, 5)
    heart.beat("waiting", 6)
    count_sheep()


def meet(run: RunFolder, heart: Heartbeat) -> None:
    """Wait for the other of two, and half a second longer."""
    heart.beat("waiting", 1)
    (run.path / f"met-{os.getpid()}").touch()
    while len(list(run.path.glob("met-*"))) < 2:
        time.sleep(0.02)
    time.sleep(0.5)


def meet_late(run: RunFolder, heart: Heartbeat) -> None:
    time.sleep(2.5)
    meet(run, heart)


def load(run: RunFolder, heart: Heartbeat) -> None:
    (run.path / f"ready-{os.getpid()}").touch()
    count_sheep()


def wait_deafly(run: RunFolder, heart: Heartbeat) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wait(run, heart)


def wait_deafly_first(run: RunFolder, heart: Heartbeat) -> None:
    if not run.events.exists():
        wait_deafly(run, heart)


def be_killed(run: RunFolder, heart: Heartbeat) -> None:
    attempt(run)
    take_steps(heart, 1, 20)
    os.kill(os.getpid(), signal.SIGKILL)


def be_killed_once(run: RunFolder, heart: Heartbeat) -> None:
    if attempt(run) == 1:
        be_killed(run, heart)


def refuse(run: RunFolder, heart: Heartbeat) -> None:
    attempt(run)
    raise RecipeError("lora.r is 0", where="r.yaml:3", change="write 8")


def exit_with_2(run: RunFolder, heart: Heartbeat) -> None:
    attempt(run)
    sys.exit(2)


def diverge(run: RunFolder, heart: Heartbeat) -> None:
    attempt(run)
    take_steps(heart, 1, 2)
    raise NonFiniteError("the loss is nan", where="step 3")


def crash(run: RunFolder, heart: Heartbeat) -> None:
    attempt(run)
    take_steps(heart, 1, 3)
    raise RuntimeError("the link flapped")


def obey(run: RunFolder, heart: Heartbeat) -> None:
    """Note every signal; save for a while after the first, and leave with its exit code."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: asked.append(number))
    heart.beat("computing", 1)
    (run.path / f"ready-{os.getpid()}").touch()
    while not asked:
        time.sleep(0.02)
    heart.beat("saving", 1)
    time.sleep(0.5)
    with (run.path / "obeyed").open("a") as log:
        log.write(f"{asked}\n")
    sys.exit(128 + asked[0])


def obey_slowly(run: RunFolder, heart: Heartbeat) -> None:
    """Save for ever."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: (run.path / "saving").touch())
    (run.path / f"ready-{os.getpid()}").touch()
    while True:
        heart.beat("computing", 1)
        time.sleep(0.05)


def compute(run: RunFolder, heart: Heartbeat) -> None:
    """Train on and on, with a child of its own in another session."""
    with subprocess.Popen(["sleep", str(LONGEST)], start_new_session=True) as child:
        (run.path / "child").write_text(str(child.pid))
        (run.path / f"ready-{os.getpid()}").touch()
        take_steps(heart, 1, 10_000)


def first_time(run: RunFolder) -> bool:
    """Whether this node plays its scene for the first time."""
    file = run.path / f"tried-{os.environ[NODE]}"
    tried = file.exists()
    file.touch()
    return not tried


def be_killed_the_first_time(run: RunFolder, heart: Heartbeat) -> None:
    if first_time(run):
        (run.path / "peer").write_text(str(os.getpid()))
        take_steps(heart, 1, 20)
        os.kill(os.getpid(), signal.SIGKILL)


def meet_after_dying(run: RunFolder, heart: Heartbeat) -> None:
    be_killed_the_first_time(run, heart)
    meet(run, heart)


def compute_the_first_time(run: RunFolder, heart: Heartbeat) -> None:
    if first_time(run):
        (run.path / "peer").write_text(str(os.getpid()))
        heart.beat("computing", 20)
        count_sheep()


def wait_for_the_other(run: RunFolder, heart: Heartbeat) -> None:
    """The first time without end, as NCCL leaves a rank inside a collective whose peer is gone."""
    heart.beat("waiting", 20)
    if first_time(run):
        count_sheep()


def lose_the_other(run: RunFolder, heart: Heartbeat) -> None:
    """The first time as gloo tells it, before anybody else has seen that the peer is gone."""
    heart.beat("waiting", 20)
    if not first_time(run):
        meet(run, heart)
        return
    peer = run.path / "peer"
    while not (peer.exists() and not alive(int(peer.read_text() or 0))):
        time.sleep(0.01)
    raise RuntimeError("Connection closed by peer")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def obey_together(run: RunFolder, heart: Heartbeat) -> None:
    """Stop when this rank or its peer is asked to."""
    asked = run.path / "asked-of-one"
    signal.signal(signal.SIGTERM, lambda number, frame: asked.touch())
    heart.beat("computing", 1)
    (run.path / f"ready-{os.getpid()}").touch()
    while not asked.exists():
        time.sleep(0.02)
    sys.exit(128 + signal.SIGTERM)


SCENES: dict[str, Callable[[RunFolder, Heartbeat], None]] = {
    scene.__name__: scene
    for scene in (
        finish, stall, stall_once, stall_when_done, abort_when_done, stop_oneself, wait, meet, meet_late, wait_deafly, wait_deafly_first,
        be_killed, be_killed_once, be_killed_further_each_time, load, refuse, exit_with_2, diverge, crash, obey, obey_slowly, compute,
        wait_for_the_other, lose_the_other, be_killed_the_first_time, meet_after_dying, compute_the_first_time, obey_together,
    )
}  # fmt: skip


def play(run: RunFolder, rank: int, scene: str) -> None:
    """A rank."""
    signal.alarm(LONGEST)
    listen(run, rank)
    with Heartbeat(run, rank) as heart:
        SCENES[scene](run, heart)


def launch(run: RunFolder, scenes: list[str]) -> None:
    """A launcher that waits for its ranks, and lets them be."""
    ranks = [
        subprocess.Popen([sys.executable, str(SELF), str(run.path), str(rank), scene], start_new_session=True)
        for rank, scene in enumerate(scenes, int(os.environ[NODE]))
    ]
    sys.exit(int(any([rank.wait(timeout=LONGEST) for rank in ranks])))


def supervise(run: RunFolder, scenes: list[str]) -> None:
    ended = run_group(command(run, *scenes), run, ranks=len(scenes), restarts=2, progress=Silent(), patience=PATIENT)
    print(f"code {ended.code}", flush=True)


def stand(path: Path, number: int, count: int, scene: str) -> None:
    """A node, whose rank has its number."""
    run = RunFolder(path, read_only=number > 0, node=number)
    node = Node(number=number, count=count, endpoint="127.0.0.1:1")
    words = [sys.executable, str(SELF), str(path), "launch", scene]
    if number:
        ended = follow(Following(command=lambda call: words, run=run, node=node), Silent(), PATIENT)
    else:
        leading = Leading(command=words, run=run, node=node, ranks=1, free_bytes=0, progress=Silent(), seconds_to_join=JOIN)
        ended = supervise_group(leading, run, restarts=2, progress=Silent(), patience=PATIENT)
    print(f"code {ended.code} restarts {ended.restarts}", flush=True)


if __name__ == "__main__":
    _, folder, role, *scenes = sys.argv
    run = RunFolder(Path(folder))
    match role:
        case "launch":
            launch(run, scenes)
        case "supervise":
            supervise(run, scenes)
        case "node":
            stand(run.path, int(scenes[0]), int(scenes[1]), scenes[2])
        case rank:
            play(run, int(rank), scenes[0])
