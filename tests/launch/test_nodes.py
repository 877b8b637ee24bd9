"""Several machines, played by supervisors on this one: they begin together, end together, and begin again when one of them fails."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from luthier.core import jsonl
from luthier.core.errors import RecipeError, RunError
from luthier.core.progress import Silent
from luthier.launch.attempt import NODE
from luthier.launch.nodes import ENDPOINT, Call, Following, Leading, Node, address_towards, call_file, interface_of, node_here
from luthier.launch.torchrun import rank_of, start_words, torchrun_words
from luthier.recipe.schema import Recipe
from luthier.runs.heartbeat import SUPERVISOR, Heartbeat, beats, mark
from luthier.runs.store import RunFolder
from tests.launch.crew import SELF


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    yield RunFolder(tmp_path)
    assert started_for(tmp_path) == []


def started_for(path: Path) -> list[int]:
    """What a supervisor of any node of this run has started and not ended."""
    marks = {mark(RunFolder(path, node=number)) for number in range(3)}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            own = process.environ().get(SUPERVISOR, "").partition(" ")[2] in marks
            if own and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@contextlib.contextmanager
def nodes(run: RunFolder, *scenes: str) -> Iterator[list[subprocess.Popen[str]]]:
    """A supervisor for each scene, the last one started first."""
    started = [node(run, number, len(scenes), scene) for number, scene in reversed(list(enumerate(scenes)))]
    try:
        yield started[::-1]
    finally:
        for process in started:
            process.kill()
            process.communicate(timeout=20)


def node(run: RunFolder, number: int, count: int, scene: str) -> subprocess.Popen[str]:
    words = [sys.executable, str(SELF), str(run.path), "node", str(number), str(count), scene]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    return (out or err).strip()


def events(run: RunFolder) -> list[tuple[str, object]]:
    return (
        [(record["event"], record.get("how") or record.get("why")) for record in jsonl.records(run.events)] if run.events.exists() else []
    )


def test_nodes_begin_when_all_are_there_and_end_together(run: RunFolder) -> None:
    with nodes(run, "meet", "meet", "finish") as (first, second, third):
        assert [said(first), said(second), said(third)] == ["code 0 restarts 0"] * 3
    assert events(run) == []
    assert {beat.last_words is not None and beat.last_words.code for beat in beats(run).values()} == {0}
    assert len(beats(run)) == 3


def test_a_rank_that_is_killed_on_another_node_is_told_by_it_and_all_begin_again(run: RunFolder) -> None:
    with nodes(run, "wait_for_the_other", "be_killed_the_first_time") as (first, second):
        assert said(second) == "code 0 restarts 1"
        assert said(first) == "code 0 restarts 1"
    (dead, how), (restarted, why) = events(run)
    assert (dead, restarted) == ("dead", "restarted")
    assert str(how).startswith("rank 1 ended in step 20, computing: gone without a word, as by SIGKILL")
    assert str(why).startswith("node 1: rank 1 ended in step 20")


def test_a_rank_that_loses_its_peer_is_not_blamed(run: RunFolder) -> None:
    with nodes(run, "lose_the_other", "meet_after_dying") as (first, second):
        assert [said(first), said(second)] == ["code 0 restarts 1"] * 2
    assert "gone without a word, as by SIGKILL" in str(events(run)[0][1])


def test_an_error_of_luthiers_on_any_node_ends_all_and_is_the_first_ones_error(run: RunFolder) -> None:
    with nodes(run, "wait", "refuse") as (first, second):
        assert "RecipeError: r.yaml:3: lora.r is 0\n  write 8" in said(first)
        assert "the first node has given up: lora.r is 0" in said(second)
    assert [event for event, _ in events(run)] == ["dead"]


def test_a_node_whose_command_is_killed_and_given_again_takes_part_again(run: RunFolder) -> None:
    with nodes(run, "lose_the_other", "compute_the_first_time") as (first, second):
        end = time.monotonic() + 30
        while not (run.path / "peer").exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        second.kill()
        second.communicate(timeout=20)
        again = node(run, 1, 2, "meet")
        assert said(first) == "code 0 restarts 1"
        assert said(again).startswith("code 0")


@pytest.mark.parametrize("number", [0, 1])
def test_a_signal_to_any_node_stops_all_of_them(run: RunFolder, number: int) -> None:
    """As ranks do that agree on when to stop: the other rank hears of it from its peer."""
    with nodes(run, "obey_together", "obey_together") as both:
        end = time.monotonic() + 30
        while len(list(run.path.glob("ready-*"))) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        both[number].send_signal(signal.SIGTERM)
        assert [said(process) for process in both] == ["code 143 restarts 0"] * 2
    assert events(run) == []


def test_the_first_node_says_who_has_not_come(run: RunFolder) -> None:
    leading = Leading(
        command=["true"], run=run, node=Node(count=3, endpoint="a:1"), ranks=1, free_bytes=0, progress=Silent(), seconds_to_join=0.3
    )
    with pytest.raises(RunError, match=r"node 1, 2 has not joined in 0 s"):
        leading.attempt([])


def test_a_node_waits_for_the_next_call_and_not_for_an_end_that_was_told_before(run: RunFolder) -> None:
    Leading(command=["true"], run=run, node=Node(count=2, endpoint="a:1"), ranks=1, free_bytes=0, progress=Silent()).over(143, "")
    following = Following(command=lambda call: ["true"], run=run, node=Node(number=1, count=2, endpoint="a:1"))
    following.pass_over_what_is_over()
    with pytest.raises(RunError, match="the first node has called for nothing"):
        following.next_call([], seconds=0.3)
    assert following.next_call([signal.SIGTERM], seconds=5) == 143


def test_a_node_begins_without_what_its_ranks_said_when_the_attempt_before_was_ended(run: RunFolder) -> None:
    """They may say it after the first node has taken away all beats, and before this one has ended them."""
    for rank in (0, 1):
        with Heartbeat(run, rank):
            pass  # ended, and well
    following = Following(command=lambda call: ["true"], run=run, node=Node(number=1, count=2, endpoint="a:1"))
    following.begin(Call(id="next", ranks=1, free_bytes=0)).end(1.0)
    assert list(beats(run)) == [0]


def two_nodes(**options: object) -> Recipe:
    values = {"name": "a", "model": {"base": "demo"}, "data": {"sources": [{"path": "a.jsonl"}]}}
    return Recipe.model_validate({**values, "parallel": {"nodes": 2, "data": 4}, "launch": {"on": "torchrun", "options": options}})


@pytest.mark.parametrize(
    ("options", "environment", "expected"),
    [
        ({"endpoint": "127.0.0.1"}, {}, Node(number=0, count=2, endpoint="127.0.0.1:29400")),
        ({"endpoint": "192.0.2.1:30000"}, {}, Node(number=1, count=2, endpoint="192.0.2.1:30000")),
        ({"endpoint": "127.0.0.1", "node": 1}, {}, Node(number=1, count=2, endpoint="127.0.0.1:29400")),
        ({"endpoint": "a:1", "node": 1}, {NODE: "0"}, Node(number=0, count=2, endpoint="a:1")),
        ({"endpoint": "a:1"}, {"SLURM_NODEID": "1", ENDPOINT: "b:2"}, Node(number=1, count=2, endpoint="b:2")),
        ({}, {"MASTER_ADDR": "c", "MASTER_PORT": "3", "NODE_RANK": "1"}, Node(number=1, count=2, endpoint="c:3")),
    ],
    ids=["the endpoint is here", "it is not", "options say", "Luthier's variable goes before", "Slurm's", "Kubernetes'"],
)
def test_a_node_knows_its_number(options: dict[str, object], environment: dict[str, str], expected: Node) -> None:
    assert node_here(two_nodes(**options), environment) == expected


def test_without_an_endpoint_or_a_number_the_error_says_what_to_set() -> None:
    with pytest.raises(RecipeError, match="nothing says where they meet"):
        node_here(two_nodes(), {})
    three = two_nodes(endpoint="192.0.2.1").model_copy(update={"parallel": two_nodes().parallel.model_copy(update={"nodes": 3})})
    with pytest.raises(RecipeError, match="nothing says which node this is"):
        node_here(three, {})
    with pytest.raises(RecipeError, match="node 5 is none of 2"):
        node_here(two_nodes(endpoint="a:1"), {NODE: "5"})


def test_torchrun_is_told_where_the_nodes_meet(run: RunFolder) -> None:
    second = Node(number=1, count=2, endpoint="127.0.0.1:29777")
    call_file(run).parent.mkdir()
    call_file(run).write_text(Call(id="c1", ranks=4, free_bytes=1).model_dump_json())
    assert start_words(4, second) == ["torchrun", "4", "1", "2", "127.0.0.1:29777"]
    words = torchrun_words(run, "4", ["1", "2", "127.0.0.1:29777"])
    assert words[:5] == ["--nnodes=2", "--nproc-per-node=4", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:29777", "--rdzv-id=c1"]
    assert words[5].startswith("--rdzv-conf=is_host=false,join_timeout=")
    assert words[6] == "--local-addr=127.0.0.1"
    assert torchrun_words(run, "2", start_words(2, Node())[2:]) == ["--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    assert rank_of({"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}, node=1) == 6


def test_the_interface_towards_the_first_node_is_known_by_its_address() -> None:
    address = address_towards("127.0.0.1:9")
    assert (address, interface_of(address)) == ("127.0.0.1", "lo")
    assert interface_of("192.0.2.1") == ""
