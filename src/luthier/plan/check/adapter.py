"""Findings about the adapter: what it misses, what PEFT cannot do, what the serving engine cannot load."""

from collections.abc import Iterator

from luthier.core.finding import Change, Finding
from luthier.plan.adapted import adapted, adapter_parameters
from luthier.plan.advice import learning_rate_range
from luthier.plan.check.case import Case, Check
from luthier.plan.check.words import percent
from luthier.plan.families import HALVES
from luthier.plan.serving import VLLM_RANKS
from luthier.plan.shape import Linear
from luthier.recipe.presets import spelled
from luthier.recipe.schema import Lora

WILD = 10.0
"""Times the highest of the range of a size that was not swept, from which a rate is far even from a guess."""
FAR = 3.0
"""Factor from the rates that did well in the sweep, which tried rates about a factor of 3 apart."""
ATTENTION = {"attention", "linear_attention"}


def learning_rate(case: Case) -> Iterator[Finding]:
    """The learning rate is far from what did well for models of this size.

    Severity: warn from a factor of 3 outside of the range, else note; of sizes that the sweep lacks, only from 10 × above a
    guess.

    Too low, and the run ends before it has learned; too high, and it diverges. The range is that of the open sweep for plain LoRA at alpha
    32. What an update does to the model goes with alpha × rate (with rsLoRA alpha·√r × rate) and hardly depends on the rank, so the range
    is scaled by 32 / alpha; fewer rows a step want less, by the root of their number. Full fine-tuning wants about a tenth. Where answers
    are rewarded, reinforcement-rate speaks instead.

    Arithmetic: Qwen3-4B, alpha 128, 80 rows a step: 3e-4 … 1e-3 at alpha 32 and 128 rows, times 32/128, the low end times √(80/128):
    5.9e-5 … 2.5e-4. A rate of 1e-4 lies in it. 5e-6 for a 30B at alpha 32 is 20 × below 1e-4.

    What to do: take the middle of the range; or sweep three rates a factor of 3 apart for a tenth of the steps.

    Source: Tinker cookbook, `sft_sweep.md` (35 models, 548 runs: always 3e-4 costs 0.30 % on average, 1e-4 up to 6.5 %, 3e-3 mostly
    diverges); LoRA Without Regret (Thinking Machines, 2025) for rank, alpha and full fine-tuning; `luthier.plan.advice` for the scaling.
    """
    lora, rate = case.recipe.lora, case.recipe.training.learning_rate
    rates = learning_rate_range(case.shape.parameters, lora, case.steps.global_batch_size)
    if rates.low <= rate <= rates.high or (not rates.swept and rate < WILD * rates.high):
        return
    factor = rates.low / rate if rate < rates.low else rate / rates.high
    side = f"{factor:.2g} × below" if rate < rates.low else f"{factor:.2g} × above"
    form = "full fine-tuning" if lora == "none" else f"alpha {lora.alpha:g}, alpha/r {lora.alpha / lora.r:.2g}"
    yield Finding(
        code="learning-rate",
        severity="warn" if factor >= FAR else "note",
        message=f"The learning rate {spelled(rate)} is {side} what did well for {case.shape.parameters / 1e9:.2g} G parameters ({form}, "
        f"{case.steps.global_batch_size} rows a step): {spelled(rates.low)} to {spelled(rates.high)}",
        evidence={"learning_rate": rate, "low": rates.low, "best": rates.best, "high": rates.high, "source": rates.source},
        changes=(Change(path="training.learning_rate", value=rates.best, why=f"the best of the sweep, scaled to {form}"),),
    )


def attention_only_targets(case: Case) -> Iterator[Finding]:
    """Only attention has adapters, the MLP has none.

    Severity: warn.

    Two thirds of a decoder's parameters are in its MLP. Adapters on attention alone learn less, even at a rank that gives them as many
    parameters; adding attention to an adapted MLP gains little.

    Arithmetic: r 8 on q, k, v and o of Qwen2.5-7B are 5.0 M parameters; on all linear layers 20.2 M, of which 15.1 M in the MLP.

    What to do: `target_modules: all-linear`. Of a mixture of experts, see experts-not-adapted.

    Source: LoRA Without Regret (Thinking Machines, 2025); QLoRA (arXiv:2305.14314), figure 2: adapters on all linear layers are needed to
    match full fine-tuning.
    """
    lora = case.recipe.lora
    if lora == "none" or lora.target_modules == "all-linear" or any(linear.fused for linear in case.shape.linears):
        return
    covered = adapted(case.shape, lora)
    if not covered or not {linear.role for linear in covered} <= ATTENTION:
        return
    whole = lora.model_copy(update={"target_modules": "all-linear"})
    now, then = adapter_parameters(case.shape, lora), adapter_parameters(case.shape, whole)
    names = ", ".join(linear.name for linear in covered)
    yield Finding(
        code="attention-only-targets",
        severity="warn",
        message=f"Only attention has adapters ({names}): {now / 1e6:.3g} M parameters, none of them in the MLP, where most is learned",
        evidence={"parameters": now, "all_linear_parameters": then},
        changes=(Change(path="lora.target_modules", value="all-linear", why=f"{then / 1e6:.3g} M parameters at the same rank"),),
    )


def experts_not_adapted(case: Case) -> Iterator[Finding]:
    """A mixture's fused experts, most of the model, have no adapter.

    Severity: warn.

    transformers 5 keeps all experts of a layer in one three-dimensional parameter, which is no linear layer. PEFT turns the names
    gate_proj, up_proj and down_proj (and `all-linear`) into those parameters for Mixtral, Qwen3-MoE and Qwen3-Next; of other mixtures
    they reach none, and PEFT says nothing. `lora.target_parameters` reaches those of all.

    Arithmetic: Qwen3-30B-A3B has 48 × 128 experts of 3 × 2,048 × 768 numbers: 29.0 of 30.5 G parameters, 95 %.

    What to do: `target_parameters: experts`. Their adapters are large: at r 16 629 M parameters for the 30B, and 981 M by `all-linear`,
    which gives gate and up a rank of their own each. Else attention alone is trained: say so beside the result.

    Source: trap 17 (PEFT#3009, VeOmni#866, unsloth#6936); PEFT 0.21.2, `transformers_weight_conversion.py`.
    """
    lora = case.recipe.lora
    if lora == "none":
        return
    missed = [linear for linear in case.shape.linears if linear.fused and linear not in adapted(case.shape, lora)]
    if missed:
        share = sum(linear.parameters for linear in missed) / case.shape.parameters
        yield missed_experts(case.shape.mixture_layers * _num_fused(missed), share, _adapt_experts(case, lora))


def missed_experts(parameters: int, share: float, changes: tuple[Change, ...] = ()) -> Finding:
    """What plan and training say of fused experts without an adapter: their number, and their share of the model."""
    return Finding(
        code="experts-not-adapted",
        severity="warn",
        message=f"{parameters} fused expert weights ({percent(share)} of the model) have no adapter: the recipe does not reach them",
        evidence={"parameters": parameters, "share": round(share, 4)},
        changes=changes,
    )


def dropout_on_routers(case: Case) -> Iterator[Finding]:
    """The adapter's dropout does not act on routers.

    Severity: note.

    PEFT adapts a router by adding B·A to its weight, before tokens meet it. Dropout acts on what goes into A, token by token, and there is
    no such input. Fused experts are adapted in the same way by PEFT, which refuses dropout with them; Luthier computes experts itself,
    expert by expert, and drops what enters each one's A.

    Arithmetic: (W + s·B·A)·x can be computed from W + s·B·A; W·x + s·B·A·drop(x) cannot. A router's adapter is small: r 16 on the 48
    routers of Qwen3-30B-A3B are 1.7 of 997 M.

    What to do: nothing; or name `target_modules` without the router.

    Source: trap 18 (axolotl's documentation, ms-swift#9589); PEFT 0.21.2, `lora.ParamWrapper`: "does not work with lora_dropout != 0".
    """
    lora = case.recipe.lora
    if lora == "none" or not lora.dropout:
        return
    routers = [linear.name for linear in adapted(case.shape, lora) if linear.role == "router"]
    if routers:
        yield Finding(
            code="dropout-on-routers",
            severity="note",
            message=f"Dropout {lora.dropout:g} does not act on routers ({', '.join(routers)}): they have no input of their own to drop",
            evidence={"dropout": lora.dropout, "routers": sum(item.count for item in case.shape.linears if item.role == "router")},
        )


def dora_on_experts(case: Case) -> Iterator[Finding]:
    """The adapter is DoRA, and covers fused experts or routers, for which PEFT has none.

    Severity: refuse.

    DoRA gives every row of a weight a length of its own. PEFT adapts a fused parameter by adding B·A to the weight, and has no lengths
    for it.

    Arithmetic: none; it is a limit of the library.

    What to do: `use_dora: false`. Tuned, plain LoRA comes within 1 to 2 % of its variants.

    Source: PEFT 0.21.2, `lora.ParamWrapper`: "does not work with use_dora=True"; arXiv:2602.04998 on the variants.
    """
    lora = case.recipe.lora
    if lora == "none" or not lora.use_dora or not (names := _as_parameters(case, lora)):
        return
    yield Finding(
        code="dora-on-experts",
        severity="refuse",
        message=f"PEFT has no DoRA for adapters on fused experts and routers ({', '.join(names)})",
        evidence={"weights": len(names)},
        changes=(Change(path="lora.use_dora", value=False, why="plain LoRA, tuned, is within 1 to 2 % of it"),),
    )


def head_adapter_on_tied(case: Case) -> Iterator[Finding]:
    """An adapter is on the head or the embedding of a model in which both are one matrix.

    Severity: refuse.

    Merged, the update of one changes the other; saved apart, a server puts it on one and leaves the other. In neither case does the model
    that was trained come back.

    Arithmetic: logits are E·h and inputs E's rows; E + B·A for the head is E + B·A for the inputs, too, once merged.

    What to do: leave the head out (`all-linear` does).

    Source: trap 15 (PEFT#2018, unsloth#9331).
    """
    lora = case.recipe.lora
    if lora == "none" or not case.shape.tied or lora.target_modules == "all-linear":
        return
    tied = [linear.name for linear in adapted(case.shape, lora) if linear.role in ("head", "embedding")]
    if not tied:
        return
    yield Finding(
        code="head-adapter-on-tied",
        severity="refuse",
        message=f"{' and '.join(tied)} cannot have an adapter: head and embedding of this model are one matrix; merged, it would be lost",
        evidence={"target_modules": ", ".join(lora.target_modules)},
        changes=(Change(path="lora.target_modules", value="all-linear", why="every linear layer but the head"),),
    )


def adapter_not_servable(case: Case) -> Iterator[Finding]:
    """The engine that is to serve the adapter cannot load it, or does not apply all of it.

    Severity: warn; only where `serving.engine` is vllm.

    vLLM refuses DoRA and adapters with saved modules, and ranks above 512 (its max_lora_rank is one of 1, 8, 16, 32, 64, 128, 256, 320,
    512; a rank in between is rounded up). Adapters on experts are loaded by some versions for some models, and by others dropped or
    misread without a word.

    Arithmetic: one report measured 0.018 instead of 0.68 on its task with the same expert adapter.

    What to do: plain LoRA of rank 512 at most on linear layers; or serve the merged model (`luthier export --to merged`), and compare
    what is served with what was trained (`luthier verify`).

    Source: vLLM `lora/peft_helper.py` ("vLLM does not yet support DoRA") and `config/lora.py` (0.27, 0.32); traps 19 and 24 (vllm#41384,
    vllm#52198, vllm#41754).
    """
    lora = case.recipe.lora
    if lora == "none" or case.recipe.serving.engine != "vllm":
        return
    reasons, changes = [], []
    if lora.use_dora:
        reasons.append("it is DoRA, which vLLM refuses")
        changes.append(Change(path="lora.use_dora", value=False, why="vLLM loads plain LoRA"))
    if lora.r > VLLM_RANKS[-1]:
        reasons.append(f"its rank {lora.r} is above {VLLM_RANKS[-1]}")
        changes.append(Change(path="lora.r", value=VLLM_RANKS[-1], why="vLLM's largest"))
    if experts := [linear.name for linear in adapted(case.shape, lora) if linear.fused]:
        reasons.append(f"it is on fused experts ({', '.join(experts)}), which versions of vLLM drop or misread")
        changes.append(Change(path="serving.engine", value="embedded", why="Luthier's own applies all of it"))
    if reasons:
        yield Finding(
            code="adapter-not-servable",
            severity="warn",
            message=f"vLLM may not serve this adapter as it was trained: {'; '.join(reasons)}",
            evidence={"engine": "vllm", "r": lora.r, "use_dora": lora.use_dora, "experts": len(experts)},
            changes=tuple(changes),
        )


CHECKS: tuple[Check, ...] = (
    learning_rate,
    attention_only_targets,
    experts_not_adapted,
    dropout_on_routers,
    dora_on_experts,
    head_adapter_on_tied,
    adapter_not_servable,
)


def _as_parameters(case: Case, lora: Lora) -> list[str]:
    """Names of what PEFT adapts as a parameter, not as a layer."""
    return [linear.name for linear in adapted(case.shape, lora) if linear.fused or linear.role == "router"]


def _num_fused(missed: list[Linear]) -> int:
    """Parameters of a layer that these are in: two halves are one."""
    return len({"halves" if linear.name in HALVES else linear.name for linear in missed})


def _adapt_experts(case: Case, lora: Lora) -> tuple[Change, ...]:
    """What puts adapters on the experts."""
    whole = lora.model_copy(update={"target_parameters": "experts"})
    now, then = (adapter_parameters(case.shape, one) / 1e6 for one in (lora, whole))
    why = f"{then:,.0f} M parameters instead of {now:,.0f} M"
    changes = [Change(path="lora.target_parameters", value="experts", why=why)]
    if lora.use_dora:
        changes.append(Change(path="lora.use_dora", value=False, why="PEFT has no DoRA on experts"))
    return tuple(changes)
