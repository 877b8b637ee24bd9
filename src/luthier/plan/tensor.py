"""Whether tensor parallelism can divide a model, by what is known of its family (`luthier.model.division` does it)."""

from luthier.plan.families import FAMILIES
from luthier.plan.shape import Linear, ModelShape


def has_plan(shape: ModelShape) -> bool:
    """Whether transformers says how; of an unknown model type it shows when the model is loaded."""
    return shape.model_type not in FAMILIES or bool(FAMILIES[shape.model_type].tensor)


def divides_heads(shape: ModelShape) -> bool:
    """Whether a rank computes some of the heads, and not all of them with a part of each matrix."""
    return shape.model_type not in FAMILIES or FAMILIES[shape.model_type].tensor == "heads"


def indivisible(shape: ModelShape, tensor: int) -> tuple[str, ...]:
    """The sizes that so many ranks cannot have equal parts of, the heads first: `4 key and value heads`."""
    heads = [(shape.heads, "query heads"), (shape.kv_heads, "key and value heads")] if divides_heads(shape) else []
    widths = [(width, f"{side} of {linear.name}") for linear in shape.linears if linear.divided for width, side in [_side(linear)]]
    return tuple(dict.fromkeys(f"{number:,} {what}" for number, what in (*heads, *widths) if number % tensor))


def nearest(shape: ModelShape, tensor: int) -> int:
    """The largest number of ranks, at most `tensor`, that can."""
    return next(number for number in range(tensor, 0, -1) if not indivisible(shape, number))


def _side(linear: Linear) -> tuple[int, str]:
    return (linear.d_in, "inputs") if linear.divided == "rows" else (linear.d_out, "outputs")
