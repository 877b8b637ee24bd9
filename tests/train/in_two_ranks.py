"""What two ranks do for `test_ranks.py`: `python -m tests.train.in_two_ranks FOLDER`, started by torchrun. Leaves FOLDER/rank-N.json."""

import hashlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from luthier.core.chat import Completion, Conversation, Message
from luthier.core.progress import Advance, Silent
from luthier.core.signals import Interrupted
from luthier.data.order import rows_of_step
from luthier.data.store import TokenRow, TokenRows
from luthier.evaluate.shared import SharedCompleter
from luthier.model.place import trained_of
from luthier.plan.setup import Layout
from luthier.runs.heartbeat import Phase, Unheard
from luthier.runs.store import RunFolder
from luthier.train.checkpoint import State
from luthier.train.loop import fit
from luthier.train.precision import Precision
from luthier.train.ranks import Ranks, join, part
from luthier.train.run import TrainingJob, _rehearse, _set_up, train
from luthier.train.step import train_step
from luthier.train.validate import validation_loss
from tests.train.test_control import Asking
from tests.train.workshop import CPU, Workshop, killed_in_step, tiny_model

EIGHT = {"max_steps": 8, "global_batch_size": 5}
KINDS: dict[str, dict[str, Any]] = {
    f"{how} {packing}": {"lora": lora, "data": {"packing": packing}, "training": EIGHT | rate}
    for how, lora, rate in (("lora", {"dropout": 0.1}, {}), ("full", "none", {"learning_rate": 1e-4}))
    for packing in ("off", "bins", "tree")
} | {
    "nf4 tree": {"model": {"quantization": "nf4"}, "lora": {"dropout": 0.1}, "data": {"packing": "tree"}, "training": EIGHT},
    "experts bins": {"model": {"base": "mixture", "quantization": "nf4"}, "data": {"packing": "bins"}, "training": EIGHT},
}
LAST_STEP_OF_ONE_ROW = {"training": {"max_steps": 4, "global_batch_size": 23}}
BY_METRIC = {
    "checkpoints": {"eval_steps": 3, "best_by": "answers.exact"},
    "evaluation": {"tasks": [{"name": "answers", "split": "validation"}]},
}
KILLED_IN, RESUMED_AFTER = 9, 6
SHORT = {
    "data": {"packing": "bins"},
    "training": {"max_steps": 6, "global_batch_size": 8, "micro_batch_size": "auto"},
    "checkpoints": {"eval_steps": 3, "save_steps": 6},
}
ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Echo:
    """Answers with the question and its own rank; the rank that is `ended` gets SIGTERM meanwhile."""

    rank: int
    ended: int = -1

    def complete(self, conversations: Sequence[Conversation], *, max_new_tokens: int) -> list[Completion]:
        if self.rank == self.ended:
            signal.raise_signal(signal.SIGTERM)
        texts = [f"{asked.messages[0].content} by {self.rank}" for asked in conversations]
        return [Completion(text=text, num_prompt_tokens=1, num_tokens=1, stopped=True, first_token_seconds=0, seconds=0) for text in texts]


def weights_hash(model: nn.Module) -> str:
    """Of every trained weight's bytes."""
    weights = sorted(trained_of(model).items())
    return hashlib.sha256(b"".join(name.encode() + weight.detach().numpy().tobytes() for name, weight in weights)).hexdigest()


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Reached(Silent):
    """Knows the last step that was done."""

    step = 0

    @contextmanager
    def task(self, name: str, total: int) -> Iterator[Advance]:
        def advance(done: int, text: str) -> None:
            self.step = max(self.step, done)

        yield advance


class Doing(Unheard):
    """Knows what is being done."""

    phase: Phase = "loading"

    def beat(self, phase: Phase, step: int) -> None:
        self.phase = phase


class Together:
    """One rank's part in every scene; each leaves what the tests look at."""

    def __init__(self, ranks: Ranks, folder: Path) -> None:
        self.ranks, self.workshop = ranks, Workshop(folder)

    def job(self, name: str, **sections: Any) -> TrainingJob:
        job = self.workshop.job(name, **sections)
        return replace(job, ranks=self.ranks, folder=RunFolder(job.folder.path, read_only=not self.ranks.first))

    def trained_in_every_way(self) -> dict[str, str]:
        found = {}
        for kind, sections in KINDS.items():
            job = self.job(f"two {kind}", **sections)
            loop, plan = _set_up(job)
            _rehearse(job, loop, plan)
            fit(loop, State())
            found[kind] = weights_hash(loop.model)
        return found

    def a_rank_without_rows(self) -> list[int]:
        job = self.job("two one-row", **LAST_STEP_OF_ONE_ROW)
        train(job)
        rows = job.prepared.rows("train")
        return [len(self.ranks.share(rows, rows_of_step(step, 23, job.recipe.seed, rows))) for step in range(1, 5)]

    def resumed(self) -> int:
        train(self.job("two whole"))
        for name in ("two broken", "two-then-one"):
            killed_in_step(self.job(name), KILLED_IN)
        train(self.job("two broken"))
        return train(self.job("one-then-two")).last_step

    def one_rank_out_of_memory(self) -> list[int]:
        """On rank 1 alone an embedding of more than the longest row asks torch for an exabyte besides."""
        job = self.job("two short", data={"packing": "bins"}, training={"max_steps": 2, "micro_batch_size": "auto"})
        longest = job.plan.facts.task.workload.longest

        def embed(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if self.ranks.rank == 1 and torch.is_grad_enabled() and isinstance(module, nn.Embedding) and inputs[0].numel() > longest:
                torch.empty(2**60, dtype=torch.uint8)

        handle = register_module_forward_pre_hook(embed)
        try:
            done = train(job)
        finally:
            handle.remove()
        return [longest, done.plan.setup.micro_batch.tokens]

    def one_rank_out_of_memory_in_a_step(self) -> dict[str, Any]:
        return self._short_after("two short in a step", ("rehearsing", "computing"), learning=True)

    def one_rank_out_of_memory_in_validation(self) -> dict[str, Any]:
        return self._short_after("two short in validation", ("rehearsing", "validating"), learning=False)

    def _short_after(self, name: str, phases: tuple[Phase, ...], *, learning: bool) -> dict[str, Any]:
        """From step 3 on, in these phases, an embedding of more than the longest row asks torch for an exabyte on rank 1 alone."""
        reached, doing = Reached(), Doing()
        job = replace(self.job(name, **SHORT), progress=reached, heart=doing)
        longest = job.plan.facts.task.workload.longest

        def embed(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            now = reached.step >= 3 and doing.phase in phases and torch.is_grad_enabled() == learning
            if self.ranks.rank == 1 and now and isinstance(module, nn.Embedding) and inputs[0].numel() > longest:
                torch.empty(2**60, dtype=torch.uint8)

        handle = register_module_forward_pre_hook(embed)
        try:
            done = train(job)
        finally:
            handle.remove()
        return {"fits": done.plan.setup.micro_batch.tokens <= longest, "weights": file_hash(job.folder.adapter / ADAPTER)}

    def one_rank_out_of_memory_while_a_micro_batch_is_put_together(self) -> dict[str, Any]:
        """On rank 1 alone a row of a step after the fourth cannot be had, once."""
        reached, failed = Reached(), False
        job = replace(self.job("two short in rows", **SHORT), progress=reached)
        read = TokenRows.__getitem__

        def short(rows: TokenRows, index: int) -> TokenRow:
            nonlocal failed
            if self.ranks.rank == 1 and reached.step >= 4 and not failed:
                failed = True
                torch.empty(2**60, dtype=torch.uint8)
            return read(rows, index)

        TokenRows.__getitem__ = short  # type: ignore[method-assign]
        try:
            done = train(job)
        finally:
            TokenRows.__getitem__ = read  # type: ignore[method-assign]
        fits = done.plan.setup.micro_batch.tokens < job.plan.setup.micro_batch.tokens
        return {"fits": fits, "weights": file_hash(job.folder.adapter / ADAPTER)}

    def the_best_by_a_metric(self) -> list[int]:
        scores = iter([0.2, 0.7, 0.7, 0.1])
        asked = 0

        def score(_: nn.Module, step: int) -> dict[str, float]:
            nonlocal asked
            asked += 1
            return {"answers.exact": next(scores)}

        done = train(replace(self.job("two metric", **BY_METRIC), score=score))
        return [asked, done.final_step]

    def answered(self) -> list[Any]:
        """Each answers its share; then rank 1 gets a signal while it answers, which rank 0 knows nothing of."""
        prompts = [Conversation(messages=(Message(role="user", content=str(row)),)) for row in range(5)]
        shared = SharedCompleter(own=Echo(rank=self.ranks.rank), ranks=self.ranks)
        answers = [answer.text for answer in shared.complete(prompts, max_new_tokens=4)]
        try:
            SharedCompleter(own=Echo(rank=self.ranks.rank, ended=1), ranks=self.ranks).complete(prompts, max_new_tokens=4)
        except Interrupted as ended:
            return [answers, ended.signal.name]
        return [answers, "answered"]

    def sums(self) -> dict[str, Any]:
        """Gradients that only some ranks have, of several types, and values that only the first knows."""
        mine = self.ranks.rank + 1
        first, none, both, half = (nn.Parameter(torch.zeros(2)) for _ in range(4))
        half.data = half.data.bfloat16()
        if self.ranks.first:
            first.grad = torch.tensor([5.0, 6.0])
        both.grad, half.grad = torch.tensor([1.0, 10.0]) * mine, torch.tensor([1.0, 2.0], dtype=torch.bfloat16) * mine
        self.ranks.sum_gradients([first, none, half, both])
        told: Callable[[nn.Parameter], Any] = lambda weight: None if weight.grad is None else weight.grad.tolist()  # noqa: E731
        return {
            "gradients": [told(weight) for weight in (first, none, half, both)],
            "sum": self.ranks.sum([0.1 * mine, mine]),
            "same": self.ranks.same({"rank": self.ranks.rank, "λ": [0.1, None]}),
        }

    def one_rank_overflows(self) -> list[float]:
        """float16's loss scale is too large on rank 1 only; both must halve it."""
        from tests.train.workshop import in_batches, ragged_rows

        model = tiny_model().train()
        if self.ranks.rank == 1:
            model.model.layers[0].register_full_backward_hook(
                lambda _, gradients, __: tuple(gradient * torch.inf if scaler.get_scale() > 4 else gradient for gradient in gradients)
            )
        scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
        precision = Precision(device=CPU, dtype=torch.float16, scaler=scaler, ranks=self.ranks)
        rows = ragged_rows()[self.ranks.rank :: 2]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        done = train_step(model, optimizer, in_batches(rows, 3), precision=precision, max_norm=1.0, seeds=(0, 1))
        return [done.num_overflows, scaler.get_scale(), done.finite]

    def asked_through_the_control_file(self) -> list[Any]:
        job = self.job("two asked")
        asking = Asking(job.folder, "stop", 3) if self.ranks.first else Silent()  # the other one has not asked, and cannot know
        try:
            return ["finished", train(replace(job, progress=asking)).last_step]
        except Interrupted as ended:
            return [ended.signal.name, *job.folder.saved_steps]

    def validated(self) -> list[float]:
        job = self.job("two validated")
        loop, _ = _set_up(job)
        found = validation_loss(loop.model, job.prepared.rows("validation"), loop.micro_batch, loop.precision)
        return [found.loss, found.num_tokens, found.num_targets]


def main() -> None:
    """All scenes, in one group."""
    folder = Path(sys.argv[1])
    ranks = join(Layout(data=2))
    together = Together(ranks, folder)
    scenes = [
        *(together.sums, together.one_rank_overflows, together.validated, together.trained_in_every_way, together.a_rank_without_rows),
        *(together.resumed, together.one_rank_out_of_memory, together.the_best_by_a_metric, together.answered),
        *(together.one_rank_out_of_memory_in_a_step, together.one_rank_out_of_memory_in_validation),
        *(together.one_rank_out_of_memory_while_a_micro_batch_is_put_together, together.asked_through_the_control_file),
    ]
    found = {scene.__name__: scene() for scene in scenes}
    (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(found))
    part(ranks)


if __name__ == "__main__":
    main()
