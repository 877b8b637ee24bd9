"""Steps over drawn answers, in the loop that trains by rows: what is drawn, what is learned, and that a resumed run is the same."""

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from luthier.core import jsonl
from luthier.core.signals import Asked, Interrupted
from luthier.flow.reinforcing import rewarded
from luthier.runs import control
from luthier.runs.heartbeat import Unheard
from luthier.train.run import TrainingJob, TrainingResult, train
from tests.rl.wishes import early
from tests.train.workshop import Workshop

RL = {"rewards": {"tests.rl.wishes:early": 1.0}, "group_size": 4, "max_new_tokens": 16}
SECTIONS: dict[str, Any] = {
    "rl": RL,
    "training": {"max_steps": 6, "global_batch_size": 8, "learning_rate": 1e-2, "micro_batch_size": "auto"},
    "checkpoints": {"eval_steps": 3, "save_steps": 2},
}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """A base that some rows have taught to answer, and to end its answers."""
    workshop = Workshop(tmp_path_factory.mktemp("taught"))
    train(workshop.job("taught", lora={"dropout": 0.0}, training={"max_steps": 40}, checkpoints={"final": "last"}))
    return workshop


@pytest.fixture
def workshop(taught: Workshop) -> Iterator[Workshop]:
    yield taught
    for run in (taught.folder / "runs").iterdir():
        if run.name != "taught":
            shutil.rmtree(run)


def reinforcement(workshop: Workshop, name: str, **sections: Any) -> TrainingJob:
    lora = {"dropout": 0.0, "init_from": str(workshop.folder / "runs" / "taught" / "adapter")}
    return workshop.job(name, **{**SECTIONS, "lora": lora, **sections})


def reinforced(workshop: Workshop, name: str = "run", until: int = 0, **sections: Any) -> tuple[TrainingResult, list[dict[str, Any]]]:
    """A run, and its steps' lines."""
    job = reinforcement(workshop, name, **sections)
    with rewarded(job) as ready:
        if until:
            with control.leaving_off_after(job.folder, until):
                result = train(ready)
        else:
            result = train(ready)
    return result, [line for line in jsonl.salvage(job.folder.metrics).records if line["kind"] == "train"]


def adapter(workshop: Workshop, name: str) -> bytes:
    return (workshop.folder / "runs" / name / "adapter" / "adapter_model.safetensors").read_bytes()


def answers(workshop: Workshop, name: str, step: int) -> list[Any]:
    text = (workshop.folder / "runs" / name / "rollouts" / f"step-{step:06d}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_rewarded_answers_become_likelier(workshop: Workshop) -> None:
    training = {**SECTIONS["training"], "max_steps": 30, "global_batch_size": 32}
    _, lines = reinforced(workshop, rl={**RL, "group_size": 8}, training=training)
    first, last = (np.mean([line["reward"] for line in part]) for part in (lines[:5], lines[-5:]))
    assert last > first + 0.1


def test_the_line_of_a_step_tells_of_its_answers(workshop: Workshop) -> None:
    _, lines = reinforced(workshop)
    told = answers(workshop, "run", 1)
    assert len(told) == 8
    assert lines[0]["reward"] == pytest.approx(np.mean([answer["reward"] for answer in told]))
    assert lines[0]["answer_tokens"] == pytest.approx(np.mean([answer["tokens"] for answer in told]))
    assert lines[0]["cut"] == np.mean([answer["cut"] for answer in told])
    assert lines[0]["kl"] is None and lines[0]["clipped"] is not None


def test_answers_of_a_group_differ_and_groups_have_one_prompt_each(workshop: Workshop) -> None:
    reinforced(workshop)
    told = answers(workshop, "run", 1)
    asked = [answer["asked"] for answer in told]
    assert asked == [asked[0]] * 4 + [asked[4]] * 4 and asked[0] != asked[4]
    assert len({str(answer["answers"]) for answer in told[:4]}) > 1


def test_what_the_sampler_found_probable_the_trainer_does_too(workshop: Workshop) -> None:
    """Before anything was learned from them; in float32, to rounding: the engine writes with a cache, training reads packs."""
    for settings in ({}, {"temperature": 0.7}):
        _, lines = reinforced(workshop, f"at-{len(settings)}", rl={**RL, **settings})
        drifts = [line["drift"] for line in lines if line["drift"] is not None]
        assert drifts and max(drifts) < 2e-5


def test_cut_answers_are_rewarded_and_not_learned_from(workshop: Workshop) -> None:
    _, lines = reinforced(workshop, rl={**RL, "max_new_tokens": 1})
    told = answers(workshop, "run", 1)
    whole = [answer for answer in told if not answer["cut"]]
    assert all(answer["reward"] is not None for answer in told) and len(whole) < len(told)
    assert lines[0]["supervised_tokens"] == sum(answer["tokens"] for answer in whole if answer["advantage"] is not None)


def test_a_step_without_a_signal_changes_nothing(workshop: Workshop) -> None:
    _, lines = reinforced(workshop, rl={**RL, "rewards": {"tests.rl.wishes:alike": 1.0}})
    assert all(line["silent"] == 1 and line["grad_norm"] == line["supervised_tokens"] == 0 for line in lines)
    assert {answer["advantage"] for answer in answers(workshop, "run", 1)} == {None}
    assert adapter(workshop, "run") == adapter(workshop, "taught")


@pytest.mark.parametrize("more", [{}, {"updates": 2}, {"updates": 3, "kl": 0.1, "algorithm": "gspo", "clip": 0.2}], ids=str)
@pytest.mark.parametrize("until", [2, 3])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(workshop: Workshop, more: dict[str, Any], until: int) -> None:
    whole, lines = reinforced(workshop, "whole", rl={**RL, **more})
    reinforced(workshop, "parts", until=until, rl={**RL, **more})
    resumed, again = reinforced(workshop, "parts", rl={**RL, **more})
    assert resumed.last_step == whole.last_step == 6
    assert adapter(workshop, "parts") == adapter(workshop, "whole")
    same = ("step", "loss", "grad_norm", "reward", "entropy", "kl", "clipped")
    assert [[line[key] for key in same] for line in again] == [[line[key] for key in same] for line in lines]
    assert answers(workshop, "parts", 4 if not more else 1) == answers(workshop, "whole", 4 if not more else 1)


def test_several_updates_learn_from_the_same_answers_and_ratios_move(workshop: Workshop) -> None:
    _, lines = reinforced(workshop, rl={**RL, "updates": 3})
    rewards = [line["reward"] for line in lines]
    assert rewards[0] == rewards[1] == rewards[2] != rewards[3]
    assert [line["drift"] is None for line in lines] == [False, True, True, False, True, True]


def test_the_divergence_is_from_the_adapter_the_run_began_with(workshop: Workshop) -> None:
    """0 before the first update; and a heavy weight holds the model there."""
    training = {**SECTIONS["training"], "learning_rate": 3e-3}
    _, free = reinforced(workshop, "free", rl={**RL, "kl": 1e-6}, training=training)
    _, held = reinforced(workshop, "held", rl={**RL, "kl": 10.0}, training=training)
    assert free[0]["kl"] == pytest.approx(0, abs=1e-9) and held[0]["kl"] == pytest.approx(0, abs=1e-9)
    assert free[-1]["kl"] > 2 * held[-1]["kl"] > 0


def test_the_best_checkpoint_is_the_one_with_the_most_reward_held_out(workshop: Workshop) -> None:
    result, _ = reinforced(workshop)
    run = workshop.folder / "runs" / "run"
    told = {event["step"]: event["value"] for event in jsonl.salvage(run / "events.jsonl").records if event["event"] == "held_out"}
    assert set(told) == {0, 3, 6}  # before the first step, too
    assert result.best is not None and result.best.value == max(told[3], told[6]) == told[result.final_step]


def test_every_turn_of_an_episode_is_learned_from_as_it_was_read_and_written(workshop: Workshop) -> None:
    """The second turn's prompt is the template's rendering of the first answer and what was said to it."""
    environment = {**RL, "rewards": {"environment": 1.0}, "environment": "tests.rl.wishes:Again"}
    _, lines = reinforced(workshop, rl=environment)
    told = answers(workshop, "run", 1)
    whole = [episode for episode in told if not episode["cut"]]
    assert whole and all(len(episode["answers"]) == 2 for episode in whole)  # what is cut is not replied to
    assert [episode["reward"] for episode in whole] == [early_of(episode["answers"]) for episode in whole]
    assert lines[0]["supervised_tokens"] > 0 and max(line["drift"] for line in lines if line["drift"] is not None) < 2e-5


def early_of(said: list[str]) -> float:
    return sum(early(answer, "") for answer in said) / len(said)


def test_a_step_without_a_signal_is_none_in_float16_either(workshop: Workshop) -> None:
    model = {"base": str(workshop.base()), "dtype": "float16"}
    _, lines = reinforced(workshop, model=model, rl={**RL, "rewards": {"tests.rl.wishes:alike": 1.0}})
    assert all(line["silent"] == 1 and line["grad_norm"] == line["supervised_tokens"] == 0 for line in lines)


def test_a_checkpoint_between_two_updates_is_gone_on_from_after_the_next_answers_were_drawn(workshop: Workshop) -> None:
    """Saved after step 3, in the middle of what was drawn for 3 and 4; killed in step 6, which learns from what was drawn for 5."""
    sections = {"rl": {**RL, "updates": 2}, "checkpoints": {**SECTIONS["checkpoints"], "save_steps": 3}}
    reinforced(workshop, "whole", **sections)
    reinforced(workshop, "killed", until=5, **sections)
    shutil.rmtree(workshop.folder / "runs" / "killed" / "checkpoints" / "step-000005")  # it was never saved
    reinforced(workshop, "killed", **sections)
    assert adapter(workshop, "killed") == adapter(workshop, "whole")
    kept = {path.name for path in (workshop.folder / "runs" / "killed" / "rollouts").glob("tokens-*")}
    assert kept == {"tokens-000003.json", "tokens-000005.json"}


class Ending(Unheard):
    """Lets a signal come after so many signs of life: one for each token of all answers, and for each micro batch."""

    def __init__(self, asked: Asked, signs: int) -> None:
        self.asked, self.left = asked, signs

    def again(self) -> None:
        """One less."""
        self.left -= 1
        if not self.left:
            self.asked.number = signal.SIGTERM


@pytest.mark.parametrize("signs", [5, 60])
def test_a_signal_while_answers_are_drawn_saves_the_step_before_and_the_run_goes_on_to_the_bit(workshop: Workshop, signs: int) -> None:
    reinforced(workshop, "whole")
    asked = Asked()
    job = replace(reinforcement(workshop, "ended"), asked=asked, heart=Ending(asked, signs))
    with pytest.raises(Interrupted), rewarded(job) as ready:
        train(ready)
    (event,) = [event for event in jsonl.salvage(job.folder.events).records if event["event"] == "interrupted"]
    assert job.folder.saved_steps[:1] == ((event["step"],) if event["step"] else ())
    reinforced(workshop, "ended")
    assert adapter(workshop, "ended") == adapter(workshop, "whole")


def test_a_group_without_a_signal_is_held_to_the_beginning_all_the_same(workshop: Workshop) -> None:
    _, lines = reinforced(workshop, rl={**RL, "rewards": {"tests.rl.wishes:alike": 1.0}, "kl": 0.1})
    told = answers(workshop, "run", 1)
    assert lines[0]["silent"] == 1
    assert lines[0]["supervised_tokens"] == sum(answer["tokens"] for answer in told if not answer["cut"]) > 0


def test_an_answer_that_is_cut_ends_its_episode(workshop: Workshop) -> None:
    """Nothing can be replied to half of a sentence."""
    reinforced(workshop, rl={**RL, "rewards": {"environment": 1.0}, "environment": "tests.rl.wishes:Again", "max_new_tokens": 1})
    cut = [episode for episode in answers(workshop, "run", 1) if episode["cut"]]
    assert cut and all(len(episode["answers"]) == 1 for episode in cut)
