"""What a run recorded, for comparison. Light: `tests/faults/harness.py` forks processes from one that has computed nothing."""

from typing import Any

from luthier.core import jsonl
from luthier.runs.store import RunFolder

TIMES = {"seconds", "data_seconds", "tokens_per_second", "memory_bytes", "device_utilization"}
"""What differs from run to run in metrics.jsonl."""


def metrics(run: RunFolder) -> list[dict[str, Any]]:
    """Its metrics, without times."""
    return [{key: value for key, value in record.items() if key not in TIMES} for record in jsonl.records(run.metrics)]
