"""Finished runs to hand over: short, real, and begun from a recipe file as a user's are."""

import json
from typing import Any

from luthier import flow
from luthier.runs.store import RunFolder
from tests.train.workshop import Workshop


def trained(workshop: Workshop, name: str = "tiny", **sections: Any) -> RunFolder:
    """A finished run over a tiny base, its adapter large enough that no rounding hides it."""
    recipe = workshop.recipe(name=name, **sections).model_dump(mode="json", exclude_unset=True)
    path = workshop.folder / f"{name}.yaml"
    path.write_text(json.dumps(recipe))
    return flow.train(flow.load(path)).run
