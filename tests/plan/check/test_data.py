"""What the length rule took, what carries no loss, what stands on both sides of the split: each mistake, and what just is none."""

from dataclasses import replace

import pytest

from luthier.plan.check import check
from luthier.runs.summary import NO_TARGET
from tests.plan.check.cases import World, case, found, only

GROUPED = World(groups={"coder": 1998, "reviewer": 2})
REWRITTEN = World(turns=3.0, prefix_stable=False)


def test_a_split_without_supervised_tokens_is_refused() -> None:
    finding = only("nothing-supervised", world=World(supervised=0.0))
    assert finding.severity == "refuse"


def test_rows_that_were_left_out_for_it_are_told() -> None:
    given = case()
    assert not isinstance(given.data, str)
    rows = given.data.rows.model_copy(update={"dropped": {NO_TARGET: 40}})
    (finding,) = check(replace(given, data=given.data.model_copy(update={"rows": rows})))
    assert (finding.code, finding.severity) == ("nothing-supervised", "warn")
    assert "40 of" in finding.message


def test_max_length_costs_more_answers_than_rows() -> None:
    finding = only("length-loss", "data.max_length=1024", world=World(long=50))
    assert finding.message == "data.max_length 1024 costs 2 % of the rows (50 dropped, 0 cut) and 7.4 % of the answers (200 of 2,700)"
    assert finding.severity == "warn"


def test_a_small_loss_is_a_note() -> None:
    assert only("length-loss", "data.max_length=1024", world=World(long=5)).severity == "note"


def test_test_prompts_that_stand_in_train_are_found_with_a_pair() -> None:
    finding = only("near-duplicates", world=World(twins=5))
    assert (finding.severity, finding.evidence["near"]) == ("warn", 5)
    assert finding.message.endswith("e.g. rows.jsonl:1 ~ rows.jsonl:9")
    assert only("near-duplicates", world=World(twins=1)).severity == "note"


def test_what_removing_near_duplicates_left_is_for_keep_together() -> None:
    left = case("data.deduplicate=near")
    finding = next(iter(check(replace(left, data=case(world=World(twins=5)).data))))
    assert (finding.code, finding.changes) == ("near-duplicates", ())


def test_a_group_of_two_rows_is_found() -> None:
    finding = only("small-groups", "data.group_by=agent", world=GROUPED)
    assert finding.message == "1 group of 2 with fewer than 10 training rows: reviewer 2"


def test_a_template_that_rewrites_turns_costs_least_in_a_tree() -> None:
    assert only("template-not-prefix-stable", world=REWRITTEN).severity == "note"
    finding = found("data.packing=bins", world=REWRITTEN)["template-not-prefix-stable"]
    assert (finding.severity, finding.changes[0].value) == ("warn", "auto")
    assert (
        finding.message == "The chat template rewrites earlier turns: 2,000 dialogues become 6,000 rows, each computed from its beginning"
    )


@pytest.mark.parametrize(
    ("code", "changes", "world"),
    [
        ("length-loss", ["data.max_length=2048"], World(long=50)),
        ("length-loss", [], World(long=50)),
        ("small-groups", [], GROUPED),  # nobody asked for groups
        ("small-groups", ["data.group_by=agent"], World(groups={"coder": 1990, "reviewer": 10})),
        ("template-not-prefix-stable", [], World(prefix_stable=False)),  # single turns
        ("template-not-prefix-stable", [], World(turns=3.0)),
        ("nothing-supervised", [], World(supervised=0.0, data="stated")),  # nobody knows yet
        ("near-duplicates", [], World(twins=5, data="stated")),
    ],
)
def test_what_just_is_no_mistake_is_not_found(code: str, changes: list[str], world: World) -> None:
    assert code not in found(*changes, world=world)
