"""`flow.plan`, `flow.offers`, `flow.init` and what `flow.train` refuses: from a recipe's file to what the user is told."""

import json
import math
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from luthier import flow
from luthier.core import jsonl
from luthier.core.errors import DataError, PlanRefused, RecipeError, UsageError
from luthier.flow.planning import facts_of
from luthier.plan import plan as plan_module
from luthier.plan.setup import Setup
from luthier.recipe.load import LoadedRecipe
from luthier.runs import rates, store
from luthier.runs.rates import Measured
from luthier.runs.workload import Survey
from luthier.watch.series import KEYS

RECIPE = """\
name: animals
model: {base: demo, dtype: float32}   # the tiny one
data:
  sources: [{path: rows.jsonl}]
  split: {train: 0.8, validation: 0.2, test: 0}
  deduplicate: none
training:
  max_steps: 120
  global_batch_size: 8
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_RUNS", str(tmp_path / "runs"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    rows = (
        {"prompt": f"What does cat number {number} of {number % 7} do?", "completion": "meows " * (1 + number % 5)} for number in range(60)
    )
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def know_the_rate(home: Path) -> None:
    """As if this machine had run something like it before: no probe is needed."""
    recipe = flow.load(home / "recipe.yaml").recipe
    facts = facts_of(recipe, flow.prepare(recipe), flow.SILENT, probe=False)

    def keep(device: object, setup: Setup, survey: Survey) -> None:
        from luthier.plan.rate import circumstances

        here = circumstances(facts.task.place.device, rates.threads_here(facts.host), facts.task.shape, setup, survey)
        rates.keep(Measured(source="run", name="before", circumstances=here, flops=1e10, seconds=60.0))

    from luthier.plan.layout import choose

    chosen = choose(facts.task)
    keep(None, chosen.setup, chosen.survey)


def test_a_plan_tells_steps_memory_time_and_what_auto_became(home: Path) -> None:
    know_the_rate(home)
    plan = flow.plan(flow.load(home / "recipe.yaml")).to_json()
    assert {"device", "steps", "sizes", "memory", "time", "cost", "resolved", "rejected", "findings"} <= plan.keys()
    assert plan["steps"]["total"] == 120
    assert plan["steps"]["last_save_before_the_end"] < 120
    assert sum(line["bytes"] for line in plan["memory"]["lines"]) == plan["memory"]["peak_bytes"]
    assert plan["memory"]["peak_bytes"] == max(plan["memory"]["instants"].values())
    assert plan["time"]["low"] < plan["time"]["mid"] < plan["time"]["high"]
    assert plan["time"]["rate"]["source"] == "earlier runs (1)"
    assert json.loads(jsonl.dumps(plan)).keys() == plan.keys()


def test_a_plan_on_a_known_machine_loads_nothing_heavy_and_takes_a_second(home: Path) -> None:
    know_the_rate(home)
    heavy = ("torch", "transformers", "peft", "scipy.stats")
    code = (
        "import sys\nfrom pathlib import Path\nfrom luthier import flow\n"
        f"flow.plan(flow.load(Path({str(home / 'recipe.yaml')!r})))\nprint([name for name in {heavy} if name in sys.modules])"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=dict(os.environ))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert told.stdout.strip() == "[]"
    assert after.ru_utime - before.ru_utime < 1.5


def test_what_a_run_reached_is_what_the_next_plan_counts_on(home: Path) -> None:
    flow.train(flow.load(home / "recipe.yaml", ["training.max_steps=21"]))
    plan = flow.plan(flow.load(home / "recipe.yaml"))
    assert plan.time.rate.source == "earlier runs (1)"


def test_what_memory_gives_is_measured_once_where_a_bound_asks_for_it_and_training_knows(home: Path) -> None:
    know_the_rate(home)
    bound = ["decision.deploy.per_token_mean=< 1 ms", "training.max_steps=1"]

    def notes(loaded: LoadedRecipe, *, probe: bool) -> list[str]:
        facts = facts_of(loaded.recipe, flow.prepare(loaded.recipe), flow.SILENT, probe=probe)
        return [finding.code for finding in plan_module.make(facts).findings if finding.code.startswith("bound")]

    loaded, unbound = flow.load(home / "recipe.yaml", bound), flow.load(home / "recipe.yaml")
    flow.plan(unbound)
    assert notes(loaded, probe=False) == ["bound-not-checked"]
    assert notes(loaded, probe=True) == []
    assert notes(loaded, probe=False) == []
    assert sum("bytes_per_second" in record for record in jsonl.records(rates.rates_file())) == 1


def test_what_is_free_on_the_disk_reaches_the_findings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    know_the_rate(home)
    monkeypatch.setattr(plan_module, "free_disk_bytes", lambda folder: 10)
    assert "disk-too-small" in {finding.code for finding in flow.plan(flow.load(home / "recipe.yaml")).findings}


def test_checkpoints_that_a_run_has_already_reach_the_findings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = flow.load(home / "recipe.yaml", ["training.max_steps=3", "checkpoints.save_steps=1"])
    run = flow.train(loaded).run
    monkeypatch.setattr(plan_module, "free_disk_bytes", lambda folder: 10)
    assert "disk-too-small" not in {finding.code for finding in flow.plan(loaded).findings}  # finished: nothing is written any more
    shutil.rmtree(run.adapter)
    (finding,) = (finding for finding in flow.plan(loaded).findings if finding.code == "disk-too-small")
    assert finding.evidence["there"] == len(run.saved) > 0


def test_a_recipe_behind_a_link_is_changed_where_it_lies(home: Path) -> None:
    know_the_rate(home)
    (home / "real").mkdir()
    (home / "real" / "recipe.yaml").write_text(RECIPE.replace("rows.jsonl", "../rows.jsonl") + "  warmup_steps: 200\n")
    link = home / "link.yaml"
    link.symlink_to(home / "real" / "recipe.yaml")
    loaded = flow.load(link)
    flow.apply(loaded, flow.plan(loaded), ["warmup-too-long"])
    assert link.is_symlink()
    assert "200" not in (home / "real" / "recipe.yaml").read_text()


def test_rows_that_are_only_stated_are_planned_without_data(home: Path) -> None:
    loaded = flow.load(home / "recipe.yaml", ["data.sources.0.path=nowhere.jsonl", "training.epochs=3", "launch.gpu=L4"])
    plan = flow.plan(loaded, flow.stated(loaded.recipe, "1000:100", "200:400"))
    assert (plan.steps.per_epoch, plan.steps.total) == (125, 375)
    assert plan.to_json()["device"]["id"] == "L4"
    assert not (home / "prepared").exists()


def test_every_gpu_makes_an_offer_at_its_own_price(home: Path) -> None:
    loaded = flow.load(home / "recipe.yaml", ["model.base=Qwen/Qwen3-8B", "launch.gpu=L4", "launch.price_per_hour=99"])
    offers = flow.offers(loaded, flow.stated(loaded.recipe, "1000:100", "200:400"))
    by_name = {offer.device.id: offer for offer in offers}
    assert {"T4", "L4", "A10", "L40S", "A100-40GB", "A100-80GB", "A800", "H100", "H200", "B200"} <= by_name.keys()
    assert by_name["H100"].hours < by_name["L4"].hours
    assert by_name["L4"].plan.cost.mid == pytest.approx(99 * by_name["L4"].hours)
    assert by_name["H100"].plan.cost.mid == pytest.approx(by_name["H100"].device.price_per_hour * by_name["H100"].hours)
    assert not by_name["V100"].plan.chosen.memory.fits
    fits = [offer.plan.chosen.memory.fits for offer in offers]
    assert fits == sorted(fits, reverse=True)
    assert by_name["L4"].to_json()["serving"]["weights_bytes"] == pytest.approx(2 * 8.19e9, rel=0.01)


def test_a_refused_run_leaves_nothing_and_a_forced_one_says_so(home: Path) -> None:
    loaded = flow.load(home / "recipe.yaml", ["model.dtype=float16", "training.max_steps=1"])
    with pytest.raises(PlanRefused, match=r"(?s)\[float16-on-cpu\].*model\.dtype="):
        flow.train(loaded)
    assert not (home / "runs" / "animals").exists()
    with pytest.raises(UsageError, match="small-hands: no finding is called so"):
        flow.train(loaded, force=["small-hands"])
    run = flow.train(loaded, force=["float16-on-cpu"]).run
    assert [record["finding"] for record in jsonl.records(run.events) if record["event"] == "forced"] == ["float16-on-cpu"]
    assert "float16-on-cpu" in [record["code"] for record in jsonl.records(run.events) if record["event"] == "finding"]
    codes = [finding["code"] for finding in json.loads(run.plan.read_text())["findings"]]
    assert "float16-on-cpu" in codes


@pytest.mark.parametrize("divided", ["parallel.tensor=2", "parallel.shard=zero2"])
def test_an_optimizer_in_8_bits_is_not_divided_and_the_reason_is_told(home: Path, divided: str) -> None:
    loaded = flow.load(home / "recipe.yaml", ["training.optimizer=adamw_8bit", "parallel.data=2", divided])
    with pytest.raises(PlanRefused, match=r"blocks of 256 numbers, which parallel\.(tensor: 2|shard: zero2) would cut"):
        flow.train(loaded)


def test_a_findings_change_is_written_into_the_recipe_with_its_comments(home: Path) -> None:
    know_the_rate(home)
    recipe = home / "recipe.yaml"
    recipe.write_text(RECIPE + "  warmup_steps: 200\n")
    loaded = flow.load(recipe)
    planned = flow.plan(loaded)
    assert "warmup-too-long" in [finding.code for finding in planned.findings]
    (line,) = [line for line in flow.apply(loaded, planned, ["warmup-too-long"]) if "warmup_steps" in line]
    assert "200" in line
    assert "# the tiny one" in recipe.read_text()
    assert "warmup-too-long" not in [finding.code for finding in flow.plan(flow.load(recipe)).findings]
    with pytest.raises(UsageError, match="gone-with-the-wind is not among the findings"):
        flow.apply(loaded, planned, ["gone-with-the-wind"])


def test_what_cannot_be_a_recipe_is_refused_by_init_and_a_name_is_made_of_any_file(home: Path) -> None:
    (home / "none.jsonl").write_text("")
    with pytest.raises((DataError, UsageError)):
        flow.init(home / "empty.yaml", "Qwen/Qwen3-0.6B", home / "none.jsonl", gpu="L4")
    assert not (home / "empty.yaml").exists()
    shutil.copy(home / "rows.jsonl", home / "my rows (2).jsonl")
    flow.init(home / "deep" / "mine.yaml", "Qwen/Qwen3-0.6B", home / "my rows (2).jsonl", gpu="L4")
    assert flow.load(home / "deep" / "mine.yaml").recipe.name == "my-rows-2"


def test_quantised_weights_are_not_trained(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.quantization is nf4, and quantised weights cannot be trained"):
        flow.load(home / "recipe.yaml", ["lora=none", "model.quantization=nf4"])


def test_init_writes_a_recipe_that_plans(home: Path) -> None:
    flow.init(home / "mine.yaml", "Qwen/Qwen3-0.6B", home / "rows.jsonl", gpu="L4")
    loaded = flow.load(home / "mine.yaml")
    assert loaded.recipe.data.sources[0].path == str(home / "rows.jsonl")
    plan = flow.plan(loaded, flow.stated(loaded.recipe, "48:6", "100"))
    assert "refuse" not in {finding.severity for finding in plan.findings}
    assert "learning-rate" not in {finding.code for finding in plan.findings}
    with pytest.raises(UsageError, match="there is a recipe already"):
        flow.init(home / "mine.yaml", "demo", home / "rows.jsonl")


def test_a_finding_about_the_recipes_own_run_is_applied_by_its_first_lever(home: Path) -> None:
    know_the_rate(home)
    recipe = home / "recipe.yaml"
    loaded = flow.load(recipe)
    run = store.open_or_create("animals", loaded.text, recipe)
    for step in range(1, 121):
        loss = (1.0 + math.exp(-step / 4)) * (1 + 0.001 * (step % 3))
        run.metric({**dict.fromkeys(KEYS), "step": step, "epoch": step / 6, "kind": "train", "loss": loss, "learning_rate": 3e-4})
    with pytest.raises(UsageError, match="overfitting is not among the findings") as known:
        flow.apply(loaded, flow.plan(loaded), ["overfitting"])
    assert "plateau" in known.value.change
    assert flow.apply(loaded, flow.plan(loaded), ["plateau"]) == ["training.max_steps: 120 → 91"]
    assert "max_steps: 91" in recipe.read_text() and "# the tiny one" in recipe.read_text()
    changed = flow.load(recipe)
    with pytest.raises(UsageError):  # the changed recipe has a run of its own, of which nothing is known yet
        flow.apply(changed, flow.plan(changed), ["plateau"])
