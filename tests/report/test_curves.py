"""The charts of a run: those of answers only where answers are rewarded, the held-out reward with its interval."""

from pathlib import Path

from luthier.core import jsonl
from luthier.report.curves import CHARTS, OF_ANSWERS, REWARD, Drawn, drawn, overlaid, svg
from luthier.runs.held_out import held_out as rewards_of
from luthier.runs.store import RunFolder
from luthier.watch.series import read
from tests.runs.recorded import held_out, line, recorded, rewarded, run_in


def reinforced(folder: Path, **changed: float) -> RunFolder:
    run = run_in(folder)
    recorded(run, [*(rewarded(step, step / 100, **changed) for step in range(1, 41)), line(40, 1.25, "validation")])
    for step in (20, 40):
        held_out(run, step, 0.5 + step / 200)
    return run


def charts(run: RunFolder) -> list[Drawn]:
    return drawn(read(run.metrics), rewards_of(list(jsonl.records(run.events))))


def test_a_supervised_run_has_no_empty_charts_of_answers(tmp_path: Path) -> None:
    run = run_in(tmp_path / "animals")
    recorded(run, [line(1, 2.0), line(2, 1.5), line(2, 1.6, "validation")])
    assert [each.chart for each in charts(run)] == list(CHARTS)


def test_a_rewarded_run_has_charts_of_what_it_measured_the_reward_first(tmp_path: Path) -> None:
    found = charts(reinforced(tmp_path / "animals"))
    assert [each.chart for each in found] == [*(chart for chart in OF_ANSWERS if chart.column != "kl"), *CHARTS]
    assert [each.chart.column for each in charts(reinforced(tmp_path / "held", kl=0.01))][3] == "kl"
    silent = next(each for each in found if each.chart.column == "silent")
    assert set(silent.curves["train"].y.tolist()) == {25.0}


def test_the_held_out_reward_is_the_validation_curve_of_the_reward_with_its_interval(tmp_path: Path) -> None:
    reward = charts(reinforced(tmp_path / "animals"))[0]
    validation = reward.curves["validation"]
    assert (validation.x.tolist(), validation.y.tolist()) == ([20, 40], [0.6, 0.7])
    train, held = reward.to_json()["curves"]
    assert (train["name"], train["low"], held["name"]) == ("train", [], "validation")
    assert (held["low"], held["high"]) == ([0.55, 0.65], [0.65, 0.75])
    picture = svg(reward)
    assert picture.count('class="interval validation"') == 2 and picture.count("<polyline") == 2
    assert "interval" not in svg(charts(reinforced(tmp_path / "other"))[1])


def test_only_the_held_out_reward_is_there_before_the_first_step(tmp_path: Path) -> None:
    run = run_in(tmp_path / "animals")
    held_out(run, 0, 0.5)
    assert charts(run)[0].chart is REWARD and len(charts(run)) == 1 + len(CHARTS)


def test_runs_beside_each_other_have_rewards_where_any_of_them_is_rewarded(tmp_path: Path) -> None:
    supervised = run_in(tmp_path / "supervised")
    recorded(supervised, [line(1, 2.0), line(2, 1.5)])
    rewarded_run = reinforced(tmp_path / "rewarded")
    series = {"supervised": read(supervised.metrics), "rewarded": read(rewarded_run.metrics)}
    rewards = {"supervised": (), "rewarded": rewards_of(list(jsonl.records(rewarded_run.events)))}
    found = {each.chart.title: each.curves for each in overlaid(series, rewards)}
    assert list(found)[:3] == ["Held-out reward", "Training reward", "Tokens of an answer"]
    assert list(found)[-3:] == ["Validation loss", "Training loss", "Tokens per second"]
    assert (len(found["Held-out reward"]["rewarded"].x), len(found["Held-out reward"]["supervised"].x)) == (2, 0)
    only = overlaid({"supervised": series["supervised"]}, {"supervised": ()})
    assert [each.chart.title for each in only] == ["Validation loss", "Training loss", "Tokens per second"]
