"""The recipe reference, docs/reference/recipe.md, out of the schema: `python -m luthier.recipe.reference > docs/reference/recipe.md`."""

import json
import sys
from collections.abc import Iterator

from luthier.recipe import fields
from luthier.recipe.options import ENGINES, OPTIONS

EMPTY = '""'

INTRODUCTION = """\
# Recipe reference

Every key of a recipe, from the schema's own docstrings. Do not edit: `python -m luthier.recipe.reference > docs/reference/recipe.md`.

A recipe is YAML 1.2 (`.yaml`, `.yml`: `no` and `off` are text, `1e-4` is a number) or TOML (`.toml`). Relative paths are relative to the
recipe's folder. Every verb that reads a recipe takes changes as `key=value`, such as `training.epochs=1 lora.r=8 lora=none
data.sources.0.path=other.jsonl`; their paths are relative to the current folder. Of `epochs`/`max_steps` and
`warmup_ratio`/`warmup_steps` a recipe has one, and a change to one takes away the other. `@FILE` lays the mapping of a YAML or TOML file
over the recipe, its paths relative to that file. An unknown key is an error.
"""


def reference() -> str:
    """All sections with their fields, types, defaults and docstrings, as Markdown."""
    return "\n".join((INTRODUCTION, *_section(fields.root(), ""), *_options()))


def _section(section: fields.Place, name: str) -> Iterator[str]:
    """The section's table, then the sections in it."""
    yield f"## `{name}`\n\n{section.section_doc}\n" if name else "## The recipe\n"
    yield "| key | value | default | meaning |\n|---|---|---|---|"
    for field in section.fields:
        yield f"| `{field.name}` | {_cell(field.expected)} | {_cell(_default(field))} | {_cell(field.doc)} |"
    yield ""
    for field in section.fields:
        if field.section.fields:
            index = "" if field.fields else ".N" if field.item else ".NAME"
            yield from _section(field.section, f"{name}.{field.name}{index}".lstrip("."))


def _options() -> Iterator[str]:
    """What each backend reads of `launch.options`, and each engine of `serving.options`."""
    for section, kinds in (("launch", OPTIONS), ("serving", ENGINES)):
        for name, kind in kinds.items():
            options = fields.Place("", kind.model_json_schema())
            if options.fields:
                yield from _section(options, f"{section}.options of {name}")


def _default(field: fields.Place) -> str:
    if field.required:
        return "**required**"
    if field.fields or field.default is None:
        return ""
    return f"`{field.default or EMPTY}`" if isinstance(field.default, str) else f"`{json.dumps(field.default, ensure_ascii=False)}`"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    sys.stdout.write(reference())
