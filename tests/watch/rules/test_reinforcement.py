"""Each rule of rewarded answers at its edge; and rules of rows, which have nothing to say of them."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from luthier.core.finding import Finding
from luthier.watch.rollouts import Answer
from luthier.watch.rules import OF_ROWS, RULES, device, found_in, reinforcement, training
from luthier.watch.rules.case import Case, Rule
from luthier.watch.series import Series
from tests.watch.rules.drawn import Floats, lines, planned, recipe
from tests.watch.rules.drawn_answers import reinforced

TOTAL = 100
STEPS = np.arange(1, TOTAL + 1)
NOISE = np.random.default_rng(3).normal(0, 0.02, TOTAL)
HEALTHY: dict[str, Any] = {
    **{"step": STEPS, "epoch": STEPS / TOTAL, "loss": NOISE, "learning_rate": 1e-5, "grad_norm": 1.5, "tokens": 4000, "seconds": 0.4},
    **{"supervised_tokens": 900, "data_seconds": 0.3, "memory_bytes": 20e9, "device_utilization": 0.2},
    **{"reward": 0.3 + 0.003 * STEPS + NOISE, "answer_tokens": 50 + 50 * NOISE, "cut": 0.05, "silent": 0.4, "failed": 0.0},
    **{"entropy": 0.6 + NOISE, "drift": 0.005, "clipped": 0.001},
}


def case(*answers: Answer, recipe: Any = None, **columns: Any) -> Case:
    """A run of a hundred steps that learns from its answers."""
    train = lines(TOTAL, **{**HEALTHY, **columns})
    return Case(recipe=recipe or reinforced(), series=Series(train=train), planned=planned(TOTAL), answers=answers)


def found(rule: Rule, run: Case) -> Finding | None:
    findings = list(rule(run))
    assert len(findings) <= 1
    return findings[0] if findings else None


def group(prompt: int, *given: float | None, tokens: tuple[int, ...] = (), failure: str = "", step: int = 1) -> list[Answer]:
    """The answers to one prompt, with what each got."""
    lengths = tokens or (9,) * len(given)
    told = zip(given, lengths, strict=True)
    return [Answer(step=step, origin=f"a.jsonl:{prompt}", reward=each, tokens=long, cut=False, failure=failure) for each, long in told]


def test_nothing_is_told_of_a_run_that_learns() -> None:
    assert found_in(case()) == ()


def test_three_quarters_of_groups_without_a_signal_are_most_and_answers_say_whether_they_are_too_hard() -> None:
    hard = [*group(1, 0, 0), *group(2, 0, 0), *group(3, 1, 1), *group(4, 0, 1)]
    finding = found(reinforcement.no_signal, case(*hard, silent=0.75))
    assert finding is not None
    assert (finding.evidence["groups"], finding.evidence["all_right"], finding.evidence["all_wrong"]) == (3, 1, 2)
    assert "sometimes gets right" in finding.fix
    assert [(change.path, change.value) for change in finding.changes] == [("rl.group_size", 16)]
    easy = found(reinforcement.no_signal, case(*group(1, 1, 1), *group(2, 0, 1), silent=0.9))
    assert easy is not None and easy.fix.startswith("harder rows")
    assert not found(reinforcement.no_signal, case(silent=0.74))
    assert not found(reinforcement.no_signal, case(silent=np.where(STEPS <= 80, 1.0, 0.5)))  # it was so once


def test_answers_that_all_got_the_same_are_not_called_right() -> None:
    finding = found(reinforcement.no_signal, case(*group(1, 0.5, 0.5), *group(2, 0.5, 0.5), silent=1.0))
    assert finding is not None and (finding.evidence["all_right"], finding.evidence["all_wrong"]) == (0, 2)


def test_larger_groups_are_named_only_where_they_fill_a_step_and_a_low_temperature_is_raised() -> None:
    odd = recipe(rl={"rewards": {"exact": 1.0}, "temperature": 0.7}, training={"global_batch_size": 24})
    finding = found(reinforcement.no_signal, case(recipe=odd, silent=0.9))
    assert finding is not None and [change.path for change in finding.changes] == ["rl.temperature"]


def test_a_fifth_of_answers_that_are_cut_is_much() -> None:
    finding = found(reinforcement.answers_cut, case(cut=0.2))
    assert finding is not None and finding.changes[0].value == 512 and "rl.rewards.length=0.2" in finding.fix
    assert not found(reinforcement.answers_cut, case(cut=0.19))
    with_length = found(reinforcement.answers_cut, case(recipe=reinforced(rewards={"exact": 1.0, "length": 0.2}), cut=0.5))
    assert with_length is not None and not with_length.fix


def test_answers_that_could_not_be_rewarded_are_told_with_what_failed_most() -> None:
    failed = [*group(1, None, None, failure="a raises"), *group(2, None, failure="b hangs")]
    finding = found(reinforcement.rewards_failed, case(*failed, failed=0.05))
    assert finding is not None and (finding.severity, finding.evidence["most"]) == ("warn", "a raises")
    few = found(reinforcement.rewards_failed, case(failed=0.01))
    assert few is not None and few.severity == "note"
    assert not found(reinforcement.rewards_failed, case(failed=0.009))


def test_a_sampler_that_computes_otherwise_is_told_beyond_what_rounding_makes() -> None:
    assert found(reinforcement.sampler_drift, case(drift=0.05))
    assert not found(reinforcement.sampler_drift, case(drift=0.017))  # the most of forty steps in bfloat16
    one_step = np.where(STEPS == 90, 5.0, 0.005)
    assert not found(reinforcement.sampler_drift, case(drift=one_step))
    server = found(reinforcement.sampler_drift, case(recipe=reinforced(sampler="http://gpu1:8000/v1"), drift=0.1))
    assert server is not None and not server.changes and "gpu1" in server.fix


def test_in_float32_a_model_that_writes_its_own_answers_has_no_rounding_to_speak_of() -> None:
    def of(drift: float, **rl: Any) -> Case:
        float32 = recipe(model={"base": "demo", "dtype": "float32"}, rl={"rewards": {"exact": 1.0}, **rl})
        return case(recipe=float32, drift=drift)

    assert found(reinforcement.sampler_drift, of(0.002))
    assert not found(reinforcement.sampler_drift, of(1.7e-6))
    assert not found(reinforcement.sampler_drift, of(0.002, sampler="http://gpu1:8000/v1"))  # which may compute in bfloat16


COLLAPSING = np.where(STEPS <= 30, 0.6, 0.03)
STANDING = np.minimum(0.5, 0.3 + STEPS / 150) + NOISE


def test_entropy_that_is_gone_while_the_reward_stands_is_a_collapse() -> None:
    best = group(1, 0.0, 1.0)
    finding = found(reinforcement.entropy_collapse, case(*best, entropy=COLLAPSING, reward=STANDING))
    assert finding is not None and finding.evidence["left"] == pytest.approx(0.037, abs=0.001)
    assert [change.path for change in finding.changes] == ["training.learning_rate", "rl.kl"]
    assert not found(reinforcement.entropy_collapse, case(*best, entropy=COLLAPSING))  # the reward still rises
    assert not found(reinforcement.entropy_collapse, case(*best, entropy=np.maximum(COLLAPSING, 0.07), reward=STANDING))
    assert not found(reinforcement.entropy_collapse, case(*best, entropy=np.where(STEPS <= 90, 0.6, 0.03), reward=STANDING))  # too new


def test_who_has_learned_everything_may_be_sure() -> None:
    learned = np.minimum(0.98, 0.3 + STEPS / 40) + NOISE / 10
    assert not found(reinforcement.entropy_collapse, case(*group(1, 0.0, 1.0), entropy=COLLAPSING, reward=learned))


def paid(slope: float) -> list[Answer]:
    """Groups in which a token more is worth so much, and chance something."""
    random = np.random.default_rng(1)
    tokens = [tuple(random.integers(20, 200, 8).tolist()) for _ in range(32)]
    return [
        answer
        for prompt, lengths in enumerate(tokens)
        for answer in group(prompt, *(0.3 + slope * np.array(lengths) + random.normal(0, 0.1, 8)).tolist(), tokens=lengths)
    ]


def test_answers_that_grow_and_are_paid_for_their_length_are_told_with_the_share_of_the_gain() -> None:
    longer: Floats = 50 + 1.0 * STEPS + 50 * NOISE
    finding = found(reinforcement.reward_by_length, case(*paid(0.003), answer_tokens=longer))
    assert finding is not None and finding.evidence["for_100_tokens"] == pytest.approx(0.3, abs=0.02)
    assert float(finding.evidence["carried"]) > 0.9
    assert not found(reinforcement.reward_by_length, case(*paid(0.0), answer_tokens=longer))  # longer ones are no better than others
    assert not found(reinforcement.reward_by_length, case(*paid(0.0005), answer_tokens=longer))  # a sixth of the gain
    assert not found(reinforcement.reward_by_length, case(*paid(0.003)))  # they do not grow
    assert not found(reinforcement.reward_by_length, case(*paid(0.003), answer_tokens=longer, reward=0.5 + NOISE))  # nor does the reward
    assert not found(reinforcement.reward_by_length, case(answer_tokens=longer))  # nobody has seen answers


@pytest.mark.parametrize(
    ("rule", "columns"),
    [
        (training.spikes, {"loss": 0.01 + np.where(STEPS == 60, 3.0, 0.0)}),
        (training.diverged, {"loss": np.interp(STEPS, [1, 40, 100], [0.01, 0.01, 0.4])}),
        (training.learning_rate_low, {"loss": 0.3 - 0.002 * STEPS}),
        (device.data_bound, {"data_seconds": 0.3}),
        (device.device_idle, {"device_utilization": 0.2, "data_seconds": 0.0}),
    ],
    ids=["spikes", "diverged", "learning-rate-low", "data-bound", "device-idle"],
)
def test_what_a_rule_of_rows_would_tell_is_not_asked_where_answers_are_rewarded(rule: Rule, columns: dict[str, Any]) -> None:
    """A policy's loss goes anywhere about 0, and its steps wait for their answers."""
    assert found(rule, case(**columns))
    assert found_in(case(**columns)) == ()


def test_rules_of_losses_and_of_waiting_are_those_that_are_not_asked() -> None:
    names = {rule.__name__ for rule in RULES if rule not in OF_ROWS and rule not in reinforcement.RULES}
    assert names == {
        "not_finite",
        "masked_to_nothing",
        "gradient_large",
        "device_memory_unused",
        "rank_slow",
        "slower_than_planned",
        "perfect_on_few",
    }


def test_of_a_supervised_run_no_rule_asks_about_answers() -> None:
    assert {rule for rule in RULES if rule.__module__.endswith("reinforcement")} == set(reinforcement.RULES)
    told = case(*group(1, None, failure="x"), recipe=recipe(), silent=1.0, cut=1.0, failed=1.0, drift=9.0)
    assert not {finding.code for finding in found_in(told)} & {"no-signal", "answers-cut", "rewards-failed", "sampler-drift"}


def test_a_step_without_a_signal_is_not_masked_to_nothing() -> None:
    silent = case(supervised_tokens=np.where(STEPS == 7, 0, 900), loss=np.where(STEPS == 7, 0.0, NOISE))
    assert not found(training.masked_to_nothing, silent)
    assert found(training.masked_to_nothing, replace(silent, recipe=recipe()))


def test_slower_steps_of_rewarded_answers_are_not_said_to_wait_for_their_rows() -> None:
    (finding,) = found_in(case(seconds=0.8, data_seconds=0.7))
    assert (finding.code, finding.evidence["why"]) == ("slower-than-planned", "the device is slower than the plan took it for")


@pytest.mark.parametrize("num_steps", [0, 1, 2, 5, 9, 10, 19, 20, 21])
def test_no_rewarded_run_is_too_short_for_the_rules_nor_one_that_told_nothing(num_steps: int) -> None:
    for broken in ({}, {"reward": np.nan}, {"entropy": 0.0}, {"answer_tokens": np.nan}, {"drift": np.nan, "silent": np.nan}):
        whole = case(**broken)
        cut = whole.series.train.where(whole.series.train["step"] <= num_steps)
        assert found_in(replace(whole, series=Series(train=cut))) == ()
