"""What the adapter misses, what PEFT cannot do, what the server cannot load: each mistake, and what just is none."""

from dataclasses import replace

import pytest

from luthier.plan.check import check
from tests.plan.check.cases import case, found, only

MIXTURE = ("model.base=Qwen/Qwen3-30B-A3B", "launch.gpu=H200")
ATTENTION = "lora.target_modules=[q_proj, k_proj, v_proj, o_proj]"


def test_a_rate_far_below_the_sweep_is_a_warning_and_a_little_outside_a_note() -> None:
    finding = only("learning-rate", "training.learning_rate=5e-6")
    assert finding.severity == "warn"
    assert "22 × below what did well for 0.6 G parameters (alpha 32, alpha/r 2, 16 rows a step): 1.1e-4 to 1e-3" in finding.message
    assert only("learning-rate", "training.learning_rate=2e-3").severity == "note"


def test_a_larger_alpha_wants_a_lower_rate() -> None:
    assert "learning-rate" not in found("training.learning_rate=1e-4", "lora.alpha=128", "lora.r=64")
    assert only("learning-rate", "training.learning_rate=5e-4", "lora.alpha=128", "lora.r=64").evidence["high"] == 2.5e-4


def test_full_fine_tuning_wants_a_tenth() -> None:
    assert only("learning-rate", "lora=none", "training.learning_rate=3e-4").changes[0].value == pytest.approx(3.5e-5)
    assert "learning-rate" not in found("lora=none", "training.learning_rate=3e-5")


def test_attention_alone_learns_less() -> None:
    finding = only("attention-only-targets", "lora.target_modules=[q_proj, v_proj]")
    assert finding.evidence == {"parameters": 2_293_760, "all_linear_parameters": 10_092_544}


def test_experts_that_no_target_names_are_most_of_a_mixture() -> None:
    finding = only("experts-not-adapted", *MIXTURE, ATTENTION)
    assert (finding.evidence["parameters"], finding.evidence["share"]) == (96, 0.9495)
    assert finding.message.startswith("96 fused expert weights (95 % of the model) have no adapter")


def test_adapting_the_experts_takes_dora_away_with_it() -> None:
    finding = only("experts-not-adapted", *MIXTURE, ATTENTION, "lora.use_dora=true")
    assert [change.path for change in finding.changes] == ["lora.target_parameters", "lora.use_dora"]


def test_where_no_name_of_a_module_reaches_the_experts_their_parameters_do() -> None:
    finding = found("model.base=Qwen/Qwen3.5-35B-A3B", "launch.gpu=H200")["experts-not-adapted"]
    assert [(change.path, change.value) for change in finding.changes] == [("lora.target_parameters", "experts")]


def test_dropout_reaches_experts_and_not_routers() -> None:
    finding = only("dropout-on-routers", *MIXTURE, "lora.dropout=0.05")
    assert (finding.severity, finding.evidence["routers"]) == ("note", 48)
    assert "dropout-on-routers" not in found(*MIXTURE, ATTENTION, "lora.target_parameters=experts", "lora.dropout=0.05")


def test_dora_on_experts_is_refused() -> None:
    assert only("dora-on-experts", *MIXTURE, "lora.use_dora=true").severity == "refuse"


def test_an_adapter_on_a_tied_head_is_refused() -> None:
    finding = only("head-adapter-on-tied", "lora.target_modules=[q_proj, gate_proj, lm_head]")
    assert (finding.severity, finding.changes[0].value) == ("refuse", "all-linear")


def test_vllm_loads_neither_dora_nor_a_rank_above_512() -> None:
    finding = only("adapter-not-servable", "serving.engine=vllm", "lora.use_dora=true", "lora.r=1024")
    assert [change.path for change in finding.changes] == ["lora.use_dora", "lora.r"]


def test_vllm_may_drop_what_is_on_experts() -> None:
    assert only("adapter-not-servable", *MIXTURE, "serving.engine=vllm").evidence["experts"] == 3


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("learning-rate", ["training.learning_rate=1e-3"]),
        ("learning-rate", ["training.learning_rate=1.1e-4"]),
        ("attention-only-targets", ["lora.target_modules=[q_proj, up_proj]"]),
        ("attention-only-targets", [*MIXTURE, ATTENTION]),  # experts-not-adapted says it
        ("experts-not-adapted", [*MIXTURE]),
        ("experts-not-adapted", [*MIXTURE, ATTENTION, "lora.target_parameters=experts"]),
        ("dropout-on-routers", [*MIXTURE, ATTENTION, "lora.dropout=0.05"]),
        ("dropout-on-routers", ["lora.dropout=0.05"]),
        ("dora-on-experts", ["lora.use_dora=true"]),
        ("head-adapter-on-tied", ["model.base=Qwen/Qwen2.5-7B-Instruct", "lora.target_modules=[q_proj, gate_proj, lm_head]"]),
        ("adapter-not-servable", ["serving.engine=vllm", "lora.r=512"]),
        ("adapter-not-servable", ["lora.use_dora=true"]),  # Luthier's own engine loads it
    ],
)
def test_what_just_is_no_mistake_is_not_found(code: str, changes: list[str]) -> None:
    assert code not in found(*changes)


def test_a_size_outside_of_the_sweep_is_judged_only_by_what_is_wild() -> None:
    given = case("training.learning_rate=3e-2")
    assert "learning-rate" in {finding.code for finding in check(given)}
    tiny = replace(given, shape=replace(given.shape, vocabulary=100, linears=given.shape.linears[:2]))
    assert tiny.shape.parameters < 3e8
    assert "learning-rate" not in {finding.code for finding in check(tiny)}
    wild = case("training.learning_rate=0.5")
    assert "learning-rate" in {finding.code for finding in check(replace(wild, shape=tiny.shape))}
