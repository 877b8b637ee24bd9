"""The first pass over the data: read, choose, shape, deduplicate. Conversations go to a spool file, memory holds a few words per row."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from luthier.core import files
from luthier.core.chat import Message
from luthier.core.errors import DataError
from luthier.core.progress import Progress
from luthier.data.fields import BadRowError
from luthier.data.read import BadRow, files_of, read_rows
from luthier.data.rows import Example, RawRow
from luthier.data.select import Deduplicator, check_where, wanted
from luthier.data.shape import Layout, labels_of, layout_for, shape
from luthier.data.split import SplitName
from luthier.data.store import example_to_json
from luthier.recipe.schema import Data, Source
from luthier.runs.summary import RowCounts, SourceSummary

BAD_ROW = "bad row"
DUPLICATE = "duplicate"
ONLY_THINKING = "nothing but thinking in an answer"
SKIP_THEM = "set data.on_bad_row to skip to leave such rows out, counted"
MOST_EXAMPLES = 3
ROWS_PER_REPORT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A source of rows: one of the recipe's, or a file that is a split as a whole (`side`); its files with their sha256."""

    source: Source
    side: SplitName | None
    files: Mapping[Path, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spooled:
    """What the split and the cap need of an example, and where its line begins in the spool."""

    key: str
    group: str
    origin: str
    side: SplitName | None
    position: int


@dataclass(slots=True, kw_only=True)
class Tally:
    """Rows read, and rows dropped by reason with the first few of each: read = kept + dropped."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def drop(self, reason: str, origin: str, detail: str = "") -> None:
        """Count a row that goes."""
        self.dropped[reason] += 1
        if len(self.examples[reason]) < MOST_EXAMPLES:
            self.examples[reason].append(f"{origin}: {detail}" if detail else origin)

    def counts(self, kept: int) -> RowCounts:
        """The tally as it stands in data.json; raises DataError where the rows do not add up."""
        if self.read != kept + self.dropped.total():
            what = f"{self.read} rows were read, but {kept} kept and {self.dropped.total()} dropped"
            raise DataError(what, change="this is a fault of Luthier's: please report it with the recipe")
        examples = {reason: tuple(found) for reason, found in self.examples.items()}
        return RowCounts(read=self.read, kept=kept, dropped=dict(self.dropped), dropped_examples=examples)

    def told(self) -> str:
        """`read 20, dropped 12 duplicate, 8 bad row (a.jsonl:1: …)`."""
        parts = [f"{number} {reason} (e.g. {self.examples[reason][0]})" for reason, number in self.dropped.most_common()]
        return f"{self.read} rows were read" + (f", dropped: {'; '.join(parts)}" if parts else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The examples that the first pass kept, and the files that it read."""

    rows: Sequence[Spooled]
    sources: tuple[SourceSummary, ...]


def inputs_of(data: Data) -> tuple[Input, ...]:
    """Every source and split file with the content hashes of its files; split files first, so that of twins they keep theirs."""
    named: list[tuple[SplitName, float | str]] = [("validation", data.split.validation), ("test", data.split.test)]
    sides: list[tuple[Source, SplitName | None]] = [
        (data.sources[0].model_copy(update={"path": part, "where": {}}), name) for name, part in named if isinstance(part, str)
    ]
    sources: list[tuple[Source, SplitName | None]] = [*sides, *((source, None) for source in data.sources)]
    return tuple(Input(source=source, side=side, files={path: files.sha256(path) for path in files_of(source)}) for source, side in sources)


def collect(data: Data, inputs: Sequence[Input], spool: Path, tally: Tally, progress: Progress) -> Collected:
    """Read all inputs into the spool, one line of JSON per example that is kept; every other row goes to the tally."""
    total = max(1, sum(path.stat().st_size for item in inputs for path in item.files) // 10**6)
    seen, labels = Deduplicator(data.deduplicate), _labels(data, inputs)
    rows: list[Spooled] = []
    sources: list[SourceSummary] = []
    position = 0
    with spool.open("wb") as file, progress.task("reading (MB)", total) as advance:
        for item in inputs:
            reader = _Reader(data=data, item=item, tally=tally, labels=labels)
            for example, line in reader.examples():
                if twin := seen.seen(example):
                    tally.drop(DUPLICATE, example.origin, f"of {twin}")
                    continue
                rows.append(Spooled(key=example.key, group=example.group, origin=example.origin, side=item.side, position=position))
                position += file.write(line)
                if len(rows) % ROWS_PER_REPORT == 0:
                    advance(min(total, position // 10**6), f"{tally.read} rows")  # the spool is about as large as what it was read from
            sources += reader.summaries()
        advance(total, f"{tally.read} rows")
    return Collected(rows=rows, sources=tuple(sources))


@dataclass(slots=True, kw_only=True)
class _Reader:
    """Reads one input, counting its rows by file."""

    data: Data
    item: Input
    tally: Tally
    labels: Sequence[str]
    num_rows: Counter[str] = field(default_factory=Counter)
    layout: Layout | None = None

    def examples(self) -> Iterator[tuple[Example, bytes]]:
        """The rows that are wanted and well formed, as examples and as lines of the spool."""
        columns: set[str] = set()
        for row in read_rows(self.item.source):
            self.tally.read += 1
            self.num_rows[row.file] += 1
            try:
                if isinstance(row, BadRow):
                    raise BadRowError(row.detail, where=row.origin, change=SKIP_THEM)
                columns |= row.fields.keys()
                layout = self.layout = self.layout or self._layout(row)
                if reason := wanted(row, self.item.source, layout.format):
                    self.tally.drop(reason, row.origin)
                    continue
                example = shape(row, layout)
                if layout.strip_thinking and any(_is_silent(message) for message in example.conversation.messages):
                    self.tally.drop(ONLY_THINKING, row.origin, "empty once stripped")
                    continue
                yield example, _line(example)
            except BadRowError as error:
                if self.data.on_bad_row == "error":
                    raise
                self.tally.drop(BAD_ROW, row.origin, error.what)
        check_where(self.item.source, columns)

    def summaries(self) -> list[SourceSummary]:
        """One per file, once all examples were taken."""
        form = self.layout.format if self.layout else self.item.source.format
        return [
            SourceSummary(path=str(path), sha256=sha256, format=form, rows=self.num_rows[str(path)])
            for path, sha256 in self.item.files.items()
        ]

    def _layout(self, row: RawRow) -> Layout:
        if self.item.side is None:
            return layout_for(self.data, self.item.source, row, self.labels)
        return layout_for(self.data, self.data.sources[0], _first_row(self.data, self.item) or row, self.labels)


def _labels(data: Data, inputs: Sequence[Input]) -> list[str]:
    """The labels that the default system prompt lists: of all labelled inputs, for which they are read once more."""
    if data.system_prompts:
        return []
    asked = (item for item in inputs if item.source.format in ("auto", "labelled"))
    return labels_of((item.source, row) for item in asked if (row := _first_row(data, item)))


def _first_row(data: Data, item: Input) -> RawRow | None:
    """The row by which an input is laid out: its own first one; where it is a split as a whole, the first source's.

    So both are asked in the same words.
    """
    sources = (item.source,) if item.side is None else (data.sources[0], item.source)
    return next((row for source in sources for row in read_rows(source) if isinstance(row, RawRow)), None)


def _is_silent(message: Message) -> bool:
    return message.role == "assistant" and not message.content.strip() and not message.tool_calls


def _line(example: Example) -> bytes:
    try:
        return (example_to_json(example) + "\n").encode()
    except UnicodeEncodeError as error:
        what = f"the text holds half of a surrogate pair (\\u{ord(error.object[error.start]):04x}), which no tokenizer takes"
        raise BadRowError(what, where=example.origin, change=f"mend the text, or {SKIP_THEM}") from error
