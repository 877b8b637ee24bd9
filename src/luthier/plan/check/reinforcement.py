"""Findings about rewarded answers: the rate, how many prompts a step asks, how often it learns from the same answers, their room."""

from collections.abc import Iterator

from luthier.core.finding import Change, Finding
from luthier.plan.advice import learning_rate_range
from luthier.plan.check.case import Case, Check
from luthier.plan.check.words import count
from luthier.recipe.presets import spelled

SUPERVISED, USUAL = 3.0, 10.0
"""Of the best rate for learning from rows: from a third of it on a rate is one for rows; a tenth is usual."""
FEWEST_PROMPTS = 8
MOST_UPDATES = 4


def reinforcement_rate(case: Case) -> Iterator[Finding]:
    """The learning rate is one for supervised training, and answers are rewarded.

    Severity: warn where it is the best one for rows or more, else note. Of sizes that no sweep had nothing is said.

    A row says at each token what is right; a reward says of a whole answer that it was better than others, which is mostly noise. Steps as
    large as for rows follow that noise, and what is drawn next comes of the model that they leave. Told is a third of the best rate for
    learning from rows, and more.

    Arithmetic: for an 8B at alpha 32 and 64 rows a step the best rate for rows is 2.1e-4; the recipe's default of 3e-4 is above it, 4e-5 a
    fifth.

    What to do: a tenth, and look at `reward` and `kl`; if nothing moves in fifty steps, three times that.

    Source: Tinker cookbook, `skills/research/references/hyperparams.md`: 4e-5 for GRPO on a 9B of LoRA rank 32, 1e-5 for several turns,
    where its formula gives 4.7e-4 for rows; "RL LR should be lower than SFT", for large updates destabilise the policy.
    """
    rate = case.recipe.training.learning_rate
    rates = learning_rate_range(case.shape.parameters, case.recipe.lora, case.steps.global_batch_size)
    if not rates.swept or rate < rates.best / SUPERVISED:
        return
    usual = float(f"{rates.best / USUAL:.1g}")
    yield Finding(
        code="reinforcement-rate",
        severity="warn" if rate >= rates.best else "note",
        message=f"The learning rate {spelled(rate)} is one for learning from rows (best {spelled(rates.best)}); rewarded answers want "
        "about a tenth of it",
        evidence={"learning_rate": rate, "best_for_rows": rates.best, "source": rates.source},
        changes=(Change(path="training.learning_rate", value=usual, why="a tenth of the best for rows"),),
    )


def few_prompts(case: Case) -> Iterator[Finding]:
    """A step asks fewer than 8 prompts.

    Severity: warn.

    `training.global_batch_size` counts answers, and a group of them is one prompt. Prompts whose answers are rewarded alike tell nothing,
    and those that are left differ in what they teach: with few of them many steps learn from one prompt, or from none.

    Arithmetic: the default of 16 answers in groups of 8 is 2 prompts; where half of the groups tell nothing, a quarter of the steps have
    no gradient at all. With 8 it is 0.4 %.

    What to do: 8 prompts a step or more, times the size of a group. It costs time, and no memory: micro batches stay as they are.

    Source: published runs ask 16 (DeepSeekMath, arXiv:2402.03300), 128 (Tinker cookbook), 512 prompts (DAPO, arXiv:2503.14476) a step.
    """
    rl, batch = case.recipe.rl, case.steps.global_batch_size
    if rl == "none" or batch // rl.group_size >= FEWEST_PROMPTS:
        return
    prompts = batch // rl.group_size
    yield Finding(
        code="few-prompts",
        severity="warn",
        message=f"{batch} answers a step in groups of {rl.group_size} are {count(prompts, 'prompt')}: where half of the groups tell "
        f"nothing, {0.5**prompts:.0%} of the steps learn nothing",
        evidence={"prompts": prompts, "group_size": rl.group_size, "global_batch_size": batch, "fewest": FEWEST_PROMPTS},
        changes=(Change(path="training.global_batch_size", value=FEWEST_PROMPTS * rl.group_size, why=f"{FEWEST_PROMPTS} prompts"),),
    )


def answers_reused(case: Case) -> Iterator[Finding]:
    """The model is updated more than 4 times by the same answers, and nothing holds it to where it began.

    Severity: note.

    With the second update the answers are those of another model; the ratio corrects for that, and what is clipped no longer learns. A
    clip only stops tokens that have gone too far already. Divergence (`rl.kl`) pulls them back.

    Arithmetic: at a clip of 0.2 a token that each update makes 6 % likelier learns nothing from the fifth on: 1.06³ = 1.19, 1.06⁴ = 1.26.

    What to do: fewer updates, up to 4, or a small `rl.kl`. `clipped` and `drift` in metrics.jsonl show whether more are borne.

    Source: PPO's 3 to 15 epochs were with a value function and rewards at each step (arXiv:1707.06347); GRPO takes one (arXiv:2402.03300).
    """
    rl = case.recipe.rl
    if rl == "none" or rl.kl or rl.updates <= MOST_UPDATES:
        return
    yield Finding(
        code="answers-reused",
        severity="note",
        message=f"The same answers update the model {rl.updates} times, and nothing holds it to where it began (rl.kl is 0)",
        evidence={"updates": rl.updates, "most": MOST_UPDATES, "kl": rl.kl},
        changes=(Change(path="rl.updates", value=MOST_UPDATES, why="new answers come sooner"),),
    )


def answers_too_long(case: Case) -> Iterator[Finding]:
    """The longest prompt and an answer of `rl.max_new_tokens` are more than the model has positions.

    Severity: warn.

    Positions beyond those that a model was trained with mean nothing to it: it writes, and badly, and such answers are what is learned
    from. A server refuses the request.

    Arithmetic: prompts up to 700 tokens and 4,096 for an answer are 4,796; a model of 4,096 positions has 3,396 for an answer.

    What to do: shorter answers, or shorter prompts (`data.max_length`).

    Source: `max_position_embeddings` of the model's config.json.
    """
    rl, positions = case.recipe.rl, case.shape.max_positions
    longest = max((extent.longest for extent in (*case.survey.heaviest, *(each for step in case.survey.steps for each in step))), default=0)
    if rl == "none" or case.data == "stated" or longest <= positions:
        return
    room = positions - (longest - rl.max_new_tokens)
    shorter = (Change(path="rl.max_new_tokens", value=room, why="what the longest prompt leaves"),) if room > 0 else ()
    yield Finding(
        code="answers-too-long",
        severity="warn",
        message=f"The longest prompt and {rl.max_new_tokens:,} tokens of an answer are {longest:,}; the model has {positions:,} positions",
        evidence={"longest": longest, "positions": positions, "max_new_tokens": rl.max_new_tokens},
        changes=shorter,
    )


CHECKS: tuple[Check, ...] = (reinforcement_rate, few_prompts, answers_reused, answers_too_long)
