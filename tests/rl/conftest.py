"""Code of a user's own, in the current folder."""

from pathlib import Path

import pytest

MINE = '''
import math, os, sys, time

def vowels(answer, reference):
    print("a reward that talks")
    os.write(1, b"and talks below Python\\n")
    return sum(letter in "aeiou" for letter in answer) - len(reference)

def wrong(answer, reference):
    match answer:
        case "raise":
            raise KeyError("no such thing")
        case "nan":
            return math.nan
        case "huge":
            return 10 ** 400
        case "text":
            return "1"
        case "hang":
            time.sleep(600)
        case "exit":
            os._exit(3)
        case "crash":
            os.kill(os.getpid(), 11)
        case "leave":
            sys.exit(4)
        case "read":
            return len(sys.stdin.read())
    return 1

class Echo:
    """Says what it hears until that is `end`; its reward is the number of turns, and the reference's."""

    def __init__(self, question, reference):
        self.said = question[-1]["content"]
        if self.said == "unable":
            raise ValueError("not this one")
        self.reward = float(reference)

    def reply(self, answer):
        self.reward += 1
        odd = {"exit": lambda: os._exit(3), "raise": lambda: 1 / 0, "number": lambda: 5, "half": lambda: "half of a smile: \\ud83d"}
        if answer == "hang" or answer in odd:
            return time.sleep(600) if answer == "hang" else odd[answer]()
        return "" if answer == "end" else f"{self.said}: {answer}"
'''


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path
