"""Rewards of the tests: what a tiny model of random weights can be taught."""


def early(answer: str, reference: str) -> float:
    """How much of the answer's letters come early in the alphabet."""
    letters = [letter for letter in answer.lower() if letter.isalpha()]
    return sum(letter < "n" for letter in letters) / len(letters) if letters else 0.0


def alike(answer: str, reference: str) -> float:
    """Nothing to choose."""
    return 1.0
