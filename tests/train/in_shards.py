"""What two ranks that divide the model do for `test_shards.py`: `python -m tests.train.in_shards FOLDER`, started by torchrun.

Leaves FOLDER/shards-rank-N.json.
"""

import functools
import itertools
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers.modeling_layers import GradientCheckpointingLayer

from luthier.core.chat import Conversation, Message
from luthier.core.errors import LuthierError
from luthier.core.signals import Interrupted
from luthier.data.order import rows_of_step
from luthier.model.generate import LocalCompleter
from luthier.model.mesh import Mesh
from luthier.model.place import Placed, place
from luthier.model.shard import evaluating
from luthier.plan.setup import Layout
from luthier.recipe.schema import Training
from luthier.runs.store import RunFolder
from luthier.train import checkpoint
from luthier.train.checkpoint import State
from luthier.train.loop import _take_step, fit
from luthier.train.objective import nll_sum
from luthier.train.optim import make_optimizer
from luthier.train.ranks import ALONE, Ranks, join, part
from luthier.train.run import TrainingJob, _rehearse, _set_up, train
from luthier.train.step import Precision, train_step
from tests.data.families import family
from tests.train.workshop import CPU, Workshop, in_batches, killed_in_step, ragged_rows, tiny_model

HOWS = ("zero2", "zero3")
TRAINED: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"dropout": 0.1}},
    "full": {"lora": "none", "training": {"learning_rate": 1e-4}},
}
LAST_STEP_OF_ONE_ROW = {"training": {"max_steps": 4, "global_batch_size": 23}}
BFLOAT16 = {"model": {"dtype": "bfloat16"}, "training": {"max_steps": 4}}
KILLED_IN, RESUMED_AFTER = 9, 6
MOVES = {"zero2-then-one": ("zero2", "none"), "one-then-zero3": ("none", "zero3"), "zero2-then-zero3": ("zero2", "zero3")}
"""How a run goes on with another number of ranks, or with weights divided otherwise."""
FEW_BITS: dict[str, dict[str, Any]] = {
    "int8": {"model": {"quantization": "int8"}},
    "nf4": {"model": {"quantization": "nf4"}},
    "experts in int8": {"model": {"base": "mixture", "quantization": "int8"}, "lora": {"dropout": 0.1, "target_parameters": "experts"}},
    "experts in nf4": {"model": {"base": "mixture", "quantization": "nf4"}, "lora": {"dropout": 0.1, "target_parameters": "experts"}},
}
QUESTIONS = ["What is the question number 3?", "What is the the question number 15?", "Why?"]


def shared(how: str, **sections: Any) -> dict[str, Any]:
    """A recipe's sections for two replicas that divide so much."""
    return {**sections, "parallel": {"data": 2, "shard": how}}


class Together:
    """One rank's part in every scene; each leaves what the tests look at."""

    def __init__(self, ranks: Ranks, folder: Path) -> None:
        self.ranks, self.workshop = ranks, Workshop(folder)

    def job(self, name: str, how: str, **sections: Any) -> TrainingJob:
        job = self.workshop.job(name, **shared(how, **sections))
        ranks = replace(self.ranks, divided=how != "none")
        return replace(job, ranks=ranks, folder=RunFolder(job.folder.path, read_only=not ranks.first))

    def trained_to_the_end(self) -> None:
        for how in HOWS:
            for what, sections in TRAINED.items():
                train(self.job(f"{how} {what}", how, **sections))

    def killed_and_resumed(self) -> None:
        for how in HOWS:
            killed_in_step(self.job(f"{how} broken", how, **TRAINED["lora"]), KILLED_IN)
            train(self.job(f"{how} broken", how, **TRAINED["lora"]))

    def moved(self) -> None:
        for what, sections in TRAINED.items():
            for name, (before, after) in MOVES.items():
                if before != "none":
                    killed_in_step(self.job(f"{name} {what}", before, **sections), KILLED_IN)
                if after != "none":
                    train(self.job(f"{name} {what}", after, **sections))

    def a_rank_without_rows(self) -> list[int]:
        for how in HOWS:
            job = self.job(f"{how} one-row", how, **LAST_STEP_OF_ONE_ROW)
            train(job)
        rows = job.prepared.rows("train")
        return [len(self.ranks.share(rows, rows_of_step(step, 23, job.recipe.seed, rows))) for step in range(1, 5)]

    def in_bfloat16(self) -> dict[str, list[str]]:
        """Frozen weights in bfloat16 beside float32 adapters; which types each rank updates."""
        found = {}
        for how in ("none", *HOWS):
            job = self.job(f"{how} bfloat16", how, **BFLOAT16)
            loop, plan = _set_up(job)
            _rehearse(job, loop, plan)
            fit(loop, State())
            found[how] = sorted({str(weight.dtype) for weight in loop.trained.values()})
        return found

    def answers(self) -> dict[str, list[str]]:
        """Of a model that is divided, to all ranks."""
        found = {}
        for how in HOWS:
            loop, _ = _set_up(self.job(f"{how} answers", how, **TRAINED["lora"]))
            state = State()
            for _ in range(3):
                state, _ = _take_step(loop, state)
            with evaluating(loop.model):
                found[how] = answered(loop.model)
        return found

    def the_disk_of_one_rank_is_full(self) -> dict[str, list[str]]:
        """Rank 1 may write no file of more than a few bytes from step 7 on: nothing of its optimizer fits."""
        found = {}
        for on_failed_save in ("stop", "continue"):
            checkpoints = {"save_steps": 3, "eval_steps": 12, "on_failed_save": on_failed_save}
            job = self.job(f"full {on_failed_save}", "zero2", checkpoints=checkpoints)
            loop, _ = _set_up(job)
            loop.optimizer.register_step_pre_hook(functools.partial(self.limited, iter(range(6, -1, -1))))
            try:
                fit(loop, State())
                found[on_failed_save] = ["trained on"]
            except LuthierError as error:
                found[on_failed_save] = [type(error).__name__, error.what]
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            self.ranks.sum([0.0])
            found[on_failed_save] += sorted(path.name for path in job.folder.checkpoints.iterdir())
            self.ranks.sum([0.0])
        return found

    def limited(self, left: Iterator[int], *_: object) -> None:
        if not next(left, 1) and not self.ranks.first:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))

    def a_disk_that_keeps_something_else(self) -> list[str]:
        """Of what rank 1 writes, one byte is another once it is on the disk."""
        job = self.job("flipped", "zero2")
        loop, _ = _set_up(job)
        state, _ = _take_step(loop, State())
        flipping = True

        def flip(event: str, arguments: tuple[Any, ...]) -> None:
            if flipping and event == "os.rename" and str(arguments[0]).endswith("step-000001.part"):
                file = Path(arguments[0]) / "optimizer-00002-of-00002.safetensors"
                content = file.read_bytes()
                file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

        sys.addaudithook(flip)
        try:
            checkpoint.save(job.folder, state, loop.trained, loop.optimizer, keep=1, ranks=loop.ranks)
        except LuthierError as error:
            self.ranks.sum([0.0])  # rank 0 tidies up
            return [type(error).__name__, error.what, *(path.name for path in job.folder.checkpoints.iterdir())]
        finally:
            flipping = False
        return []

    def a_signal_to_one_rank(self) -> list[int]:
        """In the middle of a step, rank 1 is asked to end; how it ended, and after which step."""
        job = self.job("signalled", "zero3", lora={"dropout": 0.1}, training={"micro_batch_size": 1})

        def ask(module: nn.Module, inputs: object) -> None:
            if self.ranks.rank == 1 and torch.is_grad_enabled() and next(counted) == 13:
                os.kill(os.getpid(), signal.SIGTERM)

        counted = itertools.count(1)
        handle = register_module_forward_pre_hook(lambda module, inputs: ask(module, inputs) if isinstance(module, nn.Embedding) else None)
        ended = 0
        try:
            train(job)
        except Interrupted as interrupted:
            ended = interrupted.signal
        finally:
            handle.remove()
        stopped = job.folder.saved[0]
        train(job)
        return [ended, int(stopped.name.removeprefix("step-"))]

    def one_rank_overflows(self) -> dict[str, list[float]]:
        """float16's loss scale is too large for one number of the embedding's gradient, which one rank has; both must halve it."""
        found = {}
        for how in HOWS:
            model = tiny_model().train()
            placed = place(model, Layout(data=2, shard=how), self.ranks.mesh)
            scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
            if self.ranks.rank == 1:
                model.get_input_embeddings().register_forward_hook(functools.partial(overflowing, scaler))
            ranks = replace(self.ranks, pieces=placed.pieces, divided=True)
            precision = Precision(device=CPU, dtype=torch.float16, scaler=scaler, ranks=ranks)
            rows = ragged_rows()[self.ranks.rank :: 2]
            optimizer = torch.optim.SGD(placed.trained.values(), lr=0.01)
            done = train_step(model, optimizer, in_batches(rows, 8), precision=precision, max_norm=1.0, seeds=(0, 1))
            found[how] = [done.num_overflows, scaler.get_scale(), done.finite]
        return found

    def waited(self) -> dict[str, int]:
        """How often this rank said that it waits, in the two passes of a layer and of what stands around it."""
        found, times = {}, 0

        @contextmanager
        def waiting() -> Iterator[None]:
            nonlocal times
            times += 1
            yield

        for how in HOWS:
            model = tiny_model().train()
            place(model, Layout(data=2, shard=how), Mesh.of(Layout(data=2, shard=how), "cpu", waiting))
            times = 0
            nll_sum(model, *in_batches(ragged_rows()[:2], 2)).backward()
            found[how] = times
        return found

    def held(self) -> dict[str, dict[str, int]]:
        """Bytes that this rank has between two steps, what of the weights is whole while a layer is computed, and what the plan says."""
        return {f"{how} {what}": self.bytes_held(how, **TRAINED[what]) for how in HOWS for what in TRAINED}

    def bytes_held(self, how: str, **sections: Any) -> dict[str, int]:
        loop, plan = _set_up(self.job(f"{how} held", how, **sections))
        gradients, whole = [0], [0]
        loop.optimizer.register_step_pre_hook(lambda *_: gradients.append(sum(weight.grad.nbytes for weight in loop.trained.values())))
        for module in loop.model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.register_forward_pre_hook(lambda *_: whole.append(sum(weight.nbytes for weight in whole_weights(loop.model))))
        _take_step(loop, State())
        storages = [local(weight).untyped_storage() for weight in loop.model.parameters()]
        lines = {line.name: line.bytes for line in plan.chosen.memory.lines}
        return {
            "held": sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()),
            "gradients": gradients[-1],
            "optimizer": sum(value.nbytes for values in loop.optimizer.state.values() for value in values.values() if value.ndim),
            "gathered": max(whole) - sum(weight.nbytes for weight in whole_weights(loop.model)),
            "planned held": plan.chosen.memory.bytes_of("weights", "adapters"),
            "planned gradients": lines.get("gradients", gradients[-1]),
            "planned optimizer": plan.chosen.memory.bytes_of("optimizer"),
            "planned gathered": lines["gathered weights"],
        }

    def unevenly(self) -> dict[str, list[list[float]]]:
        """A model of whose matrices hardly any can be divided by two."""
        return {how: odd(self.ranks, how) for how in HOWS}

    def quantised(self) -> dict[str, list[list[float]]]:
        """Weights in few bits, under shards."""
        found = {}
        for how in HOWS:
            for name, sections in FEW_BITS.items():
                found[f"{how} {name}"] = first_steps(self.job(f"{how} {name}", how, **sections))
        return found


def overflowing(scaler: torch.amp.GradScaler, module: nn.Module, inputs: object, hidden: torch.Tensor) -> None:
    """Let the first number of the gradient be infinite while the scale is more than 4."""
    first = torch.zeros_like(hidden)
    first[0, 0, 0] = torch.inf
    hidden.register_hook(lambda gradient: gradient + first if scaler.get_scale() > 4 else gradient)


def whole_weights(model: nn.Module) -> list[nn.Parameter]:
    """Those that are not in pieces now."""
    return [weight for weight in model.parameters() if not isinstance(weight, DTensor)]


def first_steps(job: TrainingJob) -> list[list[float]]:
    """Loss and gradient norm of three steps."""
    loop, _ = _set_up(job)
    state, found = State(), []
    for _ in range(3):
        state, line = _take_step(loop, state)
        found.append([line.loss, line.grad_norm])
    return found


def odd(ranks: Ranks = ALONE, how: str = "none") -> list[list[float]]:
    """The same of a Llama on ragged rows, all of it trained, whose sizes are odd."""
    heads = {"num_attention_heads": 3, "num_key_value_heads": 3}
    model = tiny_model("llama", tied=False, vocabulary=97, hidden_size=33, intermediate_size=35, head_dim=6, **heads)
    layout = Layout(data=ranks.size, shard=how)  # type: ignore[arg-type]  # a name of a kind
    return three_steps(place(model.train(), layout, ranks.mesh), ranks)


def three_steps(placed: Placed, ranks: Ranks) -> list[list[float]]:
    """Loss and gradient norm of each."""
    optimizer = make_optimizer(placed.trained, Training(learning_rate=1e-2))
    precision = Precision.of(torch.float32, CPU, replace(ranks, pieces=placed.pieces, divided=ranks.size > 1))
    batches = in_batches(ragged_rows()[ranks.rank :: ranks.size], 4)
    done = [train_step(placed.model, optimizer, batches, precision=precision, max_norm=1.0, seeds=(0, step)) for step in range(3)]
    return [[record.loss, record.grad_norm] for record in done]


def answered(model: nn.Module) -> list[str]:
    """The questions, by a model."""
    conversations = [Conversation(messages=(Message(role="user", content=text),)) for text in QUESTIONS]
    return [answer.text for answer in LocalCompleter(model, family("chatml")).complete(conversations, max_new_tokens=6)]


def local(weight: torch.Tensor) -> torch.Tensor:
    """What of it is here."""
    return weight.detach().to_local() if isinstance(weight, DTensor) else weight


def main() -> None:
    """All scenes, in one group."""
    folder = Path(sys.argv[1])
    ranks = join(Layout(data=2, shard="zero2"))
    together = Together(ranks, folder)
    scenes = [
        *(
            together.one_rank_overflows,
            together.waited,
            together.unevenly,
            together.quantised,
            together.held,
            together.in_bfloat16,
            together.answers,
            together.a_rank_without_rows,
        ),
        *(together.trained_to_the_end, together.killed_and_resumed, together.moved, together.a_signal_to_one_rank),
        *(together.the_disk_of_one_rank_is_full, together.a_disk_that_keeps_something_else),
    ]
    found = {scene.__name__: scene() for scene in scenes}
    (folder / f"shards-rank-{ranks.rank}.json").write_text(json.dumps(found))
    part(ranks)


if __name__ == "__main__":
    main()
