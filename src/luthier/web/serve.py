"""`luthier ui` and `luthier review` as servers: on this machine alone, until they are stopped."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING

from luthier.core.asgi import Application
from luthier.runs.store import runs_root
from luthier.serve.listen import HERE, Listening

if TYPE_CHECKING:
    from luthier.review.asking import Review

Pages = Callable[[str, Callable[[], bool]], Application]
"""The pages for who has the token, until the server is over."""


def of_runs(token: str, over: Callable[[], bool]) -> Application:
    """Pages over all runs."""
    from luthier.web.app import app

    return app(runs_root(), token, over)


def of_review(review: Review) -> Pages:
    """The pages of a review alone: who rates must not see the runs, which tell whose an answer is."""

    def pages(token: str, over: Callable[[], bool]) -> Application:
        from luthier.web.app import asking

        return asking(review, token)

    return pages


def serve(port: int, tell: Callable[[str], None], pages: Pages = of_runs) -> None:
    """Serve pages, and tell the link to them, until SIGINT or SIGTERM; port 0 is one that is free. Raises UsageError without the extra."""
    listening = Listening(HERE, port)
    token = secrets.token_urlsafe(24)
    with listening.answering(pages(token, lambda: listening.over)) as server:
        tell(f"http://{HERE}:{listening.port}/?token={token}")
        server.join()
