"""A recipe before it is checked: the values as written, and where each of them stands."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Key = tuple[str | int, ...]
"""Path to a value: `("data", "sources", 0, "path")`. A metric's name is one part, dots and all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a value was written: `recipe.yaml:12`, or `override lora.r=8`."""

    where: str
    provenance: str
    """What `LoadedRecipe.provenance` says: `recipe.yaml:12` without folders, `tiny/recipe.yaml:3` of a file laid over it, or `override`."""
    folder: Path
    """Relative paths that are written there begin here."""
    line: int = 0
    """Line in the file; 0 for an override."""


Locate = Callable[[int], Origin]
"""The origin of what stands on this line."""


def in_file(path: Path) -> Locate:
    """Origins on the lines of a file. Where that is a link, its relative paths begin beside the file it leads to: its rows lie there."""
    folder = path.resolve().parent
    return lambda line: Origin(where=f"{path}:{line}", provenance=f"{path.name}:{line}", folder=folder, line=line)


def in_override(text: str) -> Locate:
    """The one origin of everything that `k=v` sets."""
    return lambda line: Origin(where=f"override {text}", provenance="override", folder=Path())


@dataclass(slots=True, kw_only=True)
class Draft:
    """Values and origins of one file, which overrides then change."""

    file: Path
    values: dict[str, Any]
    origins: dict[Key, Origin] = field(default_factory=dict)

    def origin(self, key: Key) -> Origin | None:
        """Where the value, or the nearest section around it, was written."""
        return next((self.origins[key[:n]] for n in range(len(key), 0, -1) if key[:n] in self.origins), None)

    def overridden(self, key: Key) -> bool:
        """Whether a `k=v` set the value."""
        origin = self.origin(key)
        return origin is not None and origin.line == 0

    def folder(self, key: Key) -> Path:
        """Where a relative path that stands here begins."""
        origin = self.origin(key)
        return origin.folder if origin else self.file.resolve().parent

    def where(self, key: Key) -> str:
        """The value's place as errors name it: `recipe.yaml:12: lora.r`."""
        origin = self.origin(key)
        if origin is None:
            return ": ".join(filter(None, (str(self.file), dotted(key))))
        names_key = origin.where.startswith(f"override {dotted(key)}")
        return origin.where if names_key else f"{origin.where}: {dotted(key)}"

    def has(self, key: Key) -> bool:
        """Whether a value is written there."""
        section: Any = self.values
        for part in key:
            if not (part in section if isinstance(section, dict) else isinstance(section, list) and part in range(len(section))):
                return False
            section = section[part]
        return True

    def value(self, key: Key) -> Any:
        """The value that is written there."""
        section: Any = self.values
        for part in key:
            section = section[part]
        return section

    def replace(self, key: Key, value: Any) -> None:
        """Write another value in the place of one, which keeps its origin."""
        self.value(key[:-1])[key[-1]] = value

    def remove(self, key: Key) -> None:
        """Take a value out, with the origins in it."""
        del self.value(key[:-1])[key[-1]]
        self.origins = {other: origin for other, origin in self.origins.items() if other[: len(key)] != key}

    def move(self, key: Key, name: str) -> None:
        """Give a value another name in its section."""
        moved = (*key[:-1], name)
        self.value(key[:-1])[name] = self.value(key)
        self.origins |= {(*moved, *other[len(key) :]): origin for other, origin in self.origins.items() if other[: len(key)] == key}
        self.remove(key)


def dotted(key: Key) -> str:
    """`data.sources.0.path`, as overrides and errors write a key."""
    return ".".join(map(str, key))
