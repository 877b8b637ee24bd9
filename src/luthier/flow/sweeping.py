"""The verb sweep: trials in turn, each an ordinary run, on a base that is loaded once."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core import files, jsonl
from luthier.core.errors import LuthierError, UsageError
from luthier.core.files import DiskError
from luthier.core.progress import Advance, Progress
from luthier.core.signals import Interrupted
from luthier.core.words import count, percent
from luthier.flow.planning import SILENT, facts_of, offered, prepared_of, refuse

if TYPE_CHECKING:
    from luthier.plan.plan import Plan
    from luthier.recipe.load import LoadedRecipe
    from luthier.recipe.schema import Recipe
    from luthier.runs.store import RunFolder
    from luthier.sweep.folder import SweepFolder
    from luthier.sweep.halving import Rung
    from luthier.sweep.options import Asked
    from luthier.sweep.space import Axis, Trial
    from luthier.sweep.standing import Standing
    from luthier.sweep.table import Entry, How, Table


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """A trial that can be trained."""

    trial: Trial
    loaded: LoadedRecipe
    plan: Plan

    @property
    def price(self) -> float:
        """Dollars a second of its devices."""
        cost, seconds = self.plan.cost, self.plan.time.total.mid
        return cost.mid / seconds if cost and seconds else 0.0

    @property
    def standing(self) -> Standing | None:
        """How its run stands; None where it has none yet."""
        from luthier.runs.store import of_recipe
        from luthier.sweep.standing import standing

        run = of_recipe(self.loaded.recipe.name, self.loaded.text)
        by = self.loaded.recipe.best_by
        return None if run == "none" else standing(run, self.plan.steps, by, keeps_best=self.plan.ending.best)


def sweep(loaded: LoadedRecipe, asked: Asked, progress: Progress = SILENT) -> Table:
    """Every trial trained as far as it earns and the budget bears, held against the best; the same call goes on where it was ended.

    A trial is bit for bit the run that `train` makes of its recipe, and lies among the runs. The table tells of those that failed, too, or
    that were refused. Raises the first trial's error where none can be trained, and UsageError for what cannot be judged.
    """
    from luthier.model.share import keeping_a_base
    from luthier.sweep.folder import identity_of, open_sweep
    from luthier.sweep.space import at_edges
    from luthier.sweep.table import table

    axes = _axes(loaded, asked.over, progress)
    trials = asked.trials(loaded.recipe.name, axes, loaded.recipe.seed)
    folder = open_sweep(loaded.recipe.name, identity_of(loaded.text, trials, halving=asked.halving))
    progress.say(f"sweep {folder.path}: {count(len(trials), 'trial')}")
    with folder.alone(), keeping_a_base():
        planned, refused = _planned(loaded, trials, asked, progress)
        for name, why in refused.items():
            folder.event("refused", trial=name, why=why)
        left_out = _Sweep(planned=planned, asked=asked, folder=folder, progress=progress).train()
        entries = [_entry(trial, planned.get(trial.name), refused, left_out, folder.state.failed) for trial in trials]
        found = table(entries, {trial.name: at_edges(axes, trial.overrides) for trial in trials}, folder.state.spent, str(folder.path))
        with files.told(folder.table.name, folder.path):
            files.write_json(folder.table, found.to_json())
        folder.event("ended", spent=found.spent.seconds)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sweep:
    """Trials that have a plan, by name, and what is asked of them."""

    planned: Mapping[str, _Planned]
    asked: Asked
    folder: SweepFolder
    progress: Progress

    def train(self) -> dict[str, str]:
        """Take every trial as far as it earns; by name, why one was not trained, or no further, though it might have been."""
        from luthier.sweep.halving import Rung, rungs, step_of

        going, left_out = tuple(self.planned), dict[str, str]()
        stages = rungs(len(going)) if self.asked.halving else (Rung(trials=len(going), share=1.0),)
        self._tell_need(stages)
        for number, rung in enumerate(stages):
            if number:
                going = self._survivors(stages[number - 1].share, going, left_out, rung.trials)
            for name in going:
                each = self.planned[name]
                last = step_of(rung.share, each.plan.steps)
                there = name in self.folder.state.failed or ((stands := each.standing) and stands.reached(last))
                if not there and (why := self._turn(each, last)):
                    left_out[name] = why
        return left_out

    def _survivors(self, share: float, going: Sequence[str], left_out: Mapping[str, str], number: int) -> tuple[str, ...]:
        """The best of those that came to a rung, by what they had shown there."""
        from luthier.sweep.halving import step_of, survivors

        values, higher_is_better = dict[str, float](), False
        for name in going:
            each, gone = self.planned[name], {*self.folder.state.failed, *left_out}
            if name not in gone and (stands := each.standing) and (shown := stands.upto(step_of(share, each.plan.steps))):
                values[name], higher_is_better = shown.value, stands.higher_is_better
        kept = survivors(values, number, higher_is_better=higher_is_better)
        self.folder.event("rung", share=share, values=values, kept=list(kept))
        told = "; ".join(self.planned[name].trial.told for name in kept)
        self.progress.say(f"rung at {percent(share)}: {len(kept)} of {len(values)} go on: {told}")
        return kept

    def _turn(self, each: _Planned, last: int) -> str:
        """Train one to this step; empty, or why the budget did not let it."""
        from luthier.flow import train
        from luthier.runs import control
        from luthier.runs.store import open_or_create
        from luthier.sweep.budget import Spent

        stands, steps, time = each.standing, each.plan.steps.total, each.plan.time.total.mid
        done = max(stands.run.saved_steps, default=0) if stands else 0
        seconds = time * max(0, last - done) / steps
        spent, budget = self.folder.state.spent, self.asked.budget
        if not budget.bears(spent, need := Spent(seconds=seconds, dollars=seconds * each.price)):
            self.folder.event("left_out", trial=each.trial.name, step=last, seconds=need.seconds, dollars=need.dollars)
            return f"needs {need} to step {last}; {spent} of {budget} are spent"
        run = open_or_create(each.loaded.recipe.name, each.loaded.text, each.loaded.source)
        self.progress.say(f"{each.trial.told}: run {run.name}, from step {done} to {last} of {steps}")
        over = threading.Event()
        try:
            with (
                self.folder.turn(run, each.price),
                control.leaving_off_after(run, last),
                _stopped_after(run, budget.seconds_left(spent, each.price), over),
            ):
                train(each.loaded, _Quiet(self.progress))
        except Interrupted:
            if not over.is_set():
                raise
            return f"stopped as {budget} were spent"
        except UsageError as error:  # another process trains it
            return str(error)
        except DiskError:  # of which the next would die, too
            raise
        except LuthierError as error:
            self._give_up(each.trial, str(error))
        except Exception as error:  # the next call goes on with the others
            self._give_up(each.trial, f"{type(error).__name__}: {error}")
            raise
        else:
            self._tell_turn(each, last)
        return ""

    def _give_up(self, trial: Trial, why: str) -> None:
        self.folder.give_up(trial, why)
        self.progress.say(f"{trial.told} failed: {why}")

    def _tell_need(self, stages: Sequence[Rung]) -> None:
        """Say what all of it takes by the plans, and whether that is more than may be spent."""
        from luthier.sweep.budget import Spent

        shares = [rung.share for rung in stages]
        part = sum(rung.trials * (share - before) for rung, before, share in zip(stages, [0.0, *shares], shares, strict=False))
        part /= len(self.planned)
        seconds = [each.plan.time.total.mid * part for each in self.planned.values()]
        dollars = sum(each.price * own for each, own in zip(self.planned.values(), seconds, strict=True))
        need, budget = Spent(seconds=sum(seconds), dollars=dollars), self.asked.budget
        more = "" if budget.bears(Spent(), need) else f", and {budget} may be spent: not all will come so far as they earn"
        self.progress.say(f"all of it takes about {need}{more}")

    def _tell_turn(self, each: _Planned, last: int) -> None:
        stands = each.standing
        if stands and (shown := stands.latest):
            self.folder.event("trained", trial=each.trial.name, step=last, shown=shown.step, value=shown.value)
            self.progress.say(f"{each.trial.told}: {stands.metric} {shown.value:.4f} at step {shown.step}")


@dataclass(frozen=True, slots=True)
class _Quiet:
    """Of a trial only how far it is: what it says besides is in its folder."""

    shown: Progress

    def task(self, name: str, total: int) -> AbstractContextManager[Advance]:
        """Shown as ever."""
        return self.shown.task(name, total)

    def say(self, line: str) -> None:
        """Not shown."""


@contextmanager
def _stopped_after(run: RunFolder, seconds: float, over: threading.Event) -> Iterator[None]:
    """Within, the run is asked to save and end once so many seconds are over, and it is noted that they are."""
    from luthier.runs import control

    def end() -> None:
        over.set()
        control.ask(run, "stop")

    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        if over.is_set():
            control.obeyed(run, "stop")  # where it had come to its end by itself


def _planned(loaded: LoadedRecipe, trials: Sequence[Trial], asked: Asked, progress: Progress) -> tuple[dict[str, _Planned], dict[str, str]]:
    """The trials that have a plan, by name, and why the others have none; raises the first one's error where none has."""
    from luthier.recipe.load import load

    found, errors = dict[str, _Planned](), dict[str, LuthierError]()
    for trial in trials:
        try:
            own = load(loaded.source, (*asked.overrides, *trial.overrides, f"name={jsonl.dumps(trial.name)}"))
            plan = _plan_of(own.recipe, progress)
            refuse(plan, ())
        except LuthierError as error:
            errors[trial.name] = error
        else:
            found[trial.name] = _Planned(trial=trial, loaded=own, plan=plan)
    if not found:
        raise next(iter(errors.values()))
    _refuse_what_cannot_be_judged(tuple(found.values()), asked)
    return found, {name: str(error) for name, error in errors.items()}


def _refuse_what_cannot_be_judged(planned: Sequence[_Planned], asked: Asked) -> None:
    """Raise UsageError where trials have nothing to be judged by, not the same, or no price where money is to bound them."""
    by = {each.loaded.recipe.best_by for each in planned}
    if len(by) > 1:
        raise UsageError(f"trials would be judged by {' and by '.join(sorted(by))}", change="leave checkpoints.best_by out of the sweep")
    if any(not each.plan.steps.evaluations for each in planned):
        raise UsageError("trials are judged on validation rows, and there are none", change="set data.split.validation")
    if any(each.loaded.recipe.parallel.nodes > 1 for each in planned):
        raise UsageError("a sweep trains on one machine", change="set parallel.nodes=1")
    if math.isfinite(asked.budget.dollars) and not all(each.price for each in planned):
        change = "set launch.price_per_hour, or bound the time: --within '30 min'"
        raise UsageError("dollars bound nothing: these devices have no price", change=change)


def _entry(
    trial: Trial, planned: _Planned | None, refused: Mapping[str, str], left_out: Mapping[str, str], failed: Mapping[str, str]
) -> Entry:
    """How a trial stands at the end, and why it is not finished."""
    from luthier.sweep.table import Entry

    stands = planned.standing if planned else None
    if stands and stands.run.finished:
        return Entry(trial=trial, how="finished", standing=stands)
    reasons: tuple[tuple[How, Mapping[str, str]], ...] = (("refused", refused), ("failed", failed), ("left", left_out))
    for how, why in reasons:
        if trial.name in why:
            return Entry(trial=trial, how=how, why=why[trial.name], standing=stands)
    return Entry(trial=trial, how="stopped", why="others were better", standing=stands)


def _axes(loaded: LoadedRecipe, over: Sequence[str], progress: Progress) -> tuple[Axis, ...]:
    """What is tried: values of fields, and the changes of findings of the recipe's plan or of its run; raises UsageError."""
    from luthier.plan.check import ALTERNATIVES
    from luthier.sweep.space import axis, levers
    from luthier.watch.rules import CODES

    codes = [text for text in over if "=" not in text]
    found = offered(_plan_of(loaded.recipe, progress), codes) if codes else {}
    return tuple(levers(text, found[text], alternatives=text in ALTERNATIVES | CODES) if text in found else axis(text) for text in over)


def _plan_of(recipe: Recipe, progress: Progress) -> Plan:
    """What one will take, by what is known of these devices."""
    from luthier.plan.plan import make

    return make(facts_of(recipe, prepared_of(recipe, progress), progress, probe=False))
