"""A server that draws for a run: which adapter it is given by which name, and that a signal is heard while it draws."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from luthier.core.generation import Drawn
from luthier.model.adapt import add_lora
from luthier.model.place import Placed
from luthier.recipe.schema import Lora
from luthier.rl.sampler import ByServer, How
from luthier.train.passes import Stopped
from luthier.train.ranks import ALONE
from tests.data.families import family
from tests.train.workshop import tiny_model


@dataclass
class Noting:
    """A server that says the same to everything, and notes what it was given."""

    given: dict[str, Path] = field(default_factory=dict)

    def give(self, name: str, folder: Path) -> None:
        """By its name."""
        self.given[name] = folder

    def draw(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int, temperature: float) -> list[Drawn]:
        """One token."""
        return [Drawn(ids=(3,), logprobs=(-1.0,), stopped=True) for _ in prompts]


def by_server(server: Noting, folder: Path) -> ByServer:
    model = add_lora(tiny_model(), Lora(r=4, alpha=8), seed=0)
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    placed = Placed(model=model, trained=trained, pieces={})
    return ByServer(server=server, placed=placed, tokenizer=family("chatml"), ranks=ALONE, folder=folder)


def test_a_signal_is_heard_once_a_server_has_drawn() -> None:
    """Where no answer tells anything there is no micro batch before which it would be heard."""
    sampler = by_server(Noting(), Path("policy"))
    how = How(max_new_tokens=1, temperature=1.0)
    assert len(sampler.draw([[5]], [1], how)) == 1
    with pytest.raises(Stopped):
        replace(sampler, ranks=replace(ALONE, stop=lambda: True)).draw([[5]], [1], how)


def test_two_runs_that_share_a_server_have_adapters_of_unlike_names(tmp_path: Path) -> None:
    server = Noting()
    for run in ("one", "other"):
        by_server(server, tmp_path / run / "policy").renew(3)
    assert [folder.parent.parent.name for folder in server.given.values()] == ["one", "other"]


def test_of_a_run_only_the_newest_adapter_is_left_on_the_disk(tmp_path: Path) -> None:
    sampler = by_server(Noting(), tmp_path / "policy")
    for step in (0, 1):
        sampler.renew(step)
    (left,) = (tmp_path / "policy").iterdir()
    assert left.name == "step-000001" and (left / "adapter_model.safetensors").exists()
