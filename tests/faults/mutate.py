"""Hostile variants of valid files: bytes flipped, cut and repeated; values of JSON replaced by what nobody expects there."""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from random import Random
from typing import Any

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**63, -(2**64), 10**30, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf")),
    *(
        "",
        " ",
        "\0",
        "\ud800",
        "\ufeff",
        "\u202e",
        "a" * 3000,
        "../../../outside",
        "/etc/passwd",
        "~nobody/x",
        "x\ny",
        "{{ 1 }}",
        "1",
        "no",
    ),
    *("(a+)+$", "%s", "auto", "none", "main", "inf", "[1", '{"a": 1}', "[[[[", "\x1b]0;x\x07", "http://127.0.0.1:9/x", "os:system"),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": []}}, ["x", 1], DEEP, list(range(300))),
)
"""What a field is replaced by."""
PIECES = (
    *(
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xc3",
        b"\r",
        b"\n",
        b"\t",
        b'"',
        b"'",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"#",
        b"---\n",
        b"\\",
    ),
    *(
        b"&a ",
        b"*a",
        b"!!python/object:os.system ",
        b"<<: ",
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"9" * 5000,
        b"[" * 2000,
        b"\\ud800",
        b"|\n",
        b"%",
    ),
)
"""What is put between bytes."""


def mutants(random: Random, seeds: Sequence[bytes], number: int) -> Iterator[bytes]:
    """So many variants of the seeds; those that are JSON are changed as JSON every other time."""
    for _ in range(number):
        seed = random.choice(seeds)
        yield _as_json(random, seed) if random.random() < 0.5 else _as_bytes(random, seed)


def replaced(random: Random, value: Any) -> Any:
    """The value with one to three of its parts replaced, removed, renamed or repeated."""
    value = deepcopy(value)
    for _ in range(random.randint(1, 3)):
        value = _one_replaced(random, value)
    return value


def _one_replaced(random: Random, value: Any) -> Any:
    inner: Any = value
    while isinstance(inner, dict | list) and inner:
        key = random.choice(list(inner)) if isinstance(inner, dict) else random.randrange(len(inner))
        if isinstance(inner[key], dict | list) and inner[key] and random.random() < 0.7:
            inner = inner[key]
            continue
        kind = random.randrange(8)
        if kind == 0:
            del inner[key]
        elif kind == 1 and isinstance(inner, dict):
            inner[str(random.choice(VALUES))[:40]] = inner.pop(key)
        elif kind == 1:
            inner += inner[:3] * 2
        else:
            inner[key] = deepcopy(random.choice(VALUES))
        return value
    return deepcopy(random.choice(VALUES))


def _as_json(random: Random, seed: bytes) -> bytes:
    """A value of the whole, or of one of its lines, replaced; bytes where neither is JSON."""
    parts = [seed] if _is_json(seed) else seed.splitlines()
    places = [place for place, part in enumerate(parts) if _is_json(part)]
    if not places:
        return _as_bytes(random, seed)
    place = random.choice(places)
    parts[place] = json.dumps(replaced(random, json.loads(parts[place]))).encode()
    return b"\n".join(parts) + b"\n"


def _is_json(text: bytes) -> bool:
    try:
        return text.lstrip()[:1] in (b"{", b"[") and json.loads(text) is not None
    except ValueError:
        return False


def _as_bytes(random: Random, seed: bytes) -> bytes:
    data = bytearray(seed)
    for _ in range(random.randint(1, 4)):
        place, kind = random.randint(0, len(data)), random.randrange(5)
        end = min(len(data), place + random.choice((1, 2, 5, 20, 100, 10_000)))
        if kind == 0 and place < len(data):
            data[place] ^= 1 << random.randrange(8)
        elif kind == 1:
            del data[place:end]
        elif kind == 2:
            data[place:place] = data[place:end][:200]
        elif kind == 3:
            data[place:end] = random.choice(PIECES)
        else:
            data[place:place] = random.choice(PIECES)
    return bytes(data)
