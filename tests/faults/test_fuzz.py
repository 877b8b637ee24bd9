"""Whatever stands in a file that Luthier reads, it ends in a value or in a LuthierError: never in another exception.

Each target is a way in for text and files of strangers. Hypothesis chooses seeds, from each of which BATCH variants of valid files are made
(`mutate.py`): its own search costs a millisecond an input, more than most files take to be read. The inputs are counted.
"""

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import luthier
from luthier.core.errors import LuthierError
from luthier.core.progress import Silent
from luthier.data.collect import Tally, collect, inputs_of
from luthier.data.repository import open_repository
from luthier.data.store import Prepared
from luthier.data.tokenizer import chat_tokenizer, load_tokenizer
from luthier.evaluate import report
from luthier.model.adapt import add_lora, check_provenance, load_adapter
from luthier.model.adapter_config import read_config
from luthier.model.load import load_model
from luthier.model.place import trained_of
from luthier.plan.plan import begun
from luthier.plan.shape import shape_of
from luthier.recipe.load import load
from luthier.recipe.schema import Data, Lora, Model, Source, Training
from luthier.runs.rates import Circumstances, known
from luthier.runs.store import RunFolder
from luthier.train import checkpoint
from luthier.train.checkpoint import Best, State
from luthier.train.optim import make_optimizer
from tests.data.families import family
from tests.evaluate.reports import report as some_report
from tests.faults.mutate import mutants
from tests.runs.summaries import summary
from tests.train.workshop import Workshop, tiny_model

RECIPES = Path(__file__).parents[2] / "recipes"
BATCH = 20
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A way in: valid files, and what reads one."""

    seeds: Callable[[], list[bytes]]
    read: Callable[[Path, bytes], object]
    quick: int
    """Batches in the default run."""
    slow: int
    """Batches in the slow one."""


def rows(suffix: str) -> Callable[[Path, bytes], object]:
    """Reads a data file as `prepare` does: every row shaped, deduplicated and spooled."""

    def read(folder: Path, content: bytes) -> object:
        file = folder / f"rows.{suffix}"
        file.write_bytes(content)
        policy = "skip" if content[-2:-1] > b"c" else "error"
        data = Data(
            sources=(Source(path=str(file)),), on_bad_row=policy, group_by="group" if content[:1] == b"{" else "", deduplicate="exact"
        )
        return collect(data, inputs_of(data), folder / "spool.jsonl", Tally(), Silent())

    return read


CHATS: list[dict[str, Any]] = [
    {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "group": 1,
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "sunny?"}]},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look", "arguments": {"x": [1]}}}]},
            {"role": "tool", "content": "sunny", "tool_call_id": "1"},
            {"role": "assistant", "content": "yes", "reasoning_content": "hm"},
        ],
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
        "group": "x",
    },
]
OTHERS: list[list[dict[str, Any]]] = [
    [
        {
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "function_call", "value": '{"name": "f"}'},
                {"from": "gpt", "value": "b"},
            ]
        }
    ],
    [{"prompt": "a", "completion": "b", "system": "c"}, {"prompt": [{"role": "user", "content": "x"}], "completion": "y"}],
    [{"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]}],
    [{"prompt": "a", "response": "b", "success": True}, {"prompt": "c", "response": "d", "success": "false"}],
    [{"text": "a", "label": "b"}, {"text": "c", "label": 3}],
]
SOURCES = [CHATS, *OTHERS]


def lines(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def csv_seeds() -> list[bytes]:
    return [
        b'text,label\n"a, b",x\nc,y\n',
        b'\xef\xbb\xbfprompt,completion\r\n"multi\nline",b\r\n',
        b'messages,group\n"[{""role"": ""user"", ""content"": ""a""}, {""role"": ""assistant"", ""content"": ""b""}]",1\n',
    ]


def parquet_seeds() -> list[bytes]:
    found = []
    for records in (CHATS[:1], OTHERS[3][:1], OTHERS[4][:1]):
        file = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
        found.append(file.getvalue())
    return found


def recipe_seeds(suffix: str) -> Callable[[], list[bytes]]:
    return lambda: (
        [path.read_bytes() for path in sorted(RECIPES.glob(f"*.{suffix}"))]
        + (
            [json.dumps({"name": "x", "model": {"base": "demo"}, "data": {"sources": [{"path": "a"}]}}).encode()]
            if suffix == "yaml"
            else []
        )
    )


def read_recipe(suffix: str) -> Callable[[Path, bytes], object]:
    def read(folder: Path, content: bytes) -> object:
        file = folder / f"recipe.{suffix}"
        file.write_bytes(content)
        return load(file)

    return read


def override_seeds() -> list[bytes]:
    texts = ["lora.r=8", "lora=none", "training.max_steps=5", "data.sources.0.path=a b", "decision.deploy.answers.exact='>= 0.98'"]
    texts += [
        "data.sources=[{path: x, where: {a: [1, b]}}]",
        "evaluation.tasks.0={name: a}",
        "data.split.validation=rows.jsonl",
        "@over.yaml",
    ]
    return [text.encode() for text in texts]


def read_override(folder: Path, content: bytes) -> object:
    file = folder / "recipe.yaml"
    if not file.exists():
        file.write_bytes(
            (RECIPES / "quickstart.yaml").read_bytes() if (RECIPES / "quickstart.yaml").exists() else recipe_seeds("yaml")()[0]
        )
        (folder / "over.yaml").write_text("lora: {r: 4}\n")
    return load(file, [content.decode(errors="surrogateescape")])


@cache
def evaluation_seeds() -> list[bytes]:
    whole = some_report([1.0, 0.0, 1.0], seconds=(0.1, 0.2), memory=10**6, loss=1.5)
    predictions = b"".join(row.model_dump_json().encode() + b"\n" for row in whole.predictions["answers"])
    return [whole.scores.model_dump_json().encode() + b"\n\n" + predictions]


def read_evaluation(folder: Path, content: bytes) -> object:
    scores, _, predictions = content.partition(b"\n\n")
    (folder / "scores.json").write_bytes(scores)
    (folder / "predictions.jsonl").write_bytes(predictions)
    return report.read(folder)


def read_run(name: str) -> Callable[[Path, bytes], object]:
    """A run's records, as resuming, planning and telling read them."""

    def read(folder: Path, content: bytes) -> object:
        run = RunFolder(folder / "run")
        (run.adapter).mkdir(parents=True, exist_ok=True)
        (run.checkpoint(1)).mkdir(parents=True, exist_ok=True)
        (run.path / name).write_bytes(content)
        return {"events.jsonl": lambda: run.finished, "plan.json": lambda: begun(run), "data.json": lambda: Prepared(run.path).summary}[
            name
        ]()

    return read


def run_seeds() -> list[bytes]:
    return [lines([{"event": "started", "time": 1.5, "steps": 3}, {"event": "saved", "step": 1}, {"event": "finished", "step": 3}])]


def plan_seeds() -> list[bytes]:
    sizes = {"rows": 4, "tokens": 512, "checkpoint_activations": False, "packing": "tree"}
    return [json.dumps({"steps": {"total": 3}, "sizes": sizes}).encode()]


HERE = Circumstances(
    processor="cpu", threads=2, dtype="float32", quantization="none", engine="fused", trained="adapter", hidden=64, places=9.5
)


def rate_seeds() -> list[bytes]:
    return [lines([{"time": 1.0, "source": "run", "name": "a", "flops": 1e9, "seconds": 3.0, "circumstances": asdict(HERE)}] * 2)]


def read_rates(folder: Path, content: bytes) -> object:
    (folder / "runs").mkdir(exist_ok=True)
    (folder / "runs" / "rates.jsonl").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUTHIER_RUNS", str(folder / "runs"))
        return known(HERE)


def trainee() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    return model, make_optimizer(trained_of(model), Training())


def checkpoint_seeds() -> list[bytes]:
    """A checkpoint's four files in one, as `FILE\\0content`."""
    return [name.encode() + b"\0" for name in ("state.json", "manifest.json", "adapter.safetensors", "optimizer.safetensors")]


def read_checkpoint(folder: Path, content: bytes) -> object:
    """Each file changed in turn, with a manifest that is right, as a stranger would send it, or wrong."""
    model, optimizer = trainee()
    random = Random(content)
    run = RunFolder(folder / "run")
    run.path.mkdir(exist_ok=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    place = checkpoint.save(run, State(step=1, best=Best(step=1, value=0.5), scaler={"scale": 2.0}), trained_of(model), optimizer, keep=3)
    name = random.choice([path.name for path in sorted(place.iterdir())])
    (changed,) = mutants(random, [(place / name).read_bytes()], 1)
    (place / name).write_bytes(changed)
    if random.random() < 0.7 and name != checkpoint.MANIFEST:
        checkpoint_manifest(run, place)
    checkpoint.resume(run, trained_of(model), optimizer)
    return optimizer.step()


def checkpoint_manifest(run: RunFolder, place: Path) -> None:
    """The manifest that fits the files as they lie there."""
    from luthier.core import files

    manifest = json.loads((place / checkpoint.MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name] = {"bytes": (place / name).stat().st_size, "sha256": files.sha256(place / name)}
    files.write_json(place / checkpoint.MANIFEST, manifest)


@cache
def base_model() -> nn.Module:
    return tiny_model()


def read_adapter_config(folder: Path, content: bytes) -> object:
    (folder / "adapter_config.json").write_bytes(content)
    return read_config(folder, base_model())


@cache
def base_files() -> dict[str, bytes]:
    """A base's small files."""
    with tempfile.TemporaryDirectory() as folder:
        base = Workshop(Path(folder)).base()
        return {path.name: path.read_bytes() for path in base.iterdir()}


def read_base(name: str, *, weights: bool) -> Callable[[Path, bytes], object]:
    """A base of which one file is a stranger's: its shape for the plan, its tokenizer, its weights."""

    def read(folder: Path, content: bytes) -> object:
        for other, whole in base_files().items():
            (folder / other).write_bytes(content if other == name else whole)
        model = Model(base=str(folder))
        shape_of(open_repository(model).json("config.json"))
        return load_model(model, torch.float32, CPU) if weights else load_tokenizer(model)

    return read


def read_shape(folder: Path, content: bytes) -> object:
    (folder / "config.json").write_bytes(content)
    repository = open_repository(Model(base=str(folder)))
    repository.refuse_own_code()
    repository.refuse_other_weights()
    repository.eos_ids()
    return shape_of(repository.json("config.json"))


def shape_seeds() -> list[bytes]:
    models = json.loads((Path(luthier.__file__).parent / "plan" / "models.json").read_text())
    return [json.dumps(entry["config"]).encode() for entry in models["models"]]


def template_seeds() -> list[bytes]:
    return [path.read_bytes() for path in sorted((Path(__file__).parents[1] / "golden" / "templates").glob("*.jinja"))]


def read_template(folder: Path, content: bytes) -> object:
    pretrained = copy(family("chatml").pretrained)
    pretrained.chat_template = content.decode(errors="replace")
    return chat_tokenizer(pretrained)


def read_adapter(name: str) -> Callable[[Path, bytes], object]:
    """A stranger's adapter on our base, with what it says of its origin."""

    def read(folder: Path, content: bytes) -> object:
        for other, whole in adapter_files().items():
            (folder / other).write_bytes(content if other == name else whole)
        model = Model(base="demo")
        check_provenance(folder, model, family("chatml"))
        return load_adapter(tiny_model(), folder) if name.endswith(".safetensors") else None

    return read


@cache
def adapter_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        add_lora(tiny_model(), Lora(r=4), seed=0).save_pretrained(folder, save_embedding_layers=False)
        origin = {"base": "demo", "template_hash": family("chatml").template_hash, "stop_ids": list(family("chatml").stop_ids)}
        (Path(folder) / "provenance.json").write_text(json.dumps(origin))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


TARGETS: dict[str, Target] = {
    "recipe.yaml": Target(seeds=recipe_seeds("yaml"), read=read_recipe("yaml"), quick=5, slow=50),
    "recipe.toml": Target(seeds=recipe_seeds("toml"), read=read_recipe("toml"), quick=3, slow=25),
    "override": Target(seeds=override_seeds, read=read_override, quick=3, slow=25),
    "rows.jsonl": Target(seeds=lambda: [lines(records) for records in SOURCES], read=rows("jsonl"), quick=15, slow=500),
    "rows.json": Target(seeds=lambda: [json.dumps(records).encode() for records in SOURCES], read=rows("json"), quick=15, slow=600),
    "rows.csv": Target(seeds=csv_seeds, read=rows("csv"), quick=15, slow=500),
    "rows.jsonl.gz": Target(seeds=lambda: [gzip.compress(lines(CHATS))], read=rows("jsonl.gz"), quick=10, slow=200),
    "rows.parquet": Target(seeds=parquet_seeds, read=rows("parquet"), quick=10, slow=250),
    "events.jsonl": Target(seeds=run_seeds, read=read_run("events.jsonl"), quick=10, slow=800),
    "plan.json": Target(seeds=plan_seeds, read=read_run("plan.json"), quick=10, slow=400),
    "data.json": Target(seeds=lambda: [summary().model_dump_json().encode()], read=read_run("data.json"), quick=10, slow=400),
    "rates.jsonl": Target(seeds=rate_seeds, read=read_rates, quick=10, slow=700),
    "scores.json, predictions.jsonl": Target(seeds=evaluation_seeds, read=read_evaluation, quick=10, slow=250),
    "checkpoint": Target(seeds=checkpoint_seeds, read=read_checkpoint, quick=2, slow=15),
    "adapter_config.json": Target(seeds=lambda: [adapter_files()["adapter_config.json"]], read=read_adapter_config, quick=10, slow=300),
    "provenance.json": Target(seeds=lambda: [adapter_files()["provenance.json"]], read=read_adapter("provenance.json"), quick=5, slow=150),
    "adapter_model.safetensors": Target(
        seeds=lambda: [adapter_files()["adapter_model.safetensors"]], read=read_adapter("adapter_model.safetensors"), quick=1, slow=4
    ),
    "config.json, planned": Target(seeds=shape_seeds, read=read_shape, quick=10, slow=300),
    "config.json": Target(seeds=lambda: [base_files()["config.json"]], read=read_base("config.json", weights=True), quick=1, slow=4),
    "tokenizer.json": Target(
        seeds=lambda: [base_files()["tokenizer.json"]], read=read_base("tokenizer.json", weights=False), quick=1, slow=5
    ),
    "tokenizer_config.json": Target(
        seeds=lambda: [base_files()["tokenizer_config.json"]], read=read_base("tokenizer_config.json", weights=False), quick=1, slow=5
    ),
    "model.safetensors": Target(
        seeds=lambda: [base_files()["model.safetensors"]], read=read_base("model.safetensors", weights=True), quick=1, slow=3
    ),
    "chat template": Target(seeds=template_seeds, read=read_template, quick=1, slow=4),
}


def survive(name: str, folder: Path, batches: int) -> None:
    """So many batches of variants of a target's files: each is read, or ends in a LuthierError."""
    target, num_inputs = TARGETS[name], 0
    seeds = target.seeds()

    @settings(max_examples=batches, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**40))
    def all_end_well(seed: int) -> None:
        nonlocal num_inputs
        for content in mutants(Random(seed), seeds, BATCH):
            num_inputs += 1
            with suppress(LuthierError):
                target.read(folder, content)

    all_end_well()
    assert num_inputs >= batches * BATCH


@pytest.mark.filterwarnings("ignore")  # what libraries say of such files
@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_or_hostile_file_ends_in_an_error_of_luthiers(name: str, tmp_path: Path) -> None:
    survive(name, tmp_path, TARGETS[name].quick)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_a_hundred_thousand_hostile_files_end_in_errors_of_luthiers(name: str, tmp_path: Path) -> None:
    survive(name, tmp_path, TARGETS[name].slow)


def test_the_slow_run_reads_a_hundred_thousand_files_and_the_default_one_three_thousand() -> None:
    assert BATCH * sum(target.slow for target in TARGETS.values()) >= 100_000
    assert BATCH * sum(target.quick for target in TARGETS.values()) >= 3_000
