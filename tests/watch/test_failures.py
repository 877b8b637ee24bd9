"""Messages as they were seen end in the finding that explains them, and what only sounds alike in none."""

import re
import time
from collections.abc import Callable

import pytest

from luthier.core.finding import Finding
from luthier.watch.failures import Failure, explain, table
from tests.plan.check.cases import recipe_of

SEEN = [pytest.param(known, said, id=f"{known.code}-{number}") for known in table() for number, said in enumerate(known.recorded)]
UNKNOWN = """\
IndexError: list index out of range
ValueError: index 7 is out of range for 5 rows
KeyError: 'messages'
AssertionError
RuntimeError: shape '[2, 3]' is invalid for input of size 5
RuntimeError: CUDA error: invalid argument
ZeroDivisionError: division by zero
ImportError: cannot import name 'open_or_create' from 'luthier.runs.store'
FileNotFoundError: [Errno 2] No such file or directory: 'rows.jsonl'
BrokenPipeError: [Errno 32] Broken pipe
TimeoutExpired: Command '['cc']' timed out after 120 seconds
the timeout of 60000 s ends the run
training 429/500 loss 0.41, 12 s left
NCCL version 2.27.3+cuda13.0
node08:27106:27302 [0] NCCL INFO Channel 00/02 : 0 1
exitcode  : 1 (pid: 33461)
exitcode  : -15 (pid: 33461)
Signal 15 (SIGTERM) received by PID 394968
Volatile Uncorr. ECC: 0
dropped 3 rows: the address is already in use by another row's key
GPU 0: the display is off, 23 GiB free
the memory is full of rows that were killed off
""".splitlines()


def found(failure: BaseException | str) -> Finding:
    finding = explain(failure)
    assert finding != "unknown"
    return finding


@pytest.mark.parametrize(("known", "said"), SEEN)
def test_a_recorded_message_is_explained(known: Failure, said: str) -> None:
    finding = found(said)
    assert finding.code == known.code
    assert (finding.message, finding.fix, finding.severity) == (known.cause, known.fix, known.severity)
    assert str(finding.evidence["said"]) in said


@pytest.mark.parametrize("said", UNKNOWN)
def test_what_only_sounds_alike_is_unknown(said: str) -> None:
    assert explain(said) == "unknown"


def test_there_are_many_each_with_a_code_of_its_own_a_cause_a_fix_and_a_source() -> None:
    codes = [known.code for known in table()]
    assert len(set(codes)) == len(codes) >= 25
    for known in table():
        assert re.fullmatch(r"[a-z]+(-[a-z0-9]+)*", known.code)
        assert known.severity in ("refuse", "warn")
        assert known.recorded and known.cause and known.fix
        assert re.search(r"https://|seen with|man \d|seed 000", known.source)


def test_changes_that_are_offered_can_be_made() -> None:
    offering = [known for known in table() if known.changes]
    assert len(offering) >= 5
    for known in offering:
        recipe_of(mended=known.changes)  # raises where there is no such key, or it takes no such value


def test_numbers_in_the_message_become_evidence() -> None:
    memory = next(known for known in table() if known.code == "gpu-memory")
    assert {**found(memory.recorded[0]).evidence, "said": ""} == {"wanted": "22.00 MiB", "free": "11.06 MiB", "said": ""}
    assert found("NVRM: Xid (PCI:0000:44:00): 79, GPU has fallen off the bus").evidence["xid"] == "79"


def test_an_error_is_known_by_its_type_where_it_says_nothing() -> None:
    assert found(MemoryError()).code == "host-memory"
    assert found(OSError(28, "No space left on device")).code == "disk-full"


def test_an_error_is_known_by_what_it_was_raised_from() -> None:
    def raised(wrapped: Callable[[BaseException], BaseException]) -> BaseException:
        try:
            try:
                raise OSError(30, "Read-only file system", "runs/a")
            except OSError as error:
                raise wrapped(error) from error
        except BaseException as error:
            return error

    finding = found(raised(lambda error: RuntimeError("the checkpoint could not be written")))
    assert (finding.code, finding.evidence["path"]) == ("not-writable", "runs/a")
    assert found(raised(lambda error: MemoryError())).code == "host-memory"  # what was raised last knows more of what was going on


def test_an_error_that_stands_for_another_is_not_explained_by_it() -> None:
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise ValueError("row 3 has no answer") from None
    except ValueError as error:
        assert explain(error) == "unknown"


def test_of_a_whole_log_the_cause_is_told_and_not_what_followed() -> None:
    log = """\
[rank1]: misc/shmutils.cc:88 NCCL WARN Error: failed to extend /dev/shm/nccl-WU88OE to 9637892 bytes, error: No space left on device (28)
[rank1]: RuntimeError: NCCL error in: ProcessGroupNCCL.cpp:3356, unhandled system error (run with NCCL_DEBUG=INFO for details)
[rank0]: RuntimeError: [../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:2444
"""
    assert found(log).code == "shared-memory-small"
    assert found("\n".join(log.splitlines()[1:])).code == "nccl-error"


def test_a_log_is_read_from_its_end_and_never_for_long() -> None:
    assert found("Bus error\n" + "step 1\n" * 1000).code == "bus-error"
    assert explain("Bus error\n" + "step 1\n" * 100_000) == "unknown"
    start = time.monotonic()
    for word in ("NCCL error", "CUDA out of memory. Tried to allocate 1 GiB", "/dev/shm/nccl-", "NVRM: Xid (", "version `GLIBC_2"):
        explain("\n".join([word * 300] * 20))
    assert time.monotonic() - start < 10
