"""Run folders as training leaves them, made by the functions that write them."""

import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.runs.heartbeat import Beat, LastWords, beat_file, folder
from luthier.runs.process import Named
from luthier.runs.store import RunFolder

LINE: dict[str, Any] = {
    "epoch": 0.5,
    "learning_rate": 1e-4,
    "grad_norm": 1.0,
    "tokens": 1000,
    "supervised_tokens": 100,
    "tokens_per_second": 500.0,
    "seconds": 2.0,
    "data_seconds": 0.1,
    "memory_bytes": 7_000_000,
    "device_utilization": 0.9,
}


def run_in(path: Path) -> RunFolder:
    """A folder with a recipe and its first event."""
    run = RunFolder(path)
    path.mkdir(parents=True)
    run.recipe.write_text("name: animals\nmodel: {base: demo}\ndata: {sources: [{path: rows.jsonl}]}\n")
    run.begin()
    return run


def line(step: int, loss: float | None, kind: str = "train", **changed: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    return {"step": step, "kind": kind, "loss": loss, **LINE, **changed}


def rewarded(step: int, reward: float | None, **changed: Any) -> dict[str, Any]:
    """A line of a step that learned from its own answers."""
    told = {"answer_tokens": 12.5, "cut": 0.0, "silent": 0.25, "failed": 0.0, "entropy": 0.5, "kl": None, "drift": 0.002, "clipped": 0.0}
    return line(step, 0.01, reward=reward, **{**told, **changed})


def held_out(run: RunFolder, step: int, value: float) -> None:
    """The event of a validation whose answers were rewarded."""
    run.event("held_out", step=step, failed=0, value=value, low=value - 0.05, high=value + 0.05, n=170)


def recorded(run: RunFolder, lines: Sequence[dict[str, Any]]) -> None:
    """metrics.jsonl, in the words of `RunFolder.metric`, written at once."""
    run.metrics.write_text("".join(json.dumps(each) + "\n" for each in lines))


def planned(run: RunFolder, total: int, *, findings: Sequence[Any] = (), **steps: Any) -> None:
    """plan.json, as far as anybody reads it who plans nothing."""
    told = {
        "device": {"id": "cpu"},
        "steps": {"total": total, "global_batch_size": 8, "tokens_per_step": 1000.0, **steps},
        "memory": {"peak_bytes": 8_000_000, "device_bytes": 16_000_000_000},
        "time": {"low": 90.0, "mid": 100.0, "high": 110.0, "step": 2.0, "rate": {"source": "probe", "measured": True}},
        "findings": list(findings),
    }
    run.plan.write_text(json.dumps(told))


def beat(run: RunFolder, rank: int = 0, *, ended: LastWords | None = None, **changed: Any) -> None:
    """The newest beat of a rank: this process, unless something else is said."""
    named = Named.of(os.getpid())
    said = Beat(
        **{
            "rank": rank,
            "pid": named.pid,
            "host": socket.gethostname(),
            "started": named.started,
            "phase": "computing",
            "step": 7,
            "time": time.time(),
            "usual_seconds": 1.0,
            "last_words": ended,
            **changed,
        }
    )
    folder(run).mkdir(exist_ok=True)
    beat_file(run, rank).write_text(said.model_dump_json())
