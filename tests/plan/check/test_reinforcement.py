"""Before answers are rewarded: a rate for rows, too few prompts, answers used up, no room; and what is said of rows only."""

from dataclasses import replace

import pytest

from luthier.plan.check import OF_ROWS, check, reinforcement
from tests.plan.check.cases import World, case, found, only

RL = (
    *("rl={rewards: {exact: 1.0}, max_new_tokens: 64}", "training.global_batch_size=64", "training.learning_rate=4e-5"),
    *("checkpoints.eval_steps=50%", "checkpoints.early_stopping_patience=off", "data.split={train: 0.98, validation: 0.01, test: 0.01}"),
)
LARGE = World(examples=250_000)


def test_a_recipe_that_is_as_published_ones_are_has_nothing_to_find() -> None:
    assert not found(*RL, world=LARGE)


def test_the_default_rate_is_one_for_rows_and_a_tenth_is_named() -> None:
    finding = only("reinforcement-rate", *RL, "training.learning_rate=3e-4", world=LARGE)
    assert finding.severity == "note" and finding.message.startswith("The learning rate 3e-4 is one for learning from rows (best ")
    assert only("reinforcement-rate", *RL, "training.learning_rate=1e-3", world=LARGE).severity == "warn"


def test_of_a_size_that_no_sweep_had_no_rate_is_called_one_for_rows() -> None:
    large = case(*RL, "training.learning_rate=1e-3", world=LARGE)
    small = replace(large, shape=replace(large.shape, linears=large.shape.linears[-1:]))
    assert any(reinforcement.reinforcement_rate(large)) and not any(reinforcement.reinforcement_rate(small))


def test_two_prompts_a_step_are_few() -> None:
    finding = only("few-prompts", *RL, "training.global_batch_size=16", world=LARGE)
    assert (
        finding.message
        == "16 answers a step in groups of 8 are 2 prompts: where half of the groups tell nothing, 25% of the steps learn nothing"
    )
    assert [(change.path, change.value) for change in finding.changes] == [("training.global_batch_size", 64)]


def test_answers_that_update_five_times_are_used_up_unless_something_holds_the_model() -> None:
    assert only("answers-reused", *RL, "rl.updates=5", world=LARGE).severity == "note"
    assert not found(*RL, "rl.updates=4", world=LARGE)
    assert not found(*RL, "rl.updates=5", "rl.kl=0.01", world=LARGE)


def test_an_answer_that_the_model_has_no_positions_for_is_told_with_the_room_there_is() -> None:
    finding = found(*RL, "rl.max_new_tokens=40161", world=LARGE)["answers-too-long"]
    assert (finding.evidence["longest"], finding.evidence["positions"], finding.changes[0].value) == (40961, 40960, 40160)
    assert "answers-too-long" not in found(*RL, "rl.max_new_tokens=40160", world=LARGE)
    assert "answers-too-long" not in found(*RL, "rl.max_new_tokens=40161", world=World(examples=250_000, data="stated"))


@pytest.mark.parametrize(
    ("code", "change", "world"),
    [
        ("few-steps", "training.max_steps=40", LARGE),
        ("many-epochs", "training.epochs=4", World(examples=250_000, turns=3.0)),
        ("learning-rate", "training.learning_rate=5e-6", LARGE),
        ("small-batch", "training.global_batch_size=4", LARGE),
    ],
)
def test_what_is_wrong_with_learning_from_rows_is_not_said_of_rewarded_answers(code: str, change: str, world: World) -> None:
    assert code in found("training.learning_rate=3e-4", change, world=world)
    smaller = ("rl.group_size=4",) if code == "small-batch" else ()
    assert code not in {finding.code for finding in check(case(*RL, *smaller, change, world=world))}


def test_what_is_not_asked_are_checks_of_rows() -> None:
    assert {each.__name__ for each in OF_ROWS} == {"few_steps", "many_epochs", "learning_rate", "small_batch"}
