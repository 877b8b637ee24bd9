"""A closed set of answers, as far as it takes to tell each from the others: what the engine is held to, and what it then has said.

Each token is the likeliest of those with which one of the answers goes on: what decoding under a grammar of these answers writes. That is
not always the answer that is likeliest as a whole: of "ab" and "ac" (0.4 · 0.5 each) and "b" (0.3) it writes "ab".
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from luthier.core.generation import Choices

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """What all answers begin with, the choices that are left then, and which answer each way through both is."""

    beginning: Ids
    choices: Choices
    said: Mapping[Ids, str]


def closed(answers: Mapping[Ids, str], stop_ids: Collection[int]) -> Closed:
    """Of two answers or more, by their tokens with a stop token at the end, for which any other may stand."""
    said: dict[Ids, str] = {}
    beginning: Ids = ()
    choices = _after((), answers, stop_ids, said)
    while len(choices) == 1:
        ((id, choices),) = choices.items()
        beginning = (*beginning, id)
    return Closed(beginning=beginning, choices=choices, said=said)


def _after(before: Ids, answers: Mapping[Ids, str], stop_ids: Collection[int], said: dict[Ids, str]) -> Choices:
    if len(answers) == 1:
        (said[before],) = answers.values()
        return {}
    going: dict[int, dict[Ids, str]] = {}
    for ids, answer in answers.items():
        for id in stop_ids if ids[len(before)] in stop_ids else ids[len(before) : len(before) + 1]:
            going.setdefault(id, {})[ids] = answer
    return {id: _after((*before, id), some, stop_ids, said) for id, some in going.items()}
