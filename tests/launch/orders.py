"""Orders as `luthier launch` makes them, for a run folder that a test fills."""

from pathlib import Path

from luthier.launch.backend import Order
from luthier.recipe.schema import Launch
from luthier.runs.store import RunFolder


def order(runs: Path, name: str = "animals", *, nodes: int = 1, gpus: int = 0, seconds: float = 0, **launch: object) -> Order:
    """For `runs/NAME`; `launch` is the recipe's section."""
    return Order(
        run=RunFolder(runs / name),
        launch=Launch.model_validate(launch),
        nodes=nodes,
        gpu=str(launch["gpu"]).partition("x")[0] if "gpu" in launch else "",
        gpus=gpus,
        timeout_seconds=seconds or "none",
        environment={"LUTHIER_RUNS": str(runs)},
    )
