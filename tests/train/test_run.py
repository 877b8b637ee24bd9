"""A job leaves an adapter that loads everywhere and says where it comes from."""

import gc
import json
import os
from pathlib import Path

import pytest
import torch
from peft import PeftModel, PeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.core import jsonl
from luthier.core.errors import NonFiniteError, RecipeError, RunError
from luthier.runs.workload import MicroBatchSize
from luthier.train.card import Origin
from luthier.train.checkpoint import State
from luthier.train.final import save_final
from luthier.train.run import TrainingJob, _set_up, train
from luthier.train.validate import validation_loss
from tests.train.workshop import FLOAT32, Workshop

SIZE = MicroBatchSize(rows=8, tokens=10**6)


def last_validation_loss(job: TrainingJob) -> float:
    return [record["loss"] for record in jsonl.records(job.folder.metrics) if record["kind"] == "validation"][-1]


def test_the_adapter_loads_with_peft_alone_and_has_the_loss_that_was_recorded(workshop: Workshop) -> None:
    job = workshop.job(checkpoints={"final": "last"})
    train(job)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(workshop.base()), job.folder.adapter)
    loss = validation_loss(model, job.prepared.rows("validation"), SIZE, FLOAT32).loss
    assert loss == pytest.approx(last_validation_loss(job), rel=1e-6)
    base = validation_loss(AutoModelForCausalLM.from_pretrained(workshop.base()), job.prepared.rows("validation"), SIZE, FLOAT32).loss
    assert loss < base - 0.5


def test_the_adapter_brings_tokenizer_template_and_provenance(workshop: Workshop) -> None:
    job = workshop.job()
    train(job)
    assert AutoTokenizer.from_pretrained(job.folder.adapter).chat_template == job.tokenizer.pretrained.chat_template
    provenance = json.loads((job.folder.adapter / "provenance.json").read_text())
    assert provenance["template_hash"] == job.tokenizer.template_hash
    assert (provenance["data_hash"], provenance["seed"], provenance["step"]) == (job.prepared.summary.hash, 3, 12)
    assert provenance["quantization"] == "none" and "double_quant" not in provenance
    assert not list(job.folder.path.rglob("*.bin")) + list(job.folder.path.rglob("*.pt"))


def test_full_fine_tuning_saves_the_whole_model(workshop: Workshop) -> None:
    job = workshop.job(lora="none", checkpoints={"final": "last"}, model={"dtype": "bfloat16"}, training={"learning_rate": 1e-3})
    train(job)
    model = AutoModelForCausalLM.from_pretrained(job.folder.adapter)
    assert model.dtype == torch.float32
    loss = validation_loss(model, job.prepared.rows("validation"), SIZE, FLOAT32).loss
    assert loss == pytest.approx(last_validation_loss(job), rel=2e-2)  # recorded in bfloat16
    base = AutoModelForCausalLM.from_pretrained(workshop.base())
    assert not any(torch.equal(weight, base.get_parameter(name)) for name, weight in model.named_parameters())


def test_saving_a_whole_model_draws_no_bar_over_luthiers_own(workshop: Workshop, capfd: pytest.CaptureFixture[str]) -> None:
    job = workshop.job(lora="none", training={"max_steps": 1, "learning_rate": 1e-3})
    capfd.readouterr()
    train(job)
    assert (job.folder.adapter / "model.safetensors").exists()
    assert "%|" not in "".join(capfd.readouterr())


def test_training_goes_on_from_another_runs_adapter(workshop: Workshop) -> None:
    first, second = workshop.job("first"), workshop.job("second", lora={"init_from": "first"})
    train(first)
    loop, _ = _set_up(second)
    inherited = validation_loss(loop.model, second.prepared.rows("validation"), SIZE, FLOAT32).loss
    assert inherited == pytest.approx(last_validation_loss(first), rel=1e-6)
    with pytest.raises(RecipeError, match=r"r 4, the recipe 8"):
        train(workshop.job("third", lora={"init_from": "first", "r": 8}))


def test_the_same_seed_gives_the_same_adapter_and_another_seed_another(workshop: Workshop) -> None:
    adapters = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        job = workshop.job(name, seed=seed, training={"max_steps": 2})
        train(job)
        adapters.append((job.folder.adapter / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1] != adapters[2]


def test_a_base_stored_in_bfloat16_trains_a_float32_adapter(workshop: Workshop) -> None:
    job = workshop.job(model={"dtype": "bfloat16"}, checkpoints={"final": "last"})
    train(job)
    assert {tensor.dtype for tensor in load_file(job.folder.adapter / "adapter_model.safetensors").values()} == {torch.float32}
    exact = workshop.job("exact", checkpoints={"final": "last"})
    train(exact)
    assert last_validation_loss(job) == pytest.approx(last_validation_loss(exact), rel=3e-2)


def test_weights_that_are_not_finite_are_never_final(workshop: Workshop) -> None:
    job = workshop.job()
    loop, _ = _set_up(job)
    with torch.no_grad():
        next(weight for weight in loop.model.parameters() if weight.requires_grad)[0] = torch.nan
    origin = Origin(recipe=job.recipe, step=State().step, final="last", data_hash="0")
    with pytest.raises(NonFiniteError, match="not finite"):
        save_final(loop.placed, job.tokenizer, job.folder, origin)
    assert not job.folder.adapter.exists()


def test_what_auto_became_stands_in_the_plan(workshop: Workshop) -> None:
    job = workshop.job(model={"dtype": "auto"}, training={"micro_batch_size": "auto", "max_steps": 1})
    result = train(job)
    plan = json.loads(job.folder.plan.read_text())
    assert plan["steps"]["total"] == 1
    told = {item["path"] for item in plan["resolved"]}
    assert told == {item.path for item in result.plan.resolved}
    assert {"model.dtype", "model.attention", "training.micro_batch_size", "data.packing", "checkpoints.final"} <= told
    assert all(item["value"] != "auto" and item["why"] for item in plan["resolved"])


def test_a_damaged_best_checkpoint_gives_way_to_the_last(workshop: Workshop) -> None:
    job = workshop.job(training={"max_steps": 8, "learning_rate": 0.5}, checkpoints={"eval_steps": 1, "early_stopping_patience": "off"})
    result = train(job)
    assert result.best is not None
    assert result.best.step < 8
    checkpoint: Path = job.folder.checkpoint(result.best.step)
    (checkpoint / "adapter.safetensors").write_bytes(b"")
    again = train(job)
    assert (again.best, again.final_step) == (None, 8)
    assert "damaged" in [record["event"] for record in jsonl.records(job.folder.events)]


def test_packing_is_told_and_changes_how_a_step_is_computed_but_not_what(workshop: Workshop) -> None:
    losses, kinds = {}, {}
    for packing in ("off", "bins", "tree", "auto"):
        job = workshop.job(packing, lora={"dropout": 0.0}, data={"packing": packing}, training={"max_steps": 6})
        train(job)
        losses[packing] = [record["loss"] for record in jsonl.records(job.folder.metrics)]
        kinds[packing] = json.loads(job.folder.plan.read_text())["sizes"]["packing"]
        (engine,) = [record for record in jsonl.records(job.folder.events) if record["event"] == "engine"]
        assert engine["layers"] == (0 if packing == "off" else 2)
    assert {packing: kinds[packing] for packing in ("off", "bins", "tree")} == {"off": "off", "bins": "bins", "tree": "tree"}
    assert kinds["auto"] in ("bins", "tree")
    for packing in ("bins", "tree", "auto"):
        assert losses[packing] == pytest.approx(losses["off"], rel=1e-4)


def test_after_training_the_model_is_gone(workshop: Workshop) -> None:
    def models() -> int:
        return sum(type(thing) is PeftModelForCausalLM for thing in gc.get_objects())

    gc.collect()
    before = models()
    train(workshop.job())
    assert models() == before


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_who_may_read_a_runs_files_is_the_umasks_to_say(workshop: Workshop, umask: int, mode: int) -> None:
    """So that a server that runs as another user of the group can load the adapter."""
    job = workshop.job()
    before = os.umask(umask)
    try:
        train(job)
    finally:
        os.umask(before)
    files = [path for folder in (job.folder.adapter, *job.folder.saved) for path in folder.iterdir()]
    assert len([path for path in files if path.suffix == ".safetensors"]) > 2
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


def test_a_run_of_a_version_that_drew_dropout_otherwise_is_not_resumed(workshop: Workshop) -> None:
    job = workshop.job()
    train(job)
    plan = json.loads(job.folder.plan.read_text())
    del plan["sizes"]["packing"]
    job.folder.plan.write_text(json.dumps(plan))
    job.folder.events.unlink()  # that version did not note sizes there
    with pytest.raises(RunError, match="begun by a version"):
        train(job)
