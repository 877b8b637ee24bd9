"""Secrets out of text: everything that Luthier writes about itself, in files and to the terminal, goes through here.

What counts is listed below, and told in docs/notes/security.md. Every pattern begins with letters of its own and is bounded, so a long
text costs a few nanoseconds a character whatever stands in it.
"""

import os
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

HIDDEN = "[redacted]"

ISSUED = (
    r"hf_[A-Za-z0-9]{20,}",  # Hugging Face
    r"(?<![A-Za-z0-9\]])sk-(?:[a-z0-9]{1,10}-){0,3}(?=\w{0,40}[0-9])\w{16,}[\w-]*",  # OpenAI, Anthropic and others; not task-2026-11-20
    r"(?:AKIA|ASIA)[0-9A-Z]{16}",  # AWS
    r"gh[pousr]_[A-Za-z0-9]{20,}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{20,}",
    r"glpat-[\w-]{20,}",  # GitLab
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}",  # Slack
    r"AIza[\w-]{35}",  # Google
    r"(?:npm_|pypi-)[\w-]{20,}",
    r"(?<![\w\]-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{4,}",  # JSON web tokens
)
"""Secrets that can be told by their form, wherever they stand."""
KEYS = r"(?:(?:api|access|secret|private|auth|signing|encryption)[_-]?key|passw(?:or)?d|passphrase|secret|credential|token)"
"""What a setting's name ends in, if its value is one."""
TELLING = r"(?=[^\s\"'<>\[\]{}]{0,64}[0-9])[^\s\"'<>\[\]{},;&]{6,}"
"""A value that is hardly a word of prose: with a digit, six characters or more."""
PATTERN = re.compile(
    "|".join(
        (
            r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:(?!-----END)[\s\S]){0,8192}(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?",
            r"(?<=://)[^\s/:@]{0,256}:[^\s/@]{1,1024}(?=@)",  # https://user:password@host
            r"(?<=Bearer )[\w.~+/=-]{16,}",
            *ISSUED,
            # api_key: "x1…", "password" = x1…
            rf"(?P<named>(?i:{KEYS})[\"']?(?:=[\"']?|[\"']?\s{{0,3}}[:=]\s{{0,3}}[\"']?))(?!(?<=\s)[0-9.,]+(?![^\s,;\"'])){TELLING}",
            rf"(?P<set>(?i:{KEYS})=)(?![0-9.,]+(?![^\s,;]))[^\s\"'<>\[\]{{}}$,;&]+",  # DB_PASSWORD=word
            rf"(?P<option>--(?i:(?:[a-z]{{1,16}}-){{0,3}}{KEYS})[ =])[^\s\[-]\S*",  # --api-key word
        )
    )
)
SECRET_NAME = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|API_?KEY|ACCESS_KEY|PRIVATE_KEY|SECRET_KEY|AUTH_KEY)(?:_|$)")
"""Environment variables whose value is a secret, whatever its form: `WANDB_API_KEY`, not `TOKENIZERS_PARALLELISM`."""
ENV_FILE_NAMES = "LUTHIER_ENV_FILE_NAMES"
"""The environment variable that lists those of an env file (`core/envfile.py`): what they hold is hidden whatever they are called."""
SHORTEST, SHORTEST_WORD = 8, 12
"""Characters of such a value with and without a digit: shorter ones (`true`, `disabled`) would hide common words."""


def redact(text: str) -> str:
    """The text with `[redacted]` in the place of what looks like a secret, or is one of this process's environment."""
    for secret in _of_environment(_of_env_file()):
        text = text.replace(secret, HIDDEN)
    return PATTERN.sub(_hidden, text)


def redacted(value: Any) -> Any:
    """A JSON value with every text in it redacted, keys too."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redact(key) if isinstance(key, str) else key: redacted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(item) for item in value]
    return value


def secret_line(text: str) -> int:
    """The line, from 1, on which the first secret of a text begins; 0 where there is none."""
    places = [text.find(secret) for secret in _of_environment(frozenset())]  # an env file may name the base or a project, too
    if match := PATTERN.search(text):
        places.append(match.start())
    found = [place for place in places if place >= 0]
    return text.count("\n", 0, min(found)) + 1 if found else 0


def _hidden(match: re.Match[str]) -> str:
    return (match["named"] or match["set"] or match["option"] or "") + HIDDEN


def _of_environment(besides: frozenset[str]) -> list[str]:
    """The environment's secrets, and `besides`, the longest first: one may be part of another."""
    values = {os.environ[name] for name in os.environ if _names_secret(name)} | besides
    long = (value for value in values if len(value) >= (SHORTEST if any(map(str.isdigit, value)) else SHORTEST_WORD))
    return sorted(long, key=lambda value: (-len(value), value))


def _of_env_file() -> frozenset[str]:
    """What an env file set, but for paths: the places of models and rows must stay readable."""
    values = (os.environ.get(name, "") for name in os.environ.get(ENV_FILE_NAMES, "").split(","))
    return frozenset(value for value in values if not value.startswith(("/", "~", ".")))


@cache
def _names_secret(name: str) -> bool:
    return SECRET_NAME.search(name.upper()) is not None
