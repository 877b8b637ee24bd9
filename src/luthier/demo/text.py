"""Seeded English of a software team, the pre-training text of the demo base: made here from `words.py`, none from a corpus.

Documents are prose, package descriptions, release notes, log and key-value passages, lists that repeat, and ChatML dialogues.
They teach words of the domain, to copy a name or a number that stands earlier, to write fields in an order that is asked for,
and to stop with `<|im_end|>`. They do not hold the task of the demo (`interactions.py`): no house format, no ticket answered.
"""

import json
import random
import re
from collections.abc import Callable, Iterator

from luthier.demo import words
from luthier.demo.inflect import gerund, past, plural, third_person
from luthier.demo.words import TOPICS, Topic

TURN_START, TURN_END, TEXT_END = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

SENTENCES: tuple[str, ...] = (
    "The {thing} {does} the {thing}.",
    "The {kind} {thing} {adv} {does} every {noun} of the {thing}.",
    "{Doing} a {thing} is {adj}, but the {noun} of the {thing} is {adj} too.",
    "{project} is a {kind} {topic} {noun} that {verbs} {things} and {things}.",
    "{project} can {do} {things}, {do} {things} and {do} the {thing}.",
    "It {verbs} the {thing} and {verbs} {nouns} for {adj} {things}.",
    "It is written in {lang} and {verbs} on {platform} and {platform}.",
    "{name} {verbed} the {thing} on {day}, because the {noun} was {adj}.",
    "{name} and {name} {verbed} how the {thing} {does} {things}.",
    "When you {do} the {thing}, the {thing} {does} the {adj} {noun} {adv}.",
    "If the {thing} is {kind}, {verb} the {noun} before you {do} it.",
    "Version {version} of {project} {verbed} the {kind} {thing}.",
    "Since version {version} the {thing} {does} {things} on {platform}.",
    "This {noun} {verbs} {number} {things}, {number} {things} and a {kind} {thing}.",
    "There are {number} {nouns} in {file}, and {name} {verbed} most of them.",
    "The function in {file} {does} the {thing} and {verbs} its {noun}.",
    "Users of {platform} report that {symptom} when they {do} a {thing}.",
    "On {platform} {symptom}, so {name} {verbed} the {thing} in {file}.",
    "We {verbed} it {adv}: {symptom} as soon as the {thing} {does} a {kind} {thing}.",
    "Nobody can {do} the {thing} while {symptom}.",
    "On {platform} {harm}.",
    "{name} {verbed} that {harm}, and {verbed} {file}.",
    "When you {do} a {thing}, {harm}.",
    "You should {verb} the {adj} {noun} and not the {adj} one.",
    "Both the {thing} and the {thing} are {kind}, which {verbs} the {noun}.",
    "Without a {thing} you cannot {do} {things} or {do} the {kind} {thing}.",
    "The {adj} {noun} of {project} is to {verb} {nouns} for the {topic} team.",
    "The {topic} team {verbed} {number} {nouns} in {month}.",
    "Please {verb} {file} first; it {verbs} the {thing} that {name} {verbed}.",
    "What does the {thing} do? It {does} the {noun} of each {thing}.",
    "Our {thing} needs {number} {things}, so {doing} them takes {number} minutes.",
    "Many {things} are {adj}; a {kind} {thing} is more {adj} than a {thing}.",
    "The {noun} should be {verbed} before {month}, said {name}.",
    "{project} comes with a {thing}, a {thing} and {adj} {nouns} to {do} {things}.",
    "This package contains the {noun} of {project}, the {kind} {thing} for {topic}.",
    "It is {adj} for {doing} {things}, since each {thing} is {verbed} {adv}.",
    "They were {doing} the {thing} while the {thing} was being {did}.",
)
SUMMARIES: tuple[str, ...] = (
    "{kind} {thing} for {topic}",
    "{kind} {thing} and {thing} {noun}",
    "{lang} library to {do} {things}",
    "tool to {do} and {do} {things}",
    "{topic} {noun} for {platform}",
    "{thing} with {kind} {things}",
    "{adj} {noun} for {doing} {things}",
    "program that {does} a {thing}",
    "{thing} {noun} written in {lang}",
)
SECTIONS: tuple[str, ...] = (
    "Section: {topic}",
    "Filed under {topic}.",
    "This is about {topic}.",
    "Topic: {topic}",
    "All of this is {topic}.",
)
QUESTIONS: dict[str, tuple[str, ...]] = {
    "project": ("Which project is meant?", "What is the project called?", "Name the project."),
    "file": ("Which file is named?", "What file does it stand in?", "Name the file."),
    "version": ("Which version is it?", "What version is named?", "Give the version."),
    "name": ("Who did it?", "Who is named?", "Give the name of the person."),
    "platform": ("On which platform?", "Which system is it?", "Name the platform."),
    "number": ("How many are there?", "Which number is named?", "Give the number."),
    "day": ("On which day?", "When was it?", "Name the day."),
    "lang": ("In which language is it written?", "Which language is used?", "Name the language."),
}
FACT_SENTENCES: dict[str, tuple[str, ...]] = {
    "project": (
        "The project {project} {verbs} {things}.",
        "We use {project} to {do} {things}.",
        "This is about {project}, a {kind} {thing}.",
    ),
    "file": ("Look at {file}, which {verbs} the {thing}.", "The {noun} stands in {file}.", "{file} {verbs} the {kind} {thing}."),
    "version": (
        "It happens in version {version}.",
        "Since {version} the {thing} is {adj}.",
        "We {verbed} release {version} of the {thing}.",
    ),
    "name": ("{name} {verbed} the {thing}.", "The {thing} was {verbed} by {name}.", "Ask {name} about the {kind} {thing}."),
    "platform": ("It runs on {platform}.", "On {platform} the {thing} is {adj}.", "The {thing} was {verbed} on {platform}."),
    "number": ("There are {number} {things}.", "The {thing} {verbs} {number} {nouns}.", "We counted {number} {kind} {things}."),
    "day": ("It was {verbed} on {day}.", "On {day} the {thing} was {adj}.", "The {noun} is due on {day}."),
    "lang": ("It is written in {lang}.", "The {thing} is {lang} code.", "A {lang} program {does} the {thing}."),
}
ROLES = (
    "You are a helpful assistant.",
    "You answer questions about a passage.",
    "You help a software team.",
    "Answer with facts from the text and nothing else.",
    "Be brief.",
)
ONSETS = [
    "b",
    "br",
    "c",
    "ch",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "kl",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "qu",
    "r",
    "s",
    "sh",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "x",
    "z",
]
VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "io", "ou", "y"]
CODAS = ["n", "r", "l", "s", "t", "x", "m", "k", "d", "rn", "st", "nd", "ck"] + [""] * 8


def documents(seed: int) -> Iterator[str]:
    """Documents without end, the same for the same seed."""
    rng = random.Random(seed)
    kinds: dict[Callable[[random.Random], str], int] = {
        _prose: 12,
        _description: 10,
        _release_notes: 5,
        _log: 4,
        _key_values: 9,
        _listing: 12,
        _pairs: 10,
        _code: 4,
        _dialogue: 60,
    }
    while True:
        yield rng.choices(list(kinds), list(kinds.values()))[0](rng)


def invented_word(rng: random.Random) -> str:
    """A pronounceable word that no dictionary has, two or three syllables."""
    return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.choice((2, 2, 3))))


def version(rng: random.Random) -> str:
    """A version number such as 2.14 or 0.9.31."""
    return ".".join(str(rng.randrange(bound)) for bound in rng.choice(((20, 40), (10, 20, 10), (4, 100))))


def file_name(rng: random.Random, topic: Topic) -> str:
    """A file name of two words, one of them often invented."""
    first = rng.choice(topic.things) if rng.random() < 0.5 else invented_word(rng)
    second = rng.choice(topic.actions) if rng.random() < 0.5 else rng.choice(words.NOUNS)
    return f"{first}{rng.choice('__-')}{second}.{rng.choice(words.SUFFIXES)}"


class Scene:
    """What one document is about: a topic, and facts that stay the same wherever the document names them again."""

    def __init__(self, rng: random.Random, topics: tuple[Topic, ...] = TOPICS) -> None:
        self.rng = rng
        self.topic = rng.choice(topics)
        self.facts = {
            "project": rng.choice(("", "", "", "lib", "open", "py")) + invented_word(rng),
            "file": file_name(rng, self.topic),
            "version": version(rng),
            "name": rng.choice(words.NAMES),
            "platform": rng.choice(words.PLATFORMS),
            "number": str(rng.randrange(2, rng.choice((12, 100, 1000)))),
            "day": rng.choice(words.DAYS),
            "lang": rng.choice(words.LANGUAGES),
        }

    def fill(self, pattern: str, *, steady: float = 0.6) -> str:
        """The pattern with each {slot} filled; a fact is the scene's own with probability `steady`, else a passing one."""
        text = re.sub(r"\{(\w+)\}", lambda slot: self._word(slot[1], steady), pattern)
        text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)
        return text[0].upper() + text[1:] if pattern[:1] == "{" and pattern[1:2].isupper() else text

    def sentences(self, count: int) -> str:
        """A paragraph of that many sentences on the scene's topic."""
        return " ".join(self.sentence(self.rng.choice(SENTENCES)) for _ in range(count))

    def sentence(self, pattern: str, *, steady: float = 0.6) -> str:
        """The filled pattern with a capital, unless a name that is written small stands first."""
        text = self.fill(pattern, steady=steady)
        return text if text.startswith((self.facts["project"], self.facts["file"], "macOS")) else text[0].upper() + text[1:]

    def _word(self, slot: str, steady: float) -> str:
        rng = self.rng
        if slot in self.facts:
            return self.facts[slot] if rng.random() < steady else Scene(rng).facts[slot]
        topic_verb, verb, slot = rng.choice(self.topic.actions), rng.choice(words.VERBS), slot.lower()
        forms: dict[str, Callable[[], str]] = {
            "topic": lambda: self.topic.name,
            "thing": lambda: rng.choice(self.topic.things),
            "things": lambda: plural(rng.choice(self.topic.things)),
            "kind": lambda: rng.choice(self.topic.kinds),
            "do": lambda: topic_verb,
            "does": lambda: third_person(topic_verb),
            "did": lambda: past(topic_verb),
            "doing": lambda: gerund(topic_verb),
            "noun": lambda: rng.choice(words.NOUNS),
            "nouns": lambda: plural(rng.choice(words.NOUNS)),
            "adj": lambda: rng.choice(words.ADJECTIVES),
            "adv": lambda: rng.choice(words.ADVERBS),
            "verb": lambda: verb,
            "verbs": lambda: third_person(verb),
            "verbed": lambda: past(verb),
            "month": lambda: rng.choice(words.MONTHS),
            "symptom": lambda: rng.choice(rng.choice(words.SYMPTOMS)),
            "harm": lambda: ", which is ".join(map(rng.choice, rng.choice(tuple(zip(words.SYMPTOMS, words.SEVERITIES, strict=True))))),
        }
        return forms[slot]()


def _prose(rng: random.Random) -> str:
    scene = Scene(rng)
    title = scene.fill(rng.choice(("{Thing} and {thing}", "About {project}", "How to {do} a {thing}", "The {kind} {thing}"))) + "\n\n"
    body = "\n\n".join(scene.sentences(rng.randrange(2, 6)) for _ in range(rng.randrange(1, 4)))
    return _with_section(scene, (title if rng.random() < 0.4 else "") + body)


def _description(rng: random.Random) -> str:
    scene = Scene(rng)
    head = f"{scene.facts['project']} - {scene.fill(rng.choice(SUMMARIES))}\n"
    features = "".join(f"\n * {scene.fill(rng.choice(SUMMARIES))}" for _ in range(rng.randrange(2, 6)))
    tail = f"\n\nFeatures of {scene.facts['project']}:{features}" if rng.random() < 0.4 else ""
    return _with_section(scene, head + scene.sentences(rng.randrange(2, 6)).replace(". ", ".\n") + tail)


def _with_section(scene: Scene, body: str) -> str:
    """The text, more often than not with a line that names its topic, mostly at the end."""
    line = scene.fill(scene.rng.choice(SECTIONS))
    return scene.rng.choice((body, f"{body}\n{line}", f"{body}\n{line}", f"{line}\n{body}"))


def _release_notes(rng: random.Random) -> str:
    scene = Scene(rng)
    notes = (
        "Fix {thing} on {platform} ({name})",
        "Add a {kind} {thing} to {file}",
        "{name}: {verb} {nouns} in {file}",
        "Remove the {adj} {thing}",
        "Do not {do} a {thing} twice",
    )
    lines = "\n".join("- " + scene.fill(rng.choice(notes)) for _ in range(rng.randrange(3, 8)))
    thanks = scene.fill("Thanks to {name} for release {version} of {project}.", steady=1.0)
    return f"{scene.facts['project']} {scene.facts['version']}\n{lines}\n{thanks}"


def _log(rng: random.Random) -> str:
    scene = Scene(rng)
    lines = []
    for _ in range(rng.randrange(4, 12)):
        level = rng.choice(("INFO", "INFO", "DEBUG", "WARNING", "ERROR"))
        what = scene.fill(
            rng.choice(("{does} {thing}", "{thing} {verbed}", "{number} {things} {verbed}", "cannot {do} {thing} in {file}", "{symptom}")),
            steady=0.8,
        )
        lines.append(f"{rng.randrange(24):02}:{rng.randrange(60):02}:{rng.randrange(60):02} {level} {scene.facts['project']}: {what}")
    return "\n".join(lines)


def _key_values(rng: random.Random) -> str:
    scene = Scene(rng)
    keys = rng.sample(sorted(scene.facts), rng.randrange(3, 8))
    record = {key: scene.facts[key] for key in keys} | {rng.choice(words.NOUNS): rng.choice(scene.topic.things)}
    style = rng.randrange(4)
    if style == 0:
        text = json.dumps(record)
    elif style == 3:
        text = " | ".join(record) + "\n" + " | ".join(record.values())
    else:
        text = "\n".join(f"{key}{': ' if style == 1 else ' = '}{value}" for key, value in record.items())
    again = " ".join(scene.fill(rng.choice(FACT_SENTENCES[key]), steady=1.0) for key in keys)
    return f"{text}\n\n{again}"


def _listing(rng: random.Random) -> str:
    """The same list two or three times: the shortest road to copying."""
    scene = Scene(rng)
    makers: tuple[Callable[[], str], ...] = (
        lambda: invented_word(rng),
        lambda: rng.choice(rng.choice(TOPICS).things),
        lambda: rng.choice(rng.choice(TOPICS).things),
        lambda: file_name(rng, scene.topic),
        lambda: version(rng),
        lambda: str(rng.randrange(1000)),
    )
    entry = rng.choice(makers)
    entries = [entry() for _ in range(rng.randrange(4, 20))]
    separator = rng.choice((", ", "\n", " ", "\n- ", "; "))
    text = separator.join(entries)
    again = f"\n{rng.choice(('again', 'once more', 'and now', 'copy', 'the same'))}:\n"
    return again.join([text] * rng.choice((2, 2, 3)))


def _pairs(rng: random.Random) -> str:
    """A table of pairs, then the same pairs in another order: to find a value by its key."""
    scene = Scene(rng)
    makers: tuple[Callable[[], str], ...] = (
        lambda: invented_word(rng),
        lambda: rng.choice(words.NAMES),
        lambda: file_name(rng, scene.topic),
        lambda: rng.choice(rng.choice(TOPICS).things),
        lambda: str(rng.randrange(1000)),
    )
    value = rng.choice(makers)
    link = rng.choice((": ", " = ", " -> ", " is ", " "))
    pairs = [rng.choice(rng.choice(TOPICS).things) + link + value() for _ in range(rng.randrange(3, 10))]
    return "\n".join(pairs + rng.sample(pairs, len(pairs)))


def _code(rng: random.Random) -> str:
    scene = Scene(rng)
    thing, other, action, noun = scene.fill("{thing} {thing} {do} {noun}").replace("-", "_").split(" ")[:4]
    project, file = scene.facts["project"], scene.facts["file"]
    return rng.choice(
        (
            f'def {action}_{thing}({thing}, {other}):\n    """{scene.fill("{Do} the {kind} {thing}.")}"""\n'
            f"    if not {thing}:\n        return {other}\n    return {thing}.{action}({other})\n",
            f"class {thing.title()}:\n    def __init__(self, {other}, {noun}):\n        self.{other} = {other}\n"
            f"        self.{noun} = {noun}\n\n    def {action}(self):\n        return self.{noun}\n",
            f"for {noun} in {thing}_{other}:\n    {noun}.{action}()\n    print({noun}, {rng.randrange(100)})\n",
            f"import {thing}\nfrom {thing} import {other}\n\n{noun} = {other}.{action}({rng.randrange(1000)})\n{thing}.check({noun})\n",
            f"$ {project} --{thing} {file}\n{file}: {rng.randrange(100)} {plural(noun)}\n",
        )
    )


def _turn(role: str, content: str) -> str:
    return f"{TURN_START}{role}\n{content}{TURN_END}\n"


def _dialogue(rng: random.Random) -> str:
    """A ChatML dialogue about a passage: questions that copy one fact, or an order to write several in a given pattern."""
    scene = Scene(rng)
    keys = rng.sample(sorted(scene.facts), rng.randrange(2, 6))
    told = [scene.sentence(rng.choice(FACT_SENTENCES[key]), steady=1.0) for key in keys]
    filler = [
        "The {thing} {does} the {kind} {thing}.",
        "It {verbs} {nouns} for {adj} {things}.",
        "The {noun} of the {thing} is {adj}.",
        "Then {harm}.",
    ]
    told += [scene.sentence(rng.choice(filler)) for _ in range(rng.randrange(4))]
    rng.shuffle(told)
    passage = " ".join(told)
    system = _turn("system", rng.choice(ROLES)) if rng.random() < 0.4 else ""
    if rng.random() < 0.6:
        return system + _ordered_fields(scene, keys, passage)
    text, ask = system, passage + "\n"
    for key in keys[: rng.randrange(1, 4)]:
        answer = scene.facts[key]
        text += _turn("user", ask + rng.choice(QUESTIONS[key])) + _turn(
            "assistant", rng.choice((answer, answer, f"It is {answer}.", f"The {key} is {answer}."))
        )
        ask = ""
    return text.rstrip("\n")


def _ordered_fields(scene: Scene, keys: list[str], passage: str) -> str:
    rng = scene.rng
    asked = rng.sample(keys, rng.randrange(1, len(keys) + 1))
    opener, joiner = (
        rng.choice(("", "", scene.fill("{noun} "), scene.fill("{verb}: "), "-> ")),
        rng.choice((" ", ", ", " / ", ": ", " - ", "; ", " | ")),
    )
    order = opener + joiner.join(f"[{key}]" for key in asked)
    answer = opener + joiner.join(scene.facts[key] for key in asked)
    request = rng.choice(("Write {}.", "Answer as {}.", "Fill in {}.", "Reply in this form: {}")).format(order)
    if rng.random() < 0.4:
        return (_turn("system", request) + _turn("user", passage) + _turn("assistant", answer)).rstrip("\n")
    return (_turn("user", rng.choice((f"{passage}\n{request}", f"{request}\n{passage}"))) + _turn("assistant", answer)).rstrip("\n")
