"""Rewards of the tests: what a tiny model of random weights can be taught."""


def early(answer: str, reference: str) -> float:
    """How much of the answer's letters come early in the alphabet."""
    letters = [letter for letter in answer.lower() if letter.isalpha()]
    return sum(letter < "n" for letter in letters) / len(letters) if letters else 0.0


def alike(answer: str, reference: str) -> float:
    """Nothing to choose."""
    return 1.0


class Again:
    """An environment that asks once more, and likes what came early in both answers."""

    def __init__(self, question: list[dict[str, str]], reference: str) -> None:
        self.question, self.said = question, list[str]()

    def reply(self, answer: str) -> str:
        """`And again?` once."""
        self.said.append(answer)
        return "And again?" if len(self.said) == 1 else ""

    @property
    def reward(self) -> float:
        """The mean of both."""
        return sum(early(answer, "") for answer in self.said) / max(1, len(self.said))


def choosy(answer: str, reference: str) -> float:
    """Says nothing of every other answer, by its letters' sum."""
    if sum(map(ord, answer)) % 2:
        raise ValueError("not this one")
    return 1.0 + len(answer)
