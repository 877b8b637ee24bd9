"""All checks together."""

from luthier.plan.check import CHECKS, check
from tests.plan.check.cases import World, case, found, recipe_of

MISTAKES = {
    "no-save-before-end": ["checkpoints.save_steps=500"],
    "warmup-too-long": ["training.warmup_steps=400"],
    "validations-too-rare": ["checkpoints.eval_steps=100", "checkpoints.early_stopping_patience=5"],
    "learning-rate": ["training.learning_rate=5e-6"],
    "attention-only-targets": ["lora.target_modules=[q_proj, v_proj]"],
    "optimizer-8bit-pointless": ["training.optimizer=adamw_8bit"],
    "quantised-needlessly": ["model.quantization=int8"],
    "fast-path-off": ["data.packing=off"],
    "bound-unreachable": ["decision.deploy.peak_memory=<= 500 MB"],
    "near-duplicates": [],
}
PLANTED = [change for changes in MISTAKES.values() for change in changes]
TWINS = World(twins=5)


def test_a_sound_recipe_has_no_findings() -> None:
    assert check(case()) == ()


def test_ten_planted_mistakes_are_all_found_and_nothing_else() -> None:
    assert sorted(finding.code for finding in check(case(*PLANTED, world=TWINS))) == sorted(MISTAKES)


def test_each_finding_is_told_once_and_the_gravest_come_first() -> None:
    findings = check(case(*PLANTED, "model.dtype=float16", "launch.gpu=here", world=TWINS))
    severities = [finding.severity for finding in findings]
    assert severities == sorted(severities, key=["refuse", "warn", "note"].index)
    assert severities[0] == "refuse"


def test_every_change_is_one_that_the_recipe_takes() -> None:
    for finding in found(*PLANTED, world=TWINS).values():
        assert recipe_of(*PLANTED, mended=finding.changes) != recipe_of(*PLANTED) or not finding.changes


def test_a_message_is_one_sentence_without_a_full_stop() -> None:
    for finding in found(*PLANTED, world=TWINS).values():
        assert not finding.message.endswith(".")
        assert "\n" not in finding.message


def test_a_finding_has_its_checks_name() -> None:
    findings = check(case(*PLANTED, world=TWINS))
    assert {finding.code for finding in findings} <= {each.__name__.replace("_", "-") for each in CHECKS}


def test_rows_that_are_only_stated_are_checked_without_data() -> None:
    expected = sorted(set(MISTAKES) - {"near-duplicates"})
    assert sorted(finding.code for finding in check(case(*PLANTED, world=World(data="stated")))) == expected
