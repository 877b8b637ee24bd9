"""What a run answered, in its first steps and its newest: a little of it, whatever lies there."""

from pathlib import Path

from luthier.core import jsonl
from luthier.runs.store import RunFolder
from luthier.watch.rollouts import HEAD_BYTES, STEPS, answers
from tests.runs.recorded import run_in


def answered(run: RunFolder, step: int, *rewards: float | None, said: str = "yes") -> None:
    """A rollout as `luthier.rl.record` writes it."""
    line = {"origin": "a.jsonl:1", "group": "", "asked": "?", "reference": "yes", "answers": [said], "rewards": {}, "advantage": None}
    lines = [
        {**line, "reward": reward, "failure": "" if reward is not None else "x raises", "tokens": 3, "cut": False} for reward in rewards
    ]
    run.rollout(step).parent.mkdir(exist_ok=True)
    run.rollout(step).write_text("".join(jsonl.dumps(each) + "\n" for each in lines))


def test_answers_of_the_first_steps_and_the_newest_are_read_each_once(tmp_path: Path) -> None:
    run = run_in(tmp_path / "animals")
    assert answers(run) == ()
    for step in range(1, 21):
        answered(run, step, 0.5, None)
    found = answers(run)
    assert [each.step for each in found[::2]] == [*range(1, STEPS + 1), *range(21 - STEPS, 21)]
    assert (found[0].origin, found[0].reward, found[0].tokens) == ("a.jsonl:1", 0.5, 3)
    assert (found[1].reward, found[1].failure) == (None, "x raises")


def test_a_large_file_is_read_in_part_and_what_is_damaged_is_left_out(tmp_path: Path) -> None:
    run = run_in(tmp_path / "animals")
    answered(run, 1, *[1.0] * 40, said="a" * (HEAD_BYTES // 16))
    assert len(answers(run)) == 15
    answered(run, 1, 1.0)
    with run.rollout(1).open("a") as file:
        file.write('[1]\n{"origin": "a"}\n\x00\n{"origin": "torn')
    run.tokens(1).write_text("1\n[]")
    assert [each.reward for each in answers(run)] == [1.0]
