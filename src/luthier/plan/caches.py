"""What answers take of a device's memory while they are written in the middle of a run: caches, and the largest of their passes.

Counted from the engine: `luthier.model.slots` (where rows are written), `prefix` (what is kept for others), `abreast` (a pass), `sample`
(the choice of tokens). Nothing is cast there: what is trained in float32 writes in float32. Qwen3-0.6B in bfloat16, 28 layers of 8 key
heads of 128: 114,688 bytes a token, 1.9 GB for 16,384 tokens in slots, and as much for those that are kept, where so many are asked for.

Rows of 257 tokens take most: 63 fit into 16,384 tokens, and each has a slot of 320. Slots are made anew where more or longer ones are
wanted, one layer after the other, so that one of them is there twice.
"""

from collections.abc import Iterator

from luthier.plan.activations import Layer, PerToken
from luthier.plan.asked import BATCH_TOKENS, CHUNK, SLOT_ROUND, Asked, rows_at_once
from luthier.plan.lines import Line
from luthier.plan.setup import Setup
from luthier.plan.shape import ModelShape
from luthier.plan.weights import Stage, trained_numbers

KEPT_TOGETHER = 16
"""Tokens of a block that is kept: of a prompt that is known, so many are read again at most."""
CHOOSING, DRAWING = 4, 32
"""Bytes for each logit beside those in float32: what the sum of all takes; for a draw probabilities, their sums, and counts of those there
are."""


def answering(shape: ModelShape, setup: Setup, stage: Stage, layer: Layer, asked: Asked) -> Iterator[tuple[Line, ...]]:
    """The moments that can be its peak: a pass through a layer, the choice of the rows' next tokens, slots that grow."""
    share = stage.layers / stage.num_layers
    num_layers = round(share * (shape.full_attention_layers + shape.sliding_layers))  # a window is the mask's: all of a row is there
    in_layer, for_each = (PerToken(terms=(("keys, values", 2 * columns, layer.stream),)) for columns in (layer.keys, layer.queries))
    rows, places = asked.rows_of(setup.layout), _places(asked, asked.rows_of(setup.layout))
    caches = (
        _cache("slots of answers", num_layers, places, in_layer),
        _cache("prompts and answers kept for others", num_layers, _kept(shape, asked, rows), in_layer),
        _states(shape, round(share * shape.linear_attention_layers), asked),
        *_adapters(shape, setup, stage),
    )
    tokens = min(CHUNK, rows * asked.longest)
    repeated = min(places, _read_at_once(asked, rows) * asked.longest) if _by_functions(shape, setup) else places
    yield (
        *caches,
        _passing("a layer of answers", tokens, _pass(layer)),
        _passing("mask", tokens, PerToken(terms=(("mask, distances", asked.longest, layer.stream + 9),))),
        _passing("keys, values for each query head", 0 if layer.queries == layer.keys else repeated, for_each),
    )
    yield (*caches, _choice(shape, layer, asked, rows))
    yield (*caches, _passing("a layer's slots, before they grew", places, in_layer))


def _places(asked: Asked, rows: int) -> int:
    """Of all slots, for rows of the length that takes most."""
    least, most = (-(-length // SLOT_ROUND) for length in (_least(asked), asked.longest))
    sizes = range(SLOT_ROUND * least, SLOT_ROUND * most + 1, SLOT_ROUND)
    return max(size * max(rows_at_once(size), min(rows, rows_at_once(size - SLOT_ROUND + 1))) for size in sizes)


def _least(asked: Asked) -> int:
    """Tokens of a row that is as short as is known."""
    return round(asked.shared_tokens) + asked.most_tokens


def _kept(shape: ModelShape, asked: Asked, rows: int) -> int:
    """Tokens, what rows share once; what a state stands for cannot be begun with."""
    if shape.linear_attention_layers:
        return 0
    own = asked.prompt_tokens - asked.shared_tokens + asked.most_tokens
    return min(BATCH_TOKENS + asked.longest, round(rows * own + asked.shared_tokens))  # a row is kept before others are dropped


def _states(shape: ModelShape, num_layers: int, asked: Asked) -> Line:
    """Of layers without a cache, in float32."""
    slots, numbers = rows_at_once(_least(asked)), shape.linear_attention.state_numbers if shape.linear_attention else 0
    formula = f"{num_layers} layers × {slots} rows × {numbers:,} × 4 B"
    return Line(name="states of answers", kind="activations", bytes=4 * num_layers * slots * numbers, formula=formula)


def _adapters(shape: ModelShape, setup: Setup, stage: Stage) -> tuple[Line, ...]:
    """The functions have them in the compute type, side by side."""
    if setup.lora == "none" or not _by_functions(shape, setup):
        return ()
    size, numbers = 4 if setup.dtype == "float32" else 2, trained_numbers(shape, setup, stage)
    return (Line(name="adapter as it answers", kind="transient", bytes=size * numbers, formula=f"{numbers:,} × {size} B"),)


def _by_functions(shape: ModelShape, setup: Setup) -> bool:
    """Whether attention reads keys and values where they lie when it writes; transformers' copies them for each query head."""
    plain = setup.quantization == "none" and (setup.lora == "none" or not setup.lora.use_dora)
    return setup.device == "cpu" and shape.layers_like_llama and plain and setup.layout.each_whole


def _read_at_once(asked: Asked, rows: int) -> int:
    """Rows of which a pass reads."""
    unread = KEPT_TOGETHER if asked.shared_tokens else max(1, round(asked.prompt_tokens))
    return max(1, min(rows, CHUNK // unread))


def _pass(layer: Layer) -> PerToken:
    return PerToken(
        terms=(
            ("hidden states", 3 * layer.hidden, layer.stream),
            ("q, k, v, attention", layer.qkv + layer.queries, layer.stream),
            ("MLP", 3 * layer.gated, layer.stream),
        )
    )


def _choice(shape: ModelShape, layer: Layer, asked: Asked, rows: int) -> Line:
    written = min(rows, rows_at_once(_least(asked)))
    logits, copied, chosen = shape.vocabulary, 4 if layer.stream < 4 else 0, DRAWING if asked.drawn else CHOOSING
    return _passing("choice of tokens", written, PerToken(terms=(("logits", logits, layer.stream), ("of them", logits, copied + chosen))))


def _cache(name: str, num_layers: int, tokens: int, in_layer: PerToken) -> Line:
    size, formula = num_layers * tokens * in_layer.bytes, f"{num_layers} layers × {tokens:,} tokens × {in_layer}"
    return Line(name=name, kind="activations", bytes=size, formula=formula)


def _passing(name: str, tokens: int, each: PerToken) -> Line:
    return Line(name=name, kind="transient", bytes=tokens * each.bytes, formula=f"{tokens:,} tokens × {each}")
