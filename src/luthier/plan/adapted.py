"""Which of a model's matrices have an adapter, and how many numbers it has: what PEFT 0.21.2 makes of a recipe's `lora`."""

from luthier.core.errors import RecipeError
from luthier.plan.families import FAMILIES, HALVES, SECOND_HALVES
from luthier.plan.shape import Linear, ModelShape
from luthier.recipe.schema import Lora


def adapted(shape: ModelShape, lora: Lora) -> tuple[Linear, ...]:
    """The matrices that have an adapter, as PEFT 0.21.2 gives it: by `lora.target_modules`, or as parts of `lora.target_parameters`.

    `all-linear` is every nn.Linear but the head; of Mixtral, Qwen3-MoE and Qwen3-Next also routers and fused experts, but no shared expert
    (`Mixture.turned`). Raises RecipeError for a name that matches nothing, and for one of two fused halves.
    """
    named = _named(shape, lora)
    return (*named, *(linear for linear in _as_parameters(shape, lora) if linear not in named))


def adapter_parameters(shape: ModelShape, lora: Lora, tensor: int = 1) -> int:
    """Parameters of the adapter. r·(d_in + d_out) a matrix: r 8 on q, k, v, o of Qwen2.5-7B are 5.05 M; with DoRA d_out more.

    Of ranks that divide the matrices each has one half of an adapter whole, the other divided: by columns B, by rows A.
    """
    named = _named(shape, lora)
    return sum(item.count * _adapter_of(item.part(tensor), lora, named=item in named) for item in adapted(shape, lora))


def experts_adapters(shape: ModelShape, lora: Lora, tensor: int = 1) -> int:
    """Of them, those on fused experts: r 16 on Qwen3-30B-A3B 982 of 997 M."""
    named = _named(shape, lora)
    return sum(item.count * _adapter_of(item.part(tensor), lora, named=item in named) for item in adapted(shape, lora) if item.fused)


def _named(shape: ModelShape, lora: Lora) -> tuple[Linear, ...]:
    """What `lora.target_modules` reaches, by the last part of the name."""
    family = FAMILIES.get(shape.model_type, FAMILIES["llama"])
    turned = family.mixture.turned_names if family.mixture else frozenset()
    table = Linear(name="embed_tokens", role="embedding", d_in=shape.vocabulary, d_out=shape.hidden, count=1, active=0)
    reachable = [linear for linear in shape.linears if (linear.name in turned) != linear.is_module]
    if lora.target_modules == "all-linear":
        return tuple(linear for linear in reachable if linear.role != "head")
    names = {target.rpartition(".")[2] for target in lora.target_modules}
    found = tuple(linear for linear in (table, *reachable) if linear.name in names)
    _check_found(shape, names, found)
    return found


def _as_parameters(shape: ModelShape, lora: Lora) -> list[Linear]:
    """What `lora.target_parameters` reaches: fused experts and routers."""
    wanted = ("experts.gate_up_proj", "experts.down_proj") if lora.target_parameters == "experts" else lora.target_parameters
    found = {target: [linear for linear in shape.linears if _parameter_of(linear).endswith(f".{target}")] for target in wanted}
    if missed := [target for target, linears in found.items() if not linears]:
        known = sorted({_parameter_of(linear).removeprefix("mlp.") for linear in shape.linears} - {""})
        change = f"this model's: {', '.join(known)}" if known else "remove it: this model has no fused weights; target_modules takes layers"
        raise RecipeError(f"{missed[0]!r} matches no fused weight", where="lora.target_parameters", change=change)
    return [linear for linears in found.values() for linear in linears]


def _parameter_of(linear: Linear) -> str:
    """The end of its parameter's name in transformers; empty for an nn.Linear."""
    if linear.fused:
        return "mlp.experts.gate_up_proj" if linear.name in HALVES else "mlp.experts.down_proj"
    return f"mlp.{linear.name}.weight" if linear.role == "router" else ""


def _adapter_of(linear: Linear, lora: Lora, *, named: bool) -> int:
    """Of one matrix.

    Two fused halves have one adapter, A [r, d_in] and B [2·d_out, r]; of twice the rank where their own names asked for it.
    """
    if linear.fused and linear.name in HALVES:
        return 0 if linear.name in SECOND_HALVES else lora.r * (2 if named else 1) * (linear.d_in + 2 * linear.d_out)
    magnitudes = linear.d_out if lora.use_dora and (linear.is_module or linear.role == "embedding") else 0
    return lora.r * (linear.d_in + linear.d_out) + magnitudes


def _check_found(shape: ModelShape, names: set[str], found: tuple[Linear, ...]) -> None:
    missed = sorted(names - {linear.name for linear in found})
    if missed and shape.known:
        known = sorted({linear.name for linear in shape.linears})
        raise RecipeError(f"{missed[0]!r} matches no layer", where="lora.target_modules", change=f"this model's: {', '.join(known)}")
    for pair in ({"gate_proj", "up_proj"}, {"w1", "w3"}):
        halves = pair & {linear.name for linear in found if linear.fused}
        if len(halves) == 1:
            what = f"{min(halves)} and {min(pair - halves)} of the experts are one parameter, and PEFT adapts both or neither"
            raise RecipeError(what, where="lora.target_modules", change=f"add {min(pair - halves)}, or remove {min(halves)}")
