"""Real `luthier` processes, limited, and killed with SIGKILL where a test says.

They are forked from one process that has loaded torch and computed nothing: each is a process of its own, without the seconds of a start.
"""

import ctypes
import errno
import fcntl
import functools
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from luthier.core.environment import SETTINGS, start_settings
from luthier.runs.store import RunFolder
from tests.train.recorded import metrics

ROOT = Path(__file__).parents[2]
CHANGES = {"os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.mkdir": 1, "os.truncate": 1}
"""Audit events that change a folder, and how many paths they begin with."""
PR_SET_KEEPCAPS, CAP_DAC_READ_SEARCH = 8, 2
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One call of the command line. Zeros and empty texts: no such limit, no such kill."""

    words: tuple[str, ...]
    runs: str
    """LUTHIER_RUNS; the prepared data of folders that lie beside each other are shared."""
    kill_before: str = ""
    """The first change of a file in `runs` that begins so: `os.rename /run/adapter.part`; see Ended.changes."""
    kill_in: str = ""
    """`FILE:FUNCTION:N`: when the N-th call of a Python function begins."""
    signal: int = signal.SIGKILL
    """What is sent there."""
    copy_from: str = ""
    """From this change on, `runs` is copied to `RUNS-N` before the N-th change: what SIGKILL, which changes no file, would leave."""
    flip_in: str = ""
    """A file whose middle byte is changed just before its folder `….part` gets its name: a disk that keeps something else."""
    file_bytes: int = 0
    """RLIMIT_FSIZE, from the beginning, or from the change `limit_from` on."""
    limit_from: str = ""
    user: int = 0
    """A uid other than root's, which may read everything (the interpreter may lie in root's home) and write what is its own."""
    no_locks_from: str = ""
    """From this change on the kernel answers flock with ENOLCK, as for a network file system without locks."""
    seconds: float = 60
    """After which it is killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended."""

    code: int
    """Exit code, or minus the signal."""
    said: str
    changes: tuple[str, ...]
    """Of files in `runs`, in order: opened for writing, renamed, removed, made."""

    @property
    def killed(self) -> bool:
        """By SIGKILL."""
        return self.code == -signal.SIGKILL


def may_mount() -> bool:
    """Whether a mount namespace can be made here, and a tmpfs mounted in it."""
    return bool(_own_mounts())


@functools.cache
def _own_mounts() -> tuple[str, ...]:
    """What starts a process with mounts of its own: as root, or as root of a user namespace; nothing where neither is permitted."""
    for command in (("unshare", "--mount"), ("unshare", "--map-root-user", "--mount")):
        command = (*command, "--propagation", "private")
        tried = [*command, "mount", "-t", "tmpfs", "none", "/mnt"]
        if shutil.which("unshare") and subprocess.run(tried, check=False, capture_output=True, timeout=10).returncode == 0:
            return command
    return ()


class Starter:
    """Starts processes one at a time."""

    def __init__(self) -> None:
        environment = {**os.environ, **SETTINGS, **start_settings(), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.faults.harness"]
        self.own_mounts = may_mount()
        command = [*_own_mounts(), *command]
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._answer(60)

    def run(self, start: Start) -> Ended:
        """Start it and wait for its end."""
        answer = self._asked({"start": asdict(start)}, start.seconds + 20)
        return Ended(code=answer["code"], said=answer["said"], changes=tuple(answer["changes"]))

    def mount(self, folder: Path, num_bytes: int) -> None:
        """Put an empty tmpfs of that size on a folder, or give the one that is there another size; only for processes started here.

        Where `may_mount`.
        """
        self._asked({"mount": str(folder), "bytes": num_bytes}, 20)

    def remount(self, folder: Path, how: Literal["ro", "rw"]) -> None:
        """Let what is mounted there be read-only, or writable again; nothing may be open for writing on it."""
        self._asked({"remount": str(folder), "how": how}, 20)

    def seen(self, path: Path) -> Path:
        """The path as the started processes see it."""
        return Path(f"/proc/{self.process.pid}/root{path}") if self.own_mounts else path

    def close(self) -> None:
        """End: it waits for questions, and has nothing to lose."""
        self.process.kill()
        self.process.communicate(timeout=20)

    def _asked(self, question: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write((json.dumps(question) + "\n").encode())
        self.process.stdin.flush()
        return self._answer(seconds)

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            self.process.kill()
            raise TimeoutError(f"no answer in {seconds} s")
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def write_recipe(folder: Path, *, packing: str = "tree") -> Path:
    """A recipe over the demo's base: six steps in one and a half epochs, validations, saves, dropout, several micro batches a step."""
    rows = [
        {
            "messages": [
                {"role": "system", "content": "Answer with one word, as a child would."},
                {"role": "user", "content": f"What is {'the ' * (place % 5)}thing number {place}?"},
                {"role": "assistant", "content": ["a cat", "yes", "four", "a red ball"][place % 4]},
            ]
        }
        for place in range(20)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / f"{packing}.yaml"
    recipe.write_text(f"""\
name: run
model: {{base: demo, dtype: float32}}
lora: {{r: 4, alpha: 8, dropout: 0.1}}
data:
  sources: [{{path: rows.jsonl}}]
  deduplicate: none
  split: {{train: 0.8, validation: 0.2, test: 0}}
  split_method: exact
  packing: {packing}
training: {{max_steps: 6, global_batch_size: 4, micro_batch_size: 1, learning_rate: 0.003}}
checkpoints: {{eval_steps: 3, save_steps: 2, keep: 1, early_stopping_patience: "off"}}
""")
    return recipe


def outcome(run: RunFolder, step: int) -> dict[str, bytes]:
    """All that a run must leave the same, however often it was killed: adapter, last checkpoint, pointers, metrics without times, what each
    row lost at each validation."""
    folders = (run.adapter, run.checkpoint(step), run.validations)
    found = {f"{folder.name}/{path.name}": path.read_bytes() for folder in folders for path in sorted(folder.iterdir())}
    found |= {path.name: path.read_bytes() for path in (run.pointer("latest"), run.pointer("best"))}
    lines = metrics(run)
    return found | {"metrics.jsonl": json.dumps(lines, indent=1).encode()}


def killed_before_change(number: int, folder: Path, work: Callable[[], object]) -> bool:
    """Do the work in a forked process that SIGKILL ends before its `number`-th change of a file in a folder; False if it made fewer."""
    child = os.fork()
    if child == 0:
        code = 1
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)  # ends it where it hangs
        try:
            _kill_before_change(number, folder)
            work()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def _kill_before_change(number: int, folder: Path) -> None:
    left = number

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if _changed(event, arguments, str(folder)):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(note)


def serve() -> None:
    """Answer questions on standard input until it is closed."""
    import torch

    import luthier.cli.main
    import luthier.data.prepare
    import luthier.evaluate.run
    import luthier.flow
    import luthier.train.run  # noqa: F401  loaded now, once

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _tell(answers, {"ready": os.getpid()})
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            _tell(answers, _started(Start(**question["start"])))
        elif "mount" in question:
            _tell(answers, _mounted(**question))
        else:
            subprocess.run(["mount", "-o", f"remount,{question['how']}", question["remount"]], check=True, timeout=10)
            _tell(answers, {})


def _tell(answers: Any, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _mounted(mount: str, bytes: int) -> dict[str, Any]:
    again = "remount," if os.path.ismount(mount) else ""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{again}size={bytes}", "none", mount], check=True, timeout=10)
    return {}


def _started(start: Start) -> dict[str, Any]:
    said, changes = _Pipe(), _Pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(said.write_end, 1)
            os.dup2(said.write_end, 2)
            code = _command(start, changes.write_end)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + start.seconds
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return {"code": os.waitstatus_to_exitcode(ended[1]), "said": said.text(), "changes": changes.text().splitlines()}


class _Pipe:
    """Room for 1 MB of text, which no limit on files counts."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, 1 << 20)

    def text(self) -> str:
        """What was written; whoever still holds the other end is not waited for."""
        os.close(self.write_end)
        os.set_blocking(self.read_end, False)
        found = b""
        with suppress(BlockingIOError):
            while part := os.read(self.read_end, 1 << 20):
                found += part
        os.close(self.read_end)
        return found.decode(errors="replace")


def _command(start: Start, log: int) -> int:
    """In the child: the command line itself."""
    from luthier.cli.main import main

    os.environ["LUTHIER_RUNS"] = start.runs
    sys.argv = ["luthier", *start.words]
    if start.file_bytes and not start.limit_from:
        _limit(start)
    if start.user:
        _become(start.user)
    _watch_files(start, log)
    if start.kill_in:
        _watch_calls(start.kill_in, start.signal)
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return 0


def _limit(start: Start) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (start.file_bytes, start.file_bytes))


def _watch_files(start: Start, log: int) -> None:
    """Note every change of a file in `runs`, before it is made, and do what is wanted at that moment."""
    count, copying, busy = 0, False, False

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, copying, busy
        if busy or not (paths := _changed(event, arguments, start.runs)):
            return
        busy = True
        count += 1
        change = f"{event} {' '.join(path.removeprefix(start.runs) for path in paths)}"
        os.write(log, f"{change}\n".encode())
        if start.kill_before and change.startswith(start.kill_before):
            os.kill(os.getpid(), signal.SIGKILL)
        if start.limit_from and change.startswith(start.limit_from):
            _limit(start)
        if start.no_locks_from and change.startswith(start.no_locks_from):
            _refuse_flock()
        if start.flip_in and event == "os.rename" and (file := Path(paths[0]) / start.flip_in).exists():
            flip(file)
        copying = copying or bool(start.copy_from and change.startswith(start.copy_from))
        if copying:
            shutil.copytree(start.runs, f"{start.runs}-{count}")
        busy = False

    sys.addaudithook(note)


def _changed(event: str, arguments: tuple[Any, ...], folder: str) -> list[str]:
    """The paths that an audit event is about to change in a folder; one without a folder is rmtree's, inside the folder it removes."""
    number = CHANGES.get(event, 0)
    if (
        event == "open"
        and isinstance(arguments[2], int)
        and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    ):
        number = 1
    paths = [str(path) for path in arguments[:number]]
    return paths if any(path.startswith(folder) or not os.path.isabs(path) for path in paths) else []


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _become(user: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    version, effective = 0x20080522, 1 << CAP_DAC_READ_SEARCH
    failed = libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    header, capabilities = (ctypes.c_uint32 * 2)(version, 0), (ctypes.c_uint32 * 6)(effective, effective, 0, 0, 0, 0)
    if failed or libc.capset(header, capabilities):
        raise OSError(ctypes.get_errno(), "capset")


def _refuse_flock() -> None:
    """A seccomp filter: flock fails with ENOLCK. The architecture is not looked at: the child runs nothing but this interpreter."""
    number = {"x86_64": 73, "aarch64": 32}[os.uname().machine]

    class Instruction(ctypes.Structure):
        _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint32))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction)))

    load, equal, answer = 0x20, 0x15, 0x06
    allow, fail = 0x7FFF0000, 0x00050000 | errno.ENOLCK
    lines = (Instruction * 4)((load, 0, 0, 0), (equal, 0, 1, number), (answer, 0, 0, fail), (answer, 0, 0, allow))
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(4, lines)), 0, 0
    )
    if failed:
        raise OSError(ctypes.get_errno(), "seccomp")


def _watch_calls(wanted: str, number_sent: int) -> None:
    file, function, number = wanted.split(":")
    left = int(number)

    def note(frame: FrameType, event: str, argument: object) -> None:  # of calls only, for it returns nothing that would follow the lines
        nonlocal left
        if frame.f_code.co_name == function and frame.f_code.co_filename.endswith(file):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number_sent)

    sys.settrace(note)


if __name__ == "__main__":
    serve()
