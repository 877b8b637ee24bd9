"""Rendering on all cores: chunks of spooled lines in, rendered examples out, in order and with a bounded number on the way."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

from luthier.core.errors import RunError
from luthier.core.hardware import this_machine
from luthier.data.render import Rendered, Renderer
from luthier.data.split import SplitName
from luthier.data.store import example_from_json

CHUNK = 128
"""Examples per task: at 300 tokens a row about 35 ms of work (1.1 million tokens a second and core) against 1 ms of transport."""
FEW_BYTES = 8 * 10**6
"""Up to so much spooled text (some 4 million tokens, 4 s) this process is done about when worker processes would have started."""
PRELOAD = ["luthier.data.render", "transformers.models.auto.tokenization_auto", "transformers.tokenization_utils_tokenizers"]
"""The fork server imports these once (2 s, with torch, which transformers' tokenizers import); workers share the memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Spooled examples of one split, and, once it has been through `render_chunks`, what each was rendered to."""

    split: SplitName
    lines: Sequence[bytes]
    rendered: Sequence[Rendered] = ()


def render_chunks(renderer: Renderer, chunks: Iterable[Chunk], num_bytes: int) -> Iterator[Chunk]:
    """The chunks in order, rendered; raises what the renderer raises.

    Worker processes, not threads: templates hold Python's lock. They are started afresh, for a process whose tokenizer has
    started threads must not be forked.
    """
    if num_bytes <= FEW_BYTES or (num_workers := this_machine().cores) < 2:
        yield from (_render(renderer, chunk) for chunk in chunks)
        return
    context = multiprocessing.get_context("forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn")
    if context.get_start_method() == "forkserver":
        context.set_forkserver_preload(PRELOAD)
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start, initargs=(renderer,)) as pool:
        pending: deque[Future[Chunk]] = deque()
        try:
            for chunk in chunks:
                pending.append(pool.submit(_render_here, chunk))
                if len(pending) > 3 * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            change = "look above for its own error; where there is none it was killed, most likely for want of memory"
            raise RunError("a worker process ended while it was rendering rows", change=change) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_renderer: Renderer
"""A worker process's own, set once: it is too large to travel with each chunk."""


def _start(renderer: Renderer) -> None:
    global _renderer
    _renderer = renderer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker waits for its parent's next chunk for ever, even where the parent was killed."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _render_here(chunk: Chunk) -> Chunk:
    return _render(_renderer, chunk)


def _render(renderer: Renderer, chunk: Chunk) -> Chunk:
    return replace(chunk, rendered=[renderer.render(example_from_json(line)) for line in chunk.lines])
