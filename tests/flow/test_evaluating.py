"""How many processes answer: the recipe's replicas, as far as there are devices for them here."""

from dataclasses import replace
from typing import Any

import pytest

from luthier.core import hardware
from luthier.core.hardware import this_machine
from luthier.core.progress import Silent
from luthier.flow.evaluating import _replicas
from luthier.recipe.schema import Recipe


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, line: str) -> None:
        self.said.append(line)


def recipe(**sections: Any) -> Recipe:
    plain = {"name": "a", "model": {"base": "demo"}, "data": {"sources": [{"path": "rows.jsonl"}]}}
    return Recipe.model_validate({**plain, **sections})


ON_TWO_MACHINES = {"parallel": {"data": 8, "nodes": 2}, "launch": {"on": "slurm", "gpu": "H100x8"}}
FEWER = ["answered by 2 of the recipe's 8 replicas: there are no more devices here"]


@pytest.mark.parametrize(
    ("sections", "cores", "answering", "said"),
    [
        ({}, 8, 1, []),
        ({"parallel": {"data": 2}}, 8, 2, []),
        (ON_TWO_MACHINES, 8, 4, []),
        ({"parallel": {"data": 8}}, 2, 2, FEWER),
    ],
)
def test_no_more_processes_answer_than_have_a_device(
    sections: dict[str, Any], cores: int, answering: int, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = replace(this_machine(), cores=cores, gpus=())
    monkeypatch.setattr(hardware, "this_machine", lambda: machine)
    progress = Listening()
    assert _replicas(recipe(**sections), progress) == answering
    assert progress.said == said
