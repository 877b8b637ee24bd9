"""A run that vLLM serves: compared before it is called ready, and handed over as a folder that starts it.

What stands for vLLM is a server of its own process with a real model in it (tests/serve/stand_in.py); vLLM itself: `pytest -m vllm`.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML
from safetensors.torch import load_file

from luthier import flow
from luthier.core import jsonl
from luthier.core.errors import ModelError, RunError, UsageError
from luthier.flow.serving import Opening
from luthier.flow.vllm import Answering, answering
from luthier.runs.store import RunFolder
from tests.export.handed import trained
from tests.serve import stand_in
from tests.train.workshop import Workshop

FREE = Opening(port=0)
VLLM: dict[str, Any] = {"serving": {"engine": "vllm", "port": 0}}


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    python = tmp_path / "vllm-python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {stand_in.__file__} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("LUTHIER_VLLM", str(python))
    monkeypatch.setenv("STAND_IN", str(tmp_path / "way"))
    be("right")
    return Workshop(tmp_path)


def be(way: str) -> None:
    """Make the server that stands for vLLM wrong, or right."""
    Path(os.environ["STAND_IN"]).write_text(way)


def address(found: Answering, monkeypatch: pytest.MonkeyPatch, model: str = "run") -> flow.Address:
    monkeypatch.setenv("LUTHIER_TOKEN", found.token)
    return flow.Address(url=f"{found.url}/v1", model=model)


def test_what_was_trained_is_what_answers_and_verify_compares_it_with_the_merged_model_too(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(workshop, **VLLM)
    with answering(run.name, (), FREE) as found:
        assert found.verification != "none" and found.verification.passed
        assert found.verification.apart["served"].mean < 1e-5
        assert found.models == ("tiny", "base")
        flow.export(run.name)
        assert flow.verify(run.name, served=address(found, monkeypatch)).apart.keys() == {"merged", "served"}
        as_base = flow.verify(run.name, served=address(found, monkeypatch, "base"))
        assert as_base.apart["served"].mean == pytest.approx(as_base.change.mean, rel=1e-4)
        assert as_base.failures[0].endswith("it answers as the base does: the adapter is not applied")
        with pytest.raises(ModelError, match="no model 'nobody'"):
            flow.verify(run.name, served=address(found, monkeypatch, "nobody"))
        monkeypatch.setenv("LUTHIER_TOKEN", "")
        with pytest.raises(RunError, match="wants a token"):
            flow.verify(run.name, served=flow.Address(url=found.url))
    (served,) = [record for record in jsonl.records(run.events) if record["event"] == "served"]
    assert served["engine"] == "vllm" and served["verification"]["passed"]
    stops = json.loads((run.path / "serving" / "generation_config.json").read_text())
    assert set(stops["eos_token_id"]) == set(json.loads((run.adapter / "provenance.json").read_text())["stop_ids"])


def test_a_server_that_answers_otherwise_is_found_out_and_never_becomes_ready(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traps 19, 24, 6."""
    run = trained(workshop, **VLLM)
    with answering(run.name, (), FREE, verified=False) as found:
        assert found.verification == "none"
        for way, told in (
            ("base", "it answers as the base does: the adapter is not applied"),
            ("scaled", "served is not what was trained"),
            ("bos", "the server makes "),
        ):
            be(way)
            assert told in flow.verify(run.name, served=address(found, monkeypatch)).failures[0]
    be("base")
    with pytest.raises(flow.VerificationError, match="the adapter is not applied"), answering(run.name, (), FREE):
        pass


def test_one_that_dies_while_it_loads_is_told_in_its_last_words(workshop: Workshop) -> None:
    run = trained(workshop, training={"max_steps": 1}, **VLLM)
    be("dies")
    with pytest.raises(RunError, match="LoRA rank 64 is greater than max_lora_rank 16"), answering(run.name, (), FREE, verified=False):
        pass


@pytest.mark.slow
def test_an_adapter_that_vllm_cannot_load_is_served_merged(workshop: Workshop) -> None:
    run = trained(workshop, lora={"use_dora": True}, **VLLM)
    with pytest.raises(UsageError, match="it is DoRA"), answering(run.name, (), FREE):
        pass
    flow.export(run.name)
    with answering(run.name, (), FREE) as found:
        assert found.verification != "none" and found.verification.passed and found.models == ("tiny",)


def test_a_plain_model_is_served_by_its_folder_or_a_recipe_without_rows(workshop: Workshop) -> None:
    base = str(workshop.base())
    with answering(base, ("serving.engine=vllm", "serving.max_model_len=64", "model.dtype=float32"), FREE) as found:
        assert found.models == ("base",) and found.verification == "none"
    file = workshop.folder / "serve.yaml"
    file.write_text(f"model: {{base: {base}}}\nserving: {{engine: vllm, port: 8100}}\n")
    assert flow.serving_of(str(file), ("serving.port=9",)).port == 9
    assert flow.serving_of(base, ()).engine == "embedded"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("lora.r=8", "not by `lora`"),
        ("serving.prot=1", r"serving\.prot|prot"),
        ("serving.options.eager=true", "does not read `options.eager`"),
        ("serving.port=many", "port"),
    ],
)
def test_what_serving_does_not_read_is_refused(change: str, told: str, workshop: Workshop) -> None:
    with pytest.raises(UsageError, match=told):
        flow.serving_of("Qwen/Qwen3-0.6B", (change,))


def test_a_run_is_served_as_it_was_trained(workshop: Workshop) -> None:
    run = trained(workshop, training={"max_steps": 1})
    assert flow.serving_of(run.name, ("serving.engine=vllm", "serving.port=8101")).port == 8101
    with pytest.raises(UsageError, match="served as it was trained"):
        flow.serving_of(run.name, ("model.dtype=float16",))
    for opening, told in ((Opening(host="0.0.0.0", port=0), "under /v1 alone"), (Opening(port=0, seconds=5), "no request by the time")):
        with pytest.raises(UsageError, match=told), answering(run.name, ("serving.engine=vllm",), opening):
            pass


@pytest.mark.slow
def test_the_command_line_serves_until_it_is_stopped_and_leaves_nobody_behind(workshop: Workshop) -> None:
    run = trained(workshop, **VLLM)
    words = [sys.executable, "-m", "luthier.cli.main", "serve", run.name, "serving.options.enforce_eager=true"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stderr
        url, token = process.stdout.readline().strip(), process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", url) and token.startswith("token ")
        listed = command_lines()
        assert "--enforce-eager" in listed
        assert token.removeprefix("token ") not in listed
        ended = subprocess.run(
            [sys.executable, "-m", "luthier.cli.main", "verify", run.name, "--url", url, "--token-env", "SERVED", "--json"],
            env={**os.environ, "SERVED": token.removeprefix("token ")},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stderr
        assert json.loads(ended.stdout)["apart"]["served"]["mean"] < 1e-5 and "trained = served" in ended.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, process.stderr.read()
        port = url.split(":")[2].removesuffix("/v1")
        assert f"--port {port}" not in command_lines()
    finally:
        process.terminate()  # should the test have failed before


def command_lines() -> str:
    """Of all processes, as anybody on the machine can read them."""
    return "\n".join(" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))


def exported(workshop: Workshop, **sections: Any) -> tuple[RunFolder, Path]:
    run = trained(workshop, **sections)
    found = flow.export(run.name, to="vllm")
    assert found.verification.passed
    return run, found.folder


def test_a_folder_for_vllm_has_the_adapter_and_what_starts_it_and_no_secret(workshop: Workshop) -> None:
    run, folder = exported(workshop, serving={"engine": "vllm", "port": 8101})
    assert folder == run.path / "vllm"
    assert {path.name for path in folder.iterdir()} >= {"compose.yaml", "luthier-tiny.service", "env.example", "generation_config.json"}
    assert load_file(folder / "adapter_model.safetensors").keys() == load_file(run.adapter / "adapter_model.safetensors").keys()
    compose = YAML(typ="safe").load((folder / "compose.yaml").read_text())["services"]["vllm"]
    words = compose["command"]
    assert words[words.index("--lora-modules") + 1] == "tiny=/run-files" and words[words.index("--model") + 1] == "/base"
    assert f"{workshop.base()}:/base:ro" in compose["volumes"] and compose["ports"] == ["127.0.0.1:8101:8101"]
    assert compose["environment"]["VLLM_API_KEY"].startswith("${VLLM_API_KEY:?")
    unit = (folder / "luthier-tiny.service").read_text()
    assert f"--lora-modules tiny={folder} " in unit and "--host 127.0.0.1 --port 8101" in unit
    assert "EnvironmentFile=/etc/luthier/tiny.env" in unit and "/usr/bin/test -n ${VLLM_API_KEY}" in unit
    assert re.search(r"^VLLM_API_KEY=$", (folder / "env.example").read_text(), re.MULTILINE)
    card = (folder / "README.md").read_text()
    assert "library_name: peft" in card and "luthier verify tiny --url http://127.0.0.1:8101 --token-env VLLM_API_KEY" in card
    flow.export(run.name, to="vllm")  # an earlier export is replaced


@pytest.mark.slow
def test_an_adapter_that_vllm_cannot_load_is_handed_over_merged(workshop: Workshop) -> None:
    _, folder = exported(workshop, lora={"use_dora": True})
    assert (folder / "model.safetensors").exists() and not list(folder.glob("adapter*"))
    words = YAML(typ="safe").load((folder / "compose.yaml").read_text())["services"]["vllm"]["command"]
    assert words[words.index("--model") + 1] == "/run-files" and "--enable-lora" not in words
    assert json.loads((folder / "provenance.json").read_text())["vllm"]["merged_because"] == ["it is DoRA, which vLLM refuses"]


def test_a_port_that_would_be_drawn_each_time_is_the_usual_one_in_what_is_written_down(workshop: Workshop) -> None:
    _, folder = exported(workshop, **VLLM)
    assert YAML(typ="safe").load((folder / "compose.yaml").read_text())["services"]["vllm"]["ports"] == ["127.0.0.1:8000:8000"]


def test_the_unit_is_one_that_systemd_takes(workshop: Workshop, tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not here")
    _, folder = exported(workshop, name="50-percent")
    found = subprocess.run(
        ["systemd-analyze", "verify", str(folder / "luthier-50-percent.service")], capture_output=True, text=True, check=False, timeout=60
    )
    assert "luthier-50-percent" not in found.stderr, found.stderr


@pytest.mark.slow
def test_the_exported_command_starts_and_serves_what_was_trained(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.serve import child

    port = child.free_port(0)
    run, folder = exported(workshop, serving={"engine": "vllm", "port": port})
    command = json.loads((folder / "provenance.json").read_text())["vllm"]["command"]
    monkeypatch.setenv("LUTHIER_TOKEN", "of-the-test")
    with child.running(command, {"VLLM_API_KEY": "of-the-test"}, workshop.folder / "log.txt") as server:
        server.until_healthy(f"http://127.0.0.1:{port}/health", 60)
        assert flow.verify(run.name, served=flow.Address(url=f"http://127.0.0.1:{port}")).passed
