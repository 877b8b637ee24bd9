"""The addresses of `luthier ui` and of `luthier review`. FastAPI is known to this file alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles

from luthier import flow
from luthier.core.errors import LuthierError, RunError, UsageError
from luthier.report.page import STYLE
from luthier.review.asking import By, Review, Said
from luthier.runs.held_out import held_out
from luthier.web import asked, views
from luthier.web.answers import Asked
from luthier.web.guard import Guard
from luthier.web.site import HERE, NoRun, Site
from luthier.web.stream import Stream, at_place

PATIENCE_SECONDS = 30.0
"""How long a button waits for a save or an end: what takes longer happens all the same, and the page tells."""


def app(root: Path, token: str, over: Callable[[], bool] = lambda: False) -> FastAPI:
    """The page over a folder of runs, for who has the token; what it streams ends where the server is `over`."""
    site = Site(root)
    found = _guarded(site, token)
    _pages(found, site)
    _of_one_run(found, site, over)
    _buttons(found, site)
    return found


def asking(review: Review, token: str) -> FastAPI:
    """The pages of a review, for who has the token; nothing else of its run, which would tell whose an answer is."""
    site = Site(review.ratings.path.parent)
    found = _guarded(site, token)

    @found.get("/", response_class=HTMLResponse)
    def who() -> str:
        return asked.who(site, review)

    @found.get("/rows")
    def next_row(by: Annotated[By, Query()]) -> RedirectResponse:
        return RedirectResponse(asked.address(review, by.reviewer), status_code=303)

    @found.get("/rows/{pair}", response_class=HTMLResponse)
    def row(pair: str, by: Annotated[By, Query()]) -> str:
        return asked.row(site, review, by.reviewer, pair)

    @found.get("/done", response_class=HTMLResponse)
    def done(by: Annotated[By, Query()]) -> str:
        return asked.done(site, review, by.reviewer)

    @found.post("/ratings", response_class=PlainTextResponse)
    def rate(said: Said) -> str:
        review.rate(said)
        return asked.address(review, said.reviewer)

    @found.post("/undo", response_class=PlainTextResponse)
    def undo(by: By) -> str:
        return asked.taken_back(review, by.reviewer)

    return found


def _guarded(site: Site, token: str) -> FastAPI:
    """An application with what every page needs: the guard, scripts and style, errors."""
    found = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    found.add_middleware(Guard, token=token)
    found.mount("/static", StaticFiles(directory=HERE / "static"))
    _errors(found, site)

    @found.get("/style.css")
    def style() -> Response:
        return Response(STYLE.read_bytes(), media_type="text/css")

    return found


def _pages(found: FastAPI, site: Site) -> None:
    @found.get("/", response_class=HTMLResponse)
    def runs(state: str = "", text: str = "") -> str:
        return views.runs(site, state, text)

    @found.get("/table", response_class=HTMLResponse)
    def table(state: str = "", text: str = "") -> str:
        return views.runs(site, state, text, part=True)

    @found.get("/compare", response_class=HTMLResponse)
    def compare(run: Annotated[Sequence[str], Query()] = ()) -> str:
        return views.compare(site, run)

    @found.get("/compare/curves")
    def compared_curves(run: Annotated[Sequence[str], Query()] = ()) -> Response:
        return Response(views.compared_curves(site, run), media_type="application/json")


def _of_one_run(found: FastAPI, site: Site, over: Callable[[], bool]) -> None:
    @found.get("/runs/{name}", response_class=HTMLResponse)
    def run(name: str) -> str:
        return views.run(site, name)

    @found.get("/runs/{name}/curves")
    def curves(name: str) -> Response:
        return Response(views.curves(site, name), media_type="application/json")

    @found.get("/runs/{name}/looked-at", response_class=HTMLResponse)
    def looked_at(name: str) -> str:
        return views.looked_at(site, name)

    @found.get("/runs/{name}/stream")
    def stream(name: str, place: str = "", last_event_id: Annotated[str, Header()] = "") -> StreamingResponse:
        run = site.seen(name)
        told = Stream(
            run=run.run,
            at=at_place(last_event_id or place),
            parts=views.live(site, run),
            rewards=lambda: held_out(run.events()),
            over=over,
        )
        return StreamingResponse(told.events(), media_type="text/event-stream")

    @found.get("/runs/{name}/rows", response_class=HTMLResponse)
    def rows(name: str, split: str = "train", start: int = 0) -> str:
        return views.rows(site, name, split, start)

    @found.get("/runs/{name}/answers", response_class=HTMLResponse)
    def answers(name: str, asked: Annotated[Asked, Query()]) -> str:
        return views.predictions(site, name, asked)

    @found.get("/runs/{name}/report")
    def report(name: str) -> Response:
        return HTMLResponse(views.report(site, name), headers={"content-disposition": f'attachment; filename="{name}.html"'})


def _buttons(found: FastAPI, site: Site) -> None:
    @found.post("/runs/{name}/save", response_class=PlainTextResponse)
    def save(name: str) -> str:
        saved = flow.save(str(site.run(name).path), patience=PATIENCE_SECONDS)
        return f"saved after step {saved.step}"

    @found.post("/runs/{name}/stop", response_class=PlainTextResponse)
    def stop(name: str) -> str:
        status = flow.stop(str(site.run(name).path), patience=PATIENCE_SECONDS)
        if status.moves:
            return f"asked to save and end; it still does what it did ({status.phase})"
        kept = f"saved after step {status.checkpoint}" if status.checkpoint else "no step of it was saved"
        return f"{status.state}: {kept}; the same command goes on"


def _errors(found: FastAPI, site: Site) -> None:
    def told(status: int) -> Callable[[Request, Exception], Response]:
        def answer(request: Request, error: Exception) -> Response:
            if request.method == "POST":
                return PlainTextResponse(str(error), status_code=status)
            return HTMLResponse(site.page("error.html", error=error, name=request.path_params.get("name", "")), status_code=status)

        return answer

    for kind, status in ((NoRun, 404), (UsageError, 409), (RunError, 409), (LuthierError, 500)):
        found.add_exception_handler(kind, told(status))
