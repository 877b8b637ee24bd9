"""The memory ledger: bytes per consumer and device, each with its formula, and the peak over the instants of a run."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from luthier.plan import activations
from luthier.plan.activations import Layer, PerToken, chunk_rows, layer_of
from luthier.plan.asked import Asked
from luthier.plan.caches import answering
from luthier.plan.host import holes, libraries, process, workspace
from luthier.plan.lines import Kind, Line
from luthier.plan.setup import Setup
from luthier.plan.shape import ModelShape
from luthier.plan.speed import stages
from luthier.plan.weights import (
    Stage,
    gathered,
    gathered_head,
    in_numbers,
    largest_trained,
    layer_numbers,
    loading,
    optimizer_bytes,
    products_numbers,
    stored_weights,
    trained_numbers,
)
from luthier.runs.workload import Extent, Survey

__all__ = ["Kind", "Line", "Memory", "ledger"]

TRIED = (24, 23, 22)
"""Tokens of the rows with which an engine is tried on the model that it is to train."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The ledger of one device. `instants` are bytes in all at each instant that could be the peak; `lines` add up to the largest."""

    device_bytes: int
    lines: tuple[Line, ...]
    instants: dict[str, int]
    peak_at: str

    @property
    def peak_bytes(self) -> int:
        """At the worst instant."""
        return self.instants[self.peak_at]

    @property
    def fits(self) -> bool:
        """Whether the device has it."""
        return self.peak_bytes <= self.device_bytes

    def bytes_of(self, *kinds: Kind) -> int:
        """Of the lines of these kinds."""
        return sum(line.bytes for line in self.lines if line.kind in kinds)


def ledger(shape: ModelShape, setup: Setup, survey: Survey, device_bytes: int, asked: Sequence[Asked] = ()) -> Memory:
    """Memory of the device that needs most: of a pipeline the stage that does, at the instant when it holds most.

    `asked` are the answers that this process writes between two steps.
    """
    found, layer = [], layer_of(shape, setup)
    for stage in stages(shape, setup, survey):
        instants: dict[str, tuple[Line, ...]] = {}
        for name, lines in _Ledger(shape=shape, setup=setup, survey=survey, stage=stage, layer=layer, asked=asked).instants():
            if name not in instants or _sum(lines) > _sum(instants[name]):
                instants[name] = tuple(line for line in lines if line.bytes)
        totals = {name: _sum(lines) for name, lines in instants.items()}
        at = max(totals, key=lambda name: totals[name])
        found.append(Memory(device_bytes=device_bytes, lines=instants[at], instants=totals, peak_at=at))
    return max(found, key=lambda memory: memory.peak_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ledger:
    """One stage's part."""

    shape: ModelShape
    setup: Setup
    survey: Survey
    stage: Stage
    layer: Layer
    asked: Sequence[Asked]

    def instants(self) -> Iterator[tuple[str, tuple[Line, ...]]]:
        """Each moment that could be the peak, with all that is there then."""
        weights = (*stored_weights(self.shape, self.setup, self.stage), *self._adapter(), process(self.setup))
        yield "loading", (*weights, loading(self.shape, self.setup))
        code = libraries(self.setup, self.survey)
        yield "trying the engine", (*weights, code, *self._trial())
        resident = (*weights, code, self._optimizer())
        moments = [("optimizer step", (self._gradients(),)), ("saving", (self._checked(),)), *self._validation(), *self._answers()]
        for extent, later in self._micro_batches():
            moments += self._step(extent, later)
        for name, lines in moments:
            live = _sum(line for line in (*resident, *lines) if line.kind not in ("weights", "context"))
            yield name, (*resident, *lines, holes(self.setup, live))

    def _trial(self) -> tuple[Line, ...]:
        """Rows of random tokens, alone and twice in a pack, and one beside what it should be (`luthier.model.fuse`)."""
        if self.setup.engine == "plain":
            return ()
        logits, size, cast = self.shape.vocabulary, self.layer.stream, 0 if self.layer.stream == 4 else 4
        return (
            self._row("logits", "transient", 3 * sum(TRIED), (("", logits, size),)),
            self._row("differences", "transient", sum(TRIED[1:]), (("", logits, size), ("in float32", logits, cast))),
        )

    def _adapter(self) -> tuple[Line, ...]:
        if self.setup.lora == "none":
            return ()
        numbers = trained_numbers(self.shape, self.setup, self.stage)
        return (
            self._divided(Line(name="adapter", kind="adapters", bytes=4 * numbers, formula=f"r {self.setup.lora.r}: {numbers:,} × 4 B")),
        )

    def _optimizer(self) -> Line:
        size, formula = optimizer_bytes(self.shape, self.setup, self.stage)
        return self._divided(Line(name=self.setup.optimizer, kind="optimizer", bytes=size, formula=formula))

    def _gradients(self, *, all_but_embedding: bool = False) -> Line:
        numbers = trained_numbers(self.shape, self.setup, self.stage)
        if all_but_embedding and self.setup.lora == "none" and self.stage.first:
            numbers -= self.shape.embedding_parameters
        return self._divided(Line(name="gradients", kind="gradients", bytes=4 * numbers, formula=f"{numbers:,} × 4 B"))

    def _divided(self, line: Line) -> Line:
        """Among the replicas, where they are sharded."""
        layout = self.setup.layout
        if not self._sharded:
            return line
        formula = f"{line.formula} / {layout.data} replicas"
        return Line(name=line.name, kind=line.kind, bytes=line.bytes // layout.data, formula=formula)

    def _checked(self) -> Line:
        """safetensors 0.8 writes tensors from where they lie; before, each is checked: its absolute values and three masks."""
        numbers = largest_trained(self.shape, self.setup)
        return Line(name="check of values", kind="transient", bytes=7 * numbers, formula=f"{numbers:,} of the largest tensor × 7 B")

    def _micro_batches(self) -> Iterator[tuple[Extent, bool]]:
        """Those that can have the peak, and whether gradients of an earlier one are there: a step's largest comes first."""
        first = {max(self.survey.heaviest, key=lambda extent: extent.places), max(self.survey.heaviest, key=lambda extent: extent.targets)}
        yield from ((extent, False) for extent in first)
        later = [*self.survey.heaviest_later, *(extent for step in self.survey.steps for extent in step[1:])]
        if later:
            yield from ((extent, True) for extent in {max(later, key=lambda e: e.places), max(later, key=lambda e: e.targets)})

    def _step(self, extent: Extent, later: bool) -> Iterator[tuple[str, tuple[Line, ...]]]:
        """The instants of one micro batch."""
        base = (*self._gathered(), *((self._gradients(),) if later else ()))
        kept = self._kept(extent, several=False)
        rows = extent.needed if self.setup.engine == "fused" else extent.places
        if self.stage.last:
            final = self._row("final norm", "activations", rows, (("its input", self.layer.hidden, 4), self._trained("normalised", 4)))
            forward = self._kept(extent, several=self.survey.micro_batches > 1)
            head = gathered_head(self.shape, self.setup)
            yield "loss", (*base, *forward, *self._casts(everything=True), final, head, *self._loss(extent, rows))
            backward = (*base, *kept, *self._casts(everything=not self.setup.checkpoint_activations), final)
            yield "the loss's gradient", (*backward, head, self._loss_backward(extent, rows))
            if self.setup.lora == "none":
                yield "the head's gradient", (*backward, head, *self._head_backward(extent))
        for name, lines in self._layer_backward(extent, kept):
            yield name, (*base, *lines)
        first = self._kept_by_layers(extent, (self.stage.in_flight - 1) * self.stage.layers + 1)
        for name, lines in self._layer_backward(extent, (first,)):
            yield f"{name}, in the first layer", (*self._gathered(), self._gradients(all_but_embedding=True), *lines)
        if self.setup.lora == "none":
            yield "end of backward", (*self._gathered(), self._gradients(), self._tables((2 if self.shape.tied else 1) + self._sharded))

    def _kept(self, extent: Extent, *, several: bool) -> tuple[Line, ...]:
        """What all layers keep, of all micro batches in flight; `several`: with what an earlier one has left."""
        stage = self.stage
        fused_last = self.setup.engine == "fused" and stage.last and not self.setup.checkpoint_activations
        flying = f"{stage.in_flight} micro batches × " if stage.in_flight > 1 else ""
        whole = self._kept_by_layers(extent, stage.layers - 1 if fused_last else stage.layers, several=several)
        lines = [replace(whole, bytes=stage.in_flight * whole.bytes, formula=f"{flying}{whole.formula}")]
        if fused_last:  # after its attention only tokens that predict a target are computed
            before = activations.kept_before(self.layer, self.setup, several)
            picked = PerToken(terms=(("picked", self.layer.queries, self.layer.size),)) + activations.kept_after(self.layer, self.setup)
            lines += [
                self._row("last layer's attention", "activations", extent.places, before.terms),
                self._row("last layer's MLP", "activations", extent.needed, picked.terms),
            ]
        return tuple(lines)

    def _kept_by_layers(self, extent: Extent, layers: int, *, several: bool = False) -> Line:
        """What so many layers keep that are computed for all tokens."""
        if self.setup.checkpoint_activations:
            name, each = "inputs of layers", activations.layer_input(self.layer, self.setup, several)
        else:
            name, each = "activations of layers", activations.kept_before(self.layer, self.setup, several)
            each += activations.kept_after(self.layer, self.setup)
        formula = f"{layers} layer{'' if layers == 1 else 's'} × {extent.places:,} tokens × {each}"
        return Line(name=name, kind="activations", bytes=layers * extent.places * each.bytes, formula=formula)

    def _layer_backward(self, extent: Extent, kept: tuple[Line, ...]) -> Iterator[tuple[str, tuple[Line, ...]]]:
        """In the last layer that is computed for all tokens: its MLP, then the attention of packs."""
        before, after = activations.kept_before(self.layer, self.setup, False), activations.kept_after(self.layer, self.setup)
        places, recomputed = extent.places, self.setup.checkpoint_activations
        if recomputed:
            before = activations.without_input(before, self.layer, self.setup)
            mlp = (*kept, self._row("a layer computed again", "activations", places, (before + after).terms))
            attention = (*kept, self._row("attention computed again", "activations", places, before.terms))
        elif len(kept) > 1:  # the last layer's MLP is done, and was that of fewer tokens
            mlp, attention = kept[:1], kept[:2]
        else:
            (whole,) = mlp = kept
            lost = places * after.bytes
            attention = (Line(name=whole.name, kind=whole.kind, bytes=whole.bytes - lost, formula=f"{whole.formula} less one MLP"),)
        casts = (*self._casts(everything=not recomputed), *self._head_gradient())
        gradients = activations.mlp_backward(self.layer, self.setup)
        yield "an MLP's backward", (*mlp, *casts, self._row("backward", "transient", places, gradients.terms), *self._weight_gradient())
        if self.setup.device == "cpu" and self.setup.engine != "plain":
            heads = activations.attention_backward(self.layer)
            blocks = activations.score_blocks(self.layer, extent, self.setup.micro_batch.packing)
            scores = Line(name="scores", kind="transient", bytes=blocks, formula=f"{self.layer.heads} heads, a block")
            yield "an attention's backward", (*attention, *casts, self._row("backward", "transient", places, heads.terms), scores)

    def _loss(self, extent: Extent, rows: int) -> tuple[Line, ...]:
        vocabulary, layer = self.shape.vocabulary, self.layer
        if not self.setup.chunked_head:
            return (self._row("logits, their softmax", "transient", extent.targets, (("in float32", 2 * vocabulary, 4),)),)
        chunk = chunk_rows(vocabulary, layer.size, extent.targets)
        return (
            self._row("final hidden states", "transient", rows, (("", layer.hidden, layer.size),)),
            self._row("targets' hidden states, their gradient", "transient", extent.targets, (("", 2 * layer.hidden, layer.size),)),
            self._row("chunks of logits", "transient", chunk, (("", vocabulary, layer.size),)),
            workspace(self.setup, self.shape),
        )

    def _loss_backward(self, extent: Extent, rows: int) -> Line:
        vocabulary, layer = self.shape.vocabulary, self.layer
        if not self.setup.chunked_head:
            return self._row("logits, their softmax, its gradient", "transient", extent.targets, (("in float32", 3 * vocabulary, 4),))
        return self._row("final norm's backward", "transient", rows, (("in float32", 5 * layer.hidden, 4), ("", layer.hidden, layer.size)))

    def _head_backward(self, extent: Extent) -> tuple[Line, ...]:
        """Of a trained head: of three logits only the gradient is there still, or the head's as it was computed, beside its cast."""
        vocabulary, size = self.shape.vocabulary, self.layer.size
        logits, cast = 4 * extent.targets * vocabulary, size * self.shape.embedding_parameters if size < 4 else 0
        formula = (
            f"{extent.targets:,} tokens × {vocabulary:,} × 4 B" if logits > cast else f"{self.shape.embedding_parameters:,} × {size} B"
        )
        own = Line(name="gradient of logits, or the head's uncast", kind="transient", bytes=max(logits, cast), formula=formula)
        return (own, self._tables(1), workspace(self.setup, self.shape))

    def _casts(self, *, everything: bool) -> tuple[Line, ...]:
        """The copies in the compute type that autocast makes of float32 parameters; the fused layers make theirs for a moment."""
        if self.layer.size == 4 or self.setup.engine == "fused" or (self.setup.lora != "none" and self.setup.engine == "packed"):
            return ()
        numbers = trained_numbers(self.shape, self.setup, self.stage)
        if self.setup.lora == "none":
            numbers = products_numbers(self.shape, self.setup, self.stage, everything=everything)
        formula = f"{numbers:,} × {self.layer.size} B"
        return (Line(name="autocast's copies", kind="transient", bytes=numbers * self.layer.size, formula=formula),)

    def _head_gradient(self) -> tuple[Line, ...]:
        """Of a trained matrix that is also the embedding: it waits for the embedding's own."""
        return (self._tables(1),) if self.setup.lora == "none" and self.shape.tied and self.stage.last and self.stage.first else ()

    def _tables(self, number: int) -> Line:
        size = number * 4 * self.shape.embedding_parameters
        formula = f"{number} × {self.shape.vocabulary:,} × {self.shape.hidden:,} × 4 B"
        return Line(name="gradient of head and embedding", kind="transient", bytes=size, formula=formula)

    def _weight_gradient(self) -> tuple[Line, ...]:
        if self._sharded:  # a layer's are sent at once, from a copy
            layer = trained_numbers(self.shape, self.setup, self.stage) // self.stage.layers
            numbers = layer_numbers(self.shape, self.setup) if self.setup.lora == "none" else layer
            formula = f"2 × {numbers:,} × 4 B"
            return (Line(name="a layer's gradients, and as they are sent", kind="transient", bytes=8 * numbers, formula=formula),)
        if self.setup.lora != "none":
            return ()
        parts = [item.part(self.setup.layout.tensor) for item in self.shape.linears if item.role != "head"]
        numbers = max(item.d_in * item.d_out for item in parts)
        size = 4 + (self.layer.size if self.layer.size < 4 else 0)
        return (Line(name="a matrix's gradient", kind="transient", bytes=numbers * size, formula=f"{numbers:,} × {size} B"),)

    def _validation(self) -> Iterator[tuple[str, tuple[Line, ...]]]:
        """Its largest micro batches: nothing is kept but a layer's own."""
        layer, rows_of = self.layer, (*self.survey.validation, *self.survey.heaviest_validation)
        if not rows_of:
            return
        extent = max(rows_of, key=lambda extent: (extent.places, extent.targets))
        hidden = ("hidden states", 3 * layer.hidden, layer.stream)
        mlp = self._row("a layer", "transient", extent.places, (hidden, ("MLP", 3 * layer.gated, layer.size)))
        yield "validation", (*self._gathered(), mlp)
        if self.stage.last:
            most = max(rows_of, key=lambda extent: extent.targets)
            rows = most.needed if self.setup.engine == "fused" else most.places
            yield "validation's loss", (*self._gathered(), gathered_head(self.shape, self.setup), *self._loss(most, rows))

    def _answers(self) -> Iterator[tuple[str, tuple[Line, ...]]]:
        """Written when a step's gradients are gone."""
        for asked in self.asked:
            for lines in answering(self.shape, self.setup, self.stage, self.layer, asked):
                yield "answers", (*self._gathered(), gathered_head(self.shape, self.setup), *lines)

    def _gathered(self) -> tuple[Line, ...]:
        """What products want besides the weights as they lie."""
        return (*in_numbers(self.shape, self.setup), gathered(self.shape, self.setup, self.stage))

    @property
    def _sharded(self) -> bool:
        """Whether replicas divide what is trained."""
        return self.setup.layout.shard != "none" and self.setup.layout.data > 1

    def _trained(self, name: str, size: int) -> tuple[str, int, int]:
        return name, self.layer.hidden if self.setup.lora == "none" else 0, size

    def _row(self, name: str, kind: Kind, tokens: int, terms: tuple[tuple[str, int, int], ...]) -> Line:
        each = PerToken(terms=terms)
        return Line(name=name, kind=kind, bytes=tokens * each.bytes, formula=f"{tokens:,} tokens × {each}")


def _sum(lines: Iterable[Line]) -> int:
    return sum(line.bytes for line in lines)
