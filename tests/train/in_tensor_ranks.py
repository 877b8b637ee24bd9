"""What two ranks that divide each matrix do for `test_tensor_ranks.py`: `python -m tests.train.in_tensor_ranks FOLDER`, from torchrun.

Leaves FOLDER/rank-N.json.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from luthier.core.signals import Interrupted
from luthier.model.generate import LocalCompleter
from luthier.plan.setup import Layout
from luthier.train.ranks import join, part
from luthier.train.run import train
from tests.train.in_two_ranks import BY_METRIC, KILLED_IN, Together
from tests.train.workshop import killed_in_step

DIVIDED = {"parallel": {"tensor": 2}}


class Divided:
    """One rank's part in every scene."""

    def __init__(self, together: Together) -> None:
        self.together, self.ranks = together, together.ranks

    def resumed(self) -> int:
        train(self.together.job("two whole", **DIVIDED))
        for name in ("two broken", "two-then-one"):
            killed_in_step(self.together.job(name, **DIVIDED), KILLED_IN)
        train(self.together.job("two broken", **DIVIDED))
        return train(self.together.job("one-then-two", **DIVIDED)).last_step

    def answers(self) -> list[str]:
        """Of the best by a metric: both ranks answer, with the same words."""
        told: list[str] = []

        def score(model: nn.Module, step: int) -> dict[str, float]:
            rows = job.prepared.examples("validation")
            found = LocalCompleter(model, job.tokenizer).complete([row.prompt for row in rows], max_new_tokens=6)
            told.extend(each.text for each in found)
            return {"answers.exact": float(len(told))}

        job = replace(self.together.job("two metric", **BY_METRIC, **DIVIDED), score=score)
        train(job)
        return told

    def a_signal_while_answering(self) -> list[Any]:
        """It comes to one rank alone, between two tokens."""
        tokens = 0

        def score(model: nn.Module, step: int) -> dict[str, float]:
            def count(*_: object) -> None:
                nonlocal tokens
                tokens += 1
                if tokens == 3 and self.ranks.rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)

            hook = model.get_base_model().register_forward_pre_hook(count)
            try:
                rows = job.prepared.examples("validation")
                LocalCompleter(model, job.tokenizer).complete([row.prompt for row in rows], max_new_tokens=50)
            finally:
                hook.remove()
            return {"answers.exact": 1.0}

        job = replace(self.together.job("two ended", **BY_METRIC, **DIVIDED), score=score)
        try:
            train(job)
        except Interrupted as ended:
            return [tokens, ended.signal.name]
        return [tokens, "not ended"]


def main() -> None:
    """All scenes, in one group."""
    folder = Path(sys.argv[1])
    ranks = join(Layout(tensor=2))
    divided = Divided(Together(ranks, folder))
    scenes = (divided.resumed, divided.answers, divided.a_signal_while_answering)
    found = {scene.__name__: scene() for scene in scenes}
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(found))
    part(ranks)


if __name__ == "__main__":
    main()
