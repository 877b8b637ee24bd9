"""What torchrun is told: the ranks of this machine alone, or this node's of several that meet at an endpoint."""

import os
from collections.abc import Mapping

from luthier.core.errors import RunError
from luthier.launch.nodes import Node, address_towards, current_call, interface_of
from luthier.runs.store import RunFolder

SECONDS_TO_MEET = 900
"""Every node has been started by then (`luthier.launch.nodes`): what it may take to load torch on the slowest."""


def start_words(ranks: int, node: Node) -> list[str]:
    """The words with which `luthier.cli.rank` becomes torchrun: `torchrun 2`, or `torchrun 2 1 4 HOST:PORT` on the second of four nodes."""
    return ["torchrun", str(ranks), *([str(node.number), str(node.count), node.endpoint] if node.count > 1 else [])]


def torchrun_words(run: RunFolder, ranks: str, place: list[str]) -> list[str]:
    """torchrun's own, for `start_words`. Ranks meet by the c10d backend under the call's id, so that no attempt joins an older one."""
    if not place:
        return ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={ranks}"]
    number, count, endpoint = place
    call = current_call(run)
    if call is None:
        raise RunError("the first node's call is gone", where=str(run.path))
    conf = {"is_host": "true" if number == "0" else "false", "join_timeout": str(SECONDS_TO_MEET), "read_timeout": str(SECONDS_TO_MEET)}
    return [
        f"--nnodes={count}",
        f"--nproc-per-node={ranks}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-id={call.id}",
        f"--rdzv-conf={','.join(f'{key}={value}' for key, value in conf.items())}",
        f"--local-addr={address_towards(endpoint)}",
    ]


def network(place: list[str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What gloo must be told where nodes meet: else it takes the address of this machine's name, which Debian puts on the loopback."""
    if not place or "GLOO_SOCKET_IFNAME" in environment:
        return {}
    return {"GLOO_SOCKET_IFNAME": name} if (name := interface_of(address_towards(place[-1]))) else {}


def rank_of(environment: Mapping[str, str], node: int) -> int:
    """A rank's number, so that the first node has the first ones: torchrun numbers nodes by their addresses."""
    return node * int(environment["LOCAL_WORLD_SIZE"]) + int(environment["LOCAL_RANK"])
