"""What serving the tuned model takes: memory for its weights and caches, and how fast the weights can be read for one more token."""

from dataclasses import dataclass

from luthier.plan.setup import DTYPE_BYTES, Dtype, Quantization
from luthier.plan.shape import Linear, ModelShape
from luthier.plan.weights import matrix_bytes
from luthier.recipe.schema import Recipe

USABLE = 0.9
"""Of a device's memory, for weights and caches: vLLM's own default (`gpu_memory_utilization`); the rest is context and activations."""
ENOUGH = 4096
"""Tokens of a prompt and its answer that a server takes at least, where the model does: a dialogue outgrows a row."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's `--max-lora-rank` may be (`config/lora.py`, 0.27 to 0.32)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Bytes on one device, and what each token that is written must read of them."""

    sequences: int
    """Answered at once, each as long as the server allows."""
    max_model_len: int
    weights_bytes: int
    cache_bytes: int
    """Of all sequences."""
    read_bytes: int
    """For one token of each sequence, at full length."""
    formula: str

    @property
    def total_bytes(self) -> int:
        """Of weights and caches."""
        return self.weights_bytes + self.cache_bytes

    def fits(self, device_bytes: int) -> bool:
        """Whether a device has it, with room for the server itself."""
        return self.total_bytes <= USABLE * device_bytes

    def devices(self, device_bytes: int, most: int) -> int:
        """The fewest of so many like devices that have it together, whole layers on each; all of them where that is not enough."""
        return next((number for number in range(1, most) if self.fits(number * device_bytes)), most)

    def tokens_per_second(self, bandwidth: float) -> float:
        """Of all sequences together, at most: decoding waits for memory. Llama-3.2-3B in 16 bits, one sequence of 1,024 tokens: 6.5 GB a
        token are 49 tokens a second at a T4's 320 GB/s. 0 where the bandwidth is not known."""
        return self.sequences * bandwidth / self.read_bytes


def serving_needs(shape: ModelShape, dtype: Dtype, quantization: Quantization, max_model_len: int, sequences: int) -> Serving:
    """Memory to serve the merged model, or the quantised one, to so many sequences at once.

    Caches hold keys and values of every key head and layer: Llama-3.2-3B 2 · 8 · 128 · 28 layers · 2 B = 115 kB a token. A sliding layer
    keeps its window, linear attention one state whatever the length. An adapter that is not merged adds less than 1 %. 4 bits are taken
    with double quantisation.
    """
    weights = sum(_bytes_of(linear, linear.count, dtype, quantization) for linear in _own(shape))
    weights += (shape.embedding_parameters + shape.other_parameters) * DTYPE_BYTES[dtype]
    each = shape.cache_numbers(max_model_len) * DTYPE_BYTES[dtype]
    # of a mixture, every sequence's token goes to other experts, until all have been read
    read = sum(_bytes_of(linear, min(linear.count, linear.active * sequences), dtype, quantization) for linear in shape.linears)
    stored = dtype if quantization == "none" else quantization
    return Serving(
        sequences=sequences,
        max_model_len=max_model_len,
        weights_bytes=weights,
        cache_bytes=sequences * each,
        read_bytes=read + sequences * each,
        formula=f"{shape.parameters / 1e9:.3g} G parameters in {stored}: {weights / 1e9:.3g} GB; {sequences} × {max_model_len} tokens · "
        f"{each / max_model_len / 1e3:.3g} kB: {sequences * each / 1e9:.3g} GB",
    )


def longest_served(recipe: Recipe, longest_row: int) -> int:
    """Tokens of prompt and answer that a server must take: what the recipe says, or as long as its longest row and answer."""
    if recipe.serving.max_model_len != "auto":
        return recipe.serving.max_model_len
    rows = longest_row if recipe.data.max_length == "fit" else recipe.data.max_length
    return rows + max((task.max_new_tokens for task in recipe.evaluation.tasks), default=0)


def answerable(recipe: Recipe, longest_row: int) -> int:
    """Tokens of prompt and answer that a server takes, where the model does: what `serving.max_model_len: auto` becomes."""
    longest = longest_served(recipe, longest_row)
    return longest if recipe.serving.max_model_len != "auto" else max(longest, ENOUGH)


def _own(shape: ModelShape) -> tuple[Linear, ...]:
    """The matrices that are stored: a tied head is the embedding."""
    return tuple(linear for linear in shape.linears if linear.role != "head" or not shape.tied)


def _bytes_of(linear: Linear, count: int, dtype: Dtype, quantization: Quantization) -> int:
    """Of so many of these matrices: the head is not quantised."""
    return count * matrix_bytes(linear, quantization, True, DTYPE_BYTES[dtype])
