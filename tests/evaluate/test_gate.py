"""The verdict: what must be shown before a model is deployed, and what happens when it is not."""

import json
from pathlib import Path

import pytest

from luthier.core.errors import RecipeError
from luthier.evaluate.gate import Verdict, decide
from luthier.evaluate.report import Report
from luthier.recipe.proof import BaselineMetric, Decision
from tests.evaluate.reports import report, right

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
        "about 183 rows would decide it, if the value stayed"
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
    assert "… unknown, n = 16)" in verdict.reasons[0] and "about 72 rows" in verdict.reasons[0]


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
        ({"deploy": {"answers.exact": ">= 0.9"}, "abort": {"answers.exact": "better than baseline"}}, "makes no sense"),
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
    assert set(written) == {"decision", "reasons", "findings"}
    assert set(written["findings"][0]) == {"code", "severity", "message", "evidence", "changes"}
