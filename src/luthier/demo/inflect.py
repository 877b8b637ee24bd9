"""English forms of regular nouns and verbs, and of the few irregular verbs that `words.py` has."""

import re


def plural(noun: str) -> str:
    """The plural of a regular noun."""
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "z", "ch", "sh")) else "s")


def third_person(verb: str) -> str:
    """`copy` → `copies`, as in "it copies"."""
    return plural(verb)


def past(verb: str) -> str:
    """The past form of a verb as if it were regular; the commonest irregular ones are known."""
    irregular = {
        "keep": "kept",
        "send": "sent",
        "draw": "drew",
        "write": "wrote",
        "build": "built",
        "break": "broke",
        "show": "showed",
        "understand": "understood",
        "cut": "cut",
        "shoot": "shot",
        "learn": "learned",
        "teach": "taught",
        "hide": "hid",
        "run": "ran",
        "find": "found",
        "sell": "sold",
        "spell": "spelled",
    }
    if verb in irregular:
        return irregular[verb]
    if verb.endswith("e"):
        return verb + "d"
    return verb[:-1] + "ied" if re.search(r"[^aeiou]y$", verb) else _doubled(verb) + "ed"


def gerund(verb: str) -> str:
    """`store` → `storing`, `stop` → `stopping`."""
    return (verb[:-1] if verb.endswith("e") and not verb.endswith("ee") else _doubled(verb)) + "ing"


def _doubled(verb: str) -> str:
    short = re.fullmatch(r"[^aeiou]*[aeiou][bdgklmnprt]", verb)
    return verb + verb[-1] if short or verb in {"commit", "transfer", "transmit"} else verb
