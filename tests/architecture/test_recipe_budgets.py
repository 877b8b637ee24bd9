"""Budgets of the recipe: at most 110 fields, 15 in a section, each with its docstring, and a reference that says what the schema says."""

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
    number = sum(len(section.fields) for _, section in sections(fields.root()))
    assert 50 < number <= 110


def test_every_field_has_a_docstring() -> None:
    assert [f"{name}.{field.name}" for name, section in sections(fields.root()) for field in section.fields if not field.doc] == []


def test_the_reference_says_what_the_schema_says() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == reference(), "run: python -m luthier.recipe.reference > docs/reference/recipe.md"
