"""The recipe's sections `evaluation`, `decision` and `review`: what models and people are asked, and what must be shown."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from luthier.recipe.section import Section
from luthier.score.scorers import HARNESS

AMOUNT = r"(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>%|ms|s|MB|GB)?"
BOUND = re.compile(rf"\s*(?P<comparison>>=|<=|>|<)\s*{AMOUNT}\s*")
"""A metric against a number."""
COMPARISON = re.compile(rf"\s*(?P<claim>better|not better|not worse)\s+than\s+(?P<other>baseline|base)(?:\s+by\s+{AMOUNT})?\s*")
"""A metric against the same one of the baseline, or of the untuned model."""
PEOPLE, PREFERRED = "review", "preferred"
"""How bounds name what people say: `review.preferred`, `review.CRITERION`."""
CRITERION = re.compile(r"[A-Za-z0-9_-]+")
JUDGED = "judged_better"
"""How bounds name the share of rows on which the judge prefers the tuned model's answer to the baseline's: `TASK.judged_better`."""
MAX_NEW_TOKENS = 256
EXAMPLES = "'>= 0.98', '< 12 s', '<= 10 GB', 'better than baseline' or 'not worse than baseline by 2 %'"


class Task(Section):
    """One question that evaluation asks: answer these rows, compare so."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    """Name in tables, files and bounds (`NAME.metric`)."""
    split: Literal["train", "validation", "test"] = "test"
    """Rows that are asked."""
    data: str = ""
    """A file of rows that are asked instead of a split's, just as they are: what the base could do before, against forgetting."""
    scorer: str = "exact"
    """`exact`, `label`, `choice` (the answer can be nothing but one of the references' labels), `json`, `json_schema` (the
    reference is a schema), `regex`, `number`, `contains`, `judge` (by `evaluation.rubric`), `module:function` of your own
    (answer, reference) → number in 0…1, or `lm_eval:TASK:METRIC`: a task of lm-evaluation-harness, which brings its rows
    (`lm_eval:arc_easy:acc_norm`, `lm_eval:evals/mine.yaml:acc`; `lm_eval_chat:…` through the chat template)."""
    max_new_tokens: Annotated[int, Field(gt=0)] = MAX_NEW_TOKENS
    """Longest answer; a cut answer is counted."""
    limit: Annotated[int, Field(gt=0)] | Literal["all"] = "all"
    """At most so many rows, chosen by seeded hash."""

    @model_validator(mode="after")
    def _rows_are_of_one_place(self) -> Self:
        if self.data and self.split != "test":
            raise ValueError(f"task {self.name!r} asks all rows of its `data`, which has no `split`")
        return self

    @model_validator(mode="after")
    def _a_task_of_the_harness_brings_its_own(self) -> Self:
        if not self.of_harness:
            return self
        if not HARNESS.fullmatch(self.scorer):
            raise ValueError(f"scorer {self.scorer!r}: write lm_eval:TASK:METRIC, such as lm_eval:arc_easy:acc_norm")
        if self.data or self.split != "test" or self.max_new_tokens != MAX_NEW_TOKENS:
            raise ValueError(
                f"task {self.name!r} of lm_eval brings its rows and lengths: `data`, `split` and `max_new_tokens` are not read"
            )
        return self

    @property
    def of_harness(self) -> bool:
        """Whether lm-evaluation-harness asks it, and scores the answers."""
        return self.scorer.startswith(("lm_eval:", "lm_eval_chat:"))

    @property
    def of_split(self) -> bool:
        """Whether it asks rows of a split, and not such that it brings."""
        return not (self.data or self.of_harness)

    @property
    def file(self) -> str:
        """What it brings, where that is a file: rows, or a task of the harness."""
        found = HARNESS.fullmatch(self.scorer)
        return found["task"] if found and found["task"].endswith((".yaml", ".yml")) else self.data


class BaselineMetric(Section):
    """A metric known only by its number, from a report or an earlier system."""

    value: float
    """The metric's value (a share as 0…1, seconds, bytes)."""
    n: Annotated[int, Field(gt=0)] | None = None
    """Rows it was measured on; without it the number is taken as exact."""


class Evaluation(Section):
    """What is asked of base and tuned model, and what they are compared with."""

    tasks: tuple[Task, ...] = ()
    """The questions. Without any, only losses are reported."""
    baseline: str | dict[str, BaselineMetric] = "base"
    """`base` (the untuned model), another run's name, a scores.json, a server (`https://HOST/v1#MODEL`, which is sent the rows), or
    numbers: `{answers.exact: {value: 0.987, n: 302}}`."""

    judge: str = ""
    """Who scores answers of tasks with `scorer: judge` and says which of two is better (`TASK.judged_better: '> 0.5'` in a bound): a server
    (`https://HOST/v1#MODEL`, which is sent the rows), a run's name or a model."""
    rubric: str = ""
    """By what, in words: `Is it correct, and does it say why in one sentence?`"""

    @property
    def timed(self) -> "Task | None":
        """By whose rows single answers are timed: the first task that the harness does not ask."""
        return next((task for task in self.tasks if not task.of_harness), None)

    @model_validator(mode="after")
    def _a_judge_has_a_rubric(self) -> Self:
        wanted = any(task.scorer == "judge" for task in self.tasks)
        if bool(self.judge) != bool(self.rubric) or (wanted and not self.judge):
            raise ValueError("a judge wants `judge` (who judges) and `rubric` (by what)")
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [task.name for task in self.tasks]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two tasks are called {repeated[0]!r}")
        if PEOPLE in names:
            raise ValueError(f"no task can be called {PEOPLE!r}: so bounds call what people say")
        return self


class Decision(Section):
    """The rule that turns scores into deploy, iterate, abort or not enough data."""

    deploy: dict[str, str] = {}
    """Metric → bound that must be shown to hold: `answers.exact: '>= 0.98'`, `latency_mean: '< 12 s'`, `peak_memory: '<= 10 GB'`; or a
    comparison: `'better than baseline'`, `'better than baseline by 5 %'`, `'not worse than base by 2 %'` (`base`: the untuned model)."""
    abort: dict[str, str] = {}
    """Metric → bound, `'not better than baseline'` among them; abort when all of them are shown to hold."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Of intervals and tests."""

    @model_validator(mode="after")
    def _bounds_can_be_read(self) -> Self:
        for metric, bound in (*self.deploy.items(), *self.abort.items()):
            compared = COMPARISON.fullmatch(bound)
            if not BOUND.fullmatch(bound) and not compared:
                raise ValueError(f"bound {bound!r} of {metric}: write {EXAMPLES}")
            if compared and compared["claim"] == "not worse" and not float(compared["value"] or 0):
                raise ValueError(f"bound {bound!r} of {metric}: say how much worse would matter, as in 'not worse than baseline by 2 %'")
        for metric, bound in self.deploy.items():
            if bound.strip().startswith("not better"):
                raise ValueError(f"bound {bound!r} of {metric}: to deploy what is not better makes no sense; it belongs in `abort`")
        for metric, bound in self.abort.items():
            if bound.strip().startswith(("better", "not worse")):
                raise ValueError(f"bound {bound!r} of {metric}: to abort what is better makes no sense; write 'not better than baseline'")
        return self

    @property
    def compares_times(self) -> bool:
        """Whether a bound compares the times of single answers."""
        bounds = (*self.deploy.items(), *self.abort.items())
        return any(
            COMPARISON.fullmatch(bound) and metric.startswith(("latency_", "first_token_", "per_token_")) for metric, bound in bounds
        )

    @property
    def bounds_people(self) -> bool:
        """Whether a bound is about what people say."""
        return any(metric.startswith(f"{PEOPLE}.") for metric in (*self.deploy, *self.abort))

    @property
    def judged(self) -> frozenset[str]:
        """Tasks of which a bound says how often the judge has to prefer the tuned model's answer."""
        bounded = (metric.rpartition(".") for metric in (*self.deploy, *self.abort))
        return frozenset(task for task, _, metric in bounded if metric == JUDGED)

    def compares_with(self, other: Literal["baseline", "base"]) -> bool:
        """Whether a bound speaks of it; a rule without deploy bounds compares every task with the baseline."""
        bounds = (*self.deploy.values(), *self.abort.values())
        named = any(found["other"] == other for bound in bounds if (found := COMPARISON.fullmatch(bound)))
        return named or (other == "baseline" and not self.deploy)


class Review(Section):
    """What people are asked by `luthier review`: which of two answers is better, not knowing whose they are."""

    rows: Annotated[int, Field(gt=0)] = 50
    """Rows that are drawn, by group, from those that base and tuned model answered differently."""
    rubric: dict[str, str] = {}
    """Criterion → what to look at, in words: `{helpful: 'Could a beginner act on it?'}`. By each of them each answer is scored, 1 (bad) …
    5 (good)."""
    required: Annotated[int, Field(ge=0)] = 0
    """Rows that must have been rated before `decide` says deploy; 0: none. `decision.deploy` may bound what is said, too:
    `review.preferred: '> 0.5'` (share of rows on which the tuned model is preferred, a tie counting half), `review.CRITERION: '>= 0.75'`
    (the tuned model's mean score, 1 … 5 as 0 … 1)."""

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if wrong := next((name for name in self.rubric if not CRITERION.fullmatch(name) or name == PREFERRED), ""):
            raise ValueError(f"criterion {wrong!r}: a name is letters, digits, - and _, and not {PREFERRED!r}")
        if self.required > self.rows:
            raise ValueError(f"`required` is {self.required}, and only {self.rows} `rows` are drawn")
        return self

    @property
    def metrics(self) -> tuple[str, ...]:
        """What can be measured of it, by the names that bounds use."""
        return tuple(f"{PEOPLE}.{name}" for name in (PREFERRED, *self.rubric))
