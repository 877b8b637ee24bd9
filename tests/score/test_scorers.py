"""Scorers: what counts as right, what does not, and that no answer can break one."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import DataError, RecipeError
from luthier.score.scorers import SCORERS, metric_name, scorer

PERSON = """{"type": "object", "required": ["name"], "additionalProperties": false,
    "properties": {"name": {"$ref": "#/$defs/name"}, "age": {"type": "integer"}}, "$defs": {"name": {"pattern": "^[A-Z]"}}}"""
REFERENCES = {
    "exact": "yes",
    "label": "net",
    "json": '{"a": [1, true, "x"]}',
    "json_schema": '{"anyOf": [{"multipleOf": 0.01}, {"type": "array", "uniqueItems": true}, {"pattern": "^a+$"}]}',
    "regex": r"(a|b)*c \d+",
    "number": "3.5",
    "contains": "Paris",
}


@pytest.mark.parametrize(
    ("name", "answer", "reference", "right"),
    [
        ("exact", " yes\n", "yes", True),
        ("exact", "Yes", "yes", False),
        ("exact", "<think>no? yes!</think>\n\nyes", "yes", True),
        ("exact", "so it is yes</think>yes", "yes", True),  # the template opened the thinking in the prompt
        ("exact", "<think>yes", "yes", False),  # cut while thinking: there is no answer
        ("exact", "a <think>b</think>c", "a c", True),
        ("exact", "yes", "<think>it is so</think>yes", True),
        ("label", "**Net** – because it routes packets", "net", True),
        ("label", '"net".', "net", True),
        ("label", "net: yes\nweb: no", "net", True),
        ("label", "net news", "net", False),
        ("label", "misc.forsale", "misc", False),
        ("label", "C", "C++", False),
        ("label", "C++", "c++", True),
        ("label", "", "net", False),
        ("json", '{"b": 2.0, "a": [1, null]}', '{"a": [1, null], "b": 2}', True),
        ("json", 'Here it is:\n```json\n{"a": 1}\n```', '{"a": 1}', True),
        ("json", '{"a": 1} is the answer', '{"a": 1}', False),
        ("json", "true", "1", False),
        ("json", "[1, 2]", "[2, 1]", False),
        ("json", "NaN", "0", False),
        ("json", "[" * 100_000, "[]", False),
        ("json_schema", '{"name": "Ada", "age": 36}', PERSON, True),
        ("json_schema", '```json\n{"name": "Ada", "age": 36}\n```', PERSON, True),
        ("json_schema", '<think>{}</think>{"name": "Ada"}', PERSON, True),
        ("json_schema", '{"name": "Ada", "age": "36"}', PERSON, False),
        ("json_schema", '{"name": "Ada", "colour": "red"}', PERSON, False),
        ("json_schema", '{"name": "ada"}', PERSON, False),
        ("json_schema", "Ada is 36", PERSON, False),
        ("json_schema", "[" * 100_000, "{}", False),
        ("json_schema", "1" + "0" * 400, '{"multipleOf": 0.01}', False),
        ("json_schema", "1e400", '{"multipleOf": 0.01}', False),
        ("json_schema", "3", '{"$schema": "http://json-schema.org/draft-04/schema#", "maximum": 3, "exclusiveMaximum": true}', False),
        ("json_schema", '{"type": "object"}', '{"$ref": "https://json-schema.org/draft/2020-12/schema"}', True),
        ("regex", "section: net\n", r"section: \w+", True),
        ("regex", "the section: net", r"section: \w+", False),  # the whole answer must match
        ("regex", "line\nsection: net", r".*section: \w+", True),
        ("number", "12 apples and 30 pears make 42.", "42", True),
        ("number", "The total is $1,234.50", "1234.5", True),
        ("number", "10-20", "20", True),
        ("number", "x = −3", "-3", True),
        ("number", "3.1415927", "3.1415926", True),
        ("number", "3.1416", "3.1415926", False),
        ("number", "42, I think; no, 41", "42", False),
        ("number", "none", "42", False),
        ("contains", "It is  PARIS, of\ncourse", "paris, of course", True),
        ("contains", "It is Lyon", "Paris", False),
    ],
)
def test_what_counts_as_right(name: str, answer: str, reference: str, right: bool) -> None:
    assert scorer(name)(answer, reference) == float(right)


@settings(deadline=None)
@given(st.text() | st.text(alphabet='<think>/`{}[]"0123456789.,-+eE :\n'), st.sampled_from(sorted(REFERENCES)))
def test_no_answer_breaks_a_scorer(answer: str, name: str) -> None:
    assert scorer(name)(answer, REFERENCES[name]) in (0.0, 1.0)


@settings(deadline=None)
@given(st.text())
def test_every_text_is_exactly_itself(text: str) -> None:
    assert scorer("exact")(f" {text}\n", text) == 1.0


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("json", "{"),
        ("number", "many"),
        ("regex", "("),
        ("contains", " "),
        ("json_schema", "{"),
        ("json_schema", "5"),
        ("json_schema", '{"type": "strin"}'),
        ("json_schema", '{"properties": {"a": {"pattern": "("}}}'),
        ("json_schema", '{"$schema": "http://example.com/of-our-own"}'),
        ("json_schema", '{"$schema": [5]}'),
        ("json_schema", '{"properties": {"a": {"$ref": "#/$defs/b"}}}'),
        ("json_schema", '{"properties": {"a": {"$ref": "http://127.0.0.1:1/a"}}}'),  # nothing is fetched
        ("json_schema", '{"$id": "http://[", "$ref": "x"}'),
        ("json_schema", '{"$ref": "#"}'),
    ],
)
def test_a_reference_that_cannot_be_one_is_a_fault_of_the_data(name: str, reference: str) -> None:
    with pytest.raises(DataError):
        SCORERS[name]("1", reference)


def test_a_pattern_that_backtracks_without_end_is_given_up_after_a_second() -> None:
    start = time.perf_counter()
    assert scorer("regex")("a" * 60 + "b", "(a|aa)+[cd]") == 0.0
    assert scorer("json_schema")(f'"{"a" * 60}b"', '{"pattern": "^(a|aa)+$"}') == 0.0
    assert time.perf_counter() - start < 20  # it would take years; a loaded machine looks at the clock late


def test_a_misspelt_scorer_is_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'number'"):
        scorer("numbr")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    yield tmp_path


def test_a_scorer_of_your_own_lies_in_the_current_folder(here: Path) -> None:
    (here / "my_scorers.py").write_text(
        "def overlap(answer, reference):\n    return len(set(answer) & set(reference)) / len(set(reference))\n"
    )
    assert scorer("my_scorers:overlap")("ab", "abcd") == 0.5
    assert metric_name("my_scorers:overlap") == "overlap" and metric_name("exact") == "exact"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 2", "returned 2"),
        ("return float('nan')", "returned nan"),
        ("return 'yes'", "returned 'yes'"),
        ("return 1 / 0", "ZeroDivisionError"),
        ("return 10 ** 400", "OverflowError"),
    ],
)
def test_a_scorer_of_your_own_that_fails_is_named(here: Path, body: str, message: str) -> None:
    (here / f"scorers_{abs(hash(body))}.py").write_text(f"def mine(answer, reference):\n    {body}\n")
    with pytest.raises(RecipeError, match=message) as raised:
        scorer(f"scorers_{abs(hash(body))}:mine")("a", "b")
    assert ":mine" in str(raised.value)


@pytest.mark.parametrize("name", ["no_such_module_x:score", "numpy:no_such_function", "numpy:pi", "os.path:", ":exact"])
def test_a_scorer_of_your_own_that_is_not_there_is_an_error(name: str) -> None:
    with pytest.raises(RecipeError):
        scorer(name)
