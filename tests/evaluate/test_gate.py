"""The verdict: what must be shown before a model is deployed, and what happens when it is not."""

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from luthier.core.errors import RecipeError
from luthier.evaluate.gate import Beside, Verdict, decide, evidence
from luthier.evaluate.report import InTurn, Report
from luthier.recipe.proof import BaselineMetric, Decision, Evaluation
from tests.evaluate.reports import answered, grouped, latency, lost, report, right

# Seed 004: deploy if latency < 12 s, success ≥ 98 %, memory ≤ 10 GB; abort if neither speed nor quality improved.
# The latencies are of 16 answers of about 10 s each.
QUICK = [10.2, 9.1, 11.0, 8.7, 10.9, 9.6, 12.3, 8.9, 10.1, 9.8, 9.2, 11.4, 10.6, 9.9, 10.3, 8.5]
SLOW = [seconds + 13 for seconds in QUICK]
RULE = Decision(
    deploy={"latency_mean": "< 12 s", "answers.exact": ">= 98 %", "peak_memory": "<= 10 GB"},
    abort={"latency_mean": ">= 20.1 s", "answers.exact": "<= 0.987"},
)
BASELINE = {
    "latency_mean": BaselineMetric(value=20.1, n=302),
    "answers.exact": BaselineMetric(value=0.987, n=302),
    "peak_memory": BaselineMetric(value=32.5e9),
}
BETTER = Decision(deploy={"answers.exact": "better than baseline"})


def codes(verdict: Verdict) -> set[str]:
    return {finding.code for finding in verdict.findings}


def test_31_of_31_is_not_enough_to_show_98_percent() -> None:
    verdict = decide(report(right(31, 31), seconds=QUICK, memory=9_000_000_000), BASELINE, RULE)
    assert (verdict.decision, verdict.exit_code) == ("not_enough_data", 12)
    assert verdict.reasons[0] == (
        "answers.exact is 100.0 % (88.8 % … 100.0 %, n = 31): neither shown to be >= 98 % nor shown not to be; "
        "152 more rows, 183 in all, would decide it in 4 of 5 cases, if this is the truth"
    )
    assert "latency_mean is 10 s (9.57 s … 10.6 s, n = 16): shown to be < 12 s" in verdict.reasons
    assert codes(verdict) == {"too_few_rows", "perfect_on_few_rows"}


def test_183_of_183_deploys() -> None:
    verdict = decide(report(right(183, 183), seconds=QUICK, memory=9_000_000_000), BASELINE, RULE)
    assert (verdict.decision, verdict.exit_code, verdict.findings) == ("deploy", 0, ())


def test_one_violated_bound_is_enough_to_iterate() -> None:
    verdict = decide(report(right(183, 183), seconds=QUICK, memory=14_000_000_000), BASELINE, RULE)
    assert (verdict.decision, verdict.exit_code) == ("iterate", 10)
    assert verdict.reasons[0] == "peak_memory is 14 GB: shown not to be <= 10 GB"
    assert decide(report(right(25, 31), seconds=QUICK, memory=9_000_000_000), BASELINE, RULE).decision == "iterate"


def test_abort_wants_every_abort_bound_shown() -> None:
    neither = decide(report(right(20, 31), seconds=SLOW, memory=9_000_000_000), BASELINE, RULE)
    assert (neither.decision, neither.exit_code) == ("abort", 11)
    quick_but_wrong = decide(report(right(20, 31), seconds=QUICK, memory=9_000_000_000), BASELINE, RULE)
    assert quick_but_wrong.decision == "iterate"


def test_a_perfect_score_on_20_rows_is_a_finding() -> None:
    verdict = decide(report(right(20, 20)), {}, Decision(deploy={"answers.exact": ">= 0.8"}))  # seed 003's 100 %
    (finding,) = verdict.findings
    assert verdict.decision == "deploy" and finding.code == "perfect_on_few_rows"
    assert finding.evidence["low"] == pytest.approx(0.832, abs=1e-3)


def test_better_than_baseline_compares_the_same_rows() -> None:
    base = report([0.0] * 6 + [1.0] * 24)
    assert decide(report(right(30, 30)), base, BETTER).decision == "deploy"  # 6 won, none lost: p = 0.03
    assert decide(report([0.0, *right(29, 29)]), base, BETTER).decision == "not_enough_data"  # 5 won: p = 0.06
    assert decide(base, report(right(30, 30)), BETTER).decision == "iterate"
    assert "+20.0 points" in decide(report(right(30, 30)), base, BETTER).reasons[0]


def test_eight_more_of_the_same_100_rows_show_what_100_other_rows_would_not() -> None:
    tuned, base = report(right(68, 100)), report(right(60, 100))
    assert decide(tuned, base, BETTER).decision == "deploy"
    assert decide(tuned, Report(scores=base.scores), BETTER).decision == "not_enough_data"


def test_no_number_of_rows_shows_that_every_answer_is_right() -> None:
    verdict = decide(report(right(31, 31)), {}, Decision(deploy={"answers.exact": ">= 100 %"}))
    assert verdict.decision == "not_enough_data" and "no number of rows would decide it" in verdict.reasons[0]


def test_rows_that_only_one_side_answered_are_counted_and_left_out() -> None:
    verdict = decide(report(right(40, 40)), report([0.0] * 30), BETTER)
    (finding,) = [finding for finding in verdict.findings if finding.code == "unpaired_rows"]
    assert finding.evidence == {"pairs": 30, "unpaired": 10}


def test_a_baseline_by_number_is_compared_as_an_independent_share() -> None:
    def verdict(value: float, n: int | None) -> str:
        numbers = {"answers.exact": BaselineMetric(value=value, n=n)}
        return decide(report(right(28, 31)), numbers, BETTER).decision

    assert verdict(0.5, 302) == "deploy"
    assert verdict(0.987, 302) == "iterate"
    assert verdict(0.85, 302) == "not_enough_data"
    assert verdict(0.7, None) == "deploy" and verdict(0.7, 8) == "not_enough_data"


def test_lower_is_better_for_times_memory_and_loss() -> None:
    rule = Decision(deploy={metric: "better than baseline" for metric in ("latency_mean", "peak_memory", "validation_loss")})
    small, large = report([], seconds=QUICK, memory=9, loss=0.5), report([], seconds=SLOW, memory=32, loss=0.9)
    assert decide(small, large, rule).decision == "deploy"
    assert decide(large, small, rule).decision == "iterate"
    number = {"latency_mean": BaselineMetric(value=20.1, n=302)}
    assert decide(small, number, Decision(deploy={"latency_mean": "better than baseline"})).decision == "deploy"


def test_the_same_again_is_never_better() -> None:
    assert (
        decide(report([], memory=9), report([], memory=9), Decision(deploy={"peak_memory": "better than baseline"})).decision == "iterate"
    )
    assert decide(report(right(31, 31)), report(right(31, 31)), BETTER).decision == "not_enough_data"


@pytest.mark.parametrize("rule", [BETTER, Decision()])
def test_a_comparison_never_made_deploys_nothing(rule: Decision) -> None:
    verdict = decide(report(right(500, 500)), {}, rule)
    assert (verdict.decision, codes(verdict)) == ("not_enough_data", {"not_compared"})


def test_without_bounds_every_task_must_be_better_than_the_baseline() -> None:
    assert decide(report(right(30, 30)), report(right(0, 30)), Decision()).decision == "deploy"
    assert decide(report([]), {}, Decision()).decision == "not_enough_data"


def test_a_loss_that_is_not_a_number_is_never_shown_to_be_anything() -> None:
    verdict = decide(report([], loss=float("nan")), {}, Decision(deploy={"validation_loss": "< 1"}))
    assert (verdict.decision, codes(verdict)) == ("not_enough_data", {"not_finite"})
    better = Decision(deploy={"validation_loss": "better than baseline"})
    assert decide(report([], loss=float("nan")), report([], loss=1.0), better).decision == "not_enough_data"


def test_a_95th_percentile_of_16_answers_has_no_upper_end() -> None:
    verdict = decide(report([], seconds=QUICK), {}, Decision(deploy={"latency_p95": "< 20 s"}))
    assert verdict.decision == "not_enough_data"
    assert "… unknown, n = 16)" in verdict.reasons[0] and "56 more rows, 72 in all" in verdict.reasons[0]


def test_three_answers_say_nothing_about_a_mean_latency() -> None:
    verdict = decide(report([], seconds=QUICK[:3]), report([], seconds=SLOW), Decision(deploy={"latency_mean": "better than baseline"}))
    assert verdict.decision == "not_enough_data" and verdict.findings[0].evidence["rows_needed"] == 8


def test_confidence_is_the_rules_own() -> None:
    def decision(confidence: float) -> str:
        return decide(report(right(31, 31)), {}, Decision(deploy={"answers.exact": ">= 0.88"}, confidence=confidence)).decision

    assert (decision(0.95), decision(0.99)) == ("deploy", "not_enough_data")


def test_graded_scores_are_judged_by_resampling() -> None:
    grades = [0.8, 0.9, 1.0, 0.7, 0.85, 0.95] * 10
    assert decide(report(grades), {}, Decision(deploy={"answers.exact": ">= 0.8"})).decision == "deploy"
    assert decide(report(grades), report([grade - 0.1 for grade in grades]), BETTER).decision == "deploy"
    kept_without_rows = Report(scores=report(grades).scores)
    assert decide(kept_without_rows, {}, Decision(deploy={"answers.exact": ">= 0.8"})).decision == "not_enough_data"  # as right and wrong


@pytest.mark.parametrize(
    ("bound", "decision"),
    [("< 10100 ms", "not_enough_data"), ("< 12000 ms", "deploy"), ("<= 12", "deploy"), ("> 12", "iterate"), (">= 9.2 s", "deploy")],
)
def test_times_are_bounded_in_seconds_or_milliseconds(bound: str, decision: str) -> None:
    assert decide(report([], seconds=QUICK), {}, Decision(deploy={"latency_mean": bound})).decision == decision


def test_strict_bounds_are_strict() -> None:
    def decision(bound: str) -> str:
        return decide(report([], memory=10_000_000_000), {}, Decision(deploy={"peak_memory": bound})).decision

    assert [decision(bound) for bound in ("<= 10 GB", "< 10 GB", ">= 10 GB", "> 10 GB", "<= 9999 MB")] == [
        "deploy",
        "iterate",
        "deploy",
        "iterate",
        "iterate",
    ]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"deploy": {"answer.exact": ">= 0.9"}}, "did you mean 'answers.exact'"),
        ({"deploy": {"latency_mean": "< 12 s"}}, "was not measured"),
        ({"deploy": {"answers.exact": "< 12 s"}}, "answers.exact is in share"),
        ({"deploy": {"answers.exact": ">= 98"}}, "write '>= 98 %'"),
        ({"deploy": {"answers.exact": "better than baseline by 2 s"}}, "answers.exact is in share"),
    ],
)
def test_a_bound_that_cannot_be_judged_is_an_error(rule: dict[str, dict[str, str]], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        decide(report(right(5, 5)), {}, Decision.model_validate(rule))


def test_a_baseline_that_cannot_be_meant_is_an_error() -> None:
    with pytest.raises(RecipeError, match="a share is 0…1"):
        decide(report(right(5, 5)), {"answers.exact": BaselineMetric(value=98.7)}, BETTER)
    with pytest.raises(RecipeError, match=r"did you mean 'answers\.exact'"):
        decide(report(right(5, 5)), {"answers.exakt": BaselineMetric(value=0.9)}, BETTER)


def test_cut_answers_are_reported() -> None:
    assert "answers_cut" in codes(decide(report(right(200, 200), cut=3), {}, Decision(deploy={"answers.exact": ">= 0.9"})))


def test_verdict_json_has_the_keys_others_rely_on(tmp_path: Path) -> None:
    decide(report(right(31, 31)), {}, BETTER).write(tmp_path / "verdict.json")
    written = json.loads((tmp_path / "verdict.json").read_text())
    assert set(written) == {"decision", "reasons", "findings", "bounds", "look", "more_rows"}
    assert set(written["findings"][0]) == {"code", "severity", "message", "evidence", "changes"}


# Seed 004 in five lines: a 7B on a CPU against a 30B of which only numbers are known.
SEED_004 = """
evaluation:
  baseline: {answers.exact: {value: 0.987, n: 302}, latency_mean: {value: 20.1}, peak_memory: {value: 32.5e+9}}
decision:
  deploy: {answers.exact: '>= 98 %', latency_mean: '< 12 s', peak_memory: '<= 10 GB'}
  abort: {answers.exact: not better than baseline, latency_mean: not better than baseline}
"""
# Seed 000: a coach of 4B goes on to the 35B if its answers are better than the untuned model's, end, and it has forgotten nothing.
SEED_000 = """
evaluation:
  baseline: base
decision:
  deploy: {answers.exact: better than base by 3 %, answers.endless: '<= 2 %', validation_loss: '< 0.35'}
  abort: {answers.exact: not better than base}
"""


def rule_of(text: str) -> tuple[Evaluation, Decision]:
    sections = YAML(typ="safe").load(text)
    return Evaluation.model_validate(sections["evaluation"]), Decision.model_validate(sections["decision"])


@pytest.mark.parametrize(
    ("answers", "seconds", "memory", "decision"),
    [
        (right(183, 183), QUICK, 9e9, "deploy"),
        (right(31, 31), QUICK, 9e9, "not_enough_data"),
        (right(183, 183), QUICK, 14e9, "iterate"),
        (right(183, 183), SLOW, 9e9, "iterate"),  # not faster, but no worse: no reason to abort
        (right(150, 183), SLOW, 9e9, "abort"),
    ],
)
def test_seed_004s_rule_in_five_lines(answers: list[float], seconds: list[float], memory: float, decision: str) -> None:
    evaluation, rule = rule_of(SEED_004)
    assert len(SEED_004.strip().splitlines()) == 5 and isinstance(evaluation.baseline, dict)
    assert decide(report(answers, seconds=seconds, memory=int(memory)), evaluation.baseline, rule).decision == decision


@pytest.mark.parametrize(
    ("tuned", "loss", "decision"),
    [
        (right(280, 300), 0.317, "deploy"),
        (right(280, 300), 0.4, "iterate"),
        (right(200, 300), 0.317, "abort"),
        (right(250, 300), 0.317, "iterate"),
    ],
)
def test_seed_000s_go_or_no_go_in_five_lines(tuned: list[float], loss: float, decision: str) -> None:
    evaluation, rule = rule_of(SEED_000)
    assert len(SEED_000.strip().splitlines()) == 5 and evaluation.baseline == "base"
    base = report(right(250, 300), loss=0.6)
    assert decide(report(tuned, loss=loss), base, rule, base=base).decision == decision


def test_a_guard_may_not_get_worse_by_more_than_its_margin() -> None:
    guard = Decision(deploy={"answers.exact": "not worse than baseline by 5 %"})
    base = report(right(150, 200))
    assert decide(report(right(148, 200)), base, guard).decision == "deploy"  # 2 lost: −1 point, at least −3.6
    assert decide(report(right(120, 200)), base, guard).decision == "iterate"
    few = decide(report(right(37, 50)), report(right(38, 50)), guard)
    assert few.decision == "not_enough_data" and few.more_rows > 100
    assert "not worse than baseline by 5 %" in few.reasons[0]


def test_better_by_a_margin_wants_the_whole_interval_above_it() -> None:
    base, tuned = report(right(200, 400)), report(right(240, 400))  # +10 points, 7.4 … 13.3
    decisions = [
        decide(tuned, base, Decision(deploy={"answers.exact": f"better than baseline by {by}"})).decision for by in ("5 %", "10 %", "20 %")
    ]
    assert decisions == ["deploy", "not_enough_data", "iterate"]


def test_a_margin_in_percent_of_a_time_is_a_part_of_the_baselines() -> None:
    slower = report([], seconds=[seconds * 1.1 for seconds in QUICK])

    def decision(bound: str) -> str:
        return decide(slower, report([], seconds=QUICK), Decision(deploy={"latency_p50": bound})).decision

    bounds = ("not worse than baseline by 25 %", "not worse than baseline by 5 %", "not worse than baseline by 2 s", "better than baseline")
    assert [decision(bound) for bound in bounds] == ["deploy", "iterate", "deploy", "iterate"]


def test_base_and_baseline_may_be_two() -> None:
    rule = Decision(deploy={"answers.exact": "not worse than base by 5 %"})
    tuned, base = report(right(150, 200)), report(right(149, 200))
    assert decide(tuned, {}, rule, base=base).decision == "deploy"
    assert codes(decide(tuned, {}, rule)) == {"not_compared"}


def test_times_that_were_taken_in_turn_are_those_that_are_compared() -> None:
    """The base was evaluated while the machine was busy; side by side it is as fast."""
    tuned, busy = report([], seconds=QUICK), report([], seconds=SLOW)
    beside = Beside(report=busy, times=InTurn(data_hash="0" * 16, tuned=latency(QUICK), other=latency(QUICK[::-1])))
    rule = Decision(deploy={"latency_p50": "better than baseline"})
    assert decide(tuned, busy, rule).decision == "deploy"
    assert decide(tuned, beside, rule).decision == "not_enough_data"


def test_a_loss_is_compared_row_by_row() -> None:
    base = [4.0 + 0.5 * (row % 7) for row in range(60)]
    rule = Decision(deploy={"validation_loss": "better than baseline"})
    assert decide(lost([nats - 0.1 - 0.01 * (row % 5) for row, nats in enumerate(base)]), lost(base), rule).decision == "deploy"
    by_chance = decide(lost([nats + (0.4 if row % 2 else -0.42) for row, nats in enumerate(base)]), lost(base), rule)
    assert by_chance.decision == "not_enough_data"  # lower, but not shown to be
    same = decide(lost(base), lost(base), rule)
    assert same.decision == "not_enough_data" and "no number of rows" in same.reasons[0]
    few = decide(lost(base[:5]), lost(base[:5]), rule)
    assert few.more_rows == 3


def test_a_rate_that_was_measured_once_on_each_side_is_told_to_be() -> None:
    verdict = decide(report(right(9, 9)), report(right(9, 9)), Decision(deploy={"tokens_per_second": "not worse than baseline by 5 %"}))
    assert verdict.decision == "deploy" and "measured_once" in codes(verdict)
    assert "measured_once" not in codes(
        decide(report([], memory=9), report([], memory=10), Decision(deploy={"peak_memory": "better than baseline"}))
    )


def test_answers_that_refuse_were_cut_or_would_not_end_can_be_bounded() -> None:
    loop = "the board is white, " * 9
    answers = (
        [("no", True)] * 190
        + [(loop, False)] * 6
        + [("It was a dark and stormy night", False)] * 2
        + [("I'm sorry, but I can't help with that.", True)] * 2
    )
    tuned = answered(answers)

    def decision(metric: str, bound: str) -> str:
        return decide(tuned, {}, Decision(deploy={f"answers.{metric}": bound})).decision

    assert [decision(metric, "<= 0.1") for metric in ("cut", "endless", "refused")] == ["deploy"] * 3
    assert [decision(metric, "<= 0.1 %") for metric in ("cut", "endless", "refused")] == ["iterate"] * 3
    assert "answers.endless is 3.0 %" in decide(tuned, {}, Decision(deploy={"answers.endless": "<= 1"})).reasons[0]


WERE, ARE = (
    {"mail": right(50, 60), "net": right(30, 60), "web": right(40, 60)},
    {"mail": right(30, 60), "net": right(55, 60), "web": right(38, 60)},
)


def test_groups_that_got_worse_are_named() -> None:
    verdict = decide(grouped(ARE), grouped(WERE), Decision(deploy={"answers.exact": "not worse than baseline by 10 %"}))
    (finding,) = [finding for finding in verdict.findings if finding.code == "group_worse"]
    assert finding.evidence["group"] == "mail" and finding.evidence["difference"] == pytest.approx(-20 / 60)
    assert verdict.decision == "deploy"  # overall; who wants each group has to say so
    of_mail = decide(grouped(ARE), grouped(WERE), Decision(deploy={"answers.exact@mail": "not worse than baseline by 10 %"}))
    assert of_mail.decision == "iterate"


def test_of_many_groups_one_that_is_worse_by_chance_is_not_named() -> None:
    """Eight lost, none won: p = 0.008 for one group, but there are twelve."""
    before = {f"group {number}": right(10, 20) for number in range(12)}
    after = {**before, "group 0": right(2, 20)}
    assert "group_worse" not in codes(decide(grouped(after), grouped(before), BETTER))
    assert "group_worse" in codes(
        decide(grouped({"one": right(2, 20), "other": right(12, 20)}), grouped({"one": right(10, 20), "other": right(10, 20)}), BETTER)
    )


def test_one_of_many_guards_that_fails_by_chance_is_no_reason_to_iterate() -> None:
    """Holm: 6 rows lost of 60 are shown to be worse by more than 1 % if that is the only guard, not if it is one of ten."""
    guard = "not worse than baseline by 1 %"
    before, after = grouped({"a": right(30, 60), "b": right(30, 60)}), grouped({"a": right(24, 60), "b": right(30, 60)})
    alone = decide(after, before, Decision(deploy={"answers.exact@a": guard}))
    others = {f"answers.{fault}{group}": "<= 90 %" for fault in ("cut", "endless", "refused") for group in ("", "@a", "@b")}
    among = decide(after, before, Decision(deploy={"answers.exact@a": guard, **others}))
    assert (alone.decision, among.decision) == ("iterate", "not_enough_data")


def test_rows_that_hang_together_show_less() -> None:
    tuned = {"all": right(240, 300)}
    rule = Decision(deploy={"answers.exact": ">= 0.72"})
    assert decide(grouped(tuned), {}, rule).decision == "deploy"
    in_tens = grouped(tuned, keys=[str(row // 10) for row in range(300)])  # thirty sources, right or wrong as a whole
    assert decide(in_tens, {}, rule).decision == "not_enough_data"


def test_a_later_look_wants_more() -> None:
    base, tuned = report(right(60, 100)), report(right(67, 100))
    assert decide(tuned, base, BETTER).decision == "deploy"
    again = decide(tuned, base, BETTER, look=2)
    assert again.decision == "not_enough_data" and again.look == 2
    assert decide(report(right(80, 100)), base, BETTER, look=20).decision == "deploy"


def test_a_time_that_is_measured_until_it_fits_wants_more_each_time() -> None:
    tuned, base = report([], seconds=[seconds - 0.1 for seconds in QUICK]), report([], seconds=QUICK)
    quicker = Decision(deploy={"latency_p50": "better than baseline"})
    assert [decide(tuned, base, quicker, look=look).decision for look in (1, 2, 100)] == ["deploy", "deploy", "not_enough_data"]


def test_a_baseline_that_is_tried_after_others_takes_more_to_beat() -> None:
    tuned, base = report(right(69, 100)), report(right(60, 100))
    assert decide(tuned, base, BETTER, look=2, trial=1).decision == "deploy"
    assert decide(tuned, base, BETTER, look=5, trial=5).decision == "not_enough_data"


def test_the_same_answers_are_the_same_look() -> None:
    tuned, base = report(right(60, 100), seconds=QUICK), report(right(50, 100))
    assert evidence(tuned, base) == evidence(report(right(60, 100), seconds=QUICK), report(right(50, 100)))
    others = {
        evidence(tuned),
        evidence(tuned, BASELINE),
        evidence(report(right(61, 100), seconds=QUICK), base),
        evidence(report(right(60, 100), seconds=SLOW), base),
    }
    assert len(others | {evidence(tuned, base)}) == 5


def test_verdict_json_has_each_bound_with_its_numbers() -> None:
    verdict = decide(report(right(31, 31), seconds=QUICK, memory=9_000_000_000), BASELINE, RULE).to_json()
    (of_answers,) = [bound for bound in verdict["bounds"] if bound["metric"] == "answers.exact"]
    assert (of_answers["outcome"], of_answers["value"], of_answers["n"], of_answers["rows_needed"]) == ("undecided", 1.0, 31, 183)
    assert verdict["more_rows"] == 152 and verdict["look"] == 1
    compared = decide(report(right(30, 30)), report(right(0, 30)), BETTER).to_json()["bounds"][0]
    assert compared["difference"]["pairs"] == 30 and compared["difference"]["value"] == 1.0 and compared["other"] == 0.0
