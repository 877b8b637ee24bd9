"""Trained = merged = served: what is handed over says the same, token for token, as the model that was trained (traps 13, 19, 22).

Compared are the log-probabilities of the supervised tokens of rows of the run's own data. How far two of one model's may lie apart is
measured on the spot, not assumed: the same live adapter, row by row and in padded batches.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import nn

from luthier.core.chat import Conversation
from luthier.core.progress import Progress
from luthier.data.render import Renderer
from luthier.data.rows import Example
from luthier.data.split import SPLITS, SplitName
from luthier.data.store import Prepared, TokenRow
from luthier.data.tokenizer import ChatTokenizer, load_tokenizer
from luthier.export.merge import Handed
from luthier.model.adapt import load_adapter
from luthier.model.adapter_config import CONFIG
from luthier.model.load import load_model
from luthier.model.shard import evaluating
from luthier.recipe.schema import Model
from luthier.train.batch import collate
from luthier.train.objective import logits_at_targets
from luthier.train.precision import Precision

ROWS = 32
"""Compared at most: at 50 supervised tokens each the mean of 1,600 differences."""
TOGETHER = 8
"""Rows of a padded batch, for the noise floor."""
FLOORS = 4.0
"""So many noise floors are still noise."""
SHARE = {torch.float32: 0.001, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Of what the adapter changes, and of a nat where it changes more, so much may be lost where weights are rounded to the type."""

LogProbabilities = list[npt.NDArray[np.float64]]
"""In nats, of each row's supervised tokens."""


class Speaker(Protocol):
    """Whatever tells how probable it holds given tokens: a model in this process, or a server."""

    def log_probabilities(self, rows: Sequence[TokenRow]) -> LogProbabilities:
        """Of each row's supervised tokens, each after all that stand before it in its row."""
        ...


NOBODY: Mapping[str, Speaker] = MappingProxyType({})


class Server(Speaker, Protocol):
    """A speaker with a tokenizer and a template of its own: what people ask it comes as messages."""

    def prompt_ids(self, conversation: Conversation) -> list[int]:
        """What it feeds its model before it answers the conversation's next turn."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSpeaker:
    """A model in this process, asked so many rows at once."""

    model: nn.Module
    precision: Precision
    rows_at_once: int = 1

    def log_probabilities(self, rows: Sequence[TokenRow]) -> LogProbabilities:
        """As training computes them, without dropout."""
        found: LogProbabilities = []
        with evaluating(self.model), self.precision.autocast():
            for start in range(0, len(rows), self.rows_at_once):
                part = rows[start : start + self.rows_at_once]
                batch = collate(part, range(len(part)), self.precision.device)
                told_N = -F.cross_entropy(logits_at_targets(self.model, batch).float(), batch.targets_N, reduction="none")
                found += np.split(told_N.double().cpu().numpy(), np.cumsum([row.supervised[1:].sum() for row in part])[:-1])
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Rows of a split to compare on, evenly spaced, and their numbers."""

    prepared: Prepared
    split: SplitName
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, prepared: Prepared) -> "Sample":
        """Of validation, where there is such a split, else of test, else of train."""
        split = next(name for name in (*SPLITS[1:], SPLITS[0]) if len(prepared.rows(name)))
        num_rows = len(prepared.rows(split))
        return cls(prepared=prepared, split=split, numbers=tuple(range(0, num_rows, -(-num_rows // ROWS))))

    @property
    def rows(self) -> list[TokenRow]:
        """As they were trained or validated on."""
        rows = self.prepared.rows(self.split)
        return [rows[number] for number in self.numbers]

    @property
    def examples(self) -> Iterator[tuple[int, Example]]:
        """Each row's number, and the conversation that it was rendered from."""
        of_row = self.prepared.rows(self.split).example_index
        wanted = {int(of_row[number]) for number in self.numbers}
        known = {index: example for index, example in enumerate(self.prepared.stream_examples(self.split)) if index in wanted}
        return ((number, known[int(of_row[number])]) for number in self.numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Apart:
    """How far two tell the same tokens apart: mean and largest |difference| of log-probabilities, in nats."""

    mean: float
    max: float

    @classmethod
    def of(cls, one: LogProbabilities, other: LogProbabilities) -> "Apart":
        """Of the same rows."""
        differences = np.abs(np.concatenate(one) - np.concatenate(other))
        return cls(mean=float(differences.mean()), max=float(differences.max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What the trained model tells: its log-probabilities, how far it is from itself, and from its base."""

    told: LogProbabilities
    base: LogProbabilities
    """What its base tells of them."""
    floor: Apart

    @property
    def change(self) -> Apart:
        """What training changed."""
        return Apart.of(self.told, self.base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """How many rows and tokens were compared, what was found, and why it is not the same, where it is not."""

    rows: int
    tokens: int
    floor: Apart
    change: Apart
    """What the adapter changes of its base's answers."""
    allowed: float
    """The largest mean difference that passes."""
    apart: Mapping[str, Apart]
    """From the live adapter, by what was compared."""
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether what was trained is what answers."""
        return not self.failures

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it and provenance.json keeps it."""
        return {**asdict(self), "apart": {name: asdict(apart) for name, apart in self.apart.items()}, "passed": self.passed}


def verify(
    handed: Handed, sample: Sample, folders: Mapping[str, Path], progress: Progress, speakers: Mapping[str, Speaker] = NOBODY
) -> Verification:
    """The live adapter against what lies in folders, each loaded anew (a whole model, or an adapter for the same base), and others.

    Before, token ids against those prepared: as the run's tokenizer renders them, and each folder's.
    """
    failures, told = rendered_otherwise(handed, sample), dict[str, LogProbabilities]()
    for name, folder in folders.items():
        tokenizer = load_tokenizer(_whole(folder, handed.model))
        failures += _otherwise(tokenizer, handed, sample, f"the {name} model's tokenizer")
    with progress.task("verify", 1 + len(folders)) as advance:
        live = listen(handed, sample.rows)
        advance(1, "the live adapter has told")
        for number, (name, folder) in enumerate(folders.items(), 2):
            told[name] = _in_folder(folder, handed).log_probabilities(sample.rows)
            advance(number, f"{name} has told")
    told |= {name: speaker.log_probabilities(sample.rows) for name, speaker in speakers.items()}
    return judge(live, told, handed.precision.dtype, failures)


def verify_served(live: Live, handed: Handed, sample: Sample, server: Server, folders: Mapping[str, Path]) -> Verification:
    """What a server answers, and what lies in folders, against what the trained model told: first the ids of the same dialogues."""
    failures = [*rendered_otherwise(handed, sample), *asked_otherwise(handed, sample, server)]
    told = {name: _in_folder(folder, handed).log_probabilities(sample.rows) for name, folder in folders.items()}
    told["served"] = server.log_probabilities(sample.rows)
    return judge(live, told, handed.precision.dtype, failures)


def listen(handed: Handed, rows: Sequence[TokenRow]) -> Live:
    """What the trained model tells of the rows, twice, and its base once; the models are gone afterwards, and the device is free."""
    live = _heard(handed, rows)
    gc.collect()
    torch.cuda.empty_cache()  # for a server that is to take it; nothing where there is none
    return live


def _heard(handed: Handed, rows: Sequence[TokenRow]) -> Live:
    precision = handed.precision
    if handed.origin.recipe.lora == "none":
        untrained = _speaker(handed.model, precision).log_probabilities(rows)
        live = _in_folder(handed.adapter, handed)
    else:
        return live_of(load_adapter(load_model(handed.model, precision.dtype, precision.device), handed.adapter), precision, rows)
    return _live(live, untrained, rows)


def live_of(adapted: PeftModel, precision: Precision, rows: Sequence[TokenRow]) -> Live:
    """What the active adapter of a loaded model tells of the rows, twice, and its base once."""
    live = LocalSpeaker(model=adapted, precision=precision)
    with adapted.disable_adapter():
        untrained = live.log_probabilities(rows)
    return _live(live, untrained, rows)


def compared(handed: Handed, sample: Sample, live: Live, told: Mapping[str, LogProbabilities]) -> Verification:
    """Whether others that use the run's own tokenizer tell what the live adapter told."""
    return judge(live, told, handed.precision.dtype, rendered_otherwise(handed, sample))


def _live(live: LocalSpeaker, untrained: LogProbabilities, rows: Sequence[TokenRow]) -> Live:
    told = live.log_probabilities(rows)
    again = LocalSpeaker(model=live.model, precision=live.precision, rows_at_once=TOGETHER).log_probabilities(rows)
    return Live(told=told, base=untrained, floor=Apart.of(told, again))


def judge(live: Live, told: Mapping[str, LogProbabilities], dtype: torch.dtype, failures: Sequence[str] = ()) -> Verification:
    """Whether what others tell of the rows is what the live adapter tells, and that is not what its base tells.

    A mean difference passes within four noise floors, or within the share of the adapter's change that the type's rounding may cost.
    """
    noise = FLOORS * live.floor.mean
    allowed = max(noise, SHARE[dtype] * min(live.change.mean, 1.0))
    apart = {name: Apart.of(live.told, other) for name, other in told.items()}
    found = list(failures)
    if not live.change.mean > noise:
        found.append(f"the adapter changes nothing: it is {live.change.mean:.3g} nats a token from its base, and {noise:.3g} are noise")
    for name, one in apart.items():
        if not one.mean <= allowed:
            from_base = Apart.of(live.base, told[name]).mean
            as_base = "; it answers as the base does: the adapter is not applied" if from_base < one.mean else ""
            where = f"{one.mean:.3g} nats a token from the live adapter, where {allowed:.3g} are allowed"
            found.append(f"{name} is not what was trained: {where}{as_base}")
    return Verification(
        rows=len(live.told),
        tokens=sum(map(len, live.told)),
        floor=live.floor,
        change=live.change,
        allowed=allowed,
        apart=apart,
        failures=tuple(found),
    )


def rendered_otherwise(handed: Handed, sample: Sample) -> list[str]:
    """In words, where the run's own tokenizer renders rows otherwise than they were prepared."""
    return _otherwise(handed.tokenizer, handed, sample, "the run's tokenizer")


def asked_otherwise(handed: Handed, sample: Sample, server: Server) -> list[str]:
    """In words, the first dialogue of which a server makes another prompt than the run's tokenizer (traps 6, 13)."""
    for number, example in sample.examples:
        own, other = handed.tokenizer.prompt_ids(example.prompt), server.prompt_ids(example.prompt)
        if own != other:
            place = next((at for at, (one, two) in enumerate(zip(own, other, strict=False)) if one != two), min(len(own), len(other)))
            what = f"the server makes {len(other)} token ids of the prompt of {sample.split} row {number} ({example.origin}), the run's"
            return [f"{what} tokenizer {len(own)}: they differ from place {place} on"]
    return []


def _speaker(model: Model, precision: Precision) -> LocalSpeaker:
    """A whole model from its files."""
    gc.collect()  # what spoke before, or was merged, may hold itself in circles
    return LocalSpeaker(model=load_model(model, precision.dtype, precision.device), precision=precision)


def _in_folder(folder: Path, handed: Handed) -> LocalSpeaker:
    """A whole model, or an adapter over the base that it was trained over."""
    if not (folder / CONFIG).exists():
        return _speaker(_whole(folder, handed.model), handed.precision)
    base = _speaker(handed.model, handed.precision)
    return LocalSpeaker(model=load_adapter(base.model, folder), precision=handed.precision)


def _whole(folder: Path, trained: Model) -> Model:
    """The whole model in a folder, with its own template; whether code of its repository is run is as it was in training."""
    return Model(base=str(folder.absolute()), attention=trained.attention, trust_remote_code=trained.trust_remote_code)


def _otherwise(tokenizer: ChatTokenizer, handed: Handed, sample: Sample, whose: str) -> list[str]:
    """In words, where a tokenizer stops on other ids than the run's, and the first row that it renders otherwise than it was prepared."""
    found = []
    if set(tokenizer.stop_ids) != set(handed.tokenizer.stop_ids):
        found.append(f"{whose} stops on {sorted(tokenizer.stop_ids)}, the run's on {sorted(handed.tokenizer.stop_ids)}")
    rows, renderer = sample.prepared.rows(sample.split), Renderer(tokenizer, handed.origin.recipe.data)
    for number, example in sample.examples:
        rendered = renderer.render(example).rows
        place = number - int(np.searchsorted(rows.example_index, rows.example_index[number]))  # among the rows of its example
        if place >= len(rendered) or not np.array_equal(rendered[place].ids, rows[number].ids):
            found.append(f"{whose} renders {sample.split} row {number} ({example.origin}) in other token ids than it was trained with")
            break
    return found
