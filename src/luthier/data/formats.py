"""The six forms in which chat data comes: their fields, and how a row's field names tell which it is."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from luthier.core.errors import DataError
from luthier.data.fields import did_you_mean, listed

Format = Literal["messages", "prompt_completion", "alpaca", "sharegpt", "interactions", "labelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """A format's fields: those a row must have, and those that are read where they are."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """Required and optional."""
        return self.required + self.optional


FORMATS: Mapping[Format, Fields] = {
    "messages": Fields(required=("messages",), optional=("tools",)),
    "prompt_completion": Fields(required=("prompt", "completion"), optional=("system", "tools")),
    "alpaca": Fields(required=("instruction", "output"), optional=("input", "system", "history")),
    "sharegpt": Fields(required=("conversations",), optional=("system", "tools")),
    "interactions": Fields(required=("prompt", "response"), optional=("system", "success")),
    "labelled": Fields(required=("text", "label"), optional=("system",)),
}


def detect(fields: Collection[str], columns: Collection[str] = ()) -> Format:
    """The one format whose required fields are all there, as the row's own names or as keys of `columns`."""
    there = {*fields, *columns}
    fitting: list[Format] = [name for name, form in FORMATS.items() if there.issuperset(form.required) and set(columns) <= set(form.all)]
    if len(fitting) == 1:
        return fitting[0]
    found = f"the row has {listed(fields)}" + (f", `columns` gives {listed(columns)}" if columns else "")
    if fitting:
        raise DataError(
            f"the fields fit {len(fitting)} formats, {' and '.join(fitting)}: {found}",
            change=f"say which it is, e.g. `format: {fitting[0]}` on the source",
        )
    needs = "\n".join(f"    {name}: {', '.join(form.required)}" for name, form in FORMATS.items())
    raise DataError(
        f"the fields fit no format: {found}",
        change="set the source's `format`, and under `columns` which of your columns is which of its fields, "
        f"e.g. `format: labelled`, `columns: {{text: [title, body], label: class}}`. A format needs\n{needs}",
    )


def check_columns(format: Format, columns: Mapping[str, object]) -> None:
    """Refuses a key of `columns` that the format does not read."""
    known = FORMATS[format].all
    for name in columns:
        if name not in known:
            raise DataError(
                f"`columns` names `{name}`, which format {format} does not read",
                change=f"{did_you_mean(name, known)}{format} reads {', '.join(known)}",
            )
