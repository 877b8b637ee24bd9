"""Who takes part, and with which settings: Luthier's own variants, each peer's default, its best, and what was searched to find that."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from luthier.core.environment import AT_START, KEEPING, SETTINGS, installed

Allocator = Literal["jemalloc", "glibc"]

KEPT = {"MALLOC_MMAP_THRESHOLD_": "34359738368", "MALLOC_TRIM_THRESHOLD_": "34359738368", "MALLOC_TOP_PAD_": "67108864"}
"""glibc keeps freed memory instead of giving it back and faulting it in again: worth up to 2 × to trainers that allocate in every step."""

NO_CHECKPOINTING = {"gradient_checkpointing": False}
BF16 = {"dtype": "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A contestant: the module that runs it, the environment it runs in, its environment variables and the worker's options."""

    name: str
    worker: str
    environment: str
    variables: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    kept: bool = True
    """Its allocator is told to keep freed memory."""
    whole: bool = False
    """Trains whole dialogues once instead of a row for each answer: same text, other tokens."""


def _trl(name: str, *, kept: bool = True, whole: bool = False, environment: str = "trl", **options: Any) -> Setting:
    return Setting(
        name=name, worker="bench.peers.trl", environment=environment, kept=kept, whole=whole, options={**options, "whole": whole}
    )


def _trainer(name: str, *, kept: bool = True, **options: Any) -> Setting:
    return Setting(name=name, worker="bench.peers.trainer", environment="trl", kept=kept, options=options)


def _litgpt(name: str, *, kept: bool = True, **options: Any) -> Setting:
    return Setting(name=name, worker="bench.peers.litgpt", environment="litgpt", kept=kept, options=options)


def _llama_factory(name: str, *, kept: bool = True, **options: Any) -> Setting:
    return Setting(name=name, worker="bench.peers.llama_factory", environment="llama-factory", kept=kept, options=options)


_GROUPED = {"train_sampling_strategy": "group_by_length"}
_LIGER = {**NO_CHECKPOINTING, "use_liger_kernel": True}
_ALL = (
    _trl("trl-default", kept=False, micro=8),
    _trl("trl-kept", micro=8),
    _trl("trl-bf16", kept=False, micro=8, model=BF16),
    _trl("trl-no-checkpointing", kept=False, micro=8, model=BF16, args=NO_CHECKPOINTING),
    _trl("trl-grouped", micro=8, model=BF16, args={**NO_CHECKPOINTING, **_GROUPED}),
    _trl("trl-best", micro=1, model=BF16, args=NO_CHECKPOINTING),
    _trl("trl-one-not-kept", kept=False, micro=1, model=BF16, args=NO_CHECKPOINTING),
    _trl("trl-float32", micro=1, args={**NO_CHECKPOINTING, "bf16": False}),
    _trl("trl-packing", micro=1, model=BF16, args={**NO_CHECKPOINTING, "packing": True}),
    _trl("trl-padding-free", micro=8, model=BF16, args={**NO_CHECKPOINTING, "padding_free": True, "max_length": None}),
    _trl("trl-compile", micro=1, model=BF16, args={**NO_CHECKPOINTING, "torch_compile": True}),
    _trl("trl-whole", kept=False, whole=True, micro=8),
    _trl("trl-whole-best", whole=True, micro=1, model=BF16, args=NO_CHECKPOINTING),
    _trl("trl-liger", environment="trl-liger", kept=False, micro=8, model=BF16, args={**_LIGER, **_GROUPED}),
    _trl(
        "trl-liger-packed",
        environment="trl-liger",
        kept=False,
        micro=1,
        model={**BF16, "attn_implementation": "flash_attention_2"},
        args={**_LIGER, "packing": True, "max_length": 8192},
    ),
    _trainer("trainer", micro=1),
    _trainer("trainer-not-kept", kept=False, micro=1),
    _trainer("trainer-grouped", micro=8, args=_GROUPED),
    _trainer("trainer-eight", micro=8),
    _trainer("trainer-two-grouped", micro=2, args=_GROUPED),
    _trainer("trainer-float32", micro=1, dtype="float32"),
    _trainer("trainer-bf16-adapters", micro=1, autocast_adapter_dtype=False),
    _trainer("trainer-compile", micro=1, args={"torch_compile": True}),
    _litgpt("litgpt", micro=1, precision="bf16-true"),
    _litgpt("litgpt-four", micro=4, precision="bf16-true"),
    _litgpt("litgpt-mixed", micro=1, precision="bf16-mixed"),
    _litgpt("litgpt-not-kept", kept=False, micro=1, precision="bf16-true"),
    _llama_factory("llama-factory", micro=1, args={"bf16": True, "disable_gradient_checkpointing": True}),
    _llama_factory("llama-factory-default", kept=False, micro=8, args={"bf16": True}),
    _llama_factory("llama-factory-not-kept", kept=False, micro=1, args={"bf16": True, "disable_gradient_checkpointing": True}),
    _llama_factory("llama-factory-eight", micro=8, args={"bf16": True, "disable_gradient_checkpointing": True}),
    _llama_factory("llama-factory-float32", micro=1, args={"disable_gradient_checkpointing": True}),
)
PEERS = {setting.name: setting for setting in _ALL}
"""`X` or `X-best` is what won the search on CPU (trainer-compile beside trainer: faster, after a minute of compiling); the search's figures
stand in docs/performance.md."""

CPU_PEERS = ("trainer", "trainer-compile", "litgpt", "llama-factory", "trl-best", "trl-default")
GPU_PEERS = ("trl-liger",)


def luthier(overrides: str) -> Setting:
    """Luthier with some recipe keys set, as on its command line: `data.packing=bins lora.r=8`."""
    return Setting(
        name=f"luthier {overrides}".strip(),
        worker="bench.peers.luthier",
        environment="",
        variables=SETTINGS,  # as the command line sets them
        options={"overrides": overrides.split()},
    )


def allocators() -> tuple[Allocator, ...]:
    """Those that can be had here, the first choice first; Luthier's own is not among them, so that engines are compared."""
    return ("jemalloc", "glibc") if any(installed()) else ("glibc",)


def allocating(setting: Setting, allocator: Allocator) -> dict[str, str]:
    """What gives a contestant the allocator that all have, with the settings that keep freed memory where its own say so."""
    if allocator == "jemalloc":
        return {"LD_PRELOAD": next(installed()), **({"MALLOC_CONF": KEEPING} if setting.kept else {})}
    luthier = not setting.environment  # which keeps it from within (`luthier.train.host`)
    return {"LD_PRELOAD": "", **(AT_START if luthier else KEPT if setting.kept else {})}
