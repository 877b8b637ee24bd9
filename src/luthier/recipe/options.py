"""`launch.options` and `serving.options`: what each backend or engine reads besides the fields that all of them do."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator

from luthier.recipe.section import PositiveInt, Scalar, Section

MODAL_LONGEST_SECONDS = 24 * 3600
"""Modal ends a function after a day (modal.com/docs/guide/timeouts, 2026-11)."""
MODAL_RETRIES = 10
"""As many as Modal allows."""

Word = Annotated[str, Field(pattern=r"^\S*$")]
Line = Annotated[str, Field(pattern=r"^[^\n\r]+$")]


class LocalOptions(Section):
    """`on: local`: this machine, in the background. It has no options."""


class TorchrunOptions(Section):
    """`on: torchrun`: several machines on which you give the same command; they see one run folder."""

    endpoint: Word = ""
    """`HOST:PORT` of the first node, where all meet; the port is 29400 unless you say. Empty: `LUTHIER_ENDPOINT`, or `MASTER_ADDR`."""
    node: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """This machine's number, from 0. `auto`: `LUTHIER_NODE`, `NODE_RANK` or `SLURM_NODEID`; without one, the endpoint's machine is 0, and
    the other of two is 1."""


class SlurmOptions(Section):
    """`on: slurm`: a batch job. Nodes, GPUs and time limit follow from the recipe."""

    partition: Word = ""
    """`--partition`."""
    account: Word = ""
    """`--account`."""
    qos: Word = ""
    """`--qos`."""
    constraint: Word = ""
    """`--constraint`: how most clusters choose a kind of GPU."""
    cpus: PositiveInt | Literal["auto"] = "auto"
    """`--cpus-per-task`, of a node; `auto`: the cluster's."""
    memory: Word = ""
    """`--mem`, of a node: `200G`."""
    setup: tuple[Line, ...] = ()
    """Shell lines before the run: `[module load cuda, source .venv/bin/activate]`."""
    more: tuple[Word, ...] = ()
    """Further words for sbatch: `['--exclusive', '--mail-type=END']`."""
    warning_seconds: PositiveInt = 300
    """How long before the time limit the run saves, stops and is queued again."""


class RayOptions(Section):
    """`on: ray`: one worker of Ray Train for each rank."""

    address: Word = ""
    """Of a cluster: `auto`, `HOST:6379`. Empty: `RAY_ADDRESS`, or a Ray of its own on this machine."""
    cpus: PositiveInt = 1
    """Cores of each worker."""


class ModalOptions(Section):
    """`on: modal`: one container with the GPU; runs, prepared rows and downloaded models are on a volume."""

    volume: Word = "luthier"
    """The volume's name; it is made where there is none."""
    secrets: tuple[Word, ...] = ()
    """Names of Modal's own secrets, such as `[huggingface]`, besides `launch.env_file`."""
    packages: tuple[Line, ...] = ()
    """What pip installs besides Luthier and what it needs: for a scorer of your own, or `flash-attn`."""
    cpus: PositiveInt | Literal["auto"] = "auto"
    """Cores of the container; `auto`: Modal's."""
    memory_gb: PositiveInt | Literal["auto"] = "auto"
    """Of the host, 10⁹ bytes; `auto`: Modal's. Loading takes the whole model in its type."""
    region: Word = ""
    """Where it may run: `us-east`, `eu`. Empty: anywhere."""


OPTIONS: Mapping[str, type[Section]] = {
    "local": LocalOptions,
    "torchrun": TorchrunOptions,
    "slurm": SlurmOptions,
    "ray": RayOptions,
    "modal": ModalOptions,
}


class EmbeddedOptions(Section):
    """`engine: embedded`: Luthier's own."""

    adapters_from: str = ""
    """A folder below which adapters may be loaded while it answers, by vLLM's `/v1/load_lora_adapter`, from where the server is started on
    if it is relative. Empty: it stays as it was started."""


class VllmOptions(Section):
    """`engine: vllm`: a server of its own, in an environment of its own (docs/guide/vllm.md)."""

    python: Word = ""
    """The Python of the environment that has vLLM. Empty: `LUTHIER_VLLM` names it."""
    enforce_eager: bool = False
    """No CUDA graphs: starts sooner and takes less memory, and answers more slowly."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = "auto"
    """Of a device's memory, for weights and caches; `auto`: vLLM's 0.9."""
    tensor_parallel: PositiveInt = 1
    """Devices that divide the model."""
    max_num_seqs: PositiveInt | Literal["auto"] = "auto"
    """Answered at once, at most; `auto`: vLLM's."""
    quantization: Word = "auto"
    """How vLLM stores the base: one of its words. `auto`: as the checkpoint says; an adapter trained over nf4 gets `bitsandbytes`; `none`:
    the base's own weights, whatever the adapter was trained over."""
    more: tuple[Word, ...] = ()
    """Further words for vLLM: `['--max-num-batched-tokens', '4096']`; none that Luthier gives itself."""

    @field_validator("more")
    @classmethod
    def _given_once(cls, more: tuple[str, ...]) -> tuple[str, ...]:
        for word in more:
            spelled = word.partition("=")[0].replace("_", "-")  # vLLM takes either, and any beginning that is one word's alone
            if spelled.startswith("-") and (given := next((known for known in GIVEN if known.startswith(spelled)), "")):
                raise ValueError(f"{word} is not to be given here: {GIVEN[given]}")
        return more


GIVEN: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("--model", "--revision", "--served-model-name", "--chat-template", "--generation-config"),
            *("--enable-lora", "--lora-modules", "--max-lora-rank", "--dtype"),
        ),
        "it follows from the run",
    ),
    "--config": "a file of words could repeat those that Luthier gives",
    "--api-key": "everybody on the machine could read it; luthier serve draws a token, or reads --token-file",
    "--host": "it answers on 127.0.0.1; put a proxy before it that has a certificate",
    "--port": "set serving.port",
    "--max-model-len": "set serving.max_model_len",
    "--enforce-eager": "set serving.options.enforce_eager",
    "--gpu-memory-utilization": "set serving.options.gpu_memory_utilization",
    "--tensor-parallel-size": "set serving.options.tensor_parallel",
    "-tp": "set serving.options.tensor_parallel",
    "--max-num-seqs": "set serving.options.max_num_seqs",
    "--quantization": "set serving.options.quantization",
    "-q": "set serving.options.quantization",
    "--trust-remote-code": "set model.trust_remote_code",
}
"""Words of vLLM that `serving.options.more` may not repeat, and what to do instead."""

ENGINES: Mapping[str, type[Section]] = {"embedded": EmbeddedOptions, "vllm": VllmOptions}


def check_launch_options(on: str, options: Mapping[str, Scalar | tuple[Scalar, ...]]) -> None:
    """Raise ValueError for a key that this backend does not read, or a value that it cannot."""
    _check(on, OPTIONS[on], options)


def check_engine_options(engine: str, options: Mapping[str, Scalar | tuple[Scalar, ...]]) -> None:
    """Raise ValueError for a key that this engine does not read, or a value that it cannot."""
    _check(engine, ENGINES[engine], options)


def _check(name: str, kind: type[Section], options: Mapping[str, Scalar | tuple[Scalar, ...]]) -> None:
    for key in options:
        if key not in kind.model_fields:
            known = ", ".join(kind.model_fields) or "none"
            near = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.6)
            hint = f"did you mean `options.{near[0]}`?" if near else f"its options: {known}; options={{}} leaves out those of another"
            raise ValueError(f"{name} does not read `options.{key}`; {hint}")
    try:
        kind.model_validate(options, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"`options.{first['loc'][0]}` of {name}: {reason[:1].lower()}{reason[1:]}") from None
