"""Findings about tensor parallelism: models and adapters that it cannot divide."""

from collections.abc import Iterator

from luthier.core.finding import Change, Finding
from luthier.plan.check.case import Case, Check
from luthier.plan.tensor import has_plan, indivisible, nearest


def tensor_indivisible(case: Case) -> Iterator[Finding]:
    """The model has heads, or a matrix has columns or rows, that `parallel.tensor` ranks cannot have equal parts of.

    Severity: refuse.

    Each rank computes some of the heads, with the keys and values that these look at, and some of the MLP's or of each expert's columns.
    A head is not cut, nor are keys and values computed twice, as some servers do: a trained matrix would then be two.

    Arithmetic: Qwen2.5-7B has 28 query heads and 4 of keys and values: 2 and 4 ranks can divide it, 3 and 8 cannot.

    What to do: the nearest number of ranks that divides all of them, and more replicas beside it.

    Source: Shoeybi et al. 2019 (arXiv:1909.08053), section 3; transformers' `base_model_tp_plan`.
    """
    tensor = case.setup.layout.tensor
    sizes = indivisible(case.shape, tensor)
    if not sizes or not has_plan(case.shape):
        return
    possible = nearest(case.shape, tensor)
    yield Finding(
        code="tensor-indivisible",
        severity="refuse",
        message=f"{tensor} ranks cannot have equal parts of this model: it has {' and '.join(sizes[:3])}",
        evidence={"tensor": tensor, "heads": case.shape.heads, "kv_heads": case.shape.kv_heads, "nearest": possible},
        changes=(Change(path="parallel.tensor", value=possible, why="the most, of not more, that divide all sizes"),),
    )


def tensor_unplanned(case: Case) -> Iterator[Finding]:
    """transformers does not say how this model's weights are divided among ranks of tensor parallelism.

    Severity: refuse.

    Which matrices are divided by columns, and which by rows, is a matter of the architecture, and transformers has a plan for it in the
    model's config class. For some there is none. Of a model type that Luthier does not know this shows only when the model is loaded.

    Arithmetic: none.

    What to do: replicas that divide the weights, for any model; or a pipeline.

    Source: transformers 5.23: `GptOssConfig.base_model_tp_plan` is None.
    """
    layout = case.setup.layout
    if layout.tensor == 1 or has_plan(case.shape):
        return
    changes = [
        Change(path="parallel.tensor", value=1, why="there is no plan for it"),
        Change(path="parallel.shard", value="zero3", why="each replica keeps its share of the weights"),
    ]
    if case.recipe.parallel.data != "auto":
        changes.append(Change(path="parallel.data", value=layout.data * layout.tensor, why="as many devices as before"))
    yield Finding(
        code="tensor-unplanned",
        severity="refuse",
        message=f"transformers has no plan for the tensor parallelism of {case.shape.model_type}",
        evidence={"tensor": layout.tensor},
        changes=tuple(changes),
    )


def tensor_with_dora(case: Case) -> Iterator[Finding]:
    """DoRA and tensor parallelism do not go together.

    Severity: refuse.

    DoRA divides by the norm of each row of W + B·A. Where a matrix is divided by its inputs, every rank has a part of each row, and PEFT
    computes the norm of that part.

    Arithmetic: of o and down, with two ranks, each norm would be about √½ of what it is.

    What to do: `use_dora: false`. Tuned, plain LoRA comes within 1 to 2 % of its variants.

    Source: PEFT 0.21.2, `DoraLinearLayer.get_weight_norm`; arXiv:2602.04998 on the variants.
    """
    lora = case.recipe.lora
    if case.setup.layout.tensor == 1 or lora == "none" or not lora.use_dora:
        return
    yield Finding(
        code="tensor-with-dora",
        severity="refuse",
        message="DoRA needs the norm of whole rows of each matrix, of which ranks of tensor parallelism have parts",
        evidence={"tensor": case.setup.layout.tensor},
        changes=(Change(path="lora.use_dora", value=False, why="plain LoRA, tuned, is within 1 to 2 % of it"),),
    )


CHECKS: tuple[Check, ...] = (tensor_indivisible, tensor_unplanned, tensor_with_dora)
