"""A node that is not the first: it starts its ranks when the first calls, reports how they fail, and ends when told that it is over."""

from luthier.core.errors import RunError
from luthier.core.progress import Progress
from luthier.core.signals import STOPS, handled_by
from luthier.launch.group import PATIENCE, Ended, watched
from luthier.launch.nodes import Following
from luthier.runs.heartbeat import Patience


def follow(node: Following, progress: Progress, patience: Patience = PATIENCE) -> Ended:
    """This node's ranks, seen to their end; see `luthier.launch.group.supervise` for what signals do.

    Raises RunError with the first node's reason where it gives the run up. To be called by who holds the node's lock.
    """
    asked: list[int] = []
    restarts = -1
    node.pass_over_what_is_over()
    with handled_by(lambda number, frame: asked.append(number)):
        while True:
            call = node.next_call(asked)
            if isinstance(call, int):
                return Ended(code=call, restarts=max(0, restarts))
            if call.over:
                if call.code and call.code not in STOPS:
                    raise RunError(f"the first node has given up: {call.why}", where=str(node.run.path))
                return Ended(code=call.code, restarts=max(0, restarts))
            restarts += 1
            outcome = watched(node.begin(call), asked, patience, node.elsewhere)
            if isinstance(outcome, int):
                return Ended(code=outcome, restarts=restarts)
            if outcome.done:
                return Ended(code=0, restarts=restarts)
            if asked and outcome.before_all:
                return Ended(code=128 + asked[0], restarts=restarts)
            node.report(outcome)
            progress.say(outcome.error.what)
            progress.say("waiting for what the first node calls for next")
