"""A port, and uvicorn behind it in a thread of its own: for `luthier serve` and `luthier ui`. Light."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from luthier.core.asgi import Application
from luthier.core.errors import RunError, UsageError

HERE = "127.0.0.1"
SECONDS_TO_END = 5
"""For what is being answered."""


class Listening:
    """A port that is ours from now on, and what answers there. Signals stay the main thread's: what they raise ends `answering`."""

    def __init__(self, host: str, port: int) -> None:
        """Port 0 is one that is free; raises UsageError where it cannot be had, or without the extra."""
        try:
            import uvicorn
        except ImportError as error:
            change = "pip install -c constraints.txt 'luthier[web]'"
            raise UsageError(f"a server needs the extra `web` ({error.name} is not installed)", change=change) from error
        self._uvicorn = uvicorn
        self._socket = opened(host, port)
        self.port: int = self._socket.getsockname()[1]
        self.over = False
        """Whether it answers nothing new any more; what streams for ever looks here."""

    @contextmanager
    def answering(self, application: Application) -> Iterator[threading.Thread]:
        """The application answers while it is open, in a thread that ends where the server does; raises RunError where it cannot begin."""
        settings = self._uvicorn.Config(
            application, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=SECONDS_TO_END
        )
        server = self._uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [self._socket]}, name="server", daemon=True)
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RunError("the server has ended before it began")
                time.sleep(0.01)
            yield thread
        finally:
            self.over = server.should_exit = True
            thread.join()
            self._socket.close()


def opened(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 is one that is free. Raises UsageError where it cannot be had."""
    found = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        change = "take another, or 0 for one that is free"
        raise UsageError(f"port {port} cannot be had on {host}: {error.strerror or error}", change=change) from error
    found.listen()
    return found
