"""Prepare data: raw rows in, token rows with loss masks and a full account out, cached by everything that they follow from.

Two passes in bounded memory: `collect` spools the examples that stay, then all cores render them split by split.
"""

import hashlib
import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from luthier.core import files, jsonl
from luthier.core.errors import DataError, UsageError
from luthier.core.progress import Progress
from luthier.data.account import Account, split_summaries
from luthier.data.collect import Input, Spooled, Tally, collect, inputs_of
from luthier.data.overlap import TrainPrompts, check_overlap
from luthier.data.pool import CHUNK, Chunk, render_chunks
from luthier.data.render import Renderer
from luthier.data.select import cap
from luthier.data.split import SPLITS, SplitName, assign
from luthier.data.store import Prepared, RowWriter, example_from_json
from luthier.data.tokenizer import fingerprint, load_tokenizer
from luthier.recipe.schema import Recipe
from luthier.runs.store import prepared_root
from luthier.runs.summary import DataSummary, Overlap, Template

VERSION = 3
"""Of the files' form and the rules behind them: raise it when the same recipe would give other rows."""

CAPPED = "over max_per_group"


def prepare(recipe: Recipe, progress: Progress) -> Prepared:
    """The recipe's data as token rows, made now or found in `prepared/HASH`; raises DataError where nothing could be trained on."""
    inputs = inputs_of(recipe.data)
    digest = prepared_hash(recipe, inputs)
    folder = prepared_root() / digest
    if not (folder / "data.json").exists():  # else nobody changes it any more, and it may lie where nothing can be written
        try:
            _prepare(recipe, inputs, folder, progress)
        except OSError as error:
            if error.errno not in files.OF_WRITING:
                raise
            with files.told("prepared data", folder.parent):
                raise
    return Prepared(folder)


def prepared_hash(recipe: Recipe, inputs: Sequence[Input]) -> str:
    """Sixteen digits that change with the rows' content, the tokenizer, the chat template, the `data` section and the seed (trap 33)."""
    sources = [[str(path), sha256] for item in inputs for path, sha256 in item.files.items()]
    parts = [VERSION, sources, fingerprint(recipe.model), recipe.data.model_dump(mode="json"), recipe.seed]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def write_splits(prepared: Prepared, folder: Path) -> None:
    """Write train, validation and test as JSON lines of messages, and metadata.json: data for other tools, and for Luthier again."""
    folder.mkdir(parents=True, exist_ok=True)
    summary = prepared.summary
    for split in summary.splits:
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for line in (prepared.folder / f"{split}.jsonl").open(encoding="utf-8"):
                record = json.loads(line)
                file.write(jsonl.dumps({key: record[key] for key in ("messages", "tools", "group") if record.get(key)}) + "\n")
    metadata = summary.model_dump(mode="json", include={"hash", "sources", "rows", "groups", "max_length", "overlap"})
    told = {"examples", "groups", "wanted_share", "obtained_share", "group_shares"}
    splits = {name: split.model_dump(mode="json", include=told) for name, split in summary.splits.items()}
    files.write_json(folder / "metadata.json", {**metadata, "splits": splits})


@dataclass(frozen=True, slots=True)
class _Spool:
    """The spooled lines of each split's rows."""

    path: Path
    rows: Mapping[SplitName, Sequence[Spooled]]

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    def chunks(self) -> Iterator[Chunk]:
        """A split at a time, in reading order."""
        with self.path.open("rb") as file:
            for split, rows in self.rows.items():
                for start in range(0, len(rows), CHUNK):
                    lines = []
                    for row in rows[start : start + CHUNK]:
                        file.seek(row.position)
                        lines.append(file.readline())
                    yield Chunk(split=split, lines=lines)


def _prepare(recipe: Recipe, inputs: Sequence[Input], folder: Path, progress: Progress) -> None:
    """Make the folder, unless another process does meanwhile."""
    root, digest = folder.parent, folder.name
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root / f".{digest}.lock"):
        if not (folder / "data.json").exists():
            part = root / f"{digest}.part"
            shutil.rmtree(part, ignore_errors=True)  # what a killed process left
            part.mkdir()
            try:
                _prepare_into(part, recipe, inputs, progress)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            files.sync_folder(part)
            part.replace(folder)


def _prepare_into(folder: Path, recipe: Recipe, inputs: Sequence[Input], progress: Progress) -> None:
    tally, spool = Tally(), folder / "spool.jsonl"
    tokenizer = load_tokenizer(recipe.model)
    collected = collect(recipe.data, inputs, spool, tally, progress)
    rows, capped = _splits(collected.rows, recipe, tally)
    accounts = _render(folder, _Spool(spool, rows), Renderer(tokenizer, recipe.data), tally, progress)
    spool.unlink()
    if not accounts["train"].examples:
        raise DataError(f"no row is left to train on: {tally.told()}", change="change the rule that took them, or the rows")
    splits = split_summaries(recipe.data, accounts, capped)
    for split, found in splits.items():
        if found.wanted_share > 0 and not found.examples:
            progress.say(f"{split} is empty: a share of {found.wanted_share:.0%} of so few rows came to none")
    summary = DataSummary(
        hash=folder.name.removesuffix(".part"),
        sources=collected.sources,
        rows=tally.counts(sum(account.examples for account in accounts.values())),
        groups=dict(sorted(sum((account.groups for account in accounts.values()), Counter[str]()).items())),
        splits=splits,
        max_length=max(split.lengths.max for split in splits.values()) if recipe.data.max_length == "fit" else recipe.data.max_length,
        template=Template(
            sha256=tokenizer.template_hash,
            prefix_stable=tokenizer.prefix_stable,
            end_of_turn=tokenizer.end_of_turn,
            stop_ids=tokenizer.stop_ids,
        ),
        overlap=_overlaps(Prepared(folder), accounts),
    )
    summary.write(folder / "data.json")


def _render(folder: Path, spool: _Spool, renderer: Renderer, tally: Tally, progress: Progress) -> dict[SplitName, Account]:
    """Render every chunk into its split's arrays and SPLIT.jsonl."""
    accounts = {split: Account() for split in SPLITS}
    num_done = num_tokens = 0
    with ExitStack() as stack:
        writers = {split: stack.enter_context(RowWriter(folder, split)) for split in SPLITS}
        kept = {split: stack.enter_context((folder / f"{split}.jsonl").open("wb")) for split in SPLITS}
        advance = stack.enter_context(progress.task("tokenizing", len(spool)))
        for chunk in render_chunks(renderer, spool.chunks(), spool.path.stat().st_size):
            account = accounts[chunk.split]
            for line, rendered in zip(chunk.lines, chunk.rendered, strict=True):
                example = example_from_json(line)
                if rendered.dropped:
                    tally.drop(rendered.dropped, example.origin, rendered.detail)
                    account.lose(rendered)
                else:
                    writers[chunk.split].add(rendered.rows, account.examples)
                    kept[chunk.split].write(rendered.line)
                    num_tokens += account.add(example.group, rendered)
            num_done += len(chunk.lines)
            advance(num_done, f"{num_tokens} tokens")
    return accounts


def _overlaps(prepared: Prepared, accounts: Mapping[SplitName, Account]) -> dict[str, Overlap]:
    """What of the held-out splits stands in train too; refused where it is more than an accident."""
    held_out = [split for split in SPLITS[1:] if accounts[split].examples]
    train = TrainPrompts(prepared.stream_examples("train") if held_out else ())
    found: dict[str, Overlap] = {split: train.overlap(prepared.stream_examples(split)) for split in held_out}
    for split, overlap in found.items():
        check_overlap(split, overlap)
    return found


def _splits(rows: Sequence[Spooled], recipe: Recipe, tally: Tally) -> tuple[dict[SplitName, list[Spooled]], Counter[str]]:
    """The rows of each split in reading order: files as named, the rest by shares, training rows capped; and what the cap took by group."""
    sides = iter(assign([row for row in rows if row.side is None], recipe.data.split, recipe.data.split_method, recipe.seed))
    found: dict[SplitName, list[Spooled]] = {split: [] for split in SPLITS}
    for row in rows:
        found[next(sides) if row.side is None else row.side].append(row)
    kept = set(cap(found["train"], recipe.data.max_per_group, recipe.seed))
    capped = [row for position, row in enumerate(found["train"]) if position not in kept]
    for row in capped:
        tally.drop(CAPPED, row.origin, row.group)
    train = [row for position, row in enumerate(found["train"]) if position in kept]
    return {**found, "train": train}, Counter(row.group for row in capped)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one process in at a time: a second one waits, and finds the data prepared. A killed process lets go of the lock."""
    if multiprocessing.current_process().name != "MainProcess" and multiprocessing.parent_process() is None:
        # A worker process that is still importing the script which started it: it would wait for its own parent for ever.
        raise UsageError("the script's call of prepare needs `if __name__ == '__main__':` around it")
    with lock.open("w") as file:
        files.lock(file, wait=True)
        yield
