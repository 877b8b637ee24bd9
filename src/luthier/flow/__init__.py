"""Luthier's Python API: one function per verb. The only place where the parts are wired.

Every function imports what it needs when it is called: `luthier --help` must not wait for the recipe's schema, nor `prepare` for torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.core import files
from luthier.core.envfile import give
from luthier.core.errors import RecipeError, RunError, UsageError
from luthier.core.progress import Progress
from luthier.core.signals import Interrupted, Kept
from luthier.evaluate.options import Options
from luthier.flow.checking import check
from luthier.flow.evaluating import evaluate_rank
from luthier.flow.handed import Exported, To, VerificationError
from luthier.flow.handing import Address, export, verify
from luthier.flow.health import doctor, write_unit
from luthier.flow.launching import Launched, launch, launch_text, opened
from luthier.flow.planning import SILENT, apply, facts_of, init, keep_plan, offers, plan, refuse, refuse_absent_devices, stated
from luthier.flow.proving import Evaluated, decide, evaluate, kept_report
from luthier.flow.reinforcing import rl, rows_at_most
from luthier.flow.reporting import compare, record, record_of, report, rows
from luthier.flow.reviewing import review, reviewed, write_ratings
from luthier.flow.serving import Opening, Standing, serve, talking
from luthier.flow.steering import Saved, save, stop
from luthier.flow.sweeping import sweep
from luthier.flow.training import train_here, train_in_ranks, train_on_node, train_rank
from luthier.flow.vllm import Answering, serve_vllm, serving_of
from luthier.flow.watching import every_run, logs, look, seen, series, status, statuses, statuses_of

if TYPE_CHECKING:
    from luthier.data.inspect import InspectedRow
    from luthier.data.store import Prepared
    from luthier.launch.nodes import Node
    from luthier.plan.plan import Plan
    from luthier.plan.steps import Steps
    from luthier.recipe.load import LoadedRecipe
    from luthier.recipe.schema import Recipe
    from luthier.runs.store import RunFolder


__all__ = [
    "SILENT",
    "Address",
    "Answering",
    "Evaluated",
    "Exported",
    "Launched",
    "Opening",
    "Options",
    "Saved",
    "Standing",
    "To",
    "Trained",
    "VerificationError",
    "apply",
    "check",
    "compare",
    "decide",
    "demo",
    "doctor",
    "evaluate",
    "evaluate_rank",
    "events",
    "every_run",
    "export",
    "init",
    "inspect",
    "keep_plan",
    "kept_report",
    "launch",
    "launch_text",
    "load",
    "logs",
    "look",
    "offers",
    "plan",
    "prepare",
    "record",
    "record_of",
    "report",
    "review",
    "reviewed",
    "rl",
    "rows",
    "save",
    "seen",
    "series",
    "serve",
    "serve_vllm",
    "serving_of",
    "stated",
    "status",
    "statuses",
    "statuses_of",
    "steps",
    "stop",
    "sweep",
    "talking",
    "train",
    "train_rank",
    "verify",
    "write_ratings",
    "write_splits",
    "write_unit",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A finished run and its steps."""

    run: RunFolder
    steps: Steps


def load(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe in a YAML or TOML file, changed by `key=value` overrides, with the origin of every value."""
    from luthier.recipe.load import load as load_recipe

    return load_recipe(path, overrides)


def prepare(recipe: Recipe, progress: Progress = SILENT) -> Prepared:
    """The recipe's data as token rows on disk; made once for the same rows, tokenizer, template and rules."""
    from luthier.data.prepare import prepare as prepare_data

    return prepare_data(recipe, progress)


def steps(recipe: Recipe, prepared: Prepared) -> Steps:
    """How many steps the recipe takes over the prepared rows, and where it validates and saves."""
    from luthier.plan.steps import count_steps

    splits = prepared.summary.splits
    validation_rows = splits["validation"].rows if "validation" in splits else 0
    rows = splits["train"].rows if recipe.rl == "none" else len(rows_at_most(recipe.rl, prepared))
    return count_steps(rows, validation_rows, recipe.training, recipe.checkpoints)


def train(loaded: LoadedRecipe, progress: Progress = SILENT, force: Sequence[str] = ()) -> Trained:
    """A finished run of the recipe: begun, resumed from its newest checkpoint, or already there.

    It is planned first; raises PlanRefused on a `refuse` finding, unless its code is in `force`, which the run records. On several nodes
    the first does all this, and the others train what it has opened.
    """
    from luthier.launch.attempt import end_leftovers
    from luthier.launch.nodes import node_here
    from luthier.plan.plan import make
    from luthier.recipe.load import difference
    from luthier.runs import control
    from luthier.runs.environment import write_environment
    from luthier.runs.store import alone, find, open_or_create
    from luthier.runs.summary import DataSummary
    from luthier.train.able import refuse_what_cannot_be_trained
    from luthier.watch.trackers import tracked

    recipe = loaded.recipe
    give(recipe.launch.env_file)
    refuse_what_cannot_be_trained(recipe)
    refuse_absent_devices(recipe)
    node = node_here(recipe)
    if not node.first:
        return _trained_on_node(loaded, node, progress)
    prepared = prepare(recipe, progress)
    planned = make(facts_of(recipe, prepared, progress, probe=False))
    refuse(planned, force)
    run = open_or_create(recipe.name, loaded.text, loaded.source)
    if run.name != recipe.name:
        changed = difference(find(recipe.name).recipe_text, loaded.text)
        progress.say(f"run {recipe.name} has another recipe; this one is {run.name}, with {'; '.join(changed)}")
    with alone(run):
        end_leftovers(run)
        control.forget(run)
        if run.data.exists() and DataSummary.read(run.data).hash != prepared.summary.hash:
            change = "give the run another name, or put the old rows back"
            raise RunError("the rows have changed since this run began", where=str(run.path), change=change)
        _mend_recipe(run, loaded, progress)
        if run.finished:
            progress.say(f"{run.path} is finished; change the recipe to train anew")
            return Trained(run=run, steps=planned.steps)
        if changed := difference(run.recipe_text, loaded.text):  # only where it is trained
            files.write(run.recipe, loaded.text)
            run.event("moved", changes=changed)
            progress.say(f"the run goes on with {'; '.join(changed)}")
        _look_at_plan(run, progress)
        prepared.summary.write(run.data)
        write_environment(run, prepared.summary)
        _record(run, planned, force, progress)
        try:
            with tracked(run, recipe.tracking, progress.say):
                if planned.setup.layout.devices > 1 or recipe.launch.restarts or recipe.launch.on == "ray":
                    train_in_ranks(run, planned, node, progress)
                else:
                    train_here(run, planned, prepared, progress)
        except Interrupted as ended:
            raise Interrupted(ended.signal, _kept(run, planned.steps.total)) from None
    return Trained(run=run, steps=planned.steps)


def inspect(recipe: Recipe, split: str, numbers: Sequence[int], progress: Progress = SILENT) -> list[InspectedRow]:
    """Rows of a split as the model sees them: tokens, and which of them are trained on."""
    from luthier.data.inspect import inspect_rows
    from luthier.data.tokenizer import load_tokenizer

    prepared = prepare(recipe, progress)
    num_rows = len(prepared.rows(split))
    if wrong := [number for number in numbers if not 0 <= number < num_rows]:
        raise UsageError(f"{split} has no row {wrong[0]}", change=f"its {num_rows} rows are numbered from 0")
    return inspect_rows(prepared, load_tokenizer(recipe.model), split, numbers)


def demo() -> LoadedRecipe:
    """The recipe of `luthier quickstart`; its base model and rows lie in the package."""
    from luthier.demo import RECIPE

    return load(RECIPE)


def write_splits(prepared: Prepared, folder: Path) -> None:
    """Write the splits as JSON lines of messages, and metadata.json, for other tools and for Luthier again."""
    from luthier.data.prepare import write_splits as write

    write(prepared, folder)


def _trained_on_node(loaded: LoadedRecipe, node: Node, progress: Progress) -> Trained:
    """What the first node has opened, trained here as well for as long as that one wants."""
    from luthier.data.store import Prepared
    from luthier.runs.store import alone, prepared_root
    from luthier.runs.summary import DataSummary

    run = opened(loaded, node, progress)
    if not run.finished:
        with alone(run):
            train_on_node(run, node, progress)
    return Trained(run=run, steps=steps(loaded.recipe, Prepared(prepared_root() / DataSummary.read(run.data).hash)))


def _kept(run: RunFolder, steps: int) -> Kept:
    """What is saved of a run that was interrupted."""
    step = max(run.saved_steps, default=0)
    return Kept(run=run.name, step=step, steps=steps, checkpoint=str(run.checkpoint(step)) if step else "")


def _mend_recipe(run: RunFolder, loaded: LoadedRecipe, progress: Progress) -> None:
    """Write a damaged recipe.yaml anew: the run is known to have begun with this recipe, but for where it is trained."""
    from luthier.recipe.load import difference
    from luthier.runs.store import identity_of

    run.begin()
    if run.identity == identity_of(loaded.text):
        with suppress(RecipeError):
            difference(run.recipe_text, loaded.text)
            return
    files.write(run.recipe, loaded.text)
    run.event("damaged", file=run.recipe.name)
    progress.say(f"{run.recipe} was damaged: this is the recipe that the run began with, and it is written anew")


def _look_at_plan(run: RunFolder, progress: Progress) -> None:
    """Tell where plan.json, which training writes anew, is damaged; raises RunError where the sizes in it are known no more."""
    from luthier.plan.plan import begun, plan_is_whole

    kept = begun(run)
    if kept != "none" and not plan_is_whole(run, kept):
        run.event("damaged", file=run.plan.name)
        progress.say(f"{run.plan} was damaged: the run goes on with {kept}, as events.jsonl has it, and it is written anew")


def _record(run: RunFolder, planned: Plan, force: Sequence[str], progress: Progress) -> None:
    """Tell the plan's findings, and keep them with what was forced."""
    for finding in planned.findings:
        run.event("finding", **finding.to_json())
        if finding.severity != "note":
            progress.say(f"{finding.severity}: {finding.message} [{finding.code}]")
        if finding.code in force:
            run.event("forced", finding=finding.code)
    if notes := sum(finding.severity == "note" for finding in planned.findings):
        progress.say(f"{notes} more notes: luthier plan shows them" if notes > 1 else "one more note: luthier plan shows it")
