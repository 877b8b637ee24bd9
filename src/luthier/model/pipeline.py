"""The layers of a model divided among the stages of a pipeline: each has its own in memory, and passes hidden states on.

The model stays transformers' own and whole in form. Where another stage has a layer, the norm or the head, something stands that passes
hidden states on, so that names, layer numbers and kinds, and PEFT's names are those of the whole model. The first stage has the embedding,
the last the final norm and the head; a tied matrix is on both.

B = rows, T = positions, D = hidden, V = vocabulary
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from luthier.core.errors import PlanRefused
from luthier.model.adapt import base_of
from luthier.model.mesh import Axis, Piece, Pieces
from luthier.model.peak import is_out_of_memory
from luthier.plan.weights import Stage

PARTS = {"embed_tokens", "layers", "norm"}
"""What a decoder must be made of; nothing else of it may have weights."""
BEFORE, AFTER = -1, 1
"""A neighbour."""
SOUND, FAILED, SHORT = range(3)
"""How a pass of all stages went on one of them; the gravest goes for all."""
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What this rank has of a divided model, and in what form hidden states go from stage to stage."""

    stage: Stage
    axis: Axis
    width_D: int
    dtype: torch.dtype
    device: torch.device
    shared: tuple[nn.Parameter, ...]
    """Trained here and on another stage: the matrix that is both embedding and head."""
    elsewhere: Mapping[str, nn.Module]
    """What other stages have, by name, without its weights."""


class PassOn(nn.Module):
    """Stands where another stage has a layer, a norm or the head."""

    def __init__(self, layer: int | None = None) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden_BTD: Tensor, *_: Any, past_key_values: Cache | None = None, **__: Any) -> Tensor:
        """What it gets. A cache, whose first layer tells how many tokens were there, is told of these."""
        if past_key_values is not None and self.layer is not None and isinstance(past_key_values.layers[self.layer], CacheLayerMixin):
            counted_B1T1 = hidden_BTD.new_zeros(len(hidden_BTD), 1, hidden_BTD.shape[1], 1)
            past_key_values.update(counted_B1T1, counted_B1T1, self.layer)
        return hidden_BTD


_parts: WeakKeyDictionary[nn.Module, Part] = WeakKeyDictionary()


def part_of(model: nn.Module) -> Part | None:
    """What this rank has of the model, where it is divided in a pipeline."""
    return _parts.get(model)


def elsewhere(base: PreTrainedModel, stage: Stage) -> tuple[str, ...]:
    """Names of the modules that other stages have and this one has not. Weights may be on the meta device: a loader asks before it reads.

    Raises PlanRefused for a model that is not embedding, layers, norm and head, one after the other.
    """
    decoder, head = base.get_decoder(), base.get_output_embeddings()
    names = {module: name for name, module in base.named_modules()}
    found = {name for name, module in decoder.named_children() if next(module.parameters(), None) is not None}
    inside = (f"{names[decoder]}.", f"{names.get(head, '')}.")
    outside = [name for name, _ in base.named_parameters() if not name.startswith(inside)]
    if found != PARTS or head not in names or outside:
        what = f"a {type(base).__name__} is more, or less, than embedding, layers, norm and head: its stages cannot pass hidden states on"
        raise PlanRefused(what, where="parallel.pipeline", change="set parallel.pipeline: 1")
    foreign = [f"{inside[0]}layers.{index}" for index in range(stage.num_layers) if not stage.start <= index < stage.stop]
    if not (stage.first or (stage.last and base.config.get_text_config().tie_word_embeddings)):
        foreign.append(f"{inside[0]}embed_tokens")
    return (*foreign, *(() if stage.last else (f"{inside[0]}norm", names[head])))


def cut(model: PreTrainedModel | PeftModel, stage: Stage, axis: Axis, pieces: Pieces) -> dict[Tensor, Piece]:
    """Leave of an adapted model what this rank's stage has; what that is of each trained parameter, of which `pieces` were held before.

    Raises PlanRefused for a model that does more than to pass hidden states on.
    """
    base = base_of(model)
    embedding, text = base.get_input_embeddings().weight, base.config.get_text_config()
    foreign = {name: base.get_submodule(name).to("meta") for name in elsewhere(base, stage)}
    _put(base, {name: PassOn(int(child) if (child := name.rpartition(".")[2]).isdigit() else None) for name in foreign})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        what = f"nothing is trained in layers {stage.start} to {stage.stop - 1}, which are one stage of the pipeline"
        raise PlanRefused(what, where="parallel.pipeline", change="name modules of every layer in lora.target_modules, or divide less")
    shared = tuple(parameter for parameter in trained if parameter is embedding) if text.tie_word_embeddings else ()
    device = next(base.parameters()).device
    part = Part(
        stage=stage,
        axis=axis,
        width_D=text.hidden_size,
        dtype=embedding.dtype,
        device=device,
        shared=shared,
        elsewhere=foreign,
    )
    _parts[model] = _parts[base] = part
    _check_passes_on(base, part)
    found = {}
    for parameter in trained:
        piece = pieces.get(parameter) or Piece(shape=tuple(parameter.shape), offsets=(0,) * parameter.ndim)
        found[parameter] = piece if parameter is embedding and shared else replace(piece, divided=piece.divided | {"pipeline"})
    return found


def exchanged(model: nn.Module, new: Mapping[nn.Parameter, nn.Parameter]) -> None:
    """Go on with parameters that have taken the place of those that were cut."""
    if part := part_of(model):
        _parts[model] = _parts[base_of(model)] = replace(part, shared=tuple(new[parameter] for parameter in part.shared))


@contextmanager
def in_form(model: nn.Module) -> Iterator[None]:
    """While it is open, the model has all of its modules, those of other stages without weights: it is saved as a whole one."""
    part = part_of(model)
    if part is None:
        yield
        return
    base = base_of(model)
    stand_ins = {name: base.get_submodule(name) for name in part.elsewhere}
    _put(base, part.elsewhere)
    try:
        yield
    finally:
        _put(base, stand_ins)


def of_all_stages(model: nn.Module, number: int) -> int:
    """What the stages that divide the model have together of something that this one has so many of."""
    part = part_of(model)
    if part is None:
        return number
    counted = torch.tensor([number])
    with part.axis.waiting():
        dist.all_reduce(counted, group=part.axis.group)
    return int(counted)


def hidden_states(model: PreTrainedModel | PeftModel, **inputs: Any) -> Tensor:
    """What this stage's layers make of its inputs [B, T, D]; of the last stage, its norm with them."""
    hidden_BTD: Tensor = base_of(model).get_decoder()(**inputs).last_hidden_state
    return hidden_BTD


@dataclass(slots=True, kw_only=True)
class Neighbours:
    """The stages before and after this one; `finish` must be called at the end of what they do together."""

    part: Part
    _sent: list[tuple[dist.Work, Tensor]] = field(default_factory=list)

    def exchange(self, sent: tuple[int, Tensor] | None, wanted: tuple[int, Shape] | None) -> Tensor | None:
        """Send a tensor to a neighbour (BEFORE, AFTER), and give what a neighbour sends.

        Both are begun at once: NCCL does what two ranks exchange in order, and in another order on the other one they would wait for
        each other for ever. What is sent is waited for when the next is, so that it is under way while this stage computes.
        """
        self.finish()
        operations, received = [], None
        if wanted:  # first, for its work is the first, or with NCCL that of all
            received = torch.empty(wanted[1], dtype=self.part.dtype, device=self.part.device)
            operations.append(self._operation(dist.irecv, received, wanted[0]))
        if sent:
            if sent[1].dtype != self.part.dtype:
                raise TypeError(f"hidden states, or their gradient, are {sent[1].dtype}, and go from stage to stage in {self.part.dtype}")
            operations.append(self._operation(dist.isend, sent[1].contiguous(), sent[0]))
        works = dist.batch_isend_irecv(operations) if operations else []
        if received is not None:
            with self.part.axis.waiting():
                works.pop(0).wait()
        self._sent = [(work, operations[-1].tensor) for work in works]
        return received

    def finish(self) -> None:
        """Wait until what was sent has been received."""
        if self._sent:
            with self.part.axis.waiting():
                for work, _ in self._sent:
                    work.wait()
        self._sent = []

    def add_up_shared(self) -> None:
        """Leave the sum of the first and the last stage's gradients in the parameters that both have."""
        axis = self.part.axis
        other = (axis.size - 1 if axis.first else 0) - axis.index
        for parameter in self.part.shared:
            mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            theirs = torch.empty_like(mine)
            works = dist.batch_isend_irecv([self._operation(dist.irecv, theirs, other), self._operation(dist.isend, mine, other)])
            with axis.waiting():
                for work in works:
                    work.wait()
            parameter.grad = mine + theirs  # the same bits on both

    def _operation(self, do: Callable[..., Any], tensor: Tensor, neighbour: int) -> dist.P2POp:
        axis = self.part.axis
        return dist.P2POp(do, tensor, group=axis.group, group_peer=axis.index + neighbour)


@contextmanager
def as_one(model: nn.Module) -> Iterator[None]:
    """While it is open, all stages call the model with the same inputs, and all get the same logits: what can be done with a whole model,
    such as generate, all of them do.

    What is raised on one of them, another raises as a RuntimeError, or an OutOfMemoryError.
    """
    part = part_of(model)
    if part is None:
        yield
        return
    base = base_of(model)
    base.forward = functools.wraps(base.forward)(functools.partial(_through_stages, base, base.forward, part))
    try:
        yield
    finally:
        del base.forward


def _through_stages(
    base: PreTrainedModel,
    own: Callable[..., CausalLMOutputWithPast],
    part: Part,
    *,
    input_ids: Tensor,
    logits_to_keep: int | Tensor = 0,
    **inputs: Any,
) -> CausalLMOutputWithPast:
    """The model's forward: this stage's part of it, then the logits from the last."""
    axis, neighbours = part.axis, Neighbours(part=part)
    shape = (*input_ids.shape, part.width_D)
    hidden_BTD = neighbours.exchange(None, None if axis.first else (BEFORE, shape))
    inputs |= {"input_ids": input_ids} if hidden_BTD is None else {"inputs_embeds": hidden_BTD}
    fared, error, logits, cache, given = SOUND, None, torch.empty(0), None, torch.zeros(shape, dtype=part.dtype, device=part.device)
    try:
        if axis.last:
            found = own(**inputs, logits_to_keep=logits_to_keep)
            logits, cache = found.logits.float(), found.past_key_values
        else:
            found = base.get_decoder()(**inputs)
            given, cache = found.last_hidden_state, found.past_key_values
    except Exception as raised:  # raised again, once no stage waits for this one any more
        fared, error = SHORT if is_out_of_memory(raised) else FAILED, raised
    neighbours.exchange(None if axis.last else (AFTER, given), None)
    neighbours.finish()
    told = torch.tensor([fared, *(logits.shape if axis.last and fared == SOUND else (0, 0, 0))])
    with axis.waiting():
        dist.all_reduce(told, dist.ReduceOp.MAX, group=axis.group)
    fared, *sizes = told.tolist()
    if error:
        raise error
    if fared == SHORT:
        raise torch.OutOfMemoryError("another stage is out of memory")
    if fared == FAILED:
        raise RuntimeError("another stage failed")
    logits_BTV = logits.contiguous() if axis.last else torch.empty(sizes, device=part.device)
    with axis.waiting():
        dist.broadcast(logits_BTV, group_src=axis.size - 1, group=axis.group)
    return CausalLMOutputWithPast(logits=logits_BTV, past_key_values=cache)


def _put(base: PreTrainedModel, modules: Mapping[str, nn.Module]) -> None:
    for name, module in modules.items():
        base.set_submodule(name, module)


def _check_passes_on(base: PreTrainedModel, part: Part) -> None:
    """Raise PlanRefused where the decoder changes hidden states between embedding, layers and norm: it would do so on every stage."""
    decoder: Any = base.get_decoder()
    own, decoder.layers = decoder.layers, nn.ModuleList(PassOn() for _ in decoder.layers)
    hidden_1TD = torch.linspace(-1, 1, 3 * part.width_D, dtype=part.dtype, device=part.device).view(1, 3, part.width_D)
    tried = [({"inputs_embeds": hidden_1TD}, hidden_1TD)]
    try:
        with torch.no_grad():
            if part.axis.first:
                ids_1T = torch.arange(3, device=part.device)[None]
                tried.append(({"input_ids": ids_1T}, decoder.embed_tokens(ids_1T)))
            found = [torch.equal(decoder(**inputs, use_cache=False).last_hidden_state, decoder.norm(hidden)) for inputs, hidden in tried]
    finally:
        decoder.layers = own
    if not all(found):
        what = f"a {type(base).__name__} changes hidden states outside of its layers, which each stage of a pipeline would do"
        raise PlanRefused(what, where="parallel.pipeline", change="set parallel.pipeline: 1")
