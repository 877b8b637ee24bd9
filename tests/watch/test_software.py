"""Versions against those that were tested, and variables of the environment that harm."""

import re
import tomllib
from pathlib import Path

import pytest

from luthier.watch import versions as real
from tests.watch.machines import H200, found, only, versions

ROOT = Path(__file__).parents[2]


def test_the_tested_versions_are_those_of_the_constraints_file() -> None:
    assert real.TESTED.read_text() == (ROOT / "constraints.txt").read_text()
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    packages = real.packages_of(required, real.TESTED.read_text(), {})
    assert {package.name for package in packages} >= {"torch", "transformers", "peft", "safetensors", "numpy"}
    assert [package.name for package in packages if not package.tested] == []


def test_what_the_tests_run_with_now_is_looked_up_without_an_import() -> None:
    seen = real.look()
    assert re.fullmatch(r"\d+\.\d+", seen.python_tested)
    assert seen.of("torch") and seen.of("pydantic")
    assert seen.of("pytest") == ""  # only wanted by an extra


def test_a_library_that_is_missing_is_refused() -> None:
    finding = only("package-missing", versions=versions(peft=""))
    assert (finding.severity, finding.evidence["packages"]) == ("refuse", "peft")


@pytest.mark.parametrize("torch", ["2.10.0+cu130", "2.14.0", "2.13.1"])
def test_a_version_outside_of_the_window_is_a_warning(torch: str) -> None:
    finding = only("package-outside", versions=versions(torch=torch))
    assert f"torch {torch} (<=2.13.0,>=2.11)" in finding.message
    assert finding.fix == "pip install -c constraints.txt torch"


def test_a_version_inside_the_window_that_was_not_tested_is_a_note() -> None:
    finding = only("package-untested", versions=versions(torch="2.12.1+cu130", transformers="5.23.4"))
    assert finding.severity == "note"
    assert "torch 2.12.1+cu130 (2.13.0), transformers 5.23.4 (5.23.0)" in finding.message


@pytest.mark.parametrize("torch", ["2.13.0", "2.13.0+cu126"])
def test_what_it_was_built_for_does_not_make_a_version_another(torch: str) -> None:
    assert found(versions=versions(torch=torch)) == {}


def test_python_too_old_is_refused_and_another_one_noted() -> None:
    assert only("python-untested", versions=versions(python="3.10.12")).severity == "refuse"
    assert only("python-untested", versions=versions(python="3.13.1")).severity == "note"
    assert found(versions=versions(python="3.11.14")) == {}


def test_a_locale_that_is_not_utf8_is_a_warning() -> None:
    assert only("text-not-utf8", encoding="ansi_x3.4-1968").fix == "export LC_ALL=C.UTF-8 PYTHONUTF8=1"
    assert found(encoding="utf8") == {}


def test_one_thread_on_many_processors_is_a_warning() -> None:
    assert only("one-thread", "", environment={"OMP_NUM_THREADS": "1"}).evidence == {"threads": 1, "cores": 16}
    assert found("", environment={"OMP_NUM_THREADS": "8"}) == {}
    assert found(H200, environment={"OMP_NUM_THREADS": "1"}) == {}  # a GPU's processor has little to do


@pytest.mark.parametrize(
    ("name", "value", "severity"),
    [
        ("CUDA_LAUNCH_BLOCKING", "1", "warn"),
        ("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:32,garbage_collection_threshold:0.6", "warn"),
        ("PYTORCH_ALLOC_CONF", "expandable_segments:False", "note"),
        ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1", "warn"),
        ("OMP_WAIT_POLICY", "ACTIVE", "warn"),
        ("TOKENIZERS_PARALLELISM", "false", "note"),
        ("HF_HUB_OFFLINE", "1", "note"),
        ("TRANSFORMERS_CACHE", "/data/hub", "note"),
        ("NCCL_P2P_DISABLE", "1", "note"),
    ],
)
def test_a_variable_that_harms_is_found_with_the_command_that_removes_it(name: str, value: str, severity: str) -> None:
    finding = only("harmful-variable", environment={name: value})
    assert (finding.severity, finding.fix) == (severity, f"unset {name}")
    assert finding.message.startswith(f"{name}={value} ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUDA_LAUNCH_BLOCKING", "0"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
        ("PYTORCH_ALLOC_CONF", "max_split_size_mb:512"),
        ("OMP_WAIT_POLICY", "PASSIVE"),
        ("TOKENIZERS_PARALLELISM", "true"),
        ("HF_HUB_OFFLINE", "0"),
        ("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz"),
    ],
)
def test_a_variable_that_does_no_harm_is_not_found(name: str, value: str) -> None:
    assert found(environment={name: value}) == {}
