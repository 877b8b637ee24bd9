"""The recipe's section `tracking`: who else is told of a run's numbers."""

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.section import Section

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class Tracking(Section):
    """Trackers that follow the run, each in a process of its own: none of them can stop or slow it."""

    report_to: tuple[Tracker, ...] = ()
    """`tensorboard`, `wandb`, `mlflow`, `trackio`: any of them (docs/guide/watch.md), each by its own library and its own settings."""
    project: Annotated[str, Field(pattern=r"^[\w.-]+$")] = "luthier"
    """The project or experiment that the run stands in there."""
