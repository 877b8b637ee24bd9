"""A merged model as one GGUF file for llama.cpp and Ollama: made by llama.cpp's own converter, read back, and compared number by number.

The converter is a program of its own, with a Python of its own where its folder has one: `LUTHIER_LLAMA_CPP` names a checkout of llama.cpp.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

from luthier.core.errors import ModelError, RunError, UsageError
from luthier.core.redact import redact
from luthier.data.store import TokenRow
from luthier.data.tokenizer import ChatTokenizer
from luthier.export import gguf_convert, gguf_tell

CHECKOUT = "LUTHIER_LLAMA_CPP"
CONVERTER = "convert_hf_to_gguf.py"
TYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
SECONDS = 7200
LINES = 6
HOW = f"""\
fetch llama.cpp, and name its folder in {CHECKOUT}:
  git clone --depth 1 https://github.com/ggml-org/llama.cpp
  python3 -m venv llama.cpp/.venv && llama.cpp/.venv/bin/pip install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt
  export {CHECKOUT}=$PWD/llama.cpp"""
CHANGED = "the converter changes this architecture's weights in a way that cannot be compared (docs/guide/export.md); export --to merged"
SPLITS: dict[str, str] = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
}
"""How a tokenizer cuts text before it merges: its pattern → llama.cpp's name for it (`llama-vocab.cpp`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Tensors of the file, by what they were found to be."""

    equal: int
    reordered: int
    """The same numbers in another order: llama.cpp turns the rows of q and k for its rotary embedding."""
    shifted: int
    """Norms that it stores with one added."""
    added: tuple[str, ...]
    """That no weight of the model became: rotary factors."""

    def to_json(self) -> dict[str, Any]:
        """As provenance.json keeps it."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufSpeaker:
    """The file in llama.cpp itself, by the checkout's own Python."""

    file: Path
    python: Path

    def log_probabilities(self, rows: Sequence[TokenRow]) -> list[npt.NDArray[np.float64]]:
        """Of each row's supervised tokens, each after all that stand before it in its row; raises ModelError with llama.cpp's words."""
        asked = [{"ids": row.ids.tolist(), "places": (np.flatnonzero(row.supervised[1:]) + 1).tolist()} for row in rows]
        told = _run([str(self.python), gguf_tell.__file__, str(self.file)], "llama.cpp cannot run the file", json.dumps(asked))
        return [np.array(each, np.float64) for each in json.loads(told)]


def runtimes(file: Path) -> dict[str, GgufSpeaker]:
    """llama.cpp to ask the file with, where the checkout's own Python has llama-cpp-python; else nothing."""
    python = _python(checkout_of())
    found = subprocess.run([str(python), "-c", "import llama_cpp"], capture_output=True, check=False, stdin=subprocess.DEVNULL)
    return {} if found.returncode else {"gguf": GgufSpeaker(file=file, python=python)}


def convert(model: Path, file: Path, dtype: torch.dtype, tokenizer: ChatTokenizer) -> None:
    """The merged model in a folder as a GGUF file of its own type; raises UsageError without the converter, ModelError with its words."""
    checkout = checkout_of()
    words = [str(_python(checkout)), gguf_convert.__file__, str(checkout), pre_tokenizer(tokenizer)]
    _run([*words, str(model), "--outfile", str(file), "--outtype", TYPES[dtype]], "llama.cpp's converter failed")


def checkout_of() -> Path:
    """The folder with llama.cpp's converter; raises UsageError where none is named."""
    named = os.environ.get(CHECKOUT, "")
    if not named or not (Path(named) / CONVERTER).exists():
        raise UsageError(f"llama.cpp's converter ({CONVERTER}) is not here", where=named, change=HOW)
    return Path(named)


def pre_tokenizer(tokenizer: ChatTokenizer) -> str:
    """llama.cpp's name for how the tokenizer cuts text, where its pattern is one that is known; else empty.

    The converter knows tokenizers by a hash over the ids of one text, so one with the same rule and another vocabulary is strange to it.
    """
    told = json.loads(tokenizer.pretrained.backend_tokenizer.to_str()).get("pre_tokenizer") or {}
    patterns = [step.get("pattern", {}).get("Regex", "") for step in told.get("pretokenizers", [told])]
    return next((SPLITS[pattern] for pattern in patterns if pattern in SPLITS), "")


def compare(file: Path, model: Path, tokenizer: ChatTokenizer) -> Compared:
    """The file read back by llama.cpp's reader: every tensor against the merged model's, template and stop ids against the tokenizer's.

    Raises RunError for the first that is another.
    """
    reader, quants = _reader(file)
    _compare_words(reader, tokenizer, file)
    shapes: dict[tuple[int, ...], list[npt.NDArray[np.float32]]] = {}
    for shard in sorted(model.glob("*.safetensors")):
        with safe_open(str(shard), "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - no mapping
                weight = weights.get_tensor(name).float().numpy()
                shapes.setdefault(weight.shape, []).append(weight)
    found: dict[str, int] = {"equal": 0, "reordered": 0, "shifted": 0}
    added = []
    for tensor in reader.tensors:
        numbers = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        experts = numbers if numbers.ndim == 3 and numbers.shape not in shapes else [numbers]  # a mixture's lie one by one in the model
        ways = [_alike(each, shapes.get(each.shape, [])) for each in experts]
        how = ways[0] if all(ways) else ""
        if how:
            found[how] += 1
        elif tensor.name.startswith("rope_"):
            added.append(tensor.name)
        else:
            raise RunError(f"tensor {tensor.name} is none of the merged model's weights", where=str(file), change=CHANGED)
    if left := sum(map(len, shapes.values())):
        raise RunError(f"{left} of the merged model's weights are not in the file", where=str(file), change=CHANGED)
    return Compared(**found, added=tuple(added))


def modelfile(file: str, tokenizer: ChatTokenizer) -> str:
    """For `ollama create`: the file, and where answers end. Ollama takes the chat template from the file."""
    stops = [str(tokenizer.pretrained.convert_ids_to_tokens(id)) for id in tokenizer.stop_ids]
    return "\n".join([f"FROM ./{file}", *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops), ""])


def chapter(file: str, compared: Compared) -> str:
    """How to run it, for README.md."""
    tensors = compared.equal + compared.reordered + compared.shifted
    return f"""
## Run it

    llama-server -m {file} --jinja           # llama.cpp, with the chat template that is in the file
    ollama create {file.removesuffix(".gguf")} -f Modelfile

The file has the merged model's numbers: {tensors} tensors were read back and compared. Fewer bits (`llama-quantize`) are another model:
evaluate it as it is served.
"""


def _python(checkout: Path) -> Path:
    """The checkout's own, where it has one."""
    own = checkout / ".venv" / "bin" / "python"
    return own if own.exists() else Path(sys.executable)


def _run(words: Sequence[str], fault: str, told: str = "") -> str:
    """What a program of llama.cpp's prints; raises ModelError with its last words."""
    done = subprocess.run(words, input=told, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    if done.returncode:
        said = [redact(line) for line in done.stderr.splitlines() if line.strip()][-LINES:]
        change = "see what it says of this model; what it needs: requirements/requirements-convert_hf_to_gguf.txt of the checkout"
        raise ModelError(f"{fault}:" + "".join(f"\n    {line}" for line in said), where=words[1], change=change)
    return done.stdout


def _alike(numbers: npt.NDArray[np.float32], weights: list[npt.NDArray[np.float32]]) -> str:
    """How one of the weights became these numbers; that one is taken out of the list. Empty where none did."""
    for at, weight in enumerate(weights):
        if np.array_equal(weight, numbers):
            del weights[at]
            return "equal"
    for at, weight in enumerate(weights):
        if weight.ndim == 1 and np.array_equal(weight + 1, numbers):
            del weights[at]
            return "shifted"
        if weight.ndim == 2 and np.array_equal(_by_rows(weight), _by_rows(numbers)):
            del weights[at]
            return "reordered"
    return ""


def _by_rows(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Its rows in an order of their own."""
    return matrix[np.lexsort(matrix[:, :8].T)]


def _compare_words(reader: Any, tokenizer: ChatTokenizer, file: Path) -> None:
    """Template and stop ids; raises RunError."""
    fields = {name: reader.fields[name].contents() for name in reader.fields if name.startswith("tokenizer.")}
    if fields.get("tokenizer.chat_template") != tokenizer.pretrained.chat_template:
        raise RunError("the chat template in the file is not the run's", where=str(file))
    ends = {int(fields[key]) for name in ("eos", "eot", "eom") if (key := f"tokenizer.ggml.{name}_token_id") in fields}
    if not ends & set(tokenizer.stop_ids):
        raise RunError(f"answers would end on {sorted(ends)}, the run's on {sorted(tokenizer.stop_ids)}", where=str(file))


def _reader(file: Path) -> tuple[Any, Any]:
    try:
        from gguf import GGUFReader, quants
    except ImportError as error:
        change = "pip install -c constraints.txt 'luthier[gguf]'"
        raise UsageError(f"reading GGUF needs the extra `gguf` ({error.name} is not installed)", change=change) from error
    return GGUFReader(str(file)), quants
