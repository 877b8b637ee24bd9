"""`python -m luthier.cli.rank VERB FOLDER FREE_BYTES [NUM_RANKS]`: what `luthier train` and `evaluate` start where there are several ranks.

With the number of ranks it becomes torchrun, which starts so many of these without it: each is one rank.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from luthier import flow
from luthier.core.environment import settle, start_settings
from luthier.core.errors import LuthierError
from luthier.core.hardware import this_machine
from luthier.core.redact import redact
from luthier.core.signals import Interrupted
from luthier.runs.rates import threads_here
from luthier.runs.store import RunFolder


def main() -> None:
    """Start the ranks, or be one of them. What both print is in the run's log.txt; a rank's error is in its heartbeat's last words."""
    verb, folder, free_bytes, *num_ranks = sys.argv[1:]
    if num_ranks:
        _become_torchrun(RunFolder(Path(folder)), [verb, folder, free_bytes], num_ranks[0])
    settle(())
    code = 0
    try:
        if verb == "evaluate":
            flow.evaluate_rank(Path(folder))
        else:
            flow.train_rank(Path(folder), int(free_bytes))
    except Interrupted as ended:
        code = ended.exit_code
    except Exception as error:
        sys.stderr.write(redact(traceback.format_exc()))
        code = error.exit_code if isinstance(error, LuthierError) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # in an orderly exit, libraries may wait for ranks that are gone


def _become_torchrun(run: RunFolder, words: Sequence[str], num_ranks: str) -> None:
    """Be torchrun on a free port of the loopback, in the environment that a process which trains must be started with.

    The ranks divide the threads; torchrun would give each of them one. Modules are not looked for in the current folder.
    """
    log = os.open(run.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    environment = {**start_settings(), **os.environ, "OMP_NUM_THREADS": str(threads_here(this_machine())), "PYTHONSAFEPATH": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={num_ranks}"]
    command = [sys.executable, *torchrun, "-m", "luthier.cli.rank", *words]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
