"""The rate that a plan counts on: what earlier runs or a probe reached on this machine, else a share of the device's peak."""

import statistics

from luthier.plan.hardware import Device
from luthier.plan.setup import Setup
from luthier.plan.shape import ModelShape
from luthier.plan.speed import Range, Rate
from luthier.runs import rates
from luthier.runs.rates import Circumstances
from luthier.runs.workload import Survey

NEWEST = 3
"""Measurements that are taken; older ones may be of an older version."""
DRIFT = 0.25
"""By which a machine's rate differs from one hour to the next, either way: on shared ones more."""

DENSE: tuple[tuple[float, Range], ...] = (
    (3.5e9, Range(low=0.29, mid=0.40, high=0.55)),
    (1.5e9, Range(low=0.20, mid=0.31, high=0.45)),
    (0.0, Range(low=0.10, mid=0.20, high=0.35)),
)
"""From so many parameters that a token is multiplied with, the share of a GPU's dense peak that LoRA in 16 bits reaches. From 3.5 G on:
Qwen-7B on an A100, 8 × 1,024 tokens in 2.8 s (the Qwen README: 4 · 6.5 G · 8,192 / 2.8 s = 76 TFLOP/s, with recompute 114: 24–36 %), and
NeMo AutoModel's 42.8 % of an H100 for Qwen2.5-7B, the best that was published. Smaller models wait for launches and memory: guesses."""
MIXTURE = Range(low=0.04, mid=0.09, high=0.20)
"""Of models with experts: NeMo AutoModel reaches 328 of 989 TFLOP/s with kernels of its own and calls that 3.4–3.7 × transformers' (June
2026), whose experts Luthier uses: 9 %."""
QUANTIZED = {
    "int8": Range(low=0.45, mid=0.65, high=0.90),
    "nf4": Range(low=0.60, mid=0.75, high=0.87),
    "fp4": Range(low=0.60, mid=0.75, high=0.87),
}
"""Of the above. 4 bits: LoRA is 66 % faster than QLoRA (Google's Vertex AI tuning guide); 2.8 s against 3.5 and 10.1 against 11.6 (Qwen-7B,
1,024 and 4,096 tokens). 8 bits: seed 000's 21 s for 80 rows of 1,730 tokens on two RTX 5090 are 24 % of their peak, 35 % with recompute."""
CORE_FLOPS = {"bfloat16": Range(low=30e9, mid=150e9, high=400e9), "float32": Range(low=10e9, mid=50e9, high=200e9)}
"""Of one core of a processor, for whole steps: 435 and 235 GFLOP/s are a Zen 5 core's products alone, an older one has an eighth."""


def circumstances(device: Device, threads: int, shape: ModelShape, setup: Setup, survey: Survey) -> Circumstances:
    """What this run's rate depends on. `threads` are all of the processor's, which its ranks divide."""
    return Circumstances(
        processor=device.name,
        threads=max(1, threads // setup.layout.devices) if device.kind == "cpu" else 0,
        dtype=setup.dtype,
        quantization=setup.quantization,
        engine=setup.engine,
        trained="all" if setup.lora == "none" else "adapter",
        hidden=shape.hidden,
        places=survey.mean("places") / survey.micro_batches,
    )


def measured_rate(here: Circumstances) -> Rate | None:
    """The median of the newest measurements that hold here; None where there are none."""
    found = rates.known(here)[:NEWEST]
    if not found:
        return None
    flops = sorted(measured.flops for measured in found)
    source = f"earlier runs ({len(found)})" if found[0].source == "run" else "probe"
    spread = Range(low=flops[0] / (1 + DRIFT), mid=statistics.median(flops), high=flops[-1] * (1 + DRIFT))
    return Rate(flops=spread, source=source)


def assumed_rate(device: Device, cores: int, shape: ModelShape, setup: Setup) -> Rate:
    """Operations a second of one rank's device: a share of its peak, or a guess for its part of a processor's cores. A dtype that it has
    no units for is computed in float32: bfloat16 on a T4."""
    if not device.rates:
        cores = max(1, cores // setup.layout.devices)
        flops = CORE_FLOPS["bfloat16" if setup.dtype == "bfloat16" and device.bfloat16 else "float32"].times(cores)
        return Rate(flops=flops, source=f"a guess for {cores} cores of {device.name}: nothing was measured here yet", measured=False)
    dtype = setup.dtype if setup.dtype in device.rates else "float32"
    told = "" if dtype == setup.dtype else f"; it has no {setup.dtype}"
    share, peak = _share(shape, setup), device.rates[dtype]
    source = f"an estimate: {share.low:.0%}–{share.high:.0%} of the {device.id}'s {peak / 1e12:,.0f} TFLOP/s in {dtype}{told}"
    return Rate(flops=share.times(peak), source=source, measured=False)


def _share(shape: ModelShape, setup: Setup) -> Range:
    base = MIXTURE if shape.experts else next(share for least, share in DENSE if shape.multiplied_parameters >= least)
    if setup.quantization == "none":
        return base
    factor = QUANTIZED[setup.quantization]
    return Range(low=base.low * factor.low, mid=base.mid * factor.mid, high=base.high * factor.high)
