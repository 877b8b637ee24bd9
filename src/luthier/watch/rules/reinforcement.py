"""Rules that look at rewarded answers: what tells nothing, what is not learned from, what is paid for, and who computes otherwise."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.core.finding import Change, Finding
from luthier.core.words import percent
from luthier.recipe.rl import Rl
from luthier.watch.rollouts import Answer
from luthier.watch.rules.case import Case, Rule
from luthier.watch.rules.curves import Floats, blocks
from luthier.watch.series import Rewarded

NEWEST, ENOUGH = 20, 10
"""Steps that a share is of, and the fewest of them."""
MOSTLY_SILENT = 0.75
MANY_CUT = 0.2
SOME_FAILED, MANY_FAILED = 0.01, 0.05
DRIFT, DRIFT_FLOAT32, ENOUGH_DRIFTS = 0.05, 1e-3, 3
"""Nats a token: with a rounding to 8 bits in the sampler or the model, and without one."""
COLLAPSED, LASTING, ROOM = 0.1, 20, 0.05
"""Of the entropy at the start; for so many steps; and what must be left to gain, of all that lies between the least and the best reward."""
GROWN, SIGMAS, GAIN_SIGMAS = 1.5, 5.0, 3.0
BLOCKS = 4
CARRIED, SURE_SLOPE = 0.5, 4.0
"""Of the gain, what longer answers alone bring; and the slope over its standard error."""


def no_signal(case: Case) -> Iterator[Finding]:
    """Most groups tell nothing: all answers to a prompt are rewarded alike.

    Severity: warn.

    What is learned from an answer is how much better it was than its group. Where all are right, or all wrong, that is nothing, and the
    group was drawn in vain. Told is, from ten steps on: three quarters of the groups of the newest 20 steps. Which side it is, rollouts of
    the first four and the newest four steps say: groups that all got the most that any answer got are too easy, those with the least too
    hard.

    Arithmetic: n answers of which each is right with probability p are alike with pⁿ + (1 - p)ⁿ: of 8 at p = 0.5 in 0.8 %, at 0.9 in 43 %,
    at 0.965 in 75 %. A step that learns from a quarter of its answers has a gradient twice as noisy, for four times the drawing.

    What to do: too hard: rows that the model sometimes gets right; a reward with parts, which tells a nearly right answer from a wrong
    one; supervised training first. Too easy: harder rows; or it has learned what there is, and the run may end. Either way, larger groups:
    of 16 answers at p = 0.9 19 % are alike.

    Source: DAPO (arXiv:2503.14476), 3.2, which draws again until every group tells something; GRPO (arXiv:2402.03300).
    """
    rl, share = case.recipe.rl, _share(case, "silent")
    if rl == "none" or share < MOSTLY_SILENT:
        return
    alike = _alike(case.answers)
    hard = alike.wrong >= alike.right
    seen = f": of {alike.groups} that were looked at {alike.right} are all right, {alike.wrong} all wrong" if alike.groups else ""
    yield Finding(
        code="no-signal",
        severity="warn",
        message=f"{percent(share)} of the groups tell nothing, since their answers are rewarded alike{seen}",
        evidence={"share": round(share, 3), "groups": alike.groups, "all_right": alike.right, "all_wrong": alike.wrong},
        changes=tuple(_more_various(case, rl)),
        fix="rows that the model sometimes gets right, a reward with parts, or supervised training first"
        if hard
        else "harder rows; or it has learned what there is to learn here",
    )


def answers_cut(case: Case) -> Iterator[Finding]:
    """Many answers have no room to end: they are rewarded, and not learned from.

    Severity: warn.

    An answer that is cut at `rl.max_new_tokens` has not said what it would have, so that its reward is no measure of it. It counts for its
    group's mean, and no gradient comes of it. Told is, from ten steps on: a fifth of the answers of the newest 20 steps. The longest are
    lost, and so a model that should think longer is shown only how short answers end.

    Arithmetic: of 64 answers 13, each as long as may be: where the others take 60 of 256 tokens, they are half of all that is drawn.

    What to do: twice the room, if memory and time allow; a reward `length`, which falls from half of the room on, so that answers learn to
    end; look at some in rollouts/, which may go round in a circle.

    Source: DAPO (arXiv:2503.14476), 3.4: rewards of cut answers are noise, and leaving them out makes training stable.
    """
    rl, share = case.recipe.rl, _share(case, "cut")
    if rl == "none" or share < MANY_CUT:
        return
    yield Finding(
        code="answers-cut",
        severity="warn",
        message=f"{percent(share)} of the answers are cut at {rl.max_new_tokens:,} tokens: they are rewarded, and not learned from",
        evidence={"share": round(share, 3), "max_new_tokens": rl.max_new_tokens},
        changes=(Change(path="rl.max_new_tokens", value=2 * rl.max_new_tokens, why="room to end, for more memory and time"),),
        fix="" if "length" in rl.rewards else "a reward `length` teaches answers to end in time: rl.rewards.length=0.2",
    )


def rewards_failed(case: Case) -> Iterator[Finding]:
    """Some answers could not be rewarded: a reward raises, hangs, or gives no number.

    Severity: note from 1 % of the answers of the newest 20 steps on, warn from 5 %.

    Such an answer is not learned from; what is left of its group is compared without it. If it is always the same kind of answer that
    fails, the model never learns that it is bad.

    Arithmetic: 1 % of 20 steps of 64 answers are 13; a group of 8 without two of them is compared with a mean that is 15 % less certain.

    What to do: the message says what failed most. A reward gives a number for every answer, however wrong: 0, not an exception.

    Source: docs/guide/rl.md, Rewards.
    """
    share = _share(case, "failed")
    if share < SOME_FAILED:
        return
    why = Counter(answer.failure for answer in case.answers if answer.failure).most_common(1)
    said = f": {why[0][0]}" if why else ""
    yield Finding(
        code="rewards-failed",
        severity="warn" if share >= MANY_FAILED else "note",
        message=f"{percent(share)} of the answers could not be rewarded, and are not learned from{said}",
        evidence={"share": round(share, 4), "most": why[0][0] if why else ""},
        fix="let the reward give a number for every answer; rollouts/ has each that failed, with its reason",
    )


def sampler_drift(case: Case) -> Iterator[Finding]:
    """Who draws the answers computes otherwise than who learns from them.

    Severity: warn.

    `drift` is the mean of |log ρ| over a step's tokens before anything was learned from them: how far apart sampler and trainer find them
    probable, which are to be the same model. Told is, from three steps on, its median over the newest 20: 0.05 nats, and 0.001 where the
    model that is trained writes its own answers in float32.

    Arithmetic: bfloat16 keeps 8 bits. The quickstart's demo base draws and learns with 0.002 to 0.017 apart in 40 steps, in float32 with
    1.3·10⁻⁶ to 1.8·10⁻⁶; a server of Luthier's in another process draws with 0.002 to 0.008 (2026-11-29, 2 cores of a Xeon, `luthier rl
    recipes/quickstart-rl.yaml model.dtype=…`). 0.05 is three times the most of these, and a quarter of what GRPO's clip lets through.
    GSPO's clip of 0.0003 is of an answer's mean: 0.005 a token, up and down by chance, is 0.0014 over 12 tokens, and 0.0003 over 300, so
    that short answers are clipped by rounding alone.

    What to do: of a server, see that it has this run's base, adapter, chat template, and no other quantisation. Of the model itself:
    float32 shows whether it is rounding; `luthier check R` compares its ways of computing.

    Source: the definition of the ratio (GRPO, arXiv:2402.03300); measured as above (docs/notes/log.md).
    """
    rl = case.recipe.rl
    drifts = _finite(case.series.train["drift"])[-NEWEST:]
    if rl == "none" or len(drifts) < ENOUGH_DRIFTS:
        return
    whole = _dtype(case) == "float32" and not rl.by_server
    drift, most = float(np.median(drifts)), DRIFT_FLOAT32 if whole else DRIFT
    if drift < most:
        return
    precision = Change(path="model.dtype", value="float32", why="shows whether it is the precision")
    yield Finding(
        code="sampler-drift",
        severity="warn",
        message=f"Who draws the answers finds their tokens otherwise probable than who learns from them: by {drift:.2g} nats a token, "
        f"before anything is learned; rounding makes less than {most:g}",
        evidence={"drift": float(f"{drift:.3g}"), "most": most, "steps": len(drifts)},
        changes=() if rl.by_server or whole else (precision,),
        fix=f"see that {rl.sampler} has this run's base, adapter and chat template, and no other quantisation"
        if rl.by_server
        else "luthier check R",
    )


def entropy_collapse(case: Case) -> Iterator[Finding]:
    """The answers have become one answer, while the reward no longer rises.

    Severity: warn.

    Entropy is what an answer might have been otherwise, and so what can still be learned. In up to twenty blocks of steps, the newest, of
    20 steps in all or more, lie below a tenth of the first; since then the reward has not risen (a straight line through its steps, by two
    standard errors), and it is not within 5 % of the best that any answer got: who has learned everything may be sure.

    Arithmetic: reward follows entropy H as b - a·exp(H), so that of what could be gained from H₀ on (exp(H) - 1) / (exp(H₀) - 1) is left:
    from 0.6 to 0.06 nats a token, 0.062 / 0.822 = 7.5 %; always less than H / H₀, a tenth.

    What to do: a third of the rate, from the best checkpoint on; a little divergence from the beginning (`rl.kl`); one update for each
    drawing; a temperature of 1.

    Source: "The Entropy Mechanism of Reinforcement Learning" (arXiv:2505.22617), R = -a·exp(H) + b; DAPO (arXiv:2503.14476), 3.1.
    """
    train, rl = case.series.train, case.recipe.rl
    there = np.isfinite(train["entropy"]) & np.isfinite(train["reward"])
    steps, entropy, reward = (train[column][there] for column in ("step", "entropy", "reward"))
    if rl == "none" or not len(steps):
        return
    found = blocks(steps, entropy)
    low = 1 + int(np.flatnonzero(found.y > COLLAPSED * found.y[0])[-1]) if found.y[0] > 0 else len(found.y)
    since = steps >= found.x[low - 1 : low + 1].mean() if low < len(found.y) else np.zeros(len(steps), bool)
    if since.sum() < LASTING or _rises(steps[since], reward[since]):
        return
    rewards = [answer.reward for answer in case.answers if answer.reward is not None] or reward.tolist()
    now, best, least = float(reward[since].mean()), max(rewards), min(rewards)
    if now >= best - ROOM * (best - least):
        return
    left = math.expm1(found.y[-1]) / math.expm1(found.y[0])
    yield Finding(
        code="entropy-collapse",
        severity="warn",
        message=f"The entropy of answers has fallen from {found.y[0]:.2g} to {found.y[-1]:.2g} nats a token, and since step "
        f"{int(steps[since][0]):,} the reward stands at {now:.3g}",
        evidence={
            "first": round(float(found.y[0]), 4),
            "now": round(float(found.y[-1]), 4),
            "reward": round(now, 4),
            "left": round(left, 3),
        },
        changes=tuple(_livelier(case, rl)),
    )


def reward_by_length(case: Case) -> Iterator[Finding]:
    """The reward rises because answers become longer, and longer ones are paid for.

    Severity: warn.

    Three things together. In blocks of steps, the newest answers are 1.5 × as long as the first, by five standard errors, and the reward
    has risen, by three. And within the groups of the first four and the newest four steps, whose answers differ in nothing but how they
    were drawn, longer ones got more: that slope (four standard errors from 0), times the tokens that answers have grown by, is half of the
    reward's gain or more. It may be right that longer is better, as in reasoning; then this says so.

    Arithmetic: 0.2 for 100 tokens more within groups; from 150 to 400 tokens that is 0.5 of a gain of 0.6.

    What to do: read some answers of the newest steps (rollouts/). If what is longer is no better: a reward `length`, a reward that filling
    in cannot raise, or a little divergence from the beginning (`rl.kl`).

    Source: Dr. GRPO (arXiv:2503.20783), 3.1, on answers that grow without being better; DAPO (arXiv:2503.14476), 3.4.
    """
    train, rl = case.series.train, case.recipe.rl
    there = np.isfinite(train["answer_tokens"]) & np.isfinite(train["reward"])
    if rl == "none" or not there.any():
        return
    tokens, rewards = blocks(train["step"][there], train["answer_tokens"][there]), blocks(train["step"][there], train["reward"][there])
    if len(tokens.y) < BLOCKS:
        return
    longer, gain = float(tokens.y[-1] - tokens.y[0]), float(rewards.y[-1] - rewards.y[0])
    grown = tokens.y[-1] >= GROWN * tokens.y[0] and tokens.sigmas(0, -1) > SIGMAS
    slope = _slope(case.answers)
    if not (grown and gain > 0 and rewards.sigmas(0, -1) > GAIN_SIGMAS) or slope.value < SURE_SLOPE * slope.error:
        return
    carried = slope.value * longer / gain
    if carried < CARRIED:
        return
    yield Finding(
        code="reward-by-length",
        severity="warn",
        message=f"Answers have grown from {tokens.y[0]:.0f} to {tokens.y[-1]:.0f} tokens, and length alone is paid for: within groups, "
        f"{100 * slope.value:.2g} for 100 tokens, which is {percent(min(1.0, carried))} of what the reward has gained ({gain:.3g})",
        evidence={
            "tokens_first": round(float(tokens.y[0]), 1),
            "tokens_now": round(float(tokens.y[-1]), 1),
            "gain": round(gain, 4),
            "for_100_tokens": round(100 * slope.value, 4),
            "carried": round(carried, 3),
        },
        changes=tuple(_nearer(case, rl)),
        fix="read some of rollouts/; if longer is not better, a reward `length` (rl.rewards.length=0.2) or one that length cannot raise",
    )


RULES: tuple[Rule, ...] = (no_signal, answers_cut, rewards_failed, sampler_drift, entropy_collapse, reward_by_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alike:
    """Groups whose answers were rewarded alike, and how many of them with the most and with the least that any answer got."""

    groups: int
    right: int
    wrong: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slope:
    """Reward for one token more, and its standard error."""

    value: float
    error: float


def _share(case: Case, column: Rewarded) -> float:
    """Of the newest steps on average; 0 where too few have told it."""
    told = _finite(case.series.train[column])[-NEWEST:]
    return float(told.mean()) if len(told) >= ENOUGH else 0.0


def _dtype(case: Case) -> object:
    """What it is computed in, `auto` as the plan resolved it."""
    resolved = {} if case.planned == "unknown" else {each.path: each.value for each in case.planned.resolved}
    return resolved.get("model.dtype", case.recipe.model.dtype)


def _finite(values: Floats) -> Floats:
    return values[np.isfinite(values)]


def _groups(answers: Sequence[Answer]) -> list[list[tuple[int, float]]]:
    """Tokens and reward of the answers of each group, of those that were rewarded."""
    groups = defaultdict[tuple[int, str], list[tuple[int, float]]](list)
    for answer in answers:
        if answer.reward is not None:
            groups[answer.step, answer.origin].append((answer.tokens, answer.reward))
    return [group for group in groups.values() if len(group) > 1]


def _alike(answers: Sequence[Answer]) -> _Alike:
    groups = [{reward for _, reward in group} for group in _groups(answers)]
    given = set[float]().union(*groups)
    alike = [min(group) for group in groups if len(group) == 1]
    wrong = sum(reward == min(given) for reward in alike)
    right = sum(reward == max(given) for reward in alike) if len(given) > 1 else 0  # all of them alike: nobody knows that more is possible
    return _Alike(groups=len(alike), right=right, wrong=wrong)


def _slope(answers: Sequence[Answer]) -> _Slope:
    """Of reward over tokens within groups, by least squares; of an error beyond all bounds where nothing differs."""
    groups = [np.array(group, float) for group in _groups(answers)]
    within = np.concatenate([group - group.mean(0) for group in groups]) if groups else np.empty((0, 2))
    tokens, rewards = within.T
    spread, freedom = float(tokens @ tokens), len(within) - len(groups) - 1
    if not spread or freedom < 1:
        return _Slope(value=0.0, error=math.inf)
    value = float(tokens @ rewards) / spread
    return _Slope(value=value, error=math.sqrt(float(((rewards - value * tokens) ** 2).sum()) / freedom / spread))


def _rises(steps: Floats, reward: Floats) -> bool:
    """Whether a straight line through it rises, by two standard errors."""
    x = steps - steps.mean()
    slope = float(x @ reward) / float(x @ x)
    error = math.sqrt(float(((reward - reward.mean() - slope * x) ** 2).sum()) / (len(x) - 2) / float(x @ x))
    return slope > 2 * error


def _more_various(case: Case, rl: Rl) -> Iterator[Change]:
    if rl.temperature < 1:
        yield Change(path="rl.temperature", value=1.0, why="answers that differ are rewarded differently")
    if case.recipe.training.global_batch_size % (2 * rl.group_size) == 0:
        yield Change(path="rl.group_size", value=2 * rl.group_size, why="larger groups are alike less often; half as many prompts a step")


def _livelier(case: Case, rl: Rl) -> Iterator[Change]:
    yield case.lower_rate("entropy falls with the size of steps")
    yield from _nearer(case, rl)
    if rl.updates > 1:
        yield Change(path="rl.updates", value=1, why="what was likely is not made likelier again and again")
    if rl.temperature < 1:
        yield Change(path="rl.temperature", value=1.0, why="answers that are drawn differ more")


def _nearer(case: Case, rl: Rl) -> Iterator[Change]:
    if not rl.kl and case.recipe.lora != "none":
        yield Change(path="rl.kl", value=0.01, why="holds the answers near those that it began with")
