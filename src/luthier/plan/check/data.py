"""Findings about the rows: what the length rule took, what carries no loss, what stands on both sides of the split."""

from collections.abc import Iterator

from luthier.core.finding import Change, Finding
from luthier.plan.check.case import Case, Check
from luthier.plan.check.words import count, percent
from luthier.runs.summary import NO_TARGET

GRAVE_LOSS = 0.01
GRAVE_OVERLAP = 0.01
SMALL_GROUP = 10
SHOWN = 5
"""Groups that a message names."""


def nothing_supervised(case: Case) -> Iterator[Finding]:
    """Rows have no token that carries loss, and were left out.

    Severity: refuse where a split has none at all, warn from 1 % of the rows, else note.

    The loss of nothing is 0 and its gradient none; divided by its count it is not a number. So `prepare` drops such rows, counted. The
    usual causes: `max_length` cut every answer, the template writes none, or `train_on` names a turn that the rows do not have.

    Arithmetic: 0 supervised tokens / 0 = not a number, which other tools log as `loss 0.0`.

    What to do: look at a row with `luthier inspect`, which colours what is trained on; `luthier prepare` names the first rows.

    Source: traps 8 and 10 (TRL#6025, LlamaFactory#3995, Qwen3#1522).
    """
    if case.data == "stated":
        return
    judged = {name: split for name, split in case.data.splits.items() if name in ("train", "validation")}
    empty = [name for name, split in judged.items() if split.rows and not split.supervised_tokens]
    rows, dropped = case.data.rows, case.data.rows.dropped.get(NO_TARGET, 0)
    share = dropped / max(1, rows.read)
    changes = (Change(path="data.train_on", value="assistant", why="every answer carries loss"),)
    if empty or dropped:
        yield Finding(
            code="nothing-supervised",
            severity="refuse" if empty else "warn" if share >= GRAVE_LOSS else "note",
            message=f"No token of {' and '.join(empty)} carries loss: there is nothing to learn from"
            if empty
            else f"{dropped:,} of {rows.read:,} rows ({percent(share)}) have no token that carries loss, and were left out",
            evidence={"rows": rows.read, "dropped": dropped, "empty_splits": ", ".join(empty)},
            changes=changes if case.recipe.data.train_on != "assistant" else (),
        )


def length_loss(case: Case) -> Iterator[Finding]:
    """`max_length` drops or cuts rows, and answers with them.

    Severity: warn from 1 % of rows or answers, else note.

    Long rows are not like the others: they are the long dialogues, the large files, the hard questions. Losing 4 % of the rows can be
    losing a tenth of the answers, for a long row has many. `over_length: drop` loses whole rows; `truncate` shortens user texts, and
    cuts answers where nothing else is left, which are then trained on without an end.

    Arithmetic: of 100 dialogues with 2 answers and 10 with 10, dropping the 10 loses 9 % of the rows and 100 / 300 = 33 % of the answers.

    What to do: raise `max_length`, or let the longest row decide (`fit`); memory grows with the longest row, of which one must fit.

    Source: traps 8 and 9 (TRL's packing, LlamaFactory#3995): counted either way.
    """
    if case.data == "stated" or case.recipe.data.max_length == "fit":
        return
    splits = case.data.splits.values()
    dropped, cut = sum(split.over_length.examples for split in splits), sum(split.cut.rows for split in splits)
    lost = sum(split.over_length.answers + split.cut.answers for split in splits)
    if not dropped + cut:
        return
    rows, answers = sum(split.examples for split in splits) + dropped, sum(split.answers for split in splits) + lost
    of_rows, of_answers = (dropped + cut) / rows, lost / answers if answers else 0.0
    yield Finding(
        code="length-loss",
        severity="warn" if max(of_rows, of_answers) >= GRAVE_LOSS else "note",
        message=f"data.max_length {case.recipe.data.max_length} costs {percent(of_rows)} of the rows ({dropped} dropped, {cut} cut) and "
        f"{percent(of_answers)} of the answers ({lost} of {answers:,})",
        evidence={"dropped": dropped, "cut": cut, "rows_share": round(of_rows, 4), "answers": lost, "answers_share": round(of_answers, 4)},
        changes=(Change(path="data.max_length", value="fit", why="the longest row fits; memory grows with it"),),
    )


def near_duplicates(case: Case) -> Iterator[Finding]:
    """Prompts of validation or test stand in train too, to the letter or nearly.

    Severity: warn from 1 % of a split, else note.

    What the model was trained on it answers from memory: the split's loss and scores are better than they will be on new rows, and early
    stopping comes too late. Near means an estimated Jaccard similarity of word 5-grams of at least 0.8. Templated prompts are alike by
    nature; look at the pairs that the evidence names.

    Arithmetic: 31 test rows of which 5 stand in train: if those are always right and of the others 90 %, the score says 92 %.

    What to do: `deduplicate: near`, which compares whole rows before the split; where only the prompts are alike, `keep_together` with
    the column that they share (a ticket, a package, a user).

    Source: trap 28 (ru-gpts#23); Lee et al. 2022 (arXiv:2107.06499) on near-duplicates across train and test.
    """
    if case.data == "stated":
        return
    for name, found in case.data.overlap.items():
        share = found.share_exact + found.share_near
        if not found.exact + found.near:
            continue
        change = Change(path="data.deduplicate", value="near", why="removes rows that repeat an earlier one nearly, before the split")
        yield Finding(
            code="near-duplicates",
            severity="warn" if share >= GRAVE_OVERLAP else "note",
            message=f"{percent(share)} of the {name} prompts stand in train too ({found.exact} exactly, {found.near} nearly), e.g. "
            f"{found.examples[0]}",
            evidence={"split": name, "exact": found.exact, "near": found.near, "share": round(share, 4)},
            changes=(change,) if case.recipe.data.deduplicate != "near" else (),
        )


def small_groups(case: Case) -> Iterator[Finding]:
    """A group has fewer than 10 training rows.

    Severity: warn.

    A group is named because it matters by itself: its own system prompt, its own score. From so few rows little is learned that is not
    learned by heart, and its share of validation and test is a row or none: what becomes of it is not known.

    Arithmetic: of 238 rows, 2 are of the reviewer: in 3 epochs it is seen 6 times, beside 420 times the coder.

    What to do: collect rows for it, or merge it with a group that is like it; a larger group can be capped with `max_per_group`.

    Source: seed 004 (docs/notes/seeds.md), whose reviewer has 2 of 238 rows.
    """
    if case.data == "stated" or not case.recipe.data.group_by:
        return
    groups = case.data.splits["train"].groups
    known = {group: groups.get(group, 0) for group in case.data.groups}
    small = sorted((number, group) for group, number in known.items() if number < SMALL_GROUP)
    if not small:
        return
    named = ", ".join(f"{group or '(none)'} {number}" for number, group in small[:SHOWN]) + (" …" if len(small) > SHOWN else "")
    yield Finding(
        code="small-groups",
        severity="warn",
        message=f"{count(len(small), 'group')} of {len(known)} with fewer than {SMALL_GROUP} training rows: {named}",
        evidence={group: number for number, group in small},
    )


def template_not_prefix_stable(case: Case) -> Iterator[Finding]:
    """The chat template rewrites earlier turns, so that each answer of a dialogue becomes a row of its own.

    Severity: note; warn where those rows do not share what they have in common.

    Templates of Qwen3's kind remove the thinking from earlier turns: what the model saw at turn 2 is not how turn 3 begins. Training on
    one row with all turns would train on text that the server never sends, so every answer gets the row that the server would. The rows
    of a dialogue begin alike; in a prefix tree what they share is computed once, otherwise as often as there are rows.

    Arithmetic: a dialogue of 4 answers, 100 tokens a turn: one row of 800 tokens, or four rows of 200, 400, 600 and 800: 2,000, 2.5 ×.

    What to do: `packing: tree` (or `auto`); measured, turns in a tree train nearly as fast as whole dialogues.

    Source: trap 12 (TRL's qwen3_training.jinja, slime#330); docs/performance.md, workload ii.
    """
    if case.data == "stated" or case.data.template.prefix_stable:
        return
    train, packing = case.data.splits["train"], case.setup.micro_batch.packing
    if train.rows <= train.examples:
        return
    shared = "which share what they begin with" if packing == "tree" else "each computed from its beginning"
    change = Change(path="data.packing", value="auto", why="a tree computes once what the rows of a dialogue share")
    yield Finding(
        code="template-not-prefix-stable",
        severity="note" if packing == "tree" else "warn",
        message=f"The chat template rewrites earlier turns: {train.examples:,} dialogues become {train.rows:,} rows, {shared}",
        evidence={"examples": train.examples, "rows": train.rows, "packing": packing},
        changes=(change,) if case.recipe.data.packing in ("off", "bins") else (),
    )


CHECKS: tuple[Check, ...] = (
    nothing_supervised,
    length_loss,
    near_duplicates,
    small_groups,
    template_not_prefix_stable,
)
