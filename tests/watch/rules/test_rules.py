"""Each rule at its edge: a run that it tells of, beside one that is nearly the same and that it leaves alone."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from luthier.core.finding import Finding
from luthier.runs.planned import Planned
from luthier.score.intervals import exact
from luthier.watch.rows import Rows
from luthier.watch.rules import device, found_in, proof, training, validation
from luthier.watch.rules.case import Case, Rule, Scored
from luthier.watch.rules.curves import fall
from luthier.watch.series import Series
from tests.watch.rules.drawn import Floats, lines, planned, recipe

TOTAL = 400
STEPS = np.arange(1, TOTAL + 1)
NOISE = np.exp(np.random.default_rng(3).normal(0, 0.05, TOTAL))
LEARNED = 1.0 + np.exp(-3 * STEPS / TOTAL)
PLANNED = planned(TOTAL)


def case(validation: dict[int, Rows] | None = None, planned: Planned = PLANNED, **columns: Any) -> Case:
    """A healthy run of 400 steps at a constant rate, with these columns and validations."""
    plain = {"step": STEPS, "epoch": STEPS / 200, "loss": LEARNED * NOISE, "learning_rate": 3e-4, "grad_norm": 0.5, "seconds": 0.4}
    busy = {"tokens": 4000, "supervised_tokens": 900, "data_seconds": 0.001, "memory_bytes": 20e9, "device_utilization": 0.95}
    rows = validation or {}
    at = np.array(list(rows), float)
    return Case(
        recipe=columns.pop("recipe", recipe(training={"lr_scheduler": "constant"})),
        series=Series(
            train=lines(TOTAL, **{**plain, **busy, **columns}),
            validation=lines(len(rows), step=at, epoch=at / 200, loss=[each.mean for each in rows.values()]),
        ),
        planned=planned,
        rows=rows,
    )


def found(rule: Rule, run: Case) -> Finding | None:
    findings = list(rule(run))
    assert len(findings) <= 1
    return findings[0] if findings else None


def validated(*losses: float, scatter: float = 0.02, num_rows: int = 100) -> dict[int, Rows]:
    """Validations at even steps: rows of 40 tokens differ from each other by a third, and from themselves by `scatter` a token."""
    random, tokens = np.random.default_rng(5), np.full(num_rows, 40)
    own = random.normal(0, 0.3, num_rows)
    own -= own.mean()

    def at(loss: float) -> Rows:
        moved = random.normal(0, scatter, num_rows)
        return Rows(losses=(loss + own + moved - moved.mean()) * tokens, tokens=tokens)

    return {TOTAL * (place + 1) // len(losses): at(loss) for place, loss in enumerate(losses)}


def test_the_losses_of_seed_003_are_overfitting_and_its_good_ones_are_not() -> None:
    finding = found(validation.overfitting, case(validated(0.80, 0.76, 0.74, 0.78, 0.85)))
    assert finding is not None and finding.evidence["best_step"] == 240
    assert finding.evidence["worse"] == pytest.approx(0.11, abs=0.002)
    assert [change.path for change in finding.changes] == ["training.epochs", "lora.dropout", "training.weight_decay"]
    assert finding.changes[0].value == 1.2
    assert not found(validation.overfitting, case(validated(0.80, 0.76, 0.74, 0.73, 0.73)))


def test_one_noisy_point_is_no_overfitting_nor_is_what_the_rows_cannot_tell_from_chance() -> None:
    assert not found(validation.overfitting, case(validated(0.80, 0.74, 0.73, 0.72, 0.85)))  # the newest alone
    assert found(validation.overfitting, case(validated(0.80, 0.74, 0.77, 0.78, scatter=0.02)))
    assert not found(validation.overfitting, case(validated(0.80, 0.74, 0.77, 0.78, scatter=0.5)))
    assert not found(validation.overfitting, case(validated(0.80, 0.74, 0.743, 0.744, scatter=0.0001)))  # sure, and less than 1 %


def test_a_validation_that_was_no_number_is_neither_best_nor_newest() -> None:
    overfit = validated(0.80, 0.76, 0.74, 0.78, 0.85)
    gone = {**overfit, TOTAL + 10: Rows(losses=np.full(100, math.nan), tokens=np.full(100, 40))}
    finding = found(validation.overfitting, case(gone))
    assert finding is not None and (finding.evidence["best_step"], finding.evidence["step"]) == (240, 400)
    assert not found(validation.overfitting, case({400: gone[TOTAL + 10]}))


def test_a_validation_that_rises_with_the_training_loss_is_no_overfitting() -> None:
    rising = case(validated(0.80, 0.76, 0.74, 0.78, 0.85), loss=np.maximum(LEARNED, 1 + STEPS / 500) * NOISE)
    assert not found(validation.overfitting, rising)


def test_a_comparison_is_the_difference_of_the_losses_whatever_the_lengths_of_rows() -> None:
    random = np.random.default_rng(1)
    tokens = random.integers(1, 500, 600)
    best, other = (Rows(losses=random.gamma(2.0, level, 600) * tokens, tokens=tokens) for level in (0.5, 0.6))
    interval = validation.compared(best, other)
    assert interval.value == pytest.approx(other.mean - best.mean, rel=1e-12)
    few = validation.compared(*(Rows(losses=rows.losses[:499], tokens=tokens[:499]) for rows in (best, other)))
    assert few.high - few.low == pytest.approx((interval.high - interval.low) * math.sqrt(600 / 499), rel=0.15)  # bootstrap and normal


def test_a_loss_that_has_stopped_is_a_plateau_and_one_that_falls_on_is_none() -> None:
    flat = 1.0 + np.exp(-30 * STEPS / TOTAL)
    finding = found(validation.plateau, case(loss=flat * NOISE**0.1))
    assert finding is not None
    assert float(finding.evidence["probability"]) > 0.95
    assert [change.path for change in finding.changes] == [
        *("training.epochs", "lora.r", "lora.alpha", "training.learning_rate", "training.weight_decay")
    ]
    assert finding.changes[0].value == 1.5
    assert not found(validation.plateau, case(loss=LEARNED * NOISE**0.1))
    assert not found(validation.plateau, case(loss=flat * NOISE))  # too noisy to be sure of half a percent


def test_a_plateau_is_told_while_the_run_goes_on_and_not_before_three_quarters_of_the_way() -> None:
    flat = (1.0 + np.exp(-30 * STEPS / TOTAL)) * NOISE**0.05

    def until(step: int) -> Case:
        whole = case(loss=flat)
        return Case(
            recipe=whole.recipe, series=Series(train=type(whole.series.train)(whole.series.train.values[:, :step])), planned=PLANNED
        )

    assert found(validation.plateau, until(320))
    assert not found(validation.plateau, until(280))


def test_the_fall_of_a_curve_is_what_it_falls_and_its_probability_holds_what_it_says() -> None:
    random, x = np.random.default_rng(2), np.linspace(0.05, 1, 20)
    truth = 1 + 0.5 * np.exp(-4 * x)
    whole = 0.5 * (math.exp(-3) - math.exp(-4))
    seen = [fall(x, truth + random.normal(0, 0.004, 20), (0.75, 1.0), whole) for _ in range(200)]
    assert np.mean([each.value for each in seen]) == pytest.approx(whole, abs=0.002)
    below = np.array([each.probability for each in seen])  # that the fall is less than it is: uniform, were the curve known
    assert 0.3 < below.mean() < 0.7
    assert (below > 0.95).mean() < 0.1


def jumping(factor: float, width: int = 1) -> Floats:
    loss = LEARNED * NOISE
    loss[200 : 200 + width] *= factor
    return loss


def test_a_jump_is_told_with_its_step_and_noise_is_not() -> None:
    finding = found(training.spikes, case(loss=jumping(3.0)))
    assert finding is not None and (finding.evidence["step"], finding.severity) == (201, "note")
    assert not found(training.spikes, case(loss=jumping(1.2)))
    assert not found(training.spikes, case(loss=LEARNED * NOISE**4))  # a fifth up or down, from step to step
    many = jumping(3.0)
    many[[250, 300, 350]] *= 3
    warned = found(training.spikes, case(loss=many))
    assert warned is not None and (warned.evidence["spikes"], warned.severity) == (4, "warn")


def test_a_loss_that_rises_and_stays_has_diverged_and_is_no_jump() -> None:
    gone = np.where(STEPS > 250, 3 * LEARNED, LEARNED) * NOISE
    finding = found(training.diverged, case(loss=gone))
    assert finding is not None
    assert [change.path for change in finding.changes] == ["training.learning_rate", "training.warmup_ratio"]
    assert finding.changes[0].value == 1e-4
    assert not found(training.spikes, case(loss=gone))
    assert not found(training.diverged, case(loss=jumping(3.0, width=30)))  # it came back
    assert not found(training.diverged, case(loss=LEARNED * NOISE))


def test_a_hump_at_the_peak_of_the_rate_is_a_rate_too_high_and_one_after_a_restart_is_not() -> None:
    hump, rates = np.interp(STEPS, [1, 20, 100, 150, 400], [2.0, 1.5, 1.9, 1.9, 1.3]) * NOISE, 3e-3 * (1 - STEPS / 500)
    assert found(training.learning_rate_high, case(loss=hump, learning_rate=rates))
    assert not found(training.learning_rate_high, case(loss=LEARNED * NOISE, learning_rate=rates))
    assert not found(training.learning_rate_high, case(loss=hump, learning_rate=np.where(STEPS < 20, 3e-3, 3e-4)))  # it fell before
    restarts = recipe(training={"lr_scheduler": "cosine_with_restarts", "lr_cycles": 2})
    assert not found(training.learning_rate_high, case(loss=hump, learning_rate=rates, recipe=restarts))


def test_a_hump_that_goes_by_at_the_same_rate_is_not_the_rates_fault() -> None:
    hump = np.interp(STEPS, [1, 20, 100, 150, 250, 400], [2.0, 1.5, 1.9, 1.9, 1.4, 1.3]) * NOISE
    assert not found(training.learning_rate_high, case(loss=hump, learning_rate=3e-3))
    late = np.where(STEPS > 300, 3e-4, 3e-3)  # the rate falls, but the loss had come back by then
    assert not found(training.learning_rate_high, case(loss=hump, learning_rate=late))
    finding = found(training.learning_rate_high, case(loss=hump, learning_rate=np.where(STEPS > 150, 1e-3, 3e-3)))
    assert finding is not None and finding.evidence["rate"] == 3e-3 and finding.evidence["rate_at_fall"] == 1e-3
    assert "at a learning rate of 0.003 (step " in finding.message and "came back at 0.001 (step " in finding.message


def test_a_straight_line_is_a_rate_too_low_and_a_staircase_of_epochs_is_none() -> None:
    finding = found(training.learning_rate_low, case(loss=(2 - 0.4 * STEPS / TOTAL) * NOISE**0.3))
    assert finding is not None
    assert [(change.path, change.value) for change in finding.changes] == [("training.learning_rate", 9e-4), ("training.epochs", 4.0)]
    assert not found(training.learning_rate_low, case(loss=LEARNED * NOISE**0.3))
    assert not found(training.learning_rate_low, case(loss=(2 - 0.4 * (STEPS > 200)) * NOISE**0.3))  # what the second epoch knew already
    half = planned(800)
    assert not found(training.learning_rate_low, case(loss=(2 - 0.4 * STEPS / TOTAL) * NOISE**0.3, planned=half))  # half of it is to come


def test_gradients_above_10_are_told_where_they_come_again_and_again() -> None:
    every_tenth = np.where(STEPS % 10 == 0, 15.0, 0.5)
    finding = found(training.gradient_large, case(grad_norm=every_tenth))
    assert finding is not None and finding.evidence["share"] == pytest.approx(0.1, abs=0.01)
    assert not found(training.gradient_large, case(grad_norm=np.where(STEPS % 10 == 0, 9.9, 0.5)))
    assert not found(training.gradient_large, case(grad_norm=np.where(STEPS < 30, 15.0, 0.5)))  # a new adapter finds its size


def test_what_is_no_number_is_told_with_the_rows_it_came_from() -> None:
    event = {"event": "nonfinite", "of": "train", "step": 7, "origins": ["a.jsonl:3", "a.jsonl:9"]}
    plain = case()
    told = Case(recipe=plain.recipe, series=plain.series, events=[{"event": "started"}, event])
    finding = found(training.not_finite, told)
    assert finding is not None and "a.jsonl:3, a.jsonl:9" in finding.message
    assert not found(training.not_finite, Case(recipe=plain.recipe, series=plain.series, events=[{"event": "started"}]))


def test_a_step_or_a_row_without_a_supervised_token_is_a_loss_of_nothing() -> None:
    assert found(training.masked_to_nothing, case(supervised_tokens=np.where(STEPS == 7, 0, 900)))
    assert found(training.masked_to_nothing, case({100: Rows(losses=np.array([1.0, 0.0]), tokens=np.array([4, 0]))}))
    assert not found(training.masked_to_nothing, case(validated(1.0)))


@pytest.mark.parametrize(
    ("rule", "recorded", "healthy"),
    [
        (device.data_bound, {"data_seconds": 0.05}, {"data_seconds": 0.03}),
        (device.device_idle, {"device_utilization": 0.4}, {"device_utilization": 0.6}),
        (device.slower_than_planned, {"seconds": 0.56}, {"seconds": 0.5}),
    ],
)
def test_a_rule_of_the_device_tells_of_samples_beyond_its_threshold(
    rule: Rule, recorded: dict[str, float], healthy: dict[str, float]
) -> None:
    assert found(rule, case(**recorded))
    assert not found(rule, case(**healthy))
    few = case(**recorded)
    assert not found(
        rule, Case(recipe=few.recipe, series=Series(train=type(few.series.train)(few.series.train.values[:, :20])), planned=PLANNED)
    )


def test_a_gpu_whose_recipe_holds_back_has_memory_unused() -> None:
    small = recipe(training={"micro_batch_size": 2, "gradient_checkpointing": True})
    finding = found(device.device_memory_unused, case(memory_bytes=2e9, recipe=small))
    assert finding is not None
    assert [change.path for change in finding.changes] == ["training.micro_batch_size", "training.gradient_checkpointing"]
    assert not found(device.device_memory_unused, case(memory_bytes=2e9))  # auto had no more to put in
    assert not found(device.device_memory_unused, case(memory_bytes=8e9, recipe=small))


def test_slower_steps_say_why() -> None:
    def why(**columns: Any) -> object:
        finding = found(device.slower_than_planned, case(seconds=0.8, **columns))
        return finding and finding.evidence["why"]

    assert why() == "the device is slower than the plan took it for"
    assert why(tokens=8000) == "rows are 2 × as long"
    assert why(data_seconds=0.2) == "steps wait for their rows"
    processor = planned(TOTAL, device="cpu")
    assert why(device_utilization=0.5, planned=processor) == "other programs use the processor"


def test_slower_steps_say_that_the_plans_rate_was_only_a_guess() -> None:
    guess = planned(TOTAL, device="cpu", source="a guess for 2 cores of Xeon: nothing was measured here yet", measured=False)
    finding = found(device.slower_than_planned, case(seconds=0.8, planned=guess))
    assert finding is not None
    assert finding.message.endswith("the plan's rate was a guess for 2 cores of Xeon: nothing was measured here yet")
    longer = found(device.slower_than_planned, case(seconds=0.8, tokens=8000, planned=guess))
    assert longer is not None and "rows are 2 × as long and the plan's rate was a guess for 2 cores" in longer.message


def test_a_run_that_was_moved_is_judged_by_its_steps_since() -> None:
    moved = replace(case(seconds=np.where(STEPS <= 250, 4.0, 0.4)), events=[{"event": "resumed", "step": 250}])
    assert not found(device.slower_than_planned, moved)
    assert found(device.slower_than_planned, replace(moved, events=[]))
    ranks = [*told(2, 1, 1.5, times=25), *({**line, "step": 250 + line["step"]} for line in told(2, 1, 1.0))]
    assert not found(device.rank_slow, replace(moved, ranks=ranks))
    assert found(device.rank_slow, replace(moved, ranks=ranks, events=[]))


def told(ranks: int, slow: int, ratio: float, times: int = 5) -> list[dict[str, Any]]:
    work = [3.0 * (ratio if rank == slow else 1.0) for rank in range(ranks)]
    return [
        {"step": 10 * (at + 1), "rank": rank, "host": f"node{rank}", "seconds": max(work), "waiting_seconds": max(work) - work[rank]}
        for at in range(times)
        for rank in range(ranks)
    ]


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_a_rank_that_others_wait_for_is_named_with_its_host(ranks: int) -> None:
    plain = case()
    finding = found(device.rank_slow, Case(recipe=plain.recipe, series=plain.series, ranks=told(ranks, 1, 1.5)))
    assert finding is not None and (finding.evidence["rank"], finding.evidence["host"]) == (1, "node1")
    assert finding.evidence["ratio"] == 1.5
    for ratio, times in ((1.1, 5), (1.5, 2)):
        assert not found(device.rank_slow, Case(recipe=plain.recipe, series=plain.series, ranks=told(ranks, 1, ratio, times)))


def scored(right: int, n: int) -> Scored:
    return Scored(evaluation="run", task="answers", metric="exact", value=right / n, low=exact(right, n).low, n=n)


def test_a_perfect_score_on_few_rows_is_told_with_its_interval() -> None:
    limited = recipe(evaluation={"tasks": [{"name": "answers", "limit": 20}]})

    def of(*scores: Scored) -> Finding | None:
        return found(proof.perfect_on_few, Case(recipe=limited, series=Series(), scores=scores))

    finding = of(scored(20, 20))
    assert finding is not None and "83 % … 100 %" in finding.message
    assert [(change.path, change.value) for change in finding.changes] == [("evaluation.tasks.0.limit", "all")]
    assert not of(scored(19, 20))
    assert not of(scored(183, 183))


@pytest.mark.parametrize("lost", [slice(0, 1), slice(100, 160), slice(0, None, 3)])
def test_lines_that_are_lost_change_nothing_of_what_is_found(lost: slice) -> None:
    flat = (1.0 + np.exp(-30 * STEPS / TOTAL)) * NOISE**0.05
    whole = case(validated(0.9, 0.8, 0.8, 0.8, 0.8, 0.8), loss=flat)
    left = type(whole.series.train)(np.delete(whole.series.train.values, lost, axis=1))
    cut = Case(recipe=whole.recipe, series=Series(train=left, validation=whole.series.validation), planned=PLANNED, rows=whole.rows)
    assert [finding.code for finding in found_in(cut)] == [finding.code for finding in found_in(whole)] == ["plateau"]


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5, 6, 7, 19, 21, 33, 34, 40])
def test_no_run_is_too_short_for_the_rules_nor_one_that_measured_nothing(num_steps: int) -> None:
    for broken in ({}, {"loss": math.nan}, {"learning_rate": 0.0}, {"loss": 0.0}, {"seconds": math.nan, "tokens": math.nan}):
        whole = case(validated(0.9, 0.8), **broken)
        cut = Series(train=type(whole.series.train)(whole.series.train.values[:, :num_steps]), validation=whole.series.validation)
        codes = {finding.code for finding in found_in(Case(recipe=whole.recipe, series=cut, planned=PLANNED, rows=whole.rows))}
        assert codes <= {"masked-to-nothing"}
