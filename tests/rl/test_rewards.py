"""Rewards: what each gives, how they add up, and that nothing a user's own does ends more than its own answer's reward."""

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from luthier.core.errors import RecipeError
from luthier.recipe.rl import Rl
from luthier.rl.rewards import NAMED, Answered, Rewarded, Rewarding, check, length
from luthier.score.scorers import SCORERS

SHORT = 2.0
"""Seconds for a call, where some of them hang."""


def rewarded(rewards: Mapping[str, float], *answers: tuple[str, str], num_tokens: int = 1, seconds: float = 10.0) -> list[Rewarded]:
    with Rewarding(Rl(rewards=dict(rewards), max_new_tokens=256), seconds=seconds) as rewarding:
        return rewarding.reward([Answered(answer=answer, reference=reference, num_tokens=num_tokens) for answer, reference in answers])


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def ends(pid: int) -> bool:
    """Whether a process is over within half a minute."""
    for _ in range(600):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("name", "reference", "right", "wrong"),
    [
        ("exact", "yes", "yes", "Yes"),
        ("label", "net", "**Net** – it routes", "web"),
        ("json", '{"a": 1}', '{"a": 1.0}', "{}"),
        ("json_schema", '{"type": "integer"}', "4", "4.5"),
        ("regex", r"\d+", "42", "42."),
        ("number", "42", "it is 42", "it is 43"),
        ("contains", "Paris", "in paris", "in Lyon"),
    ],
)
def test_a_scorer_rewards_a_right_answer_by_its_name(name: str, reference: str, right: str, wrong: str) -> None:
    one, other = rewarded({name: 2.0}, (right, reference), (wrong, reference))
    assert (one.total, one.parts, one.failure) == (2.0, {name: 1.0}, "")
    assert (other.total, other.parts) == (0.0, {name: 0.0})


def test_a_judge_and_a_choice_are_the_only_scorers_that_reward_nothing() -> None:
    assert {*SCORERS, "length", "environment"} - {*NAMED} == {"judge", "choice"}


def test_the_length_counts_from_half_of_what_an_answer_may_take() -> None:
    assert [length(tokens, 256) for tokens in (0, 128, 192, 256, 300)] == [1.0, 1.0, 0.5, 0.0, 0.0]
    assert rewarded({"length": 1.0}, ("a", "b"), num_tokens=160)[0].total == 0.75


def test_rewards_add_up_by_their_weights(here: Path) -> None:
    (found,) = rewarded({"exact": 1.0, "length": -0.5, "mine:vowels": 0.25}, ("aeiou", "aeiou"), ("aeiou", "x"), num_tokens=192)[1:]
    assert found.parts == {"exact": 0.0, "length": 0.5, "mine:vowels": 4.0}
    assert found.total == pytest.approx(-0.5 * 0.5 + 0.25 * 4)


def test_a_reward_of_your_own_may_be_below_0_and_may_print(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert [each.total for each in rewarded({"mine:vowels": 1.0}, ("xyz", "four"), ("a", ""))] == [-4.0, 1.0]
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("a reward that talks") == 2 and printed.err.count("below Python") == 2


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("raise", "reward 'mine:wrong' raised KeyError: 'no such thing'"),
        ("nan", "reward 'mine:wrong' returned nan"),
        ("huge", "reward 'mine:wrong' raised OverflowError: int too large to convert to float"),
        ("text", "reward 'mine:wrong' returned '1'"),
        ("hang", "reward 'mine:wrong' gave no answer within 2 s"),
        ("exit", "reward 'mine:wrong' ended its process (exit code 3)"),
        ("leave", "reward 'mine:wrong' ended its process (exit code 4)"),
        ("crash", "reward 'mine:wrong' ended its process (killed by SIGSEGV)"),
    ],
)
def test_what_goes_wrong_is_told_and_concerns_one_answer_only(here: Path, answer: str, why: str) -> None:
    seconds = SHORT if answer == "hang" else 10.0
    before, found, behind = rewarded({"mine:wrong": 1.0, "exact": 0.5}, ("a", "a"), (answer, "x"), ("b", "b"), seconds=seconds)
    assert (found.total, found.failure) == (None, why)
    assert found.parts == {"exact": 0.0}  # which could be had
    assert before.total == behind.total == 1.5


def test_a_reward_that_reads_finds_nothing_to_read(here: Path) -> None:
    assert rewarded({"mine:wrong": 1.0}, ("read", ""))[0].total == 0


def test_a_reference_that_cannot_be_one_is_a_failure_of_its_answers() -> None:
    for name in ("number", "regex"):
        bad, good = rewarded({name: 1.0}, ("5", "("), ("5", "5"))
        assert bad.total is None and "'('" in bad.failure
        assert good.total == 1


def test_weights_that_overflow_are_a_failure(here: Path) -> None:
    (here / "great.py").write_text("def most(answer, reference):\n    return 1e308\n")
    (found,) = rewarded({"great:most": 10.0}, ("a", "b"))
    assert found.total is None and "no finite number" in found.failure


def test_where_everything_hangs_the_step_goes_on_after_eight(here: Path) -> None:
    start = time.monotonic()
    found = rewarded({"mine:wrong": 1.0}, *[("hang", "")] * 40, seconds=0.2)
    assert [each.total for each in found] == [None] * 40
    assert sum("gave no answer within" in each.failure for each in found) == 8
    assert sum("not called" in each.failure for each in found) == 32
    assert time.monotonic() - start < 60  # a process starts eight times


def test_what_a_hanging_call_has_started_ends_with_it(here: Path) -> None:
    (here / "starts.py").write_text(
        "import subprocess\ndef child(answer, reference):\n"
        "    process = subprocess.Popen(['sleep', '600'])\n    open('pid', 'w').write(str(process.pid))\n    process.wait()\n"
    )
    assert "gave no answer" in rewarded({"starts:child": 1.0}, ("a", "b"), seconds=SHORT)[0].failure
    assert ends(int((here / "pid").read_text()))


def test_a_pattern_that_backtracks_without_end_gives_nothing() -> None:
    assert rewarded({"regex": 1.0}, ("a" * 60 + "b", "(a|aa)+[cd]"))[0].total == 0.0


def test_no_process_is_started_where_none_is_needed() -> None:
    before = children()
    with Rewarding(Rl(rewards={"exact": 1.0, "label": 1.0, "json": 1.0, "number": 1.0, "contains": 1.0, "length": 1.0})) as rewarding:
        assert rewarding.reward([Answered(answer="1", reference="1", num_tokens=1)])[0].total == 6.0
        assert children() == before


def test_the_process_ends_when_it_is_closed(here: Path) -> None:
    before = children()
    with Rewarding(Rl(rewards={"mine:wrong": 1.0})) as rewarding:
        (process,) = children() - before
        assert rewarding.reward([Answered(answer="a", reference="", num_tokens=1)])[0].total == 1
        assert children() - before == {process}
    assert children() == before


def test_a_misspelt_reward_is_answered_with_the_nearest_before_anything_is_begun() -> None:
    with pytest.raises(RecipeError, match=r"no reward is called 'exat'") as raised:
        Rewarding(Rl(rewards={"exat": 1.0}))
    assert "did you mean 'exact'?" in raised.value.change and "length" in raised.value.change
    for name in ("judge", "choice"):
        with pytest.raises(RecipeError, match=name):
            check(Rl(rewards={name: 1.0}))


@pytest.mark.parametrize("name", ["no_such_module_x:score", "mine:absent", "mine:math", "os:rename", "broken:score", "leaves:score"])
def test_a_reward_of_your_own_that_is_not_there_is_an_error_at_the_start(here: Path, name: str) -> None:
    (here / "broken.py").write_text("def score(answer, reference)\n")
    (here / "leaves.py").write_text("import sys; sys.exit(1)\n")
    before = children()
    with pytest.raises(RecipeError, match=name), Rewarding(Rl(rewards={name: 1.0})):
        pass
    assert children() == before


def test_code_that_is_broken_while_a_run_goes_on_is_a_failure(here: Path) -> None:
    def answered(answer: str) -> Answered:
        return Answered(answer=answer, reference="", num_tokens=1)

    with Rewarding(Rl(rewards={"mine:wrong": 1.0})) as rewarding:
        (here / "mine.py").write_text("def wrong(")
        exits, behind = rewarding.reward([answered("exit"), answered("a")])
        assert "exit code 3" in exits.failure and "SyntaxError" in behind.failure
        (here / "mine.py").write_text("def wrong(answer, reference):\n    return 7\n")
        assert rewarding.reward([answered("a")])[0].total == 7


SLEEPS, LOOPS = "time.sleep(600)", "re.match('(a|aa)+[cd]', 'a' * 60 + 'b')"


@pytest.mark.parametrize(
    ("seconds", "call"),
    [
        pytest.param(600, SLEEPS, id="it sees the end of the pipe"),
        pytest.param(2, LOOPS, id="a function in C lets no other thread look: the kernel ends it"),
    ],
)
def test_the_process_ends_when_who_asks_is_killed(here: Path, seconds: int, call: str) -> None:
    (here / "stays.py").write_text(
        f"import os, re, time\ndef on(answer, reference):\n    print(os.getpid(), file=open('pid', 'w'), flush=True)\n    {call}\n"
    )
    asking = (
        "from luthier.recipe.rl import Rl; from luthier.rl.rewards import Answered, Rewarding\n"
        f"with Rewarding(Rl(rewards={{'stays:on': 1.0}}), seconds={seconds}) as rewarding:\n"
        "    rewarding.reward([Answered(answer='a', reference='', num_tokens=1)])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", asking])
    while not (here / "pid").exists() or not (pid := (here / "pid").read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert ends(int(pid))


def test_answers_of_any_length_and_letters_come_through(here: Path) -> None:
    (here / "counts.py").write_text("def letters(answer, reference):\n    return len(answer)\n")
    answers = ["", "ä\n\u2028\ud800", "x" * 1_000_000, *["y" * 10_000] * 100]
    found = rewarded({"counts:letters": 1.0}, *((answer, "") for answer in answers))
    assert [each.total for each in found] == [float(len(answer)) for answer in answers]
