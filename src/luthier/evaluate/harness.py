"""Tasks of lm-evaluation-harness, by its own library: its rows, prompts, filters and scores; the model is asked by our engine.

All of this file is the extra's: who imports it says so where the extra is missing.
"""

import difflib
import functools
import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, TypeVar

from lm_eval import evaluator, utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length
from lm_eval.tasks import TaskManager

from luthier.core.chat import Completion, Conversation, Message
from luthier.core.errors import DataError, RecipeError
from luthier.core.progress import Progress
from luthier.evaluate.report import Prediction
from luthier.evaluate.shared import shared
from luthier.evaluate.task import TaskResult, digest, summarise
from luthier.model.adapt import base_of
from luthier.model.generate import LocalCompleter, Opening
from luthier.plan.asked import ROWS_AT_A_TIME
from luthier.recipe.proof import Task
from luthier.score.scorers import HARNESS
from luthier.train.ranks import ALONE, Ranks

FEWSHOT_SEED = 1234
"""The harness's own, by which published figures draw their examples."""
Request = TypeVar("Request")
Sample = Mapping[str, Any]


class HarnessModel(TemplateLM):
    """A model of this process as the harness asks it. Of several ranks, which all ask the same at the same time, each does its share."""

    def __init__(self, completer: LocalCompleter, progress: Progress, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.completer, self.progress, self.ranks = completer, progress, ranks
        self.tokenizer = completer.tokenizer.pretrained
        self.answers: dict[str, Completion] = {}
        """By their prompts."""
        self.seconds = 0.0
        """Of writing."""

    @property
    def eot_token_id(self) -> int:
        """The end of a text."""
        return self.completer.tokenizer.stop_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it."""
        return self.eot_token_id if self.tokenizer.bos_token_id is None else int(self.tokenizer.bos_token_id)

    @property
    def max_length(self) -> int:
        """Of a row that is told: its last token is read, too, so it is one less than the model has places."""
        return int(resolve_max_length(base_of(self.completer.model).config, self.tokenizer)) - 1

    @property
    def tokenizer_name(self) -> str:
        """What the harness knows rendered prompts by."""
        return self.completer.tokenizer.template_hash

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Turns as the model's template writes them; without a generation prompt the last one is left open, to be gone on with."""
        messages = tuple(Message(role=turn["role"], content=turn["content"]) for turn in chat_history)  # type: ignore[arg-type]  # its roles
        if add_generation_prompt:
            return self.completer.tokenizer.render(Conversation(messages=messages), add_generation_prompt=True)
        prompt = self.completer.tokenizer.render(Conversation(messages=messages[:-1]), add_generation_prompt=True)
        return prompt + messages[-1].content

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """As the tokenizer has it, with what it begins a text with unless that stands there."""
        bos = self.tokenizer.bos_token
        given = not (bos and string.startswith(bos)) if add_special_tokens is None else add_special_tokens
        ids: list[int] = self.tokenizer.encode(string, add_special_tokens=given)
        return ids

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Of each continuation of a context, shown by our own progress."""
        told: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return told

    def _loglikelihood_tokens(self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any) -> list[tuple[float, bool]]:
        """Of each continuation after its context, whose beginning is left out where both are too long; and whether it is the likeliest."""

        def weigh(part: Sequence[tuple[Any, list[int], list[int]]]) -> list[tuple[float, bool]]:
            told = self.completer.told([[*before, *after][-(self.max_length + 1) :] for _, before, after in part])
            found = [row[max(0, len(row) - len(after)) :] for row, (_, _, after) in zip(told, part, strict=True)]
            return [(math.fsum(token.logprob for token in row), all(token.top[0][0] == token.id for token in row)) for row in found]

        return [(logprob, likeliest) for logprob, likeliest in self._shared("weighed", requests, weigh)]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows where they are long."""
        windows = [self._windows(*request.args) for request in requests]
        told = iter(self._loglikelihood_tokens([window for each in windows for window in each]))
        return [math.fsum(next(told)[0] for _ in each) for each in windows]

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers up to one of the texts that end them."""

        def write(part: Sequence[Opening]) -> list[dict[str, Any]]:
            return [asdict(answer) for answer in self.completer.go_on(part)]

        start = time.perf_counter()
        openings = [self._opening(*request.args) for request in requests]
        answers = [Completion(**told) for told in self._shared("written", openings, write)]
        self.seconds += time.perf_counter() - start
        self.answers |= {str(request.args[0]): answer for request, answer in zip(requests, answers, strict=True)}
        return [answer.text for answer in answers]

    def _windows(self, text: str) -> list[tuple[None, list[int], list[int]]]:
        ids = self.tok_encode(text)
        rolled = utils.get_rolling_token_windows(
            token_list=ids, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
        )
        return [(None, *utils.make_disjoint_window(window)) for window in rolled]

    def _opening(self, context: str, options: Mapping[str, Any]) -> Opening:
        asked = normalize_gen_kwargs(dict(options))
        if asked["do_sample"]:
            raise RecipeError("the task draws its answers at random, and Luthier asks for the likeliest", change="leave the task out")
        most = int(asked["max_gen_toks"])
        until = tuple(text for text in asked["until"] if text)
        ids = self.tok_encode(context)[-max(1, self.max_length - most) :]
        return Opening(ids=tuple(ids), max_new_tokens=most, until=until)

    def _shared(self, how: str, requests: Sequence[Request], work: Callable[[Sequence[Request]], list[Any]]) -> list[Any]:
        told: list[Any] = []
        with self.progress.task(how, len(requests)) as advance:
            while len(told) < len(requests):
                told += shared(self.ranks, requests[len(told) : len(told) + ROWS_AT_A_TIME], work)
                advance(len(told), "")
        return told


def evaluate_harness(task: Task, completer: LocalCompleter, seed: int, progress: Progress, ranks: Ranks = ALONE) -> TaskResult:
    """One task, or a group of them, each a group of rows; raises RecipeError for one that is not there, or that scores no rows."""
    asked = HARNESS.fullmatch(task.scorer)
    if asked is None:
        raise RecipeError(f"scorer {task.scorer!r} names no task of the harness")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks = _loaded(asked["task"])
    drawn = _drawn(tasks, task.limit, seed)
    model, chat = HarnessModel(completer, progress, ranks), asked["chat"] is not None
    try:
        found = evaluator.evaluate(
            model,
            {"tasks": {name: tasks[name] for name in drawn}, "groups": {}, "group_map": {}},
            samples=drawn,
            bootstrap_iters=0,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
    except ValueError as error:  # such as a task that runs what the model writes
        raise RecipeError(f"lm-evaluation-harness does not run it: {error}", where=f"task {task.name}", change="leave it out") from error
    rows = {name: _told(found, name, asked["metric"], asked["filter"]) for name in drawn}
    predictions = tuple(
        _prediction(task.name, name, sample, _score(sample, asked["metric"]), model) for name, samples in rows.items() for sample in samples
    )
    return TaskResult(
        scores=summarise(asked["metric"], predictions),
        predictions=predictions,
        tokens=sum(row.tokens for row in predictions),
        seconds=model.seconds,
    )


def _loaded(name: str) -> dict[str, Any]:
    """The task of this name or file, or those of a group, each with its name."""
    try:
        tasks: dict[str, Any] = _known().load([name])["tasks"]
    except KeyError as error:
        near = difflib.get_close_matches(name, _known().all_tasks, n=3)
        change = f"did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` names them; a YAML file is one, too"
        raise RecipeError(f"lm-evaluation-harness has no task {name!r}", change=change) from error
    except Exception as error:  # of the hub, or of the task's own code
        what = f"task {name!r} of lm-evaluation-harness cannot be loaded: {type(error).__name__}: {error}"
        change = "its rows come from the hub; without a network name a YAML file with `data_files` of your own"
        raise DataError(what, change=change) from error
    for each in tasks.values():
        if each.get_config("num_fewshot") is None:
            each.set_config(key="num_fewshot", value=0)
        each.set_fewshot_seed(seed=FEWSHOT_SEED)
    return tasks


@functools.cache
def _known() -> Any:
    """All tasks of the harness: 4 s, for it reads ten thousand files."""
    return TaskManager()


def _drawn(tasks: Mapping[str, Any], limit: int | Literal["all"], seed: int) -> dict[str, list[int]]:
    """Which rows of each task are asked: of all together at most so many, by seeded hash."""
    rows = [(name, place) for name, task in tasks.items() for place in range(len(task.eval_docs))]
    numbers = sorted(range(len(rows)), key=lambda number: hashlib.sha256(f"{seed}\0{rows[number]}".encode()).digest())
    drawn: dict[str, list[int]] = {}
    for name, place in (rows[number] for number in sorted(numbers[: len(rows) if limit == "all" else limit])):
        drawn.setdefault(name, []).append(place)
    return drawn


def _told(found: Mapping[str, Any], name: str, metric: str, wanted: str | None) -> list[Sample]:
    """A task's samples with this metric, of one filter; raises RecipeError where it is not what a row has."""
    samples: list[Sample] = found["samples"][name]
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    told = [sample for sample in samples if sample["filter"] == (wanted or filters[0]) and metric in sample["metrics"]]
    if not told:
        metrics = {each for sample in samples for each in sample["metrics"]}
        there = f"it has {', '.join(sorted(metrics))}" + (f", of {', '.join(filters)}" if len(filters) > 1 else "")
        raise RecipeError(f"task {name!r} of lm-evaluation-harness tells no {metric}{f' of {wanted}' if wanted else ''}", change=there)
    whole = found["results"][name][f"{metric},{wanted or filters[0]}"]
    mean = math.fsum(_score(sample, metric) for sample in told) / len(told)
    if not found["higher_is_better"][name].get(metric, True) or not math.isclose(whole, mean, abs_tol=1e-6):
        raise RecipeError(
            f"{metric} of task {name!r} is not a mean of what its rows score, more being better", change="name another metric"
        )
    return told


def _score(sample: Sample, metric: str) -> float:
    value = sample[metric]
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise RecipeError(
            f"{metric} of a row is {value!r:.80}, and no number in 0…1", change="name another metric, such as acc or exact_match"
        )
    return float(value)


def _prediction(task: str, name: str, sample: Sample, score: float, model: HarnessModel) -> Prediction:
    prompt, target = str(sample["arguments"][0][0]), sample["target"]
    answer = model.answers.get(prompt)
    texts = [] if answer else _weighed(sample["arguments"])
    return Prediction(
        task=task,
        origin=f"{name}:{sample['doc_id']}",
        group=name,
        messages=({"role": "user", "content": prompt},),
        reference=texts[target] if isinstance(target, int) and 0 <= target < len(texts) else str(target),
        answer=answer.text if answer else _likeliest(texts, sample["filtered_resps"]),
        score=score,
        tokens=answer.num_tokens if answer else 0,
        stopped=answer.stopped if answer else True,
        seconds=answer.seconds if answer else 0.0,
        key=digest(f"{name}:{sample['doc_id']}"),
    )


def _weighed(arguments: Sequence[Sequence[Any]]) -> list[str]:
    """The texts that a row lets choose among: continuations of one prompt, or prompts with the same continuation."""
    after = [(str(each[0]), str(each[1])) for each in arguments if len(each) > 1 and each[0]]
    return [text if len({before for before, _ in after}) == 1 else before + text for before, text in after]


def _likeliest(texts: Sequence[str], told: Sequence[tuple[float, bool]]) -> str:
    """Of several the one with the highest probability; the only one, where the model would have written it."""
    if len(texts) > 1:
        return max(zip(texts, told, strict=False), key=lambda pair: pair[1][0])[0]
    return texts[0] if texts and told[0][1] else ""
