"""Whether a decision's bounds can be shown by so few rows, and met by such a model at all: each mistake, and what just is none."""

import pytest

from luthier.score.intervals import exact
from tests.plan.check.cases import World, found, only

HERE = "launch.gpu=here"
SEVEN = "model.base=Qwen/Qwen2.5-7B-Instruct"
FEW = World(examples=310)


def deploy(bound: str, metric: str = "answers.exact") -> str:
    return f"decision.deploy.{metric}={bound}"


def test_31_rows_cannot_show_98_percent_even_all_right() -> None:
    finding = found(deploy(">= 0.98"), world=FEW)["test-too-small"]
    assert (finding.severity, finding.evidence["rows"], finding.evidence["needed_if_perfect"]) == ("warn", 31, 183)
    assert exact(182, 182).low < 0.98 <= exact(183, 183).low
    assert finding.message.startswith("answers.exact >= 0.98 cannot be shown by 31 rows: with all right it takes 183, and")


def test_the_rows_for_the_margin_that_is_hoped_for_follow_from_the_baseline() -> None:
    recipe = (deploy(">= 0.98"), "evaluation.baseline={answers.exact: {value: 0.987}}")
    finding = only("test-too-small", *recipe)
    assert (finding.severity, finding.evidence["hoped_for"]) == ("note", 0.987)
    needed = int(finding.evidence["needed_as_hoped"])
    assert exact(0.987 * needed, needed).low >= 0.979 > exact(0.987 * needed / 2, needed // 2).low


def test_a_larger_share_of_test_rows_shows_it_where_that_is_reasonable() -> None:
    finding = only("test-too-small", deploy(">= 0.9"), world=World(examples=900))
    assert [change.path for change in finding.changes] == ["data.split.test", "data.split.train"]


def test_a_limit_that_leaves_too_few_rows_is_lifted() -> None:
    finding = only("test-too-small", "evaluation.tasks.0.limit=20")
    assert finding.changes[0].path == "evaluation.tasks.0.limit"


def test_perfection_cannot_be_shown() -> None:
    assert only("test-too-small", deploy(">= 1")).evidence["needed_if_perfect"] == "unreachable"


def test_few_pairs_show_large_improvements_only() -> None:
    finding = only("test-too-small", deploy("better than baseline"), world=World(examples=800))
    assert "80 rows can show an improvement of about 14 points" in finding.message


def test_few_pairs_cannot_guard_a_narrow_margin() -> None:
    guard = deploy("not worse than base by 5 %")
    finding = found(guard, world=World(examples=1_000))["test-too-small"]
    assert (finding.evidence["rows"], finding.evidence["needed"]) == (100, 628)
    assert "100 rows can show that it is within 13 points; 5 points take 628" in finding.message
    assert "test-too-small" not in found(guard, world=World(examples=10_000))


def test_a_bound_on_memory_below_the_weights_cannot_be_met() -> None:
    finding = only("bound-unreachable", SEVEN, deploy("<= 10 GB", "peak_memory"))
    assert finding.message == (
        "peak_memory <= 10 GB cannot be met: 7.62 G parameters are 15.2 GB in bfloat16 (in nf4 "
        f"{float(finding.evidence['nf4_bytes']) / 1e9:.3g} GB)"
    )
    assert finding.changes[0].value == "nf4"


def test_where_no_format_would_do_it_is_said_which_base_would() -> None:
    finding = only("bound-unreachable", SEVEN, deploy("<= 2 GB", "peak_memory"))
    assert "a base of at most 0.9 G parameters would meet it in bfloat16" in finding.message
    assert finding.changes == ()


def test_an_answer_cannot_be_faster_than_its_weights_are_read() -> None:
    finding = only("bound-unreachable", SEVEN, deploy("< 500 ms", "latency_mean"))
    assert 0.8 < float(finding.evidence["least_seconds"]) < 0.9
    assert only("bound-unreachable", SEVEN, deploy("< 1 ms", "per_token_p50")).changes == ()


def test_a_processors_memory_sets_the_floor_where_it_was_measured() -> None:
    """25 GB/s and a quarter: Qwen2.5-7B reads 14.1 GB a token in bfloat16, 0.45 s."""
    findings = found(SEVEN, HERE, deploy("< 12 s", "latency_mean"), world=World(bandwidth=25e9))
    assert findings["bound-unreachable"].message.endswith("at 31 GB/s")
    assert "bound-not-checked" not in findings
    assert "bound-unreachable" not in found(SEVEN, HERE, deploy("< 12 s", "latency_mean"), world=World(bandwidth=500e9))


def test_a_bound_that_cannot_be_checked_is_said_not_to_be() -> None:
    findings = found(SEVEN, HERE, deploy("< 12 s", "latency_mean"))
    assert "bound-unreachable" not in findings
    finding = findings["bound-not-checked"]
    assert finding.severity == "note"
    assert finding.message == ("Whether latency_mean < 12 s can be met was not checked: how fast EPYC reads its memory is not known")
    assert finding.fix == "luthier plan, on the machine that will answer, measures it"
    stated = only("bound-not-checked", SEVEN, deploy("< 12 s", "latency_mean"), world=World(data="stated"))
    assert stated.message.endswith("how long answers are is not known")


@pytest.mark.parametrize(
    ("code", "changes", "world"),
    [
        ("test-too-small", [deploy(">= 0.9")], World()),
        ("test-too-small", ["decision.deploy={}"], FEW),
        ("test-too-small", [deploy("better than baseline")], World()),
        ("bound-unreachable", [SEVEN, deploy("<= 16 GB", "peak_memory")], World()),
        ("bound-unreachable", [SEVEN, deploy("<= 10 GB", "peak_memory"), "model.quantization=nf4"], World()),
        ("bound-unreachable", [SEVEN, deploy("< 1 s", "latency_mean")], World()),
        ("bound-unreachable", [SEVEN, deploy("< 5 ms", "per_token_mean")], World()),
        ("bound-not-checked", [SEVEN, deploy("< 5 ms", "per_token_mean")], World(data="stated")),
        ("bound-not-checked", [HERE, deploy("< 5 s", "per_token_mean")], World(bandwidth=25e9)),
        ("bound-not-checked", [HERE, deploy("<= 10 GB", "peak_memory")], World()),
        ("bound-not-checked", [HERE, deploy("> 1 s", "latency_mean")], World()),
    ],
)
def test_what_just_is_no_mistake_is_not_found(code: str, changes: list[str], world: World) -> None:
    assert code not in found(*changes, world=world)


def test_of_rows_that_are_only_stated_the_shares_tell_how_many_are_asked() -> None:
    assert found(deploy(">= 0.98"), world=World(examples=310, data="stated"))["test-too-small"].evidence["rows"] == 31
