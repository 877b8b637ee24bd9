"""What a row looks like as the model sees it: its tokens, with those that are trained on set apart, on a terminal and as a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from jinja2 import Environment
from rich.text import Text

from luthier.data.decode import Decoder
from luthier.data.store import Prepared, TokenRow

TRAINED, MASKED = "bold green", "dim"
VISIBLE = str.maketrans({"\n": "↵\n", "\t": "→\t", "\r": "␍", "\u00a0": "⍽"})
LONGEST_CHARACTER = 8
"""Tokens that may make up one character: four bytes of UTF-8, with room for a tokenizer that marks them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The text of one token, or of the few that make up one character; `trained`: it is a target."""

    text: str
    ids: tuple[int, ...]
    trained: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedRow:
    """A token row in words. `number` counts from 0 in the order of training data, before shuffling."""

    split: str
    number: int
    origin: str
    segments: tuple[Segment, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the row."""
        return sum(len(segment.ids) for segment in self.segments)

    @property
    def num_trained(self) -> int:
        """Tokens that carry loss."""
        return sum(len(segment.ids) for segment in self.segments if segment.trained)

    @property
    def title(self) -> str:
        """`train row 3 (log.jsonl:17): 211 tokens, 12 trained on`."""
        return f"{self.split} row {self.number} ({self.origin}): {self.num_tokens} tokens, {self.num_trained} trained on"


def inspect_rows(prepared: Prepared, tokenizer: Decoder, split: str, numbers: Sequence[int]) -> list[InspectedRow]:
    """The rows of these numbers; raises IndexError where the split has fewer."""
    rows = prepared.rows(split)
    taken = {int(rows.example_index[number]) for number in numbers}
    origins = {place: example.origin for place, example in enumerate(prepared.stream_examples(split)) if place in taken}
    return [
        InspectedRow(
            split=split, number=number, origin=origins[int(rows.example_index[number])], segments=segments(tokenizer, rows[number])
        )
        for number in numbers
    ]


def segments(tokenizer: Decoder, row: TokenRow) -> tuple[Segment, ...]:
    """The row's tokens in order, special ones included; tokens that are parts of one character stay together where their mask agrees."""
    found: list[Segment] = []
    ids: list[int] = []
    for index, (token, trained) in enumerate(zip(row.ids.tolist(), row.supervised.tolist(), strict=True)):
        ids.append(token)
        before = row.ids[max(0, index + 1 - len(ids) - LONGEST_CHARACTER) : index + 1 - len(ids)].tolist()
        text = tokenizer.decode([*before, *ids])[len(tokenizer.decode(before)) :]
        ends = index + 1 == len(row) or bool(row.supervised[index + 1]) != trained
        if ends or len(ids) == LONGEST_CHARACTER or not text.endswith("\ufffd"):
            found.append(Segment(text=text, ids=tuple(ids), trained=trained))
            ids = []
    return tuple(found)


def to_rich(row: InspectedRow) -> Text:
    """The row for a terminal: bold green is trained on, dim is context; line ends and tabs are shown."""
    runs = groupby(row.segments, key=attrgetter("trained"))
    return Text.assemble(*((visible("".join(item.text for item in run)), TRAINED if trained else MASKED) for trained, run in runs))


def to_html(rows: Sequence[InspectedRow]) -> str:
    """One page that needs no other file: legend, counts, and each row's tokens with their ids under the pointer."""
    page = Environment(autoescape=True, trim_blocks=True).from_string(PAGE)
    tokens, trained = sum(row.num_tokens for row in rows), sum(row.num_trained for row in rows)
    return page.render(rows=rows, visible=visible, tokens=tokens, trained=trained)


def visible(text: str) -> str:
    """The text with line ends, tabs and other blanks that can be seen."""
    return text.translate(VISIBLE)


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Rows as the model sees them</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222; background: #fff }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 13px; border: 1px solid #ddd; padding: 1em; color: #777 }
pre span:hover { outline: 1px solid #222 }
.trained { background: #c9efd1; color: #0a3d18; font-weight: 600 }
h2 { font-size: 1em; margin-bottom: .3em }
@media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #181818 } pre { border-color: #444; color: #999 } .trained { background: #17492a; color: #d7f7df }
}
</style>
<h1>Rows as the model sees them</h1>
<p><span class="trained">Trained on</span>: the model learns to write these tokens. The others are context without loss.
↵ is a line end, → a tab; the pointer on a token shows its id.
{{ rows | length }} rows, {{ tokens }} tokens, {{ trained }} trained on ({{ "%.1f" | format(100 * trained / (tokens or 1)) }} %).</p>
{% for row in rows %}
<h2>{{ row.title }}</h2>
<pre>{% for segment in row.segments -%}
<span title="{{ segment.ids | join(' ') }}"{% if segment.trained %} class="trained"{% endif %}>{{ visible(segment.text) }}</span>
{%- endfor %}</pre>
{% endfor %}
</html>
"""
