"""Budgets of the recipe: at most 110 knobs, 15 fields in a section, each with its docstring, and a reference that is the schema's.

A knob is what has a value of its own; where a section stands (`model`, `data.sources`) there is none (docs/notes/design-changes.md).
"""

from collections.abc import Iterator
from pathlib import Path

from luthier.recipe import fields
from luthier.recipe.reference import reference

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "recipe.md"


def sections(section: fields.Place, name: str = "recipe") -> Iterator[tuple[str, fields.Place]]:
    yield name, section
    for field in section.fields:
        if field.section.fields:
            yield from sections(field.section, field.name)


def test_a_section_has_at_most_15_fields() -> None:
    assert {name: len(section.fields) for name, section in sections(fields.root()) if len(section.fields) > 15} == {}


def test_the_recipe_has_at_most_110_fields() -> None:
    every = [field for _, section in sections(fields.root()) for field in section.fields]
    holders = [field for field in every if field.fields or (field.item and field.item.fields)]
    assert {"model", "lora", "sources", "tasks", "rl"} <= {field.name for field in holders}
    assert 50 < len(every) - len(holders) <= 110


def test_every_field_has_a_docstring() -> None:
    assert [f"{name}.{field.name}" for name, section in sections(fields.root()) for field in section.fields if not field.doc] == []


def test_the_reference_says_what_the_schema_says() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == reference(), "run: python -m luthier.recipe.reference > docs/reference/recipe.md"
