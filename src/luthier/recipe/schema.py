"""Every knob of Luthier, in one place. A field's docstring is its reference page and its help text."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from luthier.recipe.proof import BOUND, JUDGED, PEOPLE, Decision, Evaluation, Review
from luthier.recipe.rl import REWARD, Rl
from luthier.recipe.section import PositiveInt, Scalar, Section
from luthier.recipe.serving import Serving
from luthier.recipe.tracking import Tracking
from luthier.score.scorers import metric_name

Share = Annotated[float, Field(gt=0, le=1)]

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

PAIRS = (
    (("training", "epochs"), ("training", "max_steps")),
    (("training", "warmup_ratio"), ("training", "warmup_steps")),
)
"""Two ways to say one thing: a recipe has one of them; an override of one takes the file's other away."""


class Model(Section):
    """The base model, and how it is loaded."""

    base: str
    """`demo`, a hub id such as `Qwen/Qwen3-0.6B`, or a folder with config.json, weights and tokenizer."""
    revision: str = "main"
    """Branch, tag or commit of the hub repository; a folder ignores it only when it is `main`."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Compute type. `auto`: bfloat16 where the device has it, else float16 on a GPU, whose loss is scaled, and float32 on a CPU."""
    attention: Literal["auto", "eager", "sdpa"] = "auto"
    """`auto`: Luthier's, which reads packs. Another is transformers' own: rows are padded then (`data.packing`), and layers not fused."""
    quantization: Literal["none", "int8", "nf4", "fp4"] = "none"
    """Frozen weights in 8 bits (LLM.int8, arXiv:2208.07339) or 4 (QLoRA, arXiv:2305.14314), computed in `dtype`; needs `lora`."""
    double_quant: bool = True
    """Of nf4 and fp4: quantise the constants too, 0.37 bits a weight less."""
    chat_template: str = "auto"
    """`auto`: the tokenizer's own; else a file with a Jinja template, saved with the adapter."""
    trust_remote_code: bool = False
    """Let the model's repository run its own code. Only for repositories you have read."""

    def in_folder(self, folder: Path) -> Self:
        """The same with weights and tokenizer from a folder."""
        return self.model_copy(update={"base": str(folder.absolute()), "revision": "main"})


class Lora(Section):
    """Low-rank adapters by PEFT (Hu et al. 2021, arXiv:2106.09685). `lora: none` trains every weight."""

    r: PositiveInt = 16
    """Rank of the update. Each adapted matrix gains r·(d_in + d_out) parameters."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The update is scaled by alpha / r (rsLoRA: alpha / √r)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of an adapter's inputs that are zeroed in training."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer but the head), or names such as `[q_proj, v_proj]`; a name that matches nothing is an error."""
    target_parameters: Literal["experts"] | tuple[str, ...] = ()
    """Weights that are no layers of their own: `experts` (a mixture's fused ones), or the ends of their names, as PEFT takes them, such as
    `[experts.down_proj]`. Of Mixtral, Qwen3-MoE and Qwen3-Next, `all-linear` reaches experts and routers by itself."""
    use_rslora: bool = False
    """Rank-stabilised scaling, alpha / √r (arXiv:2312.03732)."""
    use_dora: bool = False
    """Weight-decomposed LoRA (arXiv:2402.09353): slower, and not every server loads it."""
    init_from: str = ""
    """Run or adapter folder to start from; its rank, alpha and modules must be the recipe's. Empty: start anew."""


class Source(Section):
    """Rows from one file or a glob of files: .jsonl, .json, .csv or .parquet."""

    path: str
    """A file or a glob, relative to the recipe."""
    format: Literal["auto", "messages", "prompt_completion", "alpaca", "sharegpt", "interactions", "labelled"] = "auto"
    """How a row becomes a conversation; `auto` looks at the first row's field names and says what it chose."""
    columns: dict[str, str | tuple[str, ...]] = {}
    """The format's field → your column, e.g. `{text: [summary, description], label: section}`."""
    where: dict[str, Scalar | tuple[Scalar, ...]] = {}
    """Keep rows whose column equals the value, or one of the values: `{success: true, source: [textbook, games]}`."""


class Split(Section):
    """Which rows train, steer and judge: shares of the sources' rows that add up to 1, or files taken whole."""

    train: Share = 0.8
    """Share of the sources' rows to train on."""
    validation: Annotated[float, Field(ge=0, lt=1)] | str = 0.1
    """Share, or a file, for validation loss, early stopping and the choice of the best checkpoint. 0: none."""
    test: Annotated[float, Field(ge=0, lt=1)] | str = 0.1
    """Share, or a file, kept back for `evaluate` and `decide`. 0: none."""

    @model_validator(mode="after")
    def _shares_add_up(self) -> Self:
        total = self.train + sum(part for part in (self.validation, self.test) if isinstance(part, float | int))
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares add up to {total:g}, not 1 (a part given as a file does not count)")
        return self


class Data(Section):
    """Rows: from where, which, how they are split, and which of their tokens are trained on."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """Where the rows come from."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that does not fit its format: stop with its file, line and field; or skip it, counted and shown."""
    system_prompts: str | dict[str, str] = ""
    """For rows without a system prompt: one text, or one per group of `group_by`. Empty: none (`labelled`: one that lists the labels)."""
    group_by: str = ""
    """Column by which rows are grouped: shares, caps and scores are given per group. Empty: one group."""
    max_per_group: PositiveInt | Literal["all"] = "all"
    """At most so many *training* rows of a group, chosen by seeded hash; validation and test stay whole."""
    deduplicate: Literal["none", "exact", "near"] = "exact"
    """Remove rows that repeat an earlier one: the same text, or (`near`) an estimated Jaccard similarity of word 5-grams ≥ 0.8."""
    split: Split = Split()
    """Shares or files of train, validation and test."""
    split_method: Literal["hash", "exact"] = "hash"
    """`hash`: a row's side follows from seed and key, so new rows move no old one. `exact`: quotas per group; new rows may move old."""
    keep_together: str = ""
    """Column whose equal values stay on one side of the split. Empty: the row itself is the key."""
    max_length: PositiveInt | Literal["fit"] = "fit"
    """Longest row in tokens; `fit` is the longest row there is."""
    over_length: Literal["drop", "truncate", "refuse"] = "drop"
    """A row over `max_length`: drop it (counted); shorten its longest user text, never an answer; or stop."""
    train_on: Literal["assistant", "last_assistant", "completion", "all"] = "assistant"
    """Tokens that carry loss: every assistant turn, the last one, everything after the first prompt, or all tokens."""
    thinking: Literal["keep", "strip", "mask"] = "keep"
    """`<think>…</think>` in answers: train on it, remove it, or keep it as context without loss."""
    packing: Literal["auto", "tree", "bins", "off"] = "auto"
    """How a step's rows stand in a micro batch: end to end without padding (`bins`), or as a prefix tree in which leading tokens that rows
    share stand once (`tree`; under dropout they then share its mask, too); or padded (`off`). `auto`: tree where at least 5 % is shared."""


class Training(Section):
    """The optimisation. `global_batch_size` defines it; micro batches and accumulation follow from memory."""

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training rows (default 3). One of `epochs` and `max_steps`."""
    max_steps: PositiveInt | None = None
    """Optimizer steps, instead of `epochs`."""
    global_batch_size: PositiveInt = 16
    """Rows per optimizer step, over all devices and micro batches."""
    micro_batch_size: PositiveInt | Literal["auto"] = "auto"
    """Rows computed at once; changes memory and speed, never the update. `auto`: as many as fit a token budget."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 3e-4
    """Peak rate. 3e-4 costs 0.3 % loss on average against the best per model (Tinker's open sweep, LoRA, alpha 32)."""
    lr_scheduler: Literal["cosine", "linear", "constant", "cosine_with_restarts"] = "cosine"
    """How the rate goes from its peak to 0 after warm-up; `constant` stays."""
    lr_cycles: PositiveInt = 1
    """Cycles of `cosine_with_restarts`; more than 1 with another scheduler is an error."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of all steps that climb from 0 to the peak (default 0.03). One of `warmup_ratio` and `warmup_steps`."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of warm-up, instead of `warmup_ratio`."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """AdamW, decoupled weight decay (arXiv:1711.05101), β 0.9 and 0.999, ε 1e-8, state in float32; or in 8 bits (arXiv:2110.02861), `paged`
    out to the host where a GPU's memory is short."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decay of matrices; vectors (norms, biases) have none."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip the global gradient norm; 0 clips nothing."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Where loss or gradient is not a number, the update is never applied: `stop`; or `skip` the step's rows, and after three in a row go
    back to the last checkpoint's weights, once."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Recompute activations in the backward pass: less memory, a third (all trained) to a half (LoRA) more time. `auto`: where they would
    not fit."""

    @model_validator(mode="before")
    @classmethod
    def _one_of_each_pair(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        filled = dict(fields)
        for ((_, one), (_, other)), default in zip(PAIRS, (3.0, 0.03), strict=True):
            if filled.get(one) is not None and filled.get(other) is not None:
                raise ValueError(f"`{one}` and `{other}` both say how long; keep one")
            if filled.get(one) is None and filled.get(other) is None:
                filled[one] = default
        return filled

    @model_validator(mode="after")
    def _cycles_need_restarts(self) -> Self:
        if self.lr_cycles > 1 and self.lr_scheduler != "cosine_with_restarts":
            raise ValueError(f"`lr_cycles` is read by lr_scheduler cosine_with_restarts only, not by {self.lr_scheduler}")
        return self


class Checkpoints(Section):
    """When to validate and save, which checkpoint becomes the adapter, when to stop early."""

    eval_steps: PositiveInt | Share | Literal["auto", "epoch"] = "auto"
    """Validate every N steps, every share of all steps (`10%`), or at each epoch's end; always at the last step too. `auto`: ten times, or
    less often where that would take more than a fifth of the run."""
    save_steps: PositiveInt | Share | Literal["epoch"] = 0.1
    """Save a checkpoint to resume from: every N steps, every share of all steps, or at each epoch's end; always at the last step too."""
    save_minutes: Annotated[float, Field(gt=0)] | Literal["off"] = "off"
    """Save as well when so many minutes have passed since the last checkpoint."""
    on_failed_save: Literal["stop", "continue"] = "stop"
    """Where a checkpoint cannot be written (a full disk): stop at once; or warn, train on, and try again at the next save."""
    keep: PositiveInt = 3
    """Newest checkpoints to keep; the best one is kept besides."""
    final: Literal["auto", "best", "last"] = "auto"
    """The checkpoint that becomes `adapter/`; `auto`: the best where there are validation rows, else the last."""
    best_by: str = "auto"
    """`loss` (validation), `reward` (of a recipe with `rl`), or `TASK.metric` of an evaluation task, on validation rows. `auto`: `reward`
    where there is one, else `loss`."""
    early_stopping_patience: PositiveInt | Literal["auto", "off"] = "auto"
    """Stop after so many validations without a new best; `auto`: 3 where there are validation rows."""
    early_stopping_min_delta: Annotated[float, Field(ge=0)] = 0.0
    """A new best must be better by more than this."""

    @model_validator(mode="before")
    @classmethod
    def _percent(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        filled = dict(fields)
        for key in ("eval_steps", "save_steps"):
            text = filled.get(key)
            if isinstance(text, str) and re.fullmatch(r"\d+(\.\d+)?\s*%", text):
                filled[key] = float(text.rstrip("% ")) / 100
        return filled


class Parallel(Section):
    """Devices: data × tensor × pipeline of them. The global batch, and so the update, stays the same."""

    data: PositiveInt | Literal["auto"] = "auto"
    """Replicas that divide a step's rows; `auto`: as many as the devices of launch.gpu leave, here one."""
    shard: Literal["none", "zero2", "zero3"] = "none"
    """What replicas divide among them (arXiv:1910.02054): nothing, gradients and optimizer state, or the weights too."""
    tensor: PositiveInt = 1
    """Devices that divide every matrix."""
    pipeline: PositiveInt = 1
    """Devices that divide the layers."""
    nodes: PositiveInt = 1
    """Machines that the ranks stand on, as many on each; `launch.on: torchrun` or `slurm`."""

    @model_validator(mode="after")
    def _as_many_on_each(self) -> Self:
        ranks = self.tensor * self.pipeline * (1 if self.data == "auto" else self.data)
        if self.data != "auto" and ranks % self.nodes:
            raise ValueError(f"data × tensor × pipeline are {ranks} ranks, which {self.nodes} `nodes` cannot divide evenly")
        return self


class Launch(Section):
    """Where it runs, and what that costs."""

    on: Literal["local", "torchrun", "slurm", "ray", "modal"] = "local"
    """What `luthier launch` gives it to: this machine, several that you start, a Slurm or Ray cluster, Modal (docs/guide/launch.md)."""
    gpu: str = "here"
    """`here`: what the machine has; else what each node is to have: `L4`, `H200x4`. `luthier plan --gpu all` knows their names."""
    timeout: Annotated[str, Field(pattern=r"^(none|\d+(\.\d+)?\s*(s|min|h))$")] = "none"
    """When the host ends the run: `60000 s`, `16 h`. Slurm and Modal are told; on others the plan counts with it."""
    price_per_hour: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """US dollars for one device; `auto`: the hardware table's, 0 for this machine."""
    restarts: Annotated[int, Field(ge=0)] = 0
    """How often a run that died or hung is begun again from its last good checkpoint, without being asked."""
    env_file: str = ""
    """A file of `KEY=VALUE` lines for the processes that train: tokens and keys, which are never logged or kept. Empty: none."""
    options: dict[str, Scalar | tuple[Scalar, ...]] = {}
    """What the backend reads besides, such as a partition or a volume; listed below."""

    @model_validator(mode="after")
    def _options_are_read(self) -> Self:
        from luthier.recipe.options import check_launch_options  # which are sections, too

        check_launch_options(self.on, self.options)
        if self.on == "modal" and self.gpu == "here":
            raise ValueError("`gpu` is `here`, and on: modal rents one: name it, such as L4, or take on: local")
        return self


class Recipe(Section):
    """One run, whole. Required are only `name`, `model.base` and `data.sources`."""

    name: Annotated[str, Field(pattern=f"^{RUN_NAME.pattern}$")]
    """The run's name and folder."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Split, order, dropout and initial adapter follow from it."""
    model: Model
    """The base model."""
    lora: Lora | Literal["none"] = Lora()
    """The adapter; `none` for full fine-tuning."""
    data: Data
    """The rows."""
    training: Training = Training()
    """The optimisation."""
    checkpoints: Checkpoints = Checkpoints()
    """Validation and saving."""
    parallel: Parallel = Parallel()
    """The devices."""
    evaluation: Evaluation = Evaluation()
    """The questions."""
    decision: Decision = Decision()
    """The rule."""
    review: Review = Review()
    """What people are asked."""
    serving: Serving = Serving()
    """What comes after."""
    tracking: Tracking = Tracking()
    """The lookers-on."""
    launch: Launch = Launch()
    """The machine."""
    rl: Rl | Literal["none"] = "none"
    """The rewards; `none`: it learns from the answers in `data`."""

    @property
    def best_by(self) -> str:
        """`checkpoints.best_by`, resolved."""
        own = "loss" if self.rl == "none" else REWARD
        return own if self.checkpoints.best_by == "auto" else self.checkpoints.best_by

    @property
    def asks_people(self) -> bool:
        """Whether a decision waits for what people say."""
        return bool(self.review.required) or self.decision.bounds_people

    @model_validator(mode="after")
    def _groups_are_whole(self) -> Self:
        if self.rl == "none":
            return self
        if self.training.global_batch_size % self.rl.group_size:
            raise ValueError(
                f"training.global_batch_size is {self.training.global_batch_size}, which groups of {self.rl.group_size} answers"
                " (rl.group_size) do not fill evenly"
            )
        if self.rl.kl and self.lora == "none":
            raise ValueError("rl.kl holds the model to the one it begins with, of which only an adapter's numbers are kept: use `lora`")
        if self.rl.by_server and self.lora == "none":
            raise ValueError("rl.sampler is a server, which can be given an adapter, and no whole model: use `lora`")
        return self

    @model_validator(mode="after")
    def _quantised_weights_are_frozen(self) -> Self:
        if self.lora == "none" and self.model.quantization != "none":
            raise ValueError(
                f"model.quantization is {self.model.quantization}, and quantised weights cannot be trained: `lora: none` trains all"
            )
        return self

    @model_validator(mode="after")
    def _nodes_are_started(self) -> Self:
        if self.parallel.nodes > 1 and self.launch.on not in ("torchrun", "slurm"):
            raise ValueError(
                f"parallel.nodes is {self.parallel.nodes}, which launch.on: {self.launch.on} does not read: torchrun and slurm do"
            )
        return self

    @model_validator(mode="after")
    def _best_by_can_be_measured(self) -> Self:
        tasks = (task for task in self.evaluation.tasks if task.of_split and task.scorer != "judge")
        measured = ["loss" if self.rl == "none" else REWARD, *(f"{task.name}.{metric_name(task.scorer)}" for task in tasks)]
        if self.best_by not in measured:
            raise ValueError(f"checkpoints.best_by is {self.checkpoints.best_by!r}, which is none of: {', '.join(measured)}")
        return self

    @model_validator(mode="after")
    def _people_are_asked_what_is_bounded(self) -> Self:
        for metric, bound in (*self.decision.deploy.items(), *self.decision.abort.items()):
            if not metric.startswith(f"{PEOPLE}."):
                continue
            if metric not in self.review.metrics:
                raise ValueError(f"decision bounds {metric}, which is none of what `review` asks: {', '.join(self.review.metrics)}")
            if not BOUND.fullmatch(bound):
                raise ValueError(f"bound {bound!r} of {metric}: what people say is bounded by a number, such as '> 0.5'")
        return self

    @model_validator(mode="after")
    def _who_is_to_judge_is_there(self) -> Self:
        if unknown := self.decision.judged - {task.name for task in self.evaluation.tasks}:
            raise ValueError(f"decision bounds {min(unknown)}.{JUDGED}, and no task is called {min(unknown)!r}")
        if self.decision.judged and not self.evaluation.judge:
            raise ValueError(f"decision bounds {min(self.decision.judged)}.{JUDGED}: name the judge in evaluation.judge")
        return self
