"""Modal, offline: what its app asks for is what the recipe says, and what comes back from the volume is the run's."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from luthier import flow
from luthier.core.errors import RunError, UsageError
from luthier.flow.launching import _order
from luthier.launch.backend import Job, Order
from luthier.launch.modal import VOLUME, Modal, bring, build, rental, train_run
from luthier.launch.nodes import Node
from luthier.runs.store import RunFolder
from tests.launch.orders import order

modal = pytest.importorskip("modal", reason="the extra `modal` is not installed")
RECIPE = Path(__file__).parents[2] / "recipes" / "nothing-gpt-3b.yaml"


@pytest.fixture
def seed_002(tmp_path: Path) -> Order:
    """The order for the recipe of seed 002, with rows and an env file."""
    (tmp_path / ".env").write_text("HF_TOKEN=planted-in-the-env-file-1\nWANDB_API_KEY=planted-in-the-env-file-2\n")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    changes = [f"data.sources.0.path={tmp_path / 'rows.jsonl'}", f"launch.env_file={tmp_path / '.env'}"]
    loaded = flow.load(RECIPE, changes)
    return _order(loaded.recipe, RunFolder(tmp_path / "runs" / "nothing-gpt-3b"), Node(), [], None)


def test_the_app_has_the_gpu_the_time_limit_the_volume_and_the_retries_of_seed_002(seed_002: Order) -> None:
    app, function = build(rental(seed_002), seed_002)
    assert app.name == "luthier-nothing-gpt-3b"
    info = function.info()
    assert info.gpus == [("L4", 1)]
    assert info.timeout == 60000
    assert info.max_retries == 10
    assert {path: volume.name for path, volume in info.volumes.items()} == {"/luthier": "luthier"}
    assert info.single_use_containers
    assert info.secrets == ["Secret.from_dict([HF_TOKEN, WANDB_API_KEY])"]


def test_the_container_imports_the_function_by_its_name_without_torch() -> None:
    code = "import sys\nfrom luthier.launch.modal import train_run\nprint(train_run.__qualname__, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert found == f"{train_run.__qualname__} False\n"
    assert not isinstance(train_run, modal.Function)  # which Modal would look for its own app in


def test_what_would_run_names_variables_and_never_their_values(seed_002: Order) -> None:
    text = Modal().text(seed_002)
    assert "env file: HF_TOKEN, WANDB_API_KEY" in text
    assert "planted" not in text
    assert "timeout: 60000 s; saves and ends after 59700 s" in text
    assert "retries: 10" in text
    assert "volume: luthier at /luthier, committed after each save" in text
    assert text.endswith("runs: python -P -m luthier.cli.main train /luthier/runs/nothing-gpt-3b/recipe.yaml launch.env_file=\n")
    assert f"files: {seed_002.files[0]}" in text


def test_the_containers_packages_are_those_of_here_and_torch_is_the_one_for_gpus(seed_002: Order) -> None:
    packages = dict(line.split("==") for line in rental(seed_002).packages)
    assert {"torch", "transformers", "peft", "safetensors"} <= packages.keys()
    assert "+" not in packages["torch"]
    assert not {"pytest", "ruff", "modal", "ray"} & packages.keys()


def test_options_are_asked_for(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "volume": "runs", "secrets": ("huggingface",), "packages": ("flash-attn==2.8",), "cpus": 8, "memory_gb": 64, "region": "eu",
    }  # fmt: skip
    made = order(tmp_path, on="modal", gpu="H200x4", gpus=4, options=options)
    wanted = rental(made)
    _, function = build(wanted, made)
    info = function.info()
    assert (info.gpus, info.cpu, info.memory_mib, info.regions) == ([("H200", 4)], 8, 61035, ["eu"])
    assert info.timeout == 24 * 3600
    assert [volume.name for volume in info.volumes.values()] == ["runs"]
    assert wanted.packages[-1] == "flash-attn==2.8"
    assert wanted.environment["LUTHIER_VOLUME"] == "runs"


@pytest.mark.parametrize(
    ("launch", "told"),
    [
        ({"gpu": "A800", "gpus": 1}, "Modal does not rent A800"),
        ({"gpu": "L4", "gpus": 1, "seconds": 100_000}, "Modal ends a function after 24 h"),
    ],
)
def test_what_modal_does_not_have_is_an_error(tmp_path: Path, launch: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        rental(order(tmp_path, on="modal", **launch))


@dataclass(frozen=True, slots=True)
class Call:
    """A function's call of which Modal tells what it raises, and a volume that does so too."""

    raised: Exception

    def get(self, timeout: float) -> int:
        raise self.raised

    def commit(self) -> None:
        raise self.raised


@pytest.mark.parametrize(
    ("raised", "state"),
    [
        (TimeoutError(), "running"),
        (modal.exception.RemoteError("exit 1"), "over"),
        (modal.exception.NotFoundError("no such call"), "over"),
        (RuntimeError("run animals has saved"), "over"),
    ],
)
def test_a_call_is_over_when_modal_says_so(raised: Exception, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modal.FunctionCall, "from_id", lambda _: Call(raised))
    assert Modal().status(RunFolder(tmp_path), Job(on="modal", id="fc-1", host="here", started=0.0)) == state


def test_a_service_that_fails_says_nothing_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modal.FunctionCall, "from_id", lambda _: Call(modal.exception.ServiceError("try later")))
    with pytest.raises(RunError, match="does not say how the run stands: try later"):
        Modal().status(RunFolder(tmp_path), Job(on="modal", id="fc-1", host="here", started=0.0))


def test_a_volume_that_cannot_be_committed_raises_what_the_next_save_tries_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VOLUME, "luthier")
    monkeypatch.setattr(modal.Volume, "from_name", lambda _: Call(modal.exception.ConnectionError("gone")))
    with pytest.raises(RuntimeError, match="the volume was not committed: gone"):
        train_run(str(tmp_path), ["-c", ""], 60.0)


def test_without_modals_library_the_error_names_the_extra(seed_002: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modal", None)
    with pytest.raises(UsageError, match=r"pip install 'luthier\[modal\]'"):
        Modal().submit(seed_002)
    assert Modal().text(seed_002)  # what would run can be told without it


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """As Modal lists it."""

    path: str
    type: int
    mtime: int
    size: int


class Volume:
    """A volume that is a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def iterdir(self, path: str, *, recursive: bool = True) -> Iterator[Entry]:
        for item in sorted((self.root / path.lstrip("/")).rglob("*")):
            found = item.stat()
            name = item.relative_to(self.root).as_posix()
            yield Entry(path=name, type=1 if item.is_file() else 2, mtime=int(found.st_mtime), size=found.st_size)

    def read_file(self, path: str) -> Iterator[bytes]:
        with (self.root / path.lstrip("/")).open("rb") as file:
            while piece := file.read(5):
                yield piece


def test_what_has_changed_on_the_volume_comes_back_but_not_what_is_each_machines_own(tmp_path: Path) -> None:
    there, here = tmp_path / "volume" / "runs" / "animals", RunFolder(tmp_path / "runs" / "animals")
    for name in ("events.jsonl", "lock", "checkpoints/step-000050/adapter.safetensors", "adapter/adapter_config.json", "recipe.yaml"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text(f"of the volume: {name}\n")
    here.path.mkdir(parents=True)
    here.recipe.write_text("of this machine\n")
    volume = Volume(tmp_path / "volume")
    assert [path.name for path in bring(volume, here)] == ["adapter_config.json", "events.jsonl"]
    assert here.events.read_text() == "of the volume: events.jsonl\n"
    assert here.recipe.read_text() == "of this machine\n"
    assert bring(volume, here) == []
    with (there / "events.jsonl").open("a") as events:
        events.write("more\n")
    assert bring(volume, here) == [here.events]
    assert here.events.read_text().endswith("more\n")


def test_a_name_on_the_volume_does_not_lead_out_of_the_run_folder(tmp_path: Path) -> None:
    class Hostile(Volume):
        def iterdir(self, path: str, *, recursive: bool = True) -> Iterator[Entry]:
            yield Entry(path="runs/animals/../../stolen", type=1, mtime=1, size=1)

    here = RunFolder(tmp_path / "runs" / "animals")
    here.path.mkdir(parents=True)
    assert bring(Hostile(tmp_path), here) == []
    assert not (tmp_path / "stolen").exists()


def test_the_files_that_the_recipe_names_are_put_where_it_looks_for_them(seed_002: Order, tmp_path: Path) -> None:
    assert seed_002.files == (tmp_path / "rows.jsonl",)
    base = replace(seed_002, files=(*seed_002.files, tmp_path))
    build(rental(base), base)  # Modal looks at each when the app is built
