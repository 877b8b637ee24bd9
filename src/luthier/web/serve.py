"""`luthier ui` as a server: on this machine alone, until it is stopped."""

import secrets
from collections.abc import Callable

from luthier.runs.store import runs_root
from luthier.serve.listen import HERE, Listening


def serve(port: int, tell: Callable[[str], None]) -> None:
    """Serve the page, and tell the link to it, until SIGINT or SIGTERM; port 0 is one that is free. Raises UsageError without the extra."""
    listening = Listening(HERE, port)
    from luthier.web.app import app  # the extra is there

    token = secrets.token_urlsafe(24)
    with listening.answering(app(runs_root(), token, over=lambda: listening.over)) as server:
        tell(f"http://{HERE}:{listening.port}/?token={token}")
        server.join()
