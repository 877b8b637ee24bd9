"""The seeded generator of the demo data, `interactions.jsonl`: the log of five agents of a software team.

One JSON object per line: id, timestamp, agent, ticket, model, prompt, response, success, duration_seconds. Each agent answers in
the house format:

    coder        urgent fix(AREA) FILE         or major, minor, trivial, from the wording; a wish is feat(AREA) FILE
    tester       pass BRANCH                   or fail BRANCH, or flaky BRANCH when the failures vanish on a second run
    researcher   adopt NAME (LICENCE)          or ask NAME (LICENCE) when the licence is a copyleft one
    coordinator  HRB-1482 -> NAME, DAY         who takes the ticket, and when
    reviewer     PR 318 approve                or PR 318 reject

An answer is nearly always the only one of its kind, so no constant would do. The log is not clean, as real logs are not: the
constants `NUM_…` count its faults.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from luthier.demo import words
from luthier.demo.text import Scene
from luthier.demo.words import Topic

SEED = 4
# Rows that are right and clean, per agent: uneven, as in the log this one is modelled on.
NUM_GOOD = {"coder": 690, "tester": 370, "researcher": 240, "coordinator": 160, "reviewer": 140}
NUM_FAILED = 60  # success false, with a useless answer
NUM_EXACT_DUPLICATES = 40  # prompt and response of a good row, at another time
NUM_NEAR_DUPLICATES = 40  # a long good row of the coder asked again with a word more
NUM_OVER_LONG = 8  # right rows with a pasted log in the prompt: more than 1,500 tokens
NUM_MALFORMED = 5  # torn, no response, a number for a prompt, null for a response, a list instead of an object

AREA_NAMES = ("sound", "graphics", "network", "storage", "editor", "login")
LICENCES = {"adopt": ("MIT", "BSD", "Apache", "ISC"), "ask": ("GPL", "LGPL", "AGPL")}

BUGS = (
    "When I {do} the {thing} of a {kind} {thing}, {harm}.",
    "As soon as the {thing} {does} {things}, {harm}.",
    "We {did} a {thing} on {platform} and now {harm}.",
    "With version {version}, {harm} whenever the {thing} and the {thing} are {kind}.",
    "Since the upgrade to {version} {harm}; the {thing} was {kind} before.",
    "{name} wanted to {do} {number} {things}, but {harm}.",
    "The {kind} {thing} is broken: {harm}.",
    "Every {day} {harm} while the {thing} {does} the {thing}.",
    "After {doing} the {thing} twice {harm}.",
    "On {platform} {harm} if a {thing} is {kind}.",
    "Our {thing} has {number} {things}; when we {do} them, {harm}.",
)
WISHES = (
    "It would be nice to {do} {things} from the {thing}.",
    "Could the {thing} also {do} a {kind} {thing}?",
    "I wish one could {do} the {thing} without a {thing}.",
    "Please add a way to {do} the {kind} {thing}.",
    "{name} would like a {thing} that {does} {things}.",
    "A {kind} {thing} for {platform} would help us.",
)
PLACES = (
    "I think it comes from {file}.",
    "The trace ends in {file}.",
    "{name} says {file} is to blame.",
    "See {file}, near line {number}.",
    "The code is in {file}.",
    "{file} was touched last week.",
    "It should be done in {file}.",
    "Have a look at {file}, please.",
    "Most of it lives in {file}.",
)
REMARKS = (
    "{name} has it with a {kind} {thing} on {platform}.",
    "We have {number} {things} and a {thing}.",
    "The {thing} {does} a {kind} {thing}.",
    "It concerns the {thing} and the {things} too.",
    "The {thing} and the {thing} did not change.",
    "I {do} {things} with a {thing}.",
    "My {thing} is {kind}, if that matters; so is the {thing}.",
    "The customer {does} {things} every {day} with a {kind} {thing}.",
)
# What the reporter says last, by priority, and the harm done, `words.SYMPTOMS`, in the same order.
RATINGS: dict[str, tuple[str, ...]] = {
    "urgent": ("Nobody here can work.", "All of us are blocked until it is repaired.", "Please drop everything else."),
    "major": ("We need a repair this week.", "It must be in the next release.", "Many users complain."),
    "minor": ("There is a way around it.", "A restart helps for a day.", "It is annoying, but we can live with it."),
    "trivial": ("It can wait.", "It only looks ugly.", "No user has noticed so far."),
}
TEST_RUNS = (
    "The {area} tests of branch {branch} ran on {platform}.",
    "On {platform} we tested {branch}, which is about {area}.",
    "{name} started the {area} tests of {branch}.",
    "Here is the nightly run of {branch} on {platform}, {area} only.",
    "Branch {branch} went through {total} tests of {area}.",
    "We ran {total} tests of {area} on {branch}.",
)
OUTCOMES: dict[str, tuple[str, ...]] = {
    "pass": ("All tests passed.", "Nothing failed.", "Every test was green.", "There are no failures."),
    "fail": (
        "{failed} tests failed, and again on the second run.",
        "{failed} failures, a retry did not help.",
        "{failed} tests fail every time.",
    ),
    "flaky": (
        "{failed} tests failed, but passed on the second run.",
        "{failed} failures, gone after a retry.",
        "{failed} tests fail now and then.",
    ),
}
TEST_REMARKS = (
    "The {thing} was {kind} this time.",
    "The fixture {does} {things}.",
    "{name} changed the {thing} on {day}.",
    "Coverage of {file} is {adj}.",
    "It is build {version}.",
    "The {thing} test takes longest.",
    "Nothing else {verbed} the {thing}.",
    "The runner {verbs} the {thing} first.",
)
LIBRARIES = (
    "To {do} the {kind} {thing} we could take {project}.",
    "{name} found {project}, a {lang} library to {do} {things}.",
    "For {things} and a {thing} there is {project}.",
    "May I {do} {things} with {project}?",
    "We want a {kind} {thing} in {lang}, such as {project}.",
)
RELEASES = (
    "Its release {version} {does} the {thing}.",
    "The current version is {version}.",
    "Version {version} came out in {month}.",
    "They are at {version} now.",
)
LICENSING = (
    "The licence is {licence}.",
    "It is under {licence}.",
    "It comes with the {licence} licence.",
    "{licence} licensed, says the page.",
)
FREE = ("{name} is free from {day}.", "{name} can start on {day}.", "{name} has time on {day}.", "On {day} {name} could take it.")
ASSIGNMENTS = (
    "Who takes {ticket}, the {kind} {thing}?",
    "{ticket} is about the {thing} and the {thing}; who can do it?",
    "Please plan {ticket}: {things} and a {thing}.",
    "We must {do} the {thing} of {ticket}.",
    "{ticket} waits: nobody {does} the {thing}.",
)
DIFFS = (
    "Pull request {number} changes {file} to {do} {things}.",
    "PR {number} by {name}: {do} the {kind} {thing} in {file}.",
    "{name} opened request {number}, it {does} the {thing}.",
)
VERDICTS: dict[str, tuple[str, ...]] = {
    "approve": ("All checks are green.", "It merges cleanly and is complete.", "Everything is well covered."),
    "reject": ("It breaks the build.", "It conflicts with main.", "Tests and manual are missing."),
}
USELESS = (
    "I am not sure what you mean. Could you tell me more?",
    "",
    "Here is a summary of the ticket:",
    "Error: the model did not answer in time",
    "As an assistant I cannot do that.",
    "P?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """One line of the log."""

    id: str
    timestamp: str
    agent: str
    ticket: str
    model: str
    prompt: str
    response: str
    success: bool
    duration_seconds: float


def log_lines(seed: int = SEED) -> list[str]:
    """The lines of the log in order of time, malformed ones among them."""
    rng = random.Random(seed)
    good = list(_good_rows(rng))
    rows = good + _failed(rng, good) + _repeated(rng, good) + _over_long(rng)
    rng.shuffle(rows)
    now = datetime(2026, 3, 2, 8, tzinfo=UTC)
    lines = []
    for number, row in enumerate(rows):
        now += timedelta(seconds=rng.randrange(20, 900))
        stamped = replace(row, id=f"i-{number:05}", timestamp=now.isoformat(), duration_seconds=round(rng.lognormvariate(2.9, 0.4), 2))
        lines.append(json.dumps(asdict(stamped), ensure_ascii=False))
    for line in _malformed(lines[0]):
        lines.insert(rng.randrange(1, len(lines)), line)  # never first: the first line is what a reader detects the format by
    return lines


def write_log(path: Path, seed: int = SEED) -> None:
    """The log of that seed as a file."""
    path.write_text("\n".join(log_lines(seed)) + "\n", encoding="utf-8", newline="\n")


def _areas() -> tuple[Topic, ...]:
    """The areas of the team, each with the words that no other area has."""
    topics = [topic for topic in words.TOPICS if topic.name in AREA_NAMES]

    def own(topic: Topic, field: str) -> tuple[str, ...]:
        others = {word for other in topics if other is not topic for word in (*other.things, *other.actions, *other.kinds)}
        return tuple(word for word in dict.fromkeys(asdict(topic)[field]) if word not in others)

    return tuple(Topic(name=t.name, things=own(t, "things"), actions=own(t, "actions"), kinds=own(t, "kinds")) for t in topics)


def _good_rows(rng: random.Random) -> Iterator[Interaction]:
    """Every ticket begins with a row of the coder; other agents' rows join a ticket drawn at random and share its area, file and people."""
    areas = _areas()
    tickets = [f"HRB-{number}" for number in rng.sample(_numbers(1000, 10_000), NUM_GOOD["coder"])]
    scenes = {ticket: _scene(rng, areas) for ticket in tickets}
    for agent, answer in AGENTS.items():
        for number in range(NUM_GOOD[agent]):
            ticket = tickets[number] if agent == "coder" else rng.choice(tickets)
            prompt, response = answer(rng, scenes[ticket], ticket)
            yield _row(agent=agent, ticket=ticket, prompt=prompt, response=response)


def _numbers(low: int, high: int) -> list[int]:
    """The numbers without a repeated digit: a model of this size copies 7773 badly."""
    return [number for number in range(low, high) if len(set(str(number))) == len(str(number))]


def _scene(rng: random.Random, areas: tuple[Topic, ...]) -> Scene:
    """A scene whose file has a name that says nothing of the area."""
    scene = Scene(rng, areas)
    scene.facts["file"] = f"{_code_name(rng)}.{rng.choice(words.SUFFIXES)}"
    return scene


def _code_name(rng: random.Random) -> str:
    """A name for a file, branch or library, of two words that no ticket is about."""
    areas = {word for topic in words.TOPICS if topic.name in AREA_NAMES for word in topic.things}
    others = [word for topic in words.TOPICS if topic.name not in AREA_NAMES for word in topic.things if word not in areas]
    return f"{rng.choice(others)}-{rng.choice(words.NOUNS)}"


def _row(*, agent: str, ticket: str, prompt: str, response: str) -> Interaction:
    return Interaction(
        id="",
        timestamp="",
        agent=agent,
        ticket=ticket,
        model="qwen3-30b",
        prompt=prompt,
        response=response,
        success=True,
        duration_seconds=0.0,
    )


def _tell(rng: random.Random, scene: Scene, patterns: list[str], **facts: str) -> str:
    """The patterns as sentences in random order, with these facts beside the scene's own."""
    scene.facts.update(facts)
    rng.shuffle(patterns)
    return " ".join(scene.sentence(pattern, steady=1.0) for pattern in patterns)


def _coder(rng: random.Random, scene: Scene, ticket: str) -> tuple[str, str]:
    place, remarks = rng.choice(PLACES), rng.sample(REMARKS, 2)
    what = f"({scene.topic.name}) {scene.facts['file']}"
    if rng.random() < 0.2:
        told, wish = _tell(rng, scene, [place, *remarks]), _tell(rng, scene, [rng.choice(WISHES)])
        return f"{ticket}: {told} {wish}", f"feat{what}"
    priority, symptoms = rng.choice(tuple(zip(RATINGS, words.SYMPTOMS, strict=True)))
    told = _tell(rng, scene, [rng.choice(BUGS), place, *remarks], harm=rng.choice(symptoms))
    return f"{ticket}: {told} {rng.choice(RATINGS[priority])}", f"{priority} fix{what}"


def _tester(rng: random.Random, scene: Scene, ticket: str) -> tuple[str, str]:
    verdict, branch = rng.choice(tuple(OUTCOMES)), _code_name(rng)
    numbers = {"total": str(rng.randrange(20, 1000)), "failed": str(rng.randrange(2, 20))}
    run = _tell(rng, scene, [rng.choice(TEST_RUNS)], area=scene.topic.name, branch=branch, **numbers)
    rest = _tell(rng, scene, [rng.choice(OUTCOMES[verdict]), rng.choice(TEST_REMARKS)])
    return f"{ticket}: {run} {rest}", f"{verdict} {branch}"


def _researcher(rng: random.Random, scene: Scene, ticket: str) -> tuple[str, str]:
    verdict = rng.choice(tuple(LICENCES))
    licence, library = rng.choice(LICENCES[verdict]), _code_name(rng)
    scene.facts |= {"project": library, "licence": licence}
    told = [scene.sentence(rng.choice(patterns), steady=1.0) for patterns in (LIBRARIES, RELEASES, LICENSING)]
    return f"{ticket}: {' '.join(told)}", f"{verdict} {library} ({licence})"


def _coordinator(rng: random.Random, scene: Scene, ticket: str) -> tuple[str, str]:
    free = {"name": rng.choice(words.NAMES), "day": rng.choice(words.DAYS), "ticket": ticket}
    asked, told = _tell(rng, scene, [rng.choice(ASSIGNMENTS)], **free), _tell(rng, scene, [rng.choice(FREE)])
    aside = scene.sentence(rng.choice(("The {thing} {does} the {kind} {thing}.", "It is for the {thing}.", "The {noun} {verbs} {things}.")))
    return f"{asked} {aside} {told}", f"{ticket} -> {free['name']}, {free['day']}"


def _reviewer(rng: random.Random, scene: Scene, ticket: str) -> tuple[str, str]:
    verdict, number = rng.choice(tuple(VERDICTS)), str(rng.choice(_numbers(100, 1000)))
    head = _tell(rng, scene, [rng.choice(DIFFS)], number=number)
    aside = _tell(rng, scene, ["The {thing} is {kind} and {does} {things}."])
    return f"{ticket}: {head} {aside} {rng.choice(VERDICTS[verdict])}", f"PR {number} {verdict}"


AGENTS: dict[str, Callable[[random.Random, Scene, str], tuple[str, str]]] = {
    "coder": _coder,
    "tester": _tester,
    "researcher": _researcher,
    "coordinator": _coordinator,
    "reviewer": _reviewer,
}


def _failed(rng: random.Random, good: list[Interaction]) -> list[Interaction]:
    """The same prompts as good rows: first tries that went wrong."""
    return [replace(row, response=rng.choice(USELESS), success=False) for row in rng.sample(good, NUM_FAILED)]


def _repeated(rng: random.Random, good: list[Interaction]) -> list[Interaction]:
    longest = sorted((row for row in good if row.agent == "coder"), key=lambda row: len(row.prompt.split()))[-NUM_NEAR_DUPLICATES:]
    again = ("Again: ", "Please: ", "Reminder: ", "Hello! ")
    return rng.sample(good, NUM_EXACT_DUPLICATES) + [replace(row, prompt=rng.choice(again) + row.prompt) for row in longest]


def _over_long(rng: random.Random) -> list[Interaction]:
    """Tickets whose author pasted the whole log."""
    areas, rows = _areas(), []
    for number in range(NUM_OVER_LONG):
        scene, ticket = _scene(rng, areas), f"HRB-{10_234 + number}"
        prompt, response = _coder(rng, scene, ticket)
        log = "\n".join(
            f"{second:05} {scene.fill('WARNING {thing} {does} {thing} {number} {kind} {thing} in {file}')}" for second in range(90)
        )
        rows.append(_row(agent="coder", ticket=ticket, prompt=f"{prompt}\n{log}", response=response))
    return rows


def _malformed(line: str) -> list[str]:
    """The bad lines, in the order of the comment at `NUM_MALFORMED`."""
    row = json.loads(line)
    no_response = {key: value for key, value in row.items() if key != "response"}
    broken = [no_response, row | {"prompt": 404}, row | {"response": None}, ["coder", row["prompt"]]]
    return [line[: len(line) // 2], *(json.dumps(value) for value in broken)]
