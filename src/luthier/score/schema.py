"""JSON schemas: what is valid under one. Imports jsonschema inside functions only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from luthier.core.errors import DataError

if TYPE_CHECKING:
    from referencing import Resource
    from referencing._core import Resolver

PATTERN_SECONDS = 1.0
"""For a pattern and a text; what takes longer does not match. A schema may have more patterns, which follow each other."""


def validity(schema: Any) -> Callable[[Any], bool]:
    """Whether a value is valid under the schema: of draft 2020-12, or of the one that its `$schema` names.

    Nothing is fetched: what it refers to has to be in it. `format` is a remark only, as the standard has it. Raises DataError where it is
    no schema, or refers to what is not there.
    """
    import regex as patterns
    from jsonschema import Draft202012Validator, SchemaError, ValidationError
    from jsonschema.validators import extend, validator_for
    from jsonschema_specifications import REGISTRY
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import specification_with

    def pattern(validator: Any, pattern: str, value: Any, schema: Any) -> Iterator[ValidationError]:
        if isinstance(value, str) and not _matches(pattern, value):
            yield ValidationError(f"does not match {pattern!r}")

    try:
        draft = Draft202012Validator
        if isinstance(schema, dict) and "$schema" in schema:
            draft = validator_for({"$schema": str(schema["$schema"])}, default=None)
        if draft is None:
            raise ValueError(f"no draft is called {schema['$schema']!r}")
        draft.check_schema(schema)
        root = specification_with(draft.META_SCHEMA["$schema"]).create_resource(schema)
        _check(root, REGISTRY.resolver_with_root(root))
        validator = extend(draft, {"pattern": pattern})(schema, registry=REGISTRY)
        validator.is_valid(None)  # where it refers to itself and to nothing else, it recurses here
    except (SchemaError, Unresolvable, patterns.error, RecursionError, ValueError) as error:
        told = error.message if isinstance(error, SchemaError) else str(error)
        raise DataError(f"reference is not a JSON schema: {told:.200}", change="mend the row, or use another scorer") from error
    return lambda value: bool(validator.is_valid(value))


def _check(schema: Resource[Any], resolver: Resolver[Any]) -> None:
    """All that the library would find out only when a value comes to it: that references lead somewhere, and patterns are some."""
    import regex as patterns

    if isinstance(schema.contents, dict):
        for reference in {"$ref", "$dynamicRef"} & schema.contents.keys():
            resolver.lookup(schema.contents[reference])
        patterns.compile(schema.contents.get("pattern", ""))
    for part in schema.subresources():
        _check(part, resolver.in_subresource(part))


def _matches(pattern: str, text: str) -> bool:
    import regex as patterns

    try:
        return patterns.search(pattern, text, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        return False
