"""What method values fit a model, its data and a device: each with its reason and its source, and both where two sources disagree.

Two sources. The *open sweep* (Tinker cookbook, `recipes/chat_sl/results/sft_sweep.md`): plain LoRA at alpha 32, 128 rows a step, 780 steps
of Tulu 3, rates from 4e-5 to 3e-3. The *Qwen3 field guide* (docs/notes/seeds.md, 003): the table by which a team tunes Qwen3 0.6B, 1.7B and
7B, 4 to 16 rows a step.
"""

import math
from dataclasses import dataclass
from typing import Literal

from luthier.plan.hardware import Device
from luthier.recipe.presets import spelled
from luthier.recipe.schema import Lora
from luthier.recipe.section import Scalar

SWEEP = "open sweep, Tinker cookbook's sft_sweep.md"
WITHOUT_REGRET = "LoRA Without Regret, Thinking Machines 2025"
QLORA = "QLoRA, arXiv:2305.14314"
OWN = "Luthier's rule of thumb"

SWEEP_ALPHA = 32.0
SWEEP_BATCH = 128
FULL_BY_LORA = 0.1
"""Best rate of full fine-tuning over LoRA's: 1 / 9.8 in LoRA Without Regret."""
ENOUGH_STEPS = 100
FEWEST_ROWS_A_STEP = 8
FEW_ROWS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One value that fits. `why` also says what the other source says, where it says otherwise."""

    path: str
    value: Scalar
    why: str
    source: str

    @property
    def comment(self) -> str:
        """Reason and source in a line."""
        return f"{self.why} ({self.source})"


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRates:
    """Peak rates for one recipe. The sweep's models lose 1 to 6 % at a third of `low`, and mostly diverge at three times `high`."""

    low: float
    best: float
    high: float
    source: str
    swept: bool
    """Whether models of about this size were in the sweep; else the range is a guess that no warning should rest on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSize:
    """What advice depends on of the data."""

    rows: int
    """That are trained on."""
    dialogue: bool
    """Several assistant turns a row."""


def learning_rate_range(parameters: int, lora: Lora | Literal["none"], global_batch_size: int) -> LearningRates:
    """The rates that fit a model of so many parameters, for this alpha and rank and so many rows a step.

    With the factor alpha / r the best rate hardly depends on the rank, and what a step changes in B·A goes with alpha × rate (Without
    Regret; rsLoRA: alpha·√r × rate). Fewer rows a step want a lower rate, by the root of their number (arXiv:2205.10287 for Adam; the
    cookbook's `LR ~ sqrt(batch)`); `high` stays.
    Qwen3-4B, alpha 128, 80 rows: 3e-4 … 1e-3 … 1e-3 times 32/128, and √(80/128) for the first two: 5.9e-5, 2.0e-4, 2.5e-4.
    """
    band = next(band for band in _BANDS if parameters < band.below)
    alpha = SWEEP_ALPHA / FULL_BY_LORA if lora == "none" else lora.alpha * (math.sqrt(lora.r) if lora.use_rslora else 1.0)
    scale = SWEEP_ALPHA / alpha
    fewer = math.sqrt(min(global_batch_size, band.batch) / band.batch)
    return LearningRates(
        low=_rounded(band.low * scale * fewer),
        best=_rounded(band.best * scale * fewer),
        high=_rounded(band.high * scale),
        source=band.source,
        swept=band.batch == SWEEP_BATCH,
    )


def advise(parameters: int, data: DataSize, device: Device, *, mixture: bool = False) -> tuple[Advice, ...]:
    """Values for a recipe that has none yet, in the recipe's order: quantization, adapter, rate, batch, epochs, checkpoints."""
    guide = next(guide for guide in _GUIDES if parameters < guide.below)
    small = parameters < _SMALL
    quantization = _quantization(parameters, device)
    lora = Lora(r=16 if small else 32, alpha=SWEEP_ALPHA, dropout=0.05 if data.rows < FEW_ROWS and not mixture else 0.0)
    batch, epochs = _batch_and_epochs(data, guide)
    rates = learning_rate_range(parameters, lora, batch)
    return (
        *quantization,
        _rank(lora.r, guide),
        _alpha(lora.r, guide),
        _dropout(lora.dropout, data, guide),
        Advice(
            path="lora.target_modules",
            value="all-linear",
            why="attention alone learns less, even with as many parameters at a higher rank",
            source=WITHOUT_REGRET,
        ),
        _epochs(epochs, data, guide),
        _batch(batch, epochs, data, guide),
        _learning_rate(rates, batch, guide),
        Advice(path="checkpoints.eval_steps", value="10%", why="ten looks at the validation loss, so that it can stop early", source=OWN),
        Advice(path="checkpoints.save_steps", value="10%", why="at most a tenth of the run is lost when it is killed", source=OWN),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Band:
    """Rates at alpha 32 for models below a size: lowest, best and highest of those tried that cost little."""

    below: float
    low: float
    best: float
    high: float
    batch: int
    source: str


_SMALL = 5e9
_BANDS = (
    # Outside the sweep. The demo base (2.2 M) learns at 2e-3 and 3e-3 (recipes/).
    _Band(below=3e8, low=3e-4, best=3e-3, high=1e-2, batch=8, source="Luthier's demo base; the open sweep begins at 1.2 G"),
    # Against the best at rank 16 and up (Llama 1B and 3B, Qwen3-4B, Qwen3.5-4B): 1e-4 costs 1.1–6.5 %, 3e-4 0–2.6 %, 1e-3 0–1.4 %.
    _Band(below=_SMALL, low=3e-4, best=1e-3, high=1e-3, batch=SWEEP_BATCH, source=SWEEP),
    # Rank 16, 8B … 35B, 12 models: 1e-4 costs 0.8–2.1 %, 3e-4 0–0.6 %, 1e-3 0–1.2 %.
    _Band(below=5e10, low=1e-4, best=3e-4, high=1e-3, batch=SWEEP_BATCH, source=SWEEP),
    # Rank 4, from 70B: 1e-4 costs 0.4–1.1 %; 3e-4 or 4e-4 is the best; 1e-3 costs up to 3.8 % and diverged on Llama 70B.
    _Band(below=math.inf, low=1e-4, best=3e-4, high=4e-4, batch=SWEEP_BATCH, source=SWEEP),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Guide:
    """A line of the field guide's table: from … to."""

    below: float
    r: tuple[int, int]
    alpha: tuple[int, int]
    dropout: tuple[float, float]
    learning_rate: float
    batch: tuple[int, int]
    epochs: tuple[int, int]


_GUIDES = (
    _Guide(below=1e9, r=(8, 16), alpha=(16, 32), dropout=(0.05, 0.05), learning_rate=3e-4, batch=(4, 8), epochs=(5, 8)),
    _Guide(below=4e9, r=(16, 32), alpha=(32, 64), dropout=(0.1, 0.1), learning_rate=2e-4, batch=(8, 16), epochs=(3, 5)),
    _Guide(below=math.inf, r=(32, 64), alpha=(64, 128), dropout=(0.1, 0.15), learning_rate=1e-4, batch=(4, 8), epochs=(3, 5)),
)


def _quantization(parameters: int, device: Device) -> tuple[Advice, ...]:
    """4 bits where bf16 weights would leave less than 40 % of a GPU to all else; a processor would compute in them far slower."""
    weights = 2 * parameters
    if device.kind == "cpu" or weights <= 0.6 * device.memory_bytes:
        return ()
    # nf4 with double quantization: 4 + 8/64 + 32/(64·256) = 4.127 bits a weight: 7.6 G → 3.9 GB
    bf16, nf4, device_gb = weights / 1e9, 4.127 / 8 * parameters / 1e9, device.memory_bytes / 1e9
    why = f"weights take {bf16:.0f} GB in bf16, {nf4:.0f} GB in 4 bits; {device.id} has {device_gb:.0f} GB"
    return (Advice(path="model.quantization", value="nf4", why=why, source=QLORA),)


def _rank(r: int, guide: _Guide) -> Advice:
    why = "loss falls by 0.43 % from rank 4 to 16, 0.16 % from 16 to 64, 0.04 % from 64 to 128 (medians at 3e-4)"
    return Advice(path="lora.r", value=r, why=_beside(why, r, guide.r), source=SWEEP)


def _alpha(r: int, guide: _Guide) -> Advice:
    why = "the learning rate below is for alpha 32, whatever the rank"
    if not guide.alpha[0] <= SWEEP_ALPHA <= guide.alpha[1] or r * 2 != SWEEP_ALPHA:
        why += f"; the Qwen3 field guide takes 2 × rank, here {2 * r}: at the same rate larger steps, at half of it the same"
    return Advice(path="lora.alpha", value=int(SWEEP_ALPHA), why=why, source=SWEEP)


def _dropout(dropout: float, data: DataSize, guide: _Guide) -> Advice:
    few = f"{data.rows:,} rows are soon known by heart" if dropout else f"{data.rows:,} rows; early stopping watches for overfitting"
    return Advice(path="lora.dropout", value=dropout, why=_beside(few, dropout, guide.dropout), source=OWN)


def _batch_and_epochs(data: DataSize, guide: _Guide) -> tuple[int, int]:
    """16 rows a step and 3 epochs (2 of dialogues); half the rows, then more epochs, where that makes fewer than 100 steps."""
    epochs = 2 if data.dialogue else 3
    if math.ceil(data.rows / 16) * epochs >= ENOUGH_STEPS:
        return 16, epochs
    per_epoch = max(1, math.ceil(data.rows / FEWEST_ROWS_A_STEP))
    most = 3 if data.dialogue else guide.epochs[1]
    return FEWEST_ROWS_A_STEP, max(epochs, min(most, math.ceil(ENOUGH_STEPS / per_epoch)))


def _epochs(epochs: int, data: DataSize, guide: _Guide) -> Advice:
    why = "usual"
    if data.dialogue:
        why = "dialogue overfits fast: one team's best checkpoint fell at epoch 0.94 (docs/notes/seeds.md, 002)"
    elif epochs > 3:
        why = f"{data.rows:,} rows make few steps"
    why = _beside(f"{why}; the best checkpoint is kept", epochs, guide.epochs)
    return Advice(path="training.epochs", value=epochs, why=why, source=OWN)


def _batch(batch: int, epochs: int, data: DataSize, guide: _Guide) -> Advice:
    steps = math.ceil(data.rows / batch) * epochs
    why = f"{steps:,} steps in all; large batches cost LoRA more than full fine-tuning, fewer than {FEWEST_ROWS_A_STEP} rows are noisy"
    return Advice(path="training.global_batch_size", value=batch, why=_beside(why, batch, guide.batch), source=WITHOUT_REGRET)


def _learning_rate(rates: LearningRates, batch: int, guide: _Guide) -> Advice:
    why = f"{spelled(rates.low)} to {spelled(rates.high)} would do"
    if rates.swept:
        why = f"the sweep's best with {SWEEP_BATCH} rows a step, times √({batch}/{SWEEP_BATCH}); {why}"
    if not math.isclose(rates.best, guide.learning_rate):
        why += f"; the Qwen3 field guide says {spelled(guide.learning_rate)}" + _within(rates, guide.learning_rate)
    return Advice(path="training.learning_rate", value=rates.best, why=why, source=rates.source)


def _within(rates: LearningRates, rate: float) -> str:
    return ", which lies in that range" if rates.low <= rate <= rates.high else ", which lies outside that range"


def _beside(why: str, value: float, guide: tuple[float, float]) -> str:
    """The reason, and what the guide says where it says otherwise."""
    low, high = guide
    if low <= value <= high:
        return why
    return f"{why}; the Qwen3 field guide says {low:g}" + (f"–{high:g}" if high != low else "")


def _rounded(rate: float) -> float:
    """To two digits: more would claim more than is known."""
    return float(f"{rate:.1e}")
