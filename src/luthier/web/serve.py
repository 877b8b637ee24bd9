"""`luthier ui` as a server: on this machine alone, until it is stopped."""

import secrets
import socket
from collections.abc import Callable

from luthier.core.errors import UsageError
from luthier.runs.store import runs_root

HOST = "127.0.0.1"
SECONDS_TO_END = 5
"""For what is being answered."""


def serve(port: int, tell: Callable[[str], None]) -> None:
    """Serve the page, and tell the link to it, until SIGINT or SIGTERM; port 0 is one that is free. Raises UsageError without the extra."""
    try:
        import uvicorn

        from luthier.web.app import app
    except ImportError as error:
        change = "pip install -c constraints.txt 'luthier[web]'"
        raise UsageError(f"the page needs the extra `web` ({error.name} is not installed)", change=change) from error
    token = secrets.token_urlsafe(24)
    listening = _listening(port)
    tell(f"http://{HOST}:{listening.getsockname()[1]}/?token={token}")
    site = app(runs_root(), token, over=lambda: server.should_exit)
    server = uvicorn.Server(uvicorn.Config(site, log_level="warning", access_log=False, timeout_graceful_shutdown=SECONDS_TO_END))
    server.run(sockets=[listening])


def _listening(port: int) -> socket.socket:
    """A socket on the port; raises UsageError where another program has it."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
    except OSError as error:
        found.close()
        raise UsageError(f"port {port} cannot be had: {error.strerror}", change="take another, or 0 for one that is free") from error
    found.listen()
    return found
