"""What is compared before something is called the model that was trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.progress import Silent
from luthier.data.store import TokenRow
from luthier.export.merge import Handed, write
from luthier.export.verify import Apart, Live, LocalSpeaker, LogProbabilities, Sample, Speaker, Verification, judge, verify
from luthier.train.batch import collate
from luthier.train.card import Known, Origin
from luthier.train.objective import nll_sum
from luthier.train.run import train
from tests.model.zoo import shared_rows, tiny
from tests.train.workshop import CPU, FLOAT32, Workshop


def handed(workshop: Workshop, name: str = "run", **sections: Any) -> tuple[Handed, Sample]:
    """What a short run left."""
    job = workshop.job(name, **sections)
    result = train(job)
    sample = Sample.of(job.prepared)
    origin = Origin(recipe=job.recipe, step=result.final_step, final="last", data_hash=job.prepared.summary.hash)
    return Handed(origin=origin, adapter=job.folder.adapter, tokenizer=job.tokenizer, precision=FLOAT32, rows=sample.rows), sample


def written(of: Handed, folder: Path) -> Path:
    folder.mkdir()
    write(of, folder, Known(), Silent())
    return folder


def compared(of: tuple[Handed, Sample], folder: Path) -> Verification:
    return verify(*of, {"merged": folder}, Silent())


def scaled(adapter: Path, factor: float) -> None:
    """Change an adapter's B in its folder."""
    weights = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in weights.items():
        if "lora_B" in name:
            weights[name] = tensor * factor
    save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})


def test_the_merged_model_is_the_live_adapter_to_a_millionth_of_what_that_changes(workshop: Workshop, tmp_path: Path) -> None:
    of = handed(workshop)
    found = compared(of, written(of[0], tmp_path / "merged"))
    assert found.passed and found.rows == 6
    assert found.apart["merged"].mean < 1e-6 * found.change.mean
    assert found.floor.max < 1e-5


@pytest.mark.parametrize(
    "sections",
    [
        {"lora": {"use_dora": True, "use_rslora": True}},
        {"model": {"quantization": "nf4"}},
        {"model": {"base": "mixture"}, "lora": {"target_parameters": "experts"}},
        {"lora": "none", "training": {"learning_rate": 1e-3}},
    ],
    ids=["dora", "nf4", "experts", "full"],
)
def test_so_it_is_however_it_was_trained(sections: dict[str, Any], workshop: Workshop, tmp_path: Path) -> None:
    of = handed(workshop, **sections)
    found = compared(of, written(of[0], tmp_path / "merged"))
    assert found.passed and found.apart["merged"].mean < 1e-4 * found.change.mean


def test_an_adapter_of_zeros_is_found(workshop: Workshop, tmp_path: Path) -> None:
    of = handed(workshop, training={"max_steps": 2})
    scaled(of[0].adapter, 0.0)
    found = compared(of, written(of[0], tmp_path / "merged"))
    assert found.change.mean == 0.0 and len(found.failures) == 1
    assert found.failures[0].startswith("the adapter changes nothing")


def test_a_merge_that_scales_the_adapter_otherwise_is_found(workshop: Workshop, tmp_path: Path) -> None:
    """As a server that reads alpha, or rsLoRA, wrongly (trap 24)."""
    of = handed(workshop)
    scaled(of[0].adapter, 1.02)
    folder = written(of[0], tmp_path / "merged")
    scaled(of[0].adapter, 1 / 1.02)
    (failure,) = compared(of, folder).failures
    assert failure.startswith("merged is not what was trained")


def test_the_base_in_place_of_the_merged_model_is_found(workshop: Workshop) -> None:
    of = handed(workshop)
    found = compared(of, workshop.base())
    assert found.apart["merged"].mean == pytest.approx(found.change.mean, rel=1e-6)
    assert not found.passed


def test_a_template_that_renders_otherwise_is_found(workshop: Workshop, tmp_path: Path) -> None:
    of = handed(workshop)
    folder = written(of[0], tmp_path / "merged")
    template = folder / "chat_template.jinja"
    template.write_text("{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}" + template.read_text())
    (failure,) = compared(of, folder).failures
    assert failure.startswith("the merged model's tokenizer renders validation row 0 (") and "other token ids" in failure


def test_a_folder_that_stops_on_other_ids_is_found(workshop: Workshop, tmp_path: Path) -> None:
    of = handed(workshop)
    folder = written(of[0], tmp_path / "merged")
    (folder / "generation_config.json").write_text('{"eos_token_id": [5]}')
    (failure,) = compared(of, folder).failures
    assert "stops on" in failure


def test_a_sample_is_of_held_out_rows_where_there_are_some_and_evenly_spaced(workshop: Workshop) -> None:
    job = workshop.job(num_rows=200, data={"split": {"train": 0.5, "validation": 0.5, "test": 0}})
    sample = Sample.of(job.prepared)
    assert sample.split == "validation"
    assert sample.numbers == tuple(range(0, 100, 4))
    assert [example.answer.content for _, example in sample.examples] == [
        job.prepared.examples("validation")[number].answer.content for number in sample.numbers
    ]
    alone = workshop.job("alone", data={"split": {"train": 1, "validation": 0, "test": 0}})
    assert Sample.of(alone.prepared).split == "train"


def test_log_probabilities_sum_to_the_loss_that_training_computes() -> None:
    model, rows = tiny("qwen3"), [one for one in shared_rows() if one.supervised.any()]
    told = LocalSpeaker(model=model, precision=FLOAT32, rows_at_once=4).log_probabilities(rows)
    assert [len(each) for each in told] == [int(one.supervised.sum()) for one in rows]
    for number, (one, each) in enumerate(zip(rows, told, strict=True)):
        assert -each.sum() == pytest.approx(nll_sum(model.eval(), collate([one], [number], CPU)).item(), rel=1e-4)


class Server:
    """A speaker that is no model here: it tells what it was told, each token so many nats apart."""

    def __init__(self, heard: LogProbabilities, apart: float) -> None:
        self.heard, self.apart = heard, apart

    def log_probabilities(self, rows: Sequence[TokenRow]) -> LogProbabilities:
        assert len(rows) == len(self.heard)
        return [each + self.apart for each in self.heard]


def live(*, floor: float, change: float) -> Live:
    told = [np.array([-1.0, -2.0]), np.array([-0.5])]
    return Live(told=told, base=[each - change for each in told], floor=Apart(mean=floor, max=floor))


@pytest.mark.parametrize(
    ("dtype", "apart", "passes"),
    [
        (torch.float32, 0.0009, True),
        (torch.float32, 0.0011, False),
        (torch.bfloat16, 0.09, True),
        (torch.bfloat16, 0.11, False),
    ],
)
def test_any_speaker_passes_within_the_share_of_the_change_that_its_type_may_cost(dtype: torch.dtype, apart: float, passes: bool) -> None:
    known = live(floor=1e-6, change=1.0)
    served: Speaker = Server(known.told, apart)
    found = judge(known, {"served": served.log_probabilities(shared_rows()[:2])}, dtype)
    assert found.passed is passes
    assert found.apart["served"].mean == pytest.approx(apart)
    assert ("served is not what was trained" in "".join(found.failures)) is not passes


def test_what_an_adapter_changes_beyond_a_nat_allows_nothing_more() -> None:
    known = live(floor=1e-6, change=6.0)
    for apart, passes in ((0.09, True), (0.11, False)):
        assert judge(known, {"served": Server(known.told, apart).log_probabilities(shared_rows()[:2])}, torch.bfloat16).passed is passes


def test_what_is_within_four_noise_floors_is_noise_for_adapter_and_speaker_alike() -> None:
    known = live(floor=0.01, change=0.05)
    assert judge(known, {"served": Server(known.told, 0.039).log_probabilities(shared_rows()[:2])}, torch.float32).passed
    drowned = judge(live(floor=0.01, change=0.039), {}, torch.float32)
    assert drowned.failures and drowned.failures[0].startswith("the adapter changes nothing")


def test_a_server_that_answers_as_the_base_does_is_told_so() -> None:
    """As one that drops the adapter in silence (trap 19)."""
    known = live(floor=1e-6, change=1.0)
    (failure,) = judge(known, {"served": known.base}, torch.float32).failures
    assert failure.endswith("it answers as the base does: the adapter is not applied")


def test_what_is_no_number_is_within_nothing() -> None:
    known = live(floor=0.0, change=1.0)
    wrong = judge(known, {"served": [np.array([np.nan, -2.0]), np.array([-0.5])]}, torch.float32)
    assert not wrong.passed and wrong.to_json()["passed"] is False
