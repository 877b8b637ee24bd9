"""How a run is computed: every decision that its memory and time depend on."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

from luthier.core import jsonl
from luthier.core.environment import Allocator
from luthier.core.hardware import Float32Products
from luthier.recipe.schema import Lora
from luthier.recipe.section import Scalar
from luthier.runs.workload import MicroBatchSize

Dtype = Literal["bfloat16", "float16", "float32"]
Quantization = Literal["none", "int8", "nf4", "fp4"]
Engine = Literal["fused", "packed", "plain"]
"""`fused`: packs through Luthier's layers; `packed`: packs through transformers' layers; `plain`: padded rows through transformers'."""

DTYPE_BYTES: dict[Dtype, int] = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How many devices, and what each of them holds."""

    data: int = 1
    shard: Literal["none", "zero2", "zero3"] = "none"
    tensor: int = 1
    pipeline: int = 1

    @property
    def devices(self) -> int:
        """In all."""
        return self.data * self.tensor * self.pipeline

    @property
    def divided(self) -> bool:
        """Whether devices compute each layer together; the stages of a pipeline compute theirs by themselves."""
        return self.tensor > 1 or (self.shard != "none" and self.data > 1)

    @property
    def each_whole(self) -> bool:
        """Whether every device has the whole model."""
        return not self.divided and self.pipeline == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How a step is divided. A run keeps them: the order of its sums, and so its last bits, follow from them."""

    micro_batch: MicroBatchSize
    checkpoint_activations: bool

    def __str__(self) -> str:
        return f"{self.micro_batch.tokens} tokens at once" + (" and gradient checkpointing" if self.checkpoint_activations else "")

    def to_json(self) -> dict[str, Any]:
        """As they stand in plan.json."""
        return {**asdict(self.micro_batch), "checkpoint_activations": self.checkpoint_activations}

    def sealed(self) -> dict[str, Any]:
        """As they stand in events.jsonl: with a digest, so that damaged ones are known to be."""
        return {**self.to_json(), "digest": _digest(self.to_json())}

    @classmethod
    def of_json(cls, sizes: Mapping[str, Any]) -> Self:
        """Those of a plan.json."""
        micro_batch = MicroBatchSize(rows=sizes["rows"], tokens=sizes["tokens"], packing=sizes["packing"])
        return cls(micro_batch=micro_batch, checkpoint_activations=sizes["checkpoint_activations"])

    @classmethod
    def of_sealed(cls, sizes: object) -> Self | Literal["damaged"]:
        """Those of a line of events.jsonl, whatever stands there."""
        if not isinstance(sizes, Mapping):
            return "damaged"
        values = {name: value for name, value in sizes.items() if name != "digest"}
        return cls.of_json(values) if sizes.get("digest") == _digest(values) else "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The decisions, `auto` no more."""

    device: Literal["cpu", "cuda"]
    dtype: Dtype
    """Of computation, and of frozen weights that are not quantised."""
    quantization: Quantization
    double_quant: bool
    lora: Lora | Literal["none"]
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
    engine: Engine
    chunked_head: bool
    """Logits are made in chunks and never all at once (`luthier.model.head`)."""
    micro_batch: MicroBatchSize
    checkpoint_activations: bool
    layout: Layout = Layout()
    allocator: Allocator = "glibc"
    """Of memory on the CPU."""
    float32_by: Float32Products = "oneDNN"
    """On the CPU."""

    @property
    def sizes(self) -> Sizes:
        """Those that a run keeps."""
        return Sizes(micro_batch=self.micro_batch, checkpoint_activations=self.checkpoint_activations)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What an `auto` of the recipe became on this machine, and why."""

    path: str
    value: Scalar
    why: str


SAID = "the recipe says so"


def _digest(sizes: Mapping[str, Any]) -> str:
    return hashlib.sha256(jsonl.dumps(sizes).encode()).hexdigest()[:16]
