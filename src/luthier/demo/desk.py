"""What an answer of the demo's desk is worth: `luthier.demo.desk:words`, a scorer and a reward."""

import re

WORD = re.compile(r"[\w.-]*\w")


def words(answer: str, reference: str) -> float:
    """1 where the answer has the reference's words, in its order, and no other; marks between them aside.

    The demo base was never shown a closing bracket, and so draws it as one of many marks that it does not know.
    """
    return float(WORD.findall(answer) == WORD.findall(reference))
