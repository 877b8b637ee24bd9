"""Strangers' models, adapters, templates and folders: an error, never code that runs, never a path that leads out."""

import ast
import copy
import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.errors import LuthierError, ModelError, RecipeError
from luthier.data.inspect import InspectedRow, Segment, to_html
from luthier.data.tokenizer import chat_tokenizer, load_tokenizer
from luthier.evaluate import report
from luthier.model.adapt import add_lora, load_adapter
from luthier.model.load import load_model
from luthier.model.place import trained_of
from luthier.recipe.load import load
from luthier.recipe.schema import Lora, Model, Training
from luthier.runs.environment import describe
from luthier.runs.store import RunFolder
from luthier.score.scorers import scorer
from luthier.train import checkpoint
from luthier.train.checkpoint import State
from luthier.train.optim import make_optimizer
from tests.data.families import family
from tests.evaluate.reports import report as some_report
from tests.runs.summaries import summary
from tests.train.workshop import Workshop, tiny_model

SOURCE = Path(__file__).parents[2] / "src" / "luthier"
CPU = torch.device("cpu")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return Workshop(tmp_path).base()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    add_lora(tiny_model(), Lora(r=4), seed=0).save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    return tmp_path / "adapter"


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def load_base(base: Path, **fields: Any) -> None:
    model = Model(base=str(base), **fields)
    load_tokenizer(model)
    load_model(model, torch.float32, CPU)


def test_no_source_line_can_unpickle_or_run_text() -> None:
    """Names that read pickle, or run code from text, wherever they come from; torch.load by any spelling is `load` of torch."""
    forbidden = {
        *("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "Unpickler", "read_pickle"),
        *("eval", "exec", "compile", "__import__", "weights_only", "system", "popen", "os.load", "torch.load", "torch.save"),
    }
    own = {"re.compile", "regex.compile", "patterns.compile", "torch.compile", "platform.system", "row.system"}
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name.partition(".")[0] for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [
                    str(node.module).partition(".")[0],
                    *(alias.name for alias in node.names if node.module != "luthier.train.checkpoint"),
                ]
            elif isinstance(node, ast.Call):
                whole = ast.unparse(node.func)
                names = [] if whole in own or whole.endswith(".eval") else [whole, whole.rpartition(".")[2]]
                pickled = [word for word in node.keywords if word.arg == "allow_pickle" and ast.unparse(word.value) != "False"]
                shell = [word for word in node.keywords if word.arg == "shell"]
                unpickling = whole in ("np.load", "numpy.load") and not any(word.arg == "allow_pickle" for word in node.keywords)
                names += ["weights_only" for word in node.keywords if word.arg == "weights_only"] + [whole] * (unpickling or bool(pickled))
                found += [f"{path.relative_to(SOURCE)}:{node.lineno} {whole}"] if unpickling or pickled or shell else []
            found += [f"{path.relative_to(SOURCE)}:{node.lineno} {name}" for name in names if name in forbidden]
    assert not found, found


PICKLES = """
import json, os, pickle, sys
from pathlib import Path

class Evil:
    def __reduce__(self):
        return (Path.touch, (Path(sys.argv[1]) / "unpickled",))

import torch
from luthier.core.errors import LuthierError
from luthier.core.progress import Silent
from luthier.model.adapt import add_lora, load_adapter
from luthier.model.load import load_model
from luthier.model.place import trained_of
from luthier.recipe.schema import Lora, Model, Training
from luthier.runs.store import RunFolder
from luthier.train import checkpoint
from luthier.train.checkpoint import State
from luthier.train.optim import make_optimizer
from tests.train.workshop import Workshop, tiny_model

folder = Path(sys.argv[1])
evil = pickle.dumps(Evil())
NAMES = ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "state.pkl", "x.ckpt")
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
base = Workshop(folder).base()
adapter = folder / "adapter"
add_lora(tiny_model(), Lora(r=4), seed=0).save_pretrained(str(adapter), save_embedding_layers=False)
run = RunFolder(folder / "run")
run.path.mkdir()
model = add_lora(tiny_model(), Lora(r=4), seed=0)
optimizer = make_optimizer(trained_of(model), Training())
place = checkpoint.save(run, checkpoint.State(step=1), trained_of(model), optimizer, keep=3)

def offered(path):
    for name in NAMES:
        (path / name).write_bytes(evil)

def renamed(path, name, to):
    (path / name).rename(path / to)

def without_index(path):
    (path / "model.safetensors").unlink()
    names = {"model.embed_tokens.weight": "pytorch_model.bin"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))

seen, ends = [], []

def watch(event, args):
    if event.startswith("pickle.") or (event == "open" and str(args[0]).endswith(PICKLED) and not str(args[0]).startswith(str(run.path))):
        seen.append(f"{event} {args}")

def attempt(name, action):
    try:
        action()
        ends.append(f"{name}: read")
    except LuthierError as error:
        ends.append(f"{name}: {type(error).__name__}")

load = lambda: load_model(Model(base=str(base)), torch.float32, torch.device("cpu"))
adapt = lambda: load_adapter(tiny_model(), adapter)
load(), adapt()  # what the libraries unpickle of their own when they begin
offered(base), offered(adapter), offered(place), offered(run.path), offered(run.checkpoints)
sys.addaudithook(watch)
attempt("base", load)
attempt("adapter", adapt)
attempt("run", lambda: checkpoint.resume(run, trained_of(model), optimizer))
without_index(base)
attempt("sharded base", load)
(base / "model.safetensors.index.json").unlink()
attempt("pickled base", load)
renamed(adapter, "adapter_model.safetensors", "adapter_model.safetensors.old")
attempt("pickled adapter", adapt)
renamed(place.parent / "step-000001.damaged" if not place.exists() else place, "adapter.safetensors", "adapter.bin")
attempt("pickled run", lambda: checkpoint.resume(run, trained_of(model), optimizer))
print(json.dumps({"seen": seen, "ends": ends, "ran": (folder / "unpickled").exists()}))
"""


def test_a_pickled_file_is_never_opened_by_a_model_an_adapter_or_a_resumed_run(tmp_path: Path) -> None:
    """Each is offered pickles under all usual names, beside its own files and in their place; Python's audit hook tells what is opened.

    A checkpoint's files are all opened, for their sha256.
    """
    script = tmp_path / "offer.py"
    script.write_text(PICKLES)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SOURCE.parents[0]), str(Path(__file__).parents[2])]),
        "OMP_NUM_THREADS": "1",
    }
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["seen"] == []
    assert not told["ran"]
    assert told["ends"][:2] == ["base: read", "adapter: read"]
    assert told["ends"][3:6] == ["sharded base: ModelError", "pickled base: ModelError", "pickled adapter: ModelError"]


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/etc/passwd", "pytorch_model.bin", "a/b.safetensors", 7])
def test_an_index_of_weights_names_safetensors_beside_it_and_nothing_else(base: Path, name: object) -> None:
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"a": name}}))
    with pytest.raises(ModelError, match="no safetensors file of the repository"):
        load_base(base)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("nested", [False, True])
def test_code_that_a_config_names_is_refused_and_does_not_run(base: Path, tmp_path: Path, file: str, nested: bool) -> None:
    ran = tmp_path / "ran"
    (base / "evil.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n")
    code = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}}
    change(base / file, **({"text_config": code} if nested else code))
    with pytest.raises(ModelError, match="names code of the repository to run"):
        load_base(base)
    assert not ran.exists()


@pytest.mark.parametrize(
    "value",
    [
        {"_attn_implementation": "stranger/kernel"},
        {"attn_implementation": "stranger/kernel@main:attention"},
        {"attn_implementation": {"text_config": "stranger/kernel"}},
        {"text_config": {"_attn_implementation": "stranger/kernel"}},
        {"experts_implementation": "stranger/kernel"},
    ],
)
def test_a_kernel_of_the_hub_that_a_config_names_is_refused(base: Path, value: dict[str, Any]) -> None:
    change(base / "config.json", **value)
    with pytest.raises(ModelError, match="names a kernel of the hub to run"):
        load_base(base)


def test_a_base_that_holds_an_adapter_cannot_lead_to_another_base(base: Path, adapter: Path) -> None:
    change(adapter / "adapter_config.json", base_model_name_or_path=str(adapter.parent / "elsewhere"))
    shutil.copy(adapter / "adapter_config.json", base)
    with pytest.raises(ModelError, match="this is an adapter, or holds one"):
        load_base(base)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.__init__.__globals__ }}", "unsafe"),
        ("{{ cycler.__init__.__globals__.os.popen('touch ran').read() }}", "unsafe"),
        ("{{ lipsum.__globals__['os'].system('touch ran') }}", ""),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% include '/etc/passwd' %}", ""),
        ("{% import 'os' as os %}", ""),
        ("{{ raise_exception('no') }}", "no"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content }", "unexpected"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", ""),
    ],
)
def test_a_chat_template_runs_in_a_sandbox_and_every_way_it_fails_is_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    pretrained = copy.copy(family("chatml").pretrained)
    pretrained.chat_template = template
    with pytest.raises(ModelError, match=f"(?i){said}"):
        chat_tokenizer(pretrained)
    assert list(tmp_path.iterdir()) == []


def test_a_templates_name_does_not_become_a_path(base: Path, tmp_path: Path) -> None:
    templates = [{"name": "default", "template": family("chatml").pretrained.chat_template}, {"name": "../../outside", "template": "x"}]
    (base / "chat_template.jinja").unlink(missing_ok=True)
    change(base / "tokenizer_config.json", chat_template=templates)
    with pytest.raises(ModelError, match=r"chat template is called '\.\./\.\./outside'"):
        load_tokenizer(Model(base=str(base)))


@pytest.mark.parametrize(
    "values",
    [
        {"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "stranger/code"},
        {"megatron_config": {"a": 1}, "megatron_core": "megatron.core"},
        {"layer_replication": [[0, 100_000]]},
        {"r": 10**9},
        {"r": "8"},
        {"rank_pattern": {"(a+)+$": 4}},
        {"target_modules": "(.*(.*(.*(.*)*)*)*)*!"},
        {"target_modules": "nothing"},
        {"target_modules": "("},
        {"modules_to_save": ["x" * 400]},
        {"lora_alpha": None},
        {"use_qalora": True},
        {"a_new_option": {"code": "os.system"}},
    ],
)
def test_an_adapter_config_is_taken_only_where_every_word_of_it_is_understood(adapter: Path, values: dict[str, Any]) -> None:
    change(adapter / "adapter_config.json", **values)
    with pytest.raises(ModelError, match=r"adapter_config\.json: "):
        load_adapter(tiny_model(), adapter)


def test_what_an_adapter_says_of_its_origin_and_its_training_is_not_followed(adapter: Path) -> None:
    told = {"base_model_name_or_path": "/etc", "auto_mapping": {"parent_library": "os", "base_model_class": "system"}}
    change(adapter / "adapter_config.json", **told, init_lora_weights="pissa", loftq_config={"loftq_bits": 4})
    plain, loaded = tiny_model().state_dict(), load_adapter(tiny_model(), adapter).get_base_model().state_dict()
    assert all(torch.equal(weight, loaded[name.replace("proj.weight", "proj.base_layer.weight")]) for name, weight in plain.items())


def test_a_pattern_of_modules_is_taken_where_it_can_be_matched(adapter: Path) -> None:
    before = load_adapter(tiny_model(), adapter).state_dict()
    change(adapter / "adapter_config.json", target_modules=r"model\.layers\.\d+\.(self_attn|mlp)\..*_proj")
    after = load_adapter(tiny_model(), adapter).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_of_other_layers_or_with_weights_that_are_no_numbers_is_refused(adapter: Path) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name.replace("layers.0", "layers.9"): weight for name, weight in weights.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="of its weights are missing"):
        load_adapter(tiny_model(), adapter)
    first = next(iter(weights))
    save_file({**weights, first: weights[first] * float("nan")}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="not finite"):
        load_adapter(tiny_model(), adapter)


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/b", "..", "", ".hidden", "a\\b\n", "x\n", "a\0b", "é", "-x", "a" * 101])
def test_a_runs_name_never_leaves_the_folder_of_runs(tmp_path: Path, name: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps({"name": name, "model": {"base": "demo"}, "data": {"sources": [{"path": "a.jsonl"}]}}))
    with pytest.raises(RecipeError, match="name"):
        load(recipe)


@pytest.mark.parametrize("name", ["os:system", "os.path:join", "shutil:move", "builtins:exec", "subprocess:call", "pickle:loads"])
def test_a_scorer_is_never_a_function_of_pythons_own(name: str) -> None:
    with pytest.raises(RecipeError, match="Python's own"):
        scorer(name)


def test_recording_the_commit_runs_nothing_that_a_strangers_repository_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """git runs fsmonitor, filters and hooks of a repository's own configuration when it is asked whether files have changed."""
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("a")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True, timeout=20)
    script = tmp_path / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\ncat\n")
    script.chmod(0o755)
    for key in ("core.fsmonitor", "filter.x.clean", "core.pager", "core.sshCommand"):
        subprocess.run([*git, "config", key, str(script)], check=True, timeout=20)
    shutil.copy(script, tmp_path / ".git" / "hooks" / "post-index-change")
    (tmp_path / ".gitattributes").write_text("* filter=x\n")
    os.utime(tmp_path / "file", (1, 1))
    assert len(describe(summary())["git_commit"]) == 40
    assert not (tmp_path / "ran").exists()


def test_a_page_of_rows_shows_markup_as_text() -> None:
    hostile = "</pre><script>alert(1)</script>"
    page = to_html([InspectedRow(split=hostile, number=0, origin=hostile, segments=(Segment(text=hostile, ids=(1,), trained=True),))])
    assert "<script>" not in page


def test_what_a_link_in_the_run_folder_leads_to_is_not_removed(tmp_path: Path) -> None:
    """Old checkpoints are removed, left ones swept, damaged ones set aside: where such a name is a link, only the link is touched."""
    model = torch.nn.Linear(2, 2)
    optimizer = make_optimizer(trained_of(model), Training())
    outside, run = tmp_path / "outside", RunFolder(tmp_path / "run")
    outside.mkdir()
    (outside / "precious").write_text("mine")
    run.checkpoints.mkdir(parents=True)
    for name in ("step-000001", "step-000002.part", "step-000003.old", "step-000009"):
        (run.checkpoints / name).symlink_to(outside)
    with suppress(LuthierError):
        checkpoint.resume(run, trained_of(model), optimizer)
    for step in (4, 5, 6):
        with suppress(LuthierError):
            checkpoint.save(run, State(step=step), trained_of(model), optimizer, keep=1)
    assert (outside / "precious").read_text() == "mine"
    assert [path.name for path in outside.iterdir()] == ["precious"]


def test_a_base_whose_weights_are_not_all_there_is_refused(base: Path) -> None:
    """transformers would draw what is missing at random, and go on."""
    weights = load_file(base / "model.safetensors")
    change(base / "config.json", intermediate_size=128)
    with pytest.raises(ModelError, match="cannot load the model"):
        load_base(base)
    change(base / "config.json", intermediate_size=64)
    weights.pop("model.norm.weight")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"are missing, first model\.norm\.weight"):
        load_base(base)


def test_an_evaluation_nested_without_end_is_refused(tmp_path: Path) -> None:
    some_report([1.0]).write(tmp_path)
    (tmp_path / "predictions.jsonl").write_text("[" * 100_000 + "\n")
    with pytest.raises(LuthierError, match="not an evaluation"):
        report.read(tmp_path)
