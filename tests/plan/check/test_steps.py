"""When the run saves and validates, how long its rate climbs, what a step and an epoch are: each mistake, and what just is none."""

import pytest

from tests.plan.check.cases import World, found, only

LARGE = World(examples=2_500_000)
DIALOGUE = World(turns=3.0)


def test_a_save_that_never_comes_is_found() -> None:
    finding = only("no-save-before-end", "checkpoints.save_steps=400")
    assert finding.message.startswith("No checkpoint is saved before the last of 375 steps: every 400 steps never comes")
    assert [(change.path, change.value) for change in finding.changes] == [("checkpoints.save_steps", 75)]


def test_one_save_at_the_end_of_a_long_run_is_found() -> None:
    assert "no-save-before-end" in found("checkpoints.save_steps=epoch", "training.epochs=1", world=LARGE)


def test_a_warm_up_longer_than_the_run_never_reaches_the_peak() -> None:
    finding = only("warmup-too-long", "training.warmup_steps=400")
    assert finding.message == "The learning rate climbs for 400 of 375 steps: it ends at 94 % of its peak"


def test_a_warm_up_of_a_quarter_is_long() -> None:
    assert only("warmup-too-long", "training.warmup_ratio=0.25").evidence == {"warmup": 94, "total": 375}


def test_early_stopping_needs_one_validation_more_than_its_patience() -> None:
    finding = only("validations-too-rare", "checkpoints.eval_steps=100", "checkpoints.early_stopping_patience=4")
    assert (finding.severity, finding.evidence["validations"]) == ("warn", 4)


def test_where_nobody_asked_for_a_patience_it_is_a_note() -> None:
    assert only("validations-too-rare", "checkpoints.eval_steps=epoch").severity == "note"


def test_validations_that_would_cost_too_much_give_way_to_no_early_stopping() -> None:
    recipe = ("training.max_steps=4", "checkpoints.eval_steps=2", "checkpoints.early_stopping_patience=3")
    (change,) = found(*recipe)["validations-too-rare"].changes
    assert (change.path, change.value) == ("checkpoints.early_stopping_patience", "off")


def test_validating_after_each_step_is_too_often() -> None:
    finding = only("validations-too-frequent", "checkpoints.eval_steps=1")
    assert finding.evidence["validations"] == 375
    assert float(finding.evidence["share"]) > 0.4


def test_fewer_than_a_hundred_steps_are_few_and_a_smaller_batch_makes_more() -> None:
    finding = only("few-steps", "training.global_batch_size=64")
    assert finding.message == "2,000 rows, 64 a step, make only 96 steps in all"
    assert finding.changes[0].value == 60


def test_a_batch_of_four_rows_is_noisy() -> None:
    assert only("small-batch", "training.global_batch_size=4").message.endswith("1.4 × as noisy as that of 8")


def test_many_epochs_of_dialogue_are_a_note_while_the_best_checkpoint_is_kept() -> None:
    assert only("many-epochs", "training.epochs=5", world=DIALOGUE).severity == "note"
    assert only("many-epochs", "training.epochs=5", "checkpoints.final=last", world=DIALOGUE).severity == "warn"


def test_a_micro_batch_larger_than_a_step_is_another_batch() -> None:
    finding = only("batch-mismatch", "training.micro_batch_size=32")
    assert finding.message == "Micro batches of 32 on 1 replica are 32 rows at once, more than a step has (16)"


def test_padded_micro_batches_must_go_into_a_step() -> None:
    padded = ("data.packing=off", "training.micro_batch_size=5")
    finding = only("batch-mismatch", *padded, beside=["fast-path-off", "memory-unused"])
    assert finding.changes[0].value == 4


def test_where_no_micro_batch_would_do_the_global_batch_is_changed() -> None:
    padded = ("data.packing=off", "training.micro_batch_size=2", "launch.gpu=H100x3")
    finding = only("batch-mismatch", *padded, beside=["fast-path-off", "memory-unused"])
    assert (finding.changes[0].path, finding.changes[0].value) == ("training.global_batch_size", 18)


def test_a_step_that_does_not_divide_among_the_replicas_leaves_some_waiting() -> None:
    finding = only("step-split-uneven", "launch.gpu=H100x3")
    assert (finding.evidence["idle_share"], finding.changes[0].value) == (0.111, 15)


@pytest.mark.parametrize(
    ("code", "changes", "world"),
    [
        ("no-save-before-end", ["checkpoints.save_steps=374"], World()),
        ("no-save-before-end", ["checkpoints.save_steps=epoch", "training.epochs=1"], World()),  # 13 seconds are soon done again
        ("warmup-too-long", ["training.warmup_ratio=0.2"], World()),
        ("warmup-too-long", ["training.max_steps=4"], World()),  # the default's one step
        ("validations-too-rare", ["checkpoints.eval_steps=100", "checkpoints.early_stopping_patience=3"], World()),
        ("validations-too-rare", ["checkpoints.eval_steps=epoch", "checkpoints.early_stopping_patience=off"], World()),
        ("validations-too-frequent", ["checkpoints.eval_steps=38"], World()),
        ("few-steps", ["training.max_steps=100"], World()),
        ("small-batch", ["training.global_batch_size=8"], World()),
        ("many-epochs", ["training.epochs=3"], DIALOGUE),
        ("many-epochs", ["training.epochs=5"], World()),
        ("batch-mismatch", ["training.micro_batch_size=5"], World()),  # of a pack it is only how many tokens it may have
        ("batch-mismatch", ["training.micro_batch_size=4", "data.packing=off"], World()),
        ("step-split-uneven", ["launch.gpu=H100x2"], World()),
    ],
)
def test_what_just_is_no_mistake_is_not_found(code: str, changes: list[str], world: World) -> None:
    assert code not in found(*changes, world=world)
