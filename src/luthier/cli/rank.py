"""`python -m luthier.cli.rank VERB FOLDER FREE_BYTES [STARTER …]`: what `luthier train` and `evaluate` start where there are several ranks.

With a starter's words it becomes torchrun or a driver of Ray Train, which start these without them: each is one rank.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from luthier import flow
from luthier.core.environment import settle, start_settings
from luthier.core.errors import LuthierError
from luthier.core.hardware import this_machine
from luthier.core.redact import redact
from luthier.core.signals import Interrupted
from luthier.launch.attempt import NODE
from luthier.launch.ray import run_on_ray
from luthier.launch.torchrun import network, rank_of, torchrun_words
from luthier.runs.rates import threads_here
from luthier.runs.store import RunFolder


def main() -> None:
    """Start the ranks, or be one of them. What both print is in the run's log.txt; a rank's error is in its heartbeat's last words."""
    verb, folder, free_bytes, *start = sys.argv[1:]
    if start:
        _start(RunFolder(Path(folder), node=int(os.environ[NODE])), [verb, folder, free_bytes], start)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        os.environ["RANK"] = str(rank_of(os.environ, int(os.environ[NODE])))
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


def _start(run: RunFolder, words: Sequence[str], start: Sequence[str]) -> NoReturn:
    """Become what starts the ranks. Modules are not looked for in the current folder."""
    log = os.open(run.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    starter, ranks, *place = start
    if starter == "ray":
        run_on_ray(run, words, int(ranks), *place)
        sys.exit()
    # In the environment that a process which trains must be started with. The ranks divide the threads; torchrun would give each one.
    settings = {**start_settings(), **network(place), **os.environ, "OMP_NUM_THREADS": str(threads_here(this_machine()))}
    command = [sys.executable, "-m", "torch.distributed.run", *torchrun_words(run, ranks, place), "-m", "luthier.cli.rank", *words]
    os.execve(sys.executable, command, {**settings, "PYTHONSAFEPATH": "1"})


if __name__ == "__main__":
    main()
