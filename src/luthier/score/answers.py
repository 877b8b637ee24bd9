"""What can be wrong with an answer whatever the right one is: it refuses, or it would never end."""

import re

from luthier.score.scorers import final

CANNOT = r"(?:can(?:no|['’])t|won['’]t|will not|am (?:not able|unable) to|['’]m (?:not able|unable) to|must decline to)"
HELP = r"(?:help|assist|answer|provide|comply|do that|do this|fulfil|discuss|continue|generate|create|share|support|respond|engage)"
REFUSALS = re.compile(
    rf"\bi {CANNOT} {HELP}|\bi['’]m (?:unable|not able) to {HELP}|\bas an? (?:ai|(?:large )?language model)\b"
    rf"|\b(?:sorry|afraid|apologi[sz]e|unfortunately)\b[^.!?\n]{{0,40}}\bi {CANNOT}",
    re.IGNORECASE,
)
WHERE = 200  # characters from its beginning in which an answer refuses, if it does
TURNS = 3  # of the same words that make a loop
LONGEST_LOOP = 200  # characters


def refuses(answer: str) -> bool:
    """Whether the final answer begins by declining, in English. A list of phrases: read what it finds before you rely on it."""
    return REFUSALS.search(final(answer)[:WHERE]) is not None


def repeats(answer: str) -> bool:
    """Whether the answer ends in the same text at least three times over, such as a model that was cut would have gone on writing."""
    for length in range(1, min(LONGEST_LOOP, len(answer) // TURNS) + 1):
        loop = answer[-length:]
        turns = TURNS if length >= 4 else 12 // length + TURNS  # "..." is no loop
        if loop.strip() and answer.endswith(loop * turns):
            return True
    return False
