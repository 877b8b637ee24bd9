"""A signal ends work at once or in order, and is left alone where the process was started to ignore it."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from luthier.core.signals import ASKING, SECONDS_OF_ONE, Asked, Interrupted, ending_at_once, ending_in_order


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in ASKING}
    yield
    assert {number: signal.getsignal(number) for number in ASKING} == before


@pytest.mark.parametrize("number", ASKING, ids=lambda number: number.name)
def test_a_signal_ends_the_work_with_what_a_shell_reports(number: signal.Signals) -> None:
    with pytest.raises(Interrupted, match=number.name) as ended, ending_at_once():
        os.kill(os.getpid(), number)
    assert ended.value.exit_code == 128 + number


def test_in_order_the_first_signal_is_noted_and_others_change_nothing() -> None:
    asked = Asked()
    with ending_in_order(asked):
        assert not asked
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert asked
        assert asked.number == signal.SIGTERM


@pytest.mark.parametrize(("pause", "code"), [(1.1 * SECONDS_OF_ONE, -signal.SIGINT), (0.0, 7)], ids=["insisted", "doubled"])
def test_after_any_of_them_ctrl_c_ends_at_once_unless_it_is_the_same_one_twice(pause: float, code: int) -> None:
    child = os.fork()
    if not child:
        with ending_in_order(Asked()):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(pause)
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code


def test_what_nohup_ignores_stays_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        asked = Asked()
        with ending_at_once(), ending_in_order(asked):
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked
    finally:
        signal.signal(signal.SIGHUP, former)


def test_in_another_thread_signals_stay_as_they_are() -> None:
    found = []

    def look() -> None:
        with ending_in_order(Asked()):
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join(10)
    assert found == [signal.getsignal(signal.SIGTERM)]
