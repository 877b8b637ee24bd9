"""The process is settled before libraries load: by our values where the user has none, and for training from its very start."""

import json
import os
import subprocess
import sys

import pytest

from luthier.core.environment import AT_START, SETTINGS

NAMES = (*SETTINGS, *AT_START, "OMP_WAIT_POLICY")
CODE = "import json, os, sys; from luthier.core.environment import settle; settle(sys.argv[1:]); print(json.dumps(dict(os.environ)))"


def settled(*words: str, **given: str) -> tuple[bool, dict[str, str]]:
    """Whether it is still the process that was started, and its environment in the end."""
    environment = {name: value for name, value in os.environ.items() if name not in NAMES} | given
    done = subprocess.run([sys.executable, "-c", CODE, *words], env=environment, capture_output=True, text=True, check=True, timeout=60)
    found = json.loads(done.stdout)
    return "GLIBC_TUNABLES" not in found or "GLIBC_TUNABLES" in given, {name: found[name] for name in NAMES if name in found}


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings are for Linux")
def test_a_verb_that_trains_is_started_anew_with_what_glibc_reads_at_start() -> None:
    assert settled("train", "recipe.yaml") == (False, {**SETTINGS, **AT_START})


def test_another_verb_is_not_started_anew() -> None:
    assert settled("plan", "recipe.yaml") == (True, SETTINGS)


def test_the_users_own_values_go_before() -> None:
    own = {"GOMP_SPINCOUNT": "7", "LRU_CACHE_CAPACITY": "9", "GLIBC_TUNABLES": "glibc.malloc.check=0"}
    assert settled("train", "recipe.yaml", **own) == (True, {**SETTINGS, **own})
    passive = {"OMP_WAIT_POLICY": "PASSIVE"}
    assert settled("plan", **passive)[1] == {name: value for name, value in SETTINGS.items() if name != "GOMP_SPINCOUNT"} | passive
