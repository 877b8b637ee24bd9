"""The page's server: what it says where it cannot be."""

import socket
import sys

import pytest

from luthier.core.errors import UsageError
from luthier.serve.listen import HERE
from luthier.web.serve import serve


def test_it_listens_on_this_machine_alone() -> None:
    assert HERE == "127.0.0.1"


def test_a_port_that_another_program_has_is_an_error_that_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(UsageError, match="cannot be had"):
        serve(other.getsockname()[1], print)


def test_without_the_extra_the_verb_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UsageError, match="extra `web`"):
        serve(0, print)
