"""Held-out prompts that stand in train too are counted, shown, and refused where they are many (trap 28)."""

import pytest

from luthier.core.chat import Conversation, Message
from luthier.core.errors import DataError
from luthier.data.overlap import TrainPrompts, check_overlap
from luthier.data.rows import Example
from luthier.runs.summary import Overlap

LONG = " ".join(f"word{number}" for number in range(60))


def example(prompt: str, origin: str, *, answer: str = "yes", system: str = "") -> Example:
    opening = (Message(role="system", content=system),) if system else ()
    messages = (*opening, Message(role="user", content=prompt), Message(role="assistant", content=answer))
    return Example(conversation=Conversation(messages=messages), origin=origin, group="", key=prompt, reference=answer)


def test_a_prompt_that_stands_in_train_is_counted_whatever_its_answer_and_system_turn() -> None:
    train = [example("Is it  so?", "train:1"), example("Is it so?", "train:2"), example("Where?", "train:3")]
    held_out = [example("Is it\nso?", "test:1", answer="no", system="Be brief."), example("is it so?", "test:2"), example("Who?", "test:3")]
    found = TrainPrompts(train).overlap(held_out)
    assert (found.exact, found.share_exact) == (1, 1 / 3)
    assert (found.near, found.share_near) == (1, 1 / 3)  # case is a near difference, not an exact one
    assert found.examples == ("test:1 ~ train:1", "test:2 ~ train:1")


def test_a_nearly_equal_prompt_is_counted_as_near() -> None:
    found = TrainPrompts([example(LONG, "train:1")]).overlap(
        [example(LONG + " more", "test:1"), example("Something else entirely.", "test:2")]
    )
    assert (found.exact, found.near, found.share_near, found.examples) == (0, 1, 0.5, ("test:1 ~ train:1",))


def test_every_copy_among_the_held_out_rows_counts() -> None:
    found = TrainPrompts([example(LONG, "train:1")]).overlap([example(f"{LONG} {number}", f"test:{number}") for number in range(50)])
    assert found.near == 50
    assert len(found.examples) == 5


def test_without_held_out_rows_there_is_no_overlap() -> None:
    assert TrainPrompts([example("a", "train:1")]).overlap([]) == Overlap(exact=0, near=0, share_exact=0.0, share_near=0.0, examples=())


def test_a_split_that_train_has_seen_is_refused_with_the_way_out() -> None:
    held_out = [example(f"question {number} of the test", f"test:{number}") for number in range(100)]
    check_overlap(
        "test", TrainPrompts([example(row.conversation.messages[0].content, "train:1") for row in held_out[:5]]).overlap(held_out)
    )
    with pytest.raises(DataError) as error:
        check_overlap("test", TrainPrompts(held_out[:6]).overlap(held_out))
    assert "6.0% of the test prompts stand exactly in train" in str(error.value)
    assert "data.split.test" in str(error.value) and "data.keep_together" in str(error.value) and "test:0 ~ test:0" in str(error.value)


def test_near_twins_are_refused_from_half_of_the_rows() -> None:
    near = {"exact": 0, "share_exact": 0.0, "examples": ()}
    check_overlap("validation", Overlap(near=50, share_near=0.5, **near))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"data\.deduplicate: near"):
        check_overlap("validation", Overlap(near=51, share_near=0.51, **near))  # type: ignore[arg-type]
