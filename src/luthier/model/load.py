"""The base model on its device, and what `auto` means for device, dtype and attention."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from luthier.core.errors import LuthierError, ModelError, PlanRefused
from luthier.data.repository import Repository, open_repository
from luthier.model.arrive import Bits
from luthier.model.mesh import UNDIVIDED, Axis
from luthier.model.patches import left_empty, weights_read_not_mapped
from luthier.model.peak import is_out_of_memory
from luthier.model.quantize import library
from luthier.plan.setup import SAID, Resolved
from luthier.recipe.schema import Model

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def resolve_device() -> torch.device:
    """The GPU of this process, where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def resolve_devices(number: int, place: int) -> tuple[torch.device, ...]:
    """The devices of the `place`-th process of those that have so many of this machine's GPUs each; without GPUs the CPU alone."""
    if number == 1 or not torch.cuda.is_available():
        return (resolve_device(),)
    own = tuple(torch.device("cuda", index) for index in range(place * number, (place + 1) * number))
    torch.cuda.set_device(own[0])
    return own


def free_bytes(devices: Sequence[torch.device]) -> dict[int | str, int]:
    """What is free on each of several GPUs, by its number."""
    return {device.index: torch.cuda.mem_get_info(device)[0] for device in devices}


def resolve_dtype(wanted: str, device: torch.device) -> tuple[torch.dtype, Resolved]:
    """The compute type for `model.dtype`; raises PlanRefused for float16 without a GPU."""
    if wanted == "float16" and device.type == "cpu":
        change = "set model.dtype: bfloat16 (or auto), which has float32's range and needs no loss scaler"
        raise PlanRefused("float16 is for GPUs: a CPU computes it slower than float32", where="model.dtype", change=change)
    if wanted != "auto":
        return DTYPES[wanted], Resolved(path="model.dtype", value=wanted, why=SAID)
    name = "bfloat16" if _has_bfloat16(device) else "float16" if device.type == "cuda" else "float32"
    # 2026-11-20, EPYC with AVX512-BF16, one thread, hidden 256 × 4 layers, LoRA r 16: 222 ms a step of 16 rows, float32 324 ms.
    why = f"the {device.type} {'computes' if name == 'bfloat16' else 'has no instructions for'} bfloat16"
    return DTYPES[name], Resolved(path="model.dtype", value=name, why=why)


def load_model(
    model: Model,
    dtype: torch.dtype,
    device: torch.device,
    axis: Axis = UNDIVIDED.tensor,
    elsewhere: Callable[[PreTrainedModel], Iterable[str]] = lambda empty: (),
    memory: Mapping[int | str, int] = MappingProxyType({}),
) -> PreTrainedModel:
    """The causal language model with weights in `dtype` on `device`, or in the few bits of `model.quantization`, from safetensors only.

    Each weight goes where it stays before the next is read: the host holds no more than the largest at once. Of ranks along `axis`, each
    keeps its part of the matrices (`luthier.model.tensor`). The modules that `elsewhere` names of the model while it is empty stay so, on
    the meta device, and are not read. Where `memory` names several devices with the bytes that are free on each, whole layers are divided
    among them, and hidden states go from one to the next: for inference.

    Raises ModelError, and PlanRefused where matrices cannot be divided.
    """
    repository = open_repository(model)
    options: dict[str, Any] = {} if model.attention == "auto" else {"attn_implementation": model.attention}
    if model.quantization in ("nf4", "fp4"):
        library()  # its absence is told before anything is read
    if model.quantization != "none" or axis.size > 1:
        options["quantization_config"] = Bits(kind=model.quantization, double_quant=model.double_quant, dtype=dtype, axis=axis)
    if memory:
        # accelerate's: as much on each, weights by the bytes they are stored in
        options |= {"device_map": "auto", "max_memory": dict(memory)}
    elif device.type != "cpu":
        options["device_map"] = {"": device}
    try:
        if not model.trust_remote_code:
            repository.refuse_own_code()
        repository.refuse_other_weights()
        with no_progress_bars(), weights_read_not_mapped(), left_empty(elsewhere):
            loaded, told = AutoModelForCausalLM.from_pretrained(
                repository.location,
                revision=repository.revision,
                dtype=dtype,
                trust_remote_code=model.trust_remote_code,
                local_files_only=repository.cached_only,
                adapter_kwargs={"local_files_only": repository.cached_only},  # its look for an adapter_config.json does not heed the above
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except LuthierError:
        raise
    except Exception as error:  # a stranger's config.json or weights make transformers and safetensors raise anything
        if is_out_of_memory(error):
            raise
        raise _not_loaded(repository, error) from error
    if lacking := sorted(told["missing_keys"]):  # transformers would go on with random ones
        what = f"{len(lacking)} of the weights that config.json wants are missing, first {lacking[0]}"
        raise ModelError(what, where=repository.location, change="fetch the model anew: config.json and weights do not belong together")
    return loaded if memory else to_device(loaded, device)


def to_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model with all of its weights that are here on this device."""
    moved: PreTrainedModel = model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))
    return moved


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keeps transformers' bars over weight files off the terminal, where Luthier's own stands."""
    were_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_on:
            logging.enable_progress_bar()


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))


def _not_loaded(repository: Repository, error: Exception) -> ModelError:
    if not repository.is_folder:
        return repository.not_loaded(error)
    folder = Path(repository.location)
    if not (folder / "config.json").exists():
        change = "name a folder with config.json, weights and tokenizer"
        return ModelError("the folder has no config.json", where=str(folder), change=change)
    if not list(folder.glob("*.safetensors")):
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt*"))
        what = "the folder has pickled weights only, which can run code when they are read" if pickled else "the folder has no weights"
        return ModelError(what, where=str(folder), change="convert the weights to model.safetensors, or take a base that has them")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ModelError(f"transformers cannot load the model: {reason}", where=str(folder))
