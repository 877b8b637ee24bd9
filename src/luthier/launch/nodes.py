"""Several machines that train one run together, each supervised by a command of its own; what they tell each other lies in the run folder.

The first node calls for an attempt (`heartbeats/call.json`), the others start their part of it and report where it fails
(`heartbeats/node-1.json`). Whether another attempt follows, the first decides: it has the run's events and restarts. So each command may be
killed and given again, and the others wait for it.
"""

import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from luthier.core import files
from luthier.core.errors import RecipeError, RunError
from luthier.core.progress import Progress
from luthier.launch.attempt import NODE, Attempt, end_leftovers, forget, forget_ranks
from luthier.launch.faults import GO_ON, Fault, unseen
from luthier.recipe.options import TorchrunOptions
from luthier.recipe.schema import Recipe
from luthier.runs.heartbeat import folder
from luthier.runs.store import RunFolder

Message = TypeVar("Message")

ENDPOINT = "LUTHIER_ENDPOINT"
"""The environment variable that tells where the nodes meet, `HOST:PORT` of the first one."""
PORT = 29400
"""torchrun's own."""
NUMBERS = (NODE, "NODE_RANK", "SLURM_NODEID")
"""Environment variables that tell a node its number: Luthier's, torchrun's and Kubernetes', Slurm's."""
SECONDS_TO_JOIN = 1800.0
"""In which every node's command must have been started; and in which the first one, begun again, must call for the next attempt."""
SECONDS_TO_REPORT = 3.0
SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """This machine among those that train the run."""

    number: int = 0
    count: int = 1
    endpoint: str = ""
    """`HOST:PORT` of the first, where there are several."""

    @property
    def first(self) -> bool:
        """Whether it prepares, plans, writes and decides for all."""
        return self.number == 0


class Call(BaseModel):
    """What the first node asks all to start: one attempt, or none any more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    ranks: int
    """On each node."""
    free_bytes: int
    """What every rank's plan may count on."""
    over: bool = False
    code: int = 0
    why: str = ""
    """Once it is over: how it ended."""


class Report(BaseModel):
    """What another node says: that it starts its part of a call's attempt, or how that failed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    call: str
    fault: Literal["none", "dead", "hang"] = "none"
    rank: int = 0
    what: str = ""
    may_pass: bool = True
    cause: bool = True


def node_here(recipe: Recipe, environment: Mapping[str, str] = os.environ) -> Node:
    """Which node this is, by the environment, `launch.options.node` or the endpoint's address; raises RecipeError where nothing tells."""
    count = recipe.parallel.nodes
    if count == 1:
        return Node()
    options = TorchrunOptions.model_validate(recipe.launch.options) if recipe.launch.on == "torchrun" else TorchrunOptions()
    host = environment.get("MASTER_ADDR", "")
    master = f"{host}:{environment.get('MASTER_PORT', PORT)}" if host else ""
    endpoint = environment.get(ENDPOINT) or options.endpoint or master
    if not endpoint:
        change = f"give every node the same launch.options.endpoint=HOST:PORT of the first, or {ENDPOINT}"
        raise RecipeError(f"parallel.nodes is {count}, and nothing says where they meet", where="launch.options.endpoint", change=change)
    if ":" not in endpoint:
        endpoint = f"{endpoint}:{PORT}"
    said = next((environment[name] for name in NUMBERS if environment.get(name)), "")
    if NODE not in environment and options.node != "auto":
        said = str(options.node)
    number = int(said) if said.isdecimal() else _number_by_address(endpoint.rpartition(":")[0], count)
    if number >= count:
        raise RecipeError(f"node {number} is none of {count}, which are numbered from 0", where="parallel.nodes")
    return Node(number=number, count=count, endpoint=endpoint)


def address_towards(endpoint: str) -> str:
    """The address by which this machine reaches the endpoint, and so can be reached from there. Nothing is sent."""
    host, _, port = endpoint.rpartition(":")
    family, _, _, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.connect(address)
        return str(asking.getsockname()[0])


def interface_of(address: str) -> str:
    """The network interface that has an address of this machine; empty where none has."""
    return next((name for name, found in psutil.net_if_addrs().items() if any(each.address == address for each in found)), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Leading:
    """The first node's part (`luthier.launch.group.Starts`), and its calls to the others."""

    command: Sequence[str]
    run: RunFolder
    node: Node
    ranks: int
    """On each node."""
    free_bytes: int
    progress: Progress
    seconds_to_join: float = SECONDS_TO_JOIN

    def attempt(self, asked: Sequence[int]) -> Attempt | int:
        """Call for an attempt, and begin it once the others have; raises RunError where they do not."""
        end_leftovers(self.run)
        forget(self.run)
        call = Call(id=uuid.uuid4().hex[:12], ranks=self.ranks, free_bytes=self.free_bytes)
        _write(call_file(self.run), call)
        end, told = time.monotonic() + self.seconds_to_join, False
        while missing := [number for number in range(1, self.node.count) if _report(self.run, number, call.id) is None]:
            names = ", ".join(map(str, missing))
            if not told:
                self.progress.say(f"waiting for node {names} of {self.node.count}: the same command starts it there")
                told = True
            if asked:
                return 128 + asked[0]
            if time.monotonic() > end:
                change = f"start the same command on every node, where this folder is seen, and numbered by {NODE} or launch.options.node"
                raise RunError(f"node {names} has not joined in {self.seconds_to_join:.0f} s", where=str(self.run.path), change=change)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return Attempt(self.command, self.run, self.ranks * self.node.count)

    def elsewhere(self) -> Fault | None:
        """What another node reports of this attempt."""
        call = current_call(self.run)
        if call is None:
            return None
        found = ((number, _report(self.run, number, call.id)) for number in range(1, self.node.count))
        faults = [_fault(number, report) for number, report in found if report and report.fault != "none"]
        return next((fault for fault in faults if fault.cause), faults[0] if faults else None)

    def cause(self, fault: Fault) -> Fault:
        """The fault, or that which another node reports within seconds, if this may be no more than the loss of it."""
        end = time.monotonic() + SECONDS_TO_REPORT
        while not (fault.cause or fault.done) and time.monotonic() < end:
            if (reported := self.elsewhere()) and reported.cause:
                return reported
            time.sleep(SECONDS_BETWEEN_LOOKS)
        return fault

    def over(self, code: int, why: str) -> None:
        """Tell the others, which wait for another call."""
        call = Call(id=uuid.uuid4().hex[:12], ranks=self.ranks, free_bytes=self.free_bytes, over=True, code=code, why=why)
        _write(call_file(self.run), call)


@dataclass(slots=True, kw_only=True)
class Following:
    """The part of any other node: it starts what is called for, and reports."""

    command: Callable[[Call], Sequence[str]]
    run: RunFolder
    node: Node
    call: Call | None = None
    """The newest that it has answered."""

    def pass_over_what_is_over(self) -> None:
        """An end that the run folder tells of was another attempt's, before this node's command was given."""
        call = current_call(self.run)
        if call and call.over:
            self.call = call

    def next_call(self, asked: Sequence[int], seconds: float = SECONDS_TO_JOIN) -> Call | int:
        """What the first node calls for next, or an exit code where a signal comes first; raises RunError where nothing comes."""
        end = time.monotonic() + seconds
        while (call := current_call(self.run)) is None or (self.call and call.id == self.call.id):
            if asked:
                return 128 + asked[0]
            if time.monotonic() > end:
                raise RunError(f"the first node has called for nothing in {seconds:.0f} s", where=str(self.run.path), change=GO_ON)
            time.sleep(SECONDS_BETWEEN_LOOKS)
        self.call = call
        return call

    def begin(self, call: Call) -> Attempt:
        """This node's part of the attempt."""
        end_leftovers(self.run)
        forget_ranks(self.run, range(call.ranks * self.node.number, call.ranks * (self.node.number + 1)))
        self._tell(Report(call=call.id))
        return Attempt(self.command(call), self.run, call.ranks * self.node.count)

    def elsewhere(self) -> Fault | None:
        """The first node has called for something else: what this node's ranks do is in vain."""
        call = current_call(self.run)
        if call is None or self.call is None or call.id == self.call.id or (call.over and not call.code):
            return None
        return replace(_fault(0, Report(call=call.id, fault="dead", what="the first node begins again")), cause=False)

    def report(self, fault: Fault) -> None:
        """Tell the first node how this one's part failed."""
        if self.call:
            self._tell(
                Report(
                    call=self.call.id,
                    fault=fault.event,
                    rank=fault.beat.rank,
                    what=fault.error.what,
                    may_pass=fault.may_pass,
                    cause=fault.cause,
                )
            )

    def _tell(self, report: Report) -> None:
        _write(_report_file(self.run, self.node.number), report)


def call_file(run: RunFolder) -> Path:
    """Where the first node calls."""
    return folder(run) / "call.json"


def current_call(run: RunFolder) -> Call | None:
    """The newest call; None before the first."""
    return _read(call_file(run), Call.model_validate_json)


def _report_file(run: RunFolder, number: int) -> Path:
    return folder(run) / f"node-{number}.json"


def _fault(number: int, report: Report) -> Fault:
    """What a node reports, as what befell this one."""
    what, _, stack = report.what.partition("\n")
    return Fault(
        event="hang" if report.fault == "hang" else "dead",
        beat=unseen(report.rank),
        details={"node": number, "how": what, **({"stack": stack} if stack else {})},
        error=RunError(f"node {number}: {report.what}", change=GO_ON),
        may_pass=report.may_pass,
        cause=report.cause,
    )


def _number_by_address(host: str, count: int) -> int:
    """0 on the machine that has the endpoint's address, 1 on the other of two."""
    own = {each.address for found in psutil.net_if_addrs().values() for each in found}
    try:
        first = any(str(found[4][0]) in own for found in socket.getaddrinfo(host, None))
    except OSError as error:
        raise RecipeError(f"no machine is called {host!r}: {error}", where="launch.options.endpoint", change="give an address") from error
    if not first and count > 2:
        change = f"number the nodes: {NODE}=1, or launch.options.node=1, and so on; that of the endpoint is 0"
        raise RecipeError("nothing says which node this is", where="launch.options.node", change=change)
    return int(not first)


def _write(path: Path, message: Call | Report) -> None:
    path.parent.mkdir(exist_ok=True)
    with files.told(path.name, path.parent):
        files.write(path, message.model_dump_json() + "\n")


def _report(run: RunFolder, number: int, call: str) -> Report | None:
    """What a node says of this call; None where it has not heard of it yet."""
    report = _read(_report_file(run, number), Report.model_validate_json)
    return report if report and report.call == call else None


def _read(path: Path, parse: Callable[[bytes], Message]) -> Message | None:
    try:
        return parse(path.read_bytes())
    except (FileNotFoundError, ValidationError):  # a network folder may show half of a rename
        return None
