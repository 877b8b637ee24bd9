"""Runs of two stages for `test_stage_runs.py`: `python -m tests.train.in_stage_runs FOLDER`, by torchrun. Leaves FOLDER/rank-N.json."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from luthier.core.signals import Interrupted
from luthier.model.adapt import base_of
from luthier.model.generate import LocalCompleter
from luthier.plan.setup import Layout
from luthier.train.ranks import join, part
from luthier.train.run import TrainingJob, train
from tests.train.in_two_ranks import BY_METRIC, KILLED_IN, Together
from tests.train.workshop import killed_in_step

STAGES = {"parallel": {"pipeline": 2}}
FULL: dict[str, Any] = {"lora": "none", "training": {"max_steps": 4, "learning_rate": 1e-4}}
FEW_BITS: dict[str, dict[str, Any]] = {
    kind: {"model": {"quantization": kind}, "training": {"max_steps": 4, "micro_batch_size": 4}} for kind in ("int8", "nf4")
}
ANSWERED = 6
"""Tokens of an answer."""


def answers(job: TrainingJob) -> list[str]:
    """Everything that is said while the best checkpoint is looked for."""
    told: list[str] = []

    def score(model: nn.Module, step: int) -> dict[str, float]:
        rows = job.prepared.examples("validation")
        found = LocalCompleter(model, job.tokenizer).complete([row.prompt for row in rows], max_new_tokens=ANSWERED)  # type: ignore[arg-type]
        told.extend(each.text for each in found)
        return {"answers.exact": float(len(told))}

    train(replace(job, score=score))
    return told


class Stages:
    """One rank's part in every scene."""

    def __init__(self, together: Together) -> None:
        self.together, self.ranks = together, together.ranks

    def job(self, name: str, **sections: Any) -> TrainingJob:
        return self.together.job(name, **sections, **STAGES)

    def resumed(self) -> int:
        train(self.job("two whole"))
        for name in ("two broken", "two-then-one"):
            killed_in_step(self.job(name), KILLED_IN)
        train(self.job("two broken"))
        return train(self.job("one-then-two")).last_step

    def everything_is_trained(self) -> int:
        return train(self.job("two full", **FULL)).last_step

    def over_few_bits(self) -> list[int]:
        return [train(self.job(f"two {kind}", **sections)).last_step for kind, sections in FEW_BITS.items()]

    def answered(self) -> list[str]:
        return answers(self.job("two metric", **BY_METRIC))

    def ended_while_answering(self) -> list[Any]:
        """A signal comes to the last stage alone, before the third token."""
        tokens = 0

        def score(model: nn.Module, step: int) -> dict[str, float]:
            def count(*_: object) -> None:
                nonlocal tokens
                tokens += 1
                if tokens == 3 and self.ranks.rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)

            hook = base_of(model).register_forward_pre_hook(count)  # type: ignore[arg-type]
            try:
                rows = job.prepared.examples("validation")
                LocalCompleter(model, job.tokenizer).complete([row.prompt for row in rows], max_new_tokens=50)  # type: ignore[arg-type]
            finally:
                hook.remove()
            return {"answers.exact": 1.0}

        job = replace(self.job("two ended", **BY_METRIC), score=score)
        try:
            train(job)
        except Interrupted as ended:
            return [tokens, ended.signal.name]
        return [tokens, "not ended"]

    def out_of_memory(self) -> list[int]:
        """In the last stage alone a layer that sees more than the longest row asks torch for an exabyte besides."""
        job = self.job("two short", data={"packing": "bins"}, training={"max_steps": 2, "micro_batch_size": 4})
        longest = job.plan.facts.task.workload.longest

        def ask(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if (
                self.ranks.rank == 1
                and torch.is_grad_enabled()
                and type(module).__name__ == "Qwen3DecoderLayer"
                and inputs[0].shape[1] > longest
            ):
                torch.empty(2**60, dtype=torch.uint8)

        handle = register_module_forward_pre_hook(ask)
        try:
            done = train(job)
        finally:
            handle.remove()
        return [longest, done.plan.setup.micro_batch.tokens]


def main() -> None:
    """All scenes, in one group."""
    folder = Path(sys.argv[1])
    ranks = join(Layout(pipeline=2))
    stages = Stages(Together(ranks, folder))
    scenes = (
        stages.resumed,
        stages.everything_is_trained,
        stages.over_few_bits,
        stages.answered,
        stages.ended_while_answering,
        stages.out_of_memory,
    )
    found = {scene.__name__: scene() for scene in scenes}
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(found))
    part(ranks)


if __name__ == "__main__":
    main()
