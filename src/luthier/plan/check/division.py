"""Findings about what replicas divide among them."""

from collections.abc import Iterator

from luthier.core.finding import Change, Finding
from luthier.plan.check.case import Case, Check


def shard_impossible(case: Case) -> Iterator[Finding]:
    """The replicas cannot divide this model so.

    Severity: refuse.

    A pipeline's stages have several micro batches in flight, each of which would put every layer of its stage together twice; Luthier does
    not do both. bitsandbytes keeps int8 weights in a type of its own, with fields that FSDP2 does not cut and that are gone once it has
    cut the rest (`'Parameter' object has no attribute 'CB'`). Its 4-bit weights are cut and put together exactly.

    Arithmetic: a stage of 18 layers with 16 micro batches a step would gather 18 × 16 × 2 = 576 layers where zero3 over all 36 layers
    in 2 packs gathers 36 × 2 × 2 = 144.

    What to do: zero2 with int8, which leaves frozen weights whole; nf4 with zero3; zero3 or tensor parallelism instead of the pipeline.

    Source: torch 2.13 `torch.distributed.fsdp.fully_shard`; bitsandbytes 0.50 `Int8Params`, tried 2026-11-29; docs/notes/shards.md.
    """
    layout, quantization = case.setup.layout, case.setup.quantization
    if layout.shard == "none" or layout.data == 1:
        return
    if layout.pipeline > 1:
        yield Finding(
            code="shard-impossible",
            severity="refuse",
            message=f"Replicas of {layout.pipeline} pipeline stages cannot divide weights or gradients ({layout.shard}) as well",
            evidence={"pipeline": layout.pipeline, "shard": layout.shard},
            changes=(Change(path="parallel.pipeline", value=1, why=f"{layout.shard} divides what the stages would"),),
        )
    if layout.shard == "zero3" and quantization == "int8":
        yield Finding(
            code="shard-impossible",
            severity="refuse",
            message="zero3 cannot divide int8 weights: bitsandbytes' type for them is not one that can be cut",
            evidence={"quantization": quantization, "shard": layout.shard},
            changes=(Change(path="parallel.shard", value="zero2", why="frozen weights stay whole; or model.quantization=nf4 with zero3"),),
        )


def nothing_to_shard(case: Case) -> Iterator[Finding]:
    """`parallel.shard` divides something among replicas, and there is one.

    Severity: warn.

    zero2 and zero3 divide gradients, optimizer state and weights among the replicas of `parallel.data`. One replica keeps everything.

    Arithmetic: 1 / 1 of 8 B a trained number is all of them.

    What to do: more replicas; or `parallel.shard: none`, which says what happens.

    Source: ZeRO (arXiv:1910.02054), section 5.
    """
    layout = case.setup.layout
    if layout.shard != "none" and layout.data == 1:
        yield Finding(
            code="nothing-to-shard",
            severity="warn",
            message=f"parallel.shard is {layout.shard}, and one replica has nothing to divide",
            evidence={"shard": layout.shard, "data": layout.data},
            changes=(Change(path="parallel.shard", value="none", why="the same run"),),
        )


CHECKS: tuple[Check, ...] = (shard_impossible, nothing_to_shard)
