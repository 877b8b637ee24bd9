"""The control file: what is asked, and what is not understood."""

import os
from pathlib import Path

from luthier.runs import control
from luthier.runs.store import RunFolder


def test_a_wish_stays_until_it_is_obeyed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert control.wished(run) == "nothing"
    control.ask(run, "save")
    assert control.wished(run) == "save"
    control.obeyed(run, "save")
    control.obeyed(run, "save")
    assert control.wished(run) == "nothing"


def test_what_is_asked_while_an_earlier_wish_is_obeyed_stays(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    control.ask(run, "save")
    control.ask(run, "stop")
    control.obeyed(run, "save")
    assert control.wished(run) == "stop"


def test_to_stop_includes_to_save(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    control.ask(run, "stop")
    control.ask(run, "save")
    assert control.wished(run) == "stop"


def test_another_word_is_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for text in (b"", b"dance\n", b"\xff\xfe"):
        run.control.write_bytes(text)
        assert control.wished(run) == "nothing"


def test_what_was_asked_of_an_earlier_process_is_forgotten_and_what_was_asked_since_is_not(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    control.forget(run)
    control.ask(run, "save")
    control.forget(run)
    assert control.wished(run) == "save"
    os.utime(run.control, (1e9, 1e9))
    control.forget(run)
    assert control.wished(run) == "nothing"
