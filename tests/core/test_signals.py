"""A signal ends work at once or in order, and is left alone where the process was started to ignore it."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from luthier.core.signals import ASKING, Asked, Interrupted, ending_at_once, ending_in_order


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


def test_after_any_of_them_ctrl_c_is_the_systems_again() -> None:
    with ending_in_order(Asked()):
        assert signal.getsignal(signal.SIGINT) is not signal.SIG_DFL
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


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
