"""vLLM itself, started for real and compared with what was trained: `pytest -m vllm`, with LUTHIER_VLLM (docs/guide/vllm.md).

Not in CI: its environment has 3.5 GB. Date and result of each run stand in docs/notes/log.md.
"""

from pathlib import Path
from typing import Any

import pytest

from luthier import flow
from luthier.flow.serving import Opening
from luthier.flow.vllm import answering
from luthier.runs.store import RunFolder
from tests.export.handed import trained
from tests.train.workshop import Workshop

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
EAGER = ("serving.engine=vllm", "serving.options.enforce_eager=true")


@pytest.fixture
def workshop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    return Workshop(tmp_path)


def run_of(workshop: Workshop, **sections: Any) -> RunFolder:
    """Over the demo base: vLLM on a CPU has no heads as narrow as those of the tests' own."""
    return trained(
        workshop, model={"base": "demo", "dtype": "bfloat16", **sections.pop("model", {})}, training={"max_steps": 40}, **sections
    )


@pytest.mark.parametrize(
    "lora",
    [{"r": 4, "alpha": 8}, {"r": 12, "alpha": 24, "use_rslora": True}],
    ids=["a rank that is rounded up", "rsLoRA"],
)
def test_an_adapter_is_served_as_it_was_trained(lora: dict[str, Any], workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(workshop, lora=lora)
    with answering(run.name, EAGER, Opening(port=0)) as found:
        assert found.verification != "none" and found.verification.passed
        monkeypatch.setenv("LUTHIER_TOKEN", found.token)
        again = flow.verify(run.name, served=flow.Address(url=found.url))
        base = flow.verify(run.name, served=flow.Address(url=found.url, model="demo"))
    assert again.passed
    assert not base.passed and "the adapter is not applied" in base.failures[0]
    print(again.to_json()["apart"], again.floor, again.change)  # for docs/notes/log.md


def test_an_adapter_that_it_cannot_load_is_served_merged(workshop: Workshop) -> None:
    run = run_of(workshop, lora={"use_dora": True})
    flow.export(run.name)
    with answering(run.name, EAGER, Opening(port=0)) as found:
        assert found.verification != "none" and found.verification.passed and found.models == (run.name,)
