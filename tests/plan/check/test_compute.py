"""Number formats, the fast path, and how devices divide the model: each mistake, and what just is none."""

import pytest

from tests.plan.check.cases import World, found, gpu, host, only

HERE = "launch.gpu=here"
MIXTURE = ("model.base=Qwen/Qwen3-30B-A3B", "launch.gpu=H200")
DIVIDED = ("model.base=Qwen/Qwen3-4B", "launch.gpu=H200x4", "parallel.tensor=2")


def test_padded_rows_leave_the_fast_path() -> None:
    finding = only("fast-path-off", HERE, "data.packing=off", "model.attention=sdpa")
    assert (finding.severity, len(finding.changes)) == ("warn", 2)
    assert finding.message.endswith("because model.attention is sdpa; data.packing is off: about 4.8 × the time")


def test_dora_keeps_pefts_layers_on_a_cpu() -> None:
    assert only("fast-path-off", HERE, "lora.use_dora=true").severity == "note"


def test_a_model_that_is_not_known_is_not_fused() -> None:
    finding = found(HERE, "model.base=google/gemma-3-4b-it")["fast-path-off"]
    assert (finding.severity, finding.changes) == ("note", ())


def test_bfloat16_on_a_t4_is_emulated() -> None:
    assert only("bfloat16-emulated", "launch.gpu=T4", "model.dtype=bfloat16").changes[0].value == "float16"


def test_float16_on_a_cpu_is_refused() -> None:
    assert only("float16-on-cpu", HERE, "model.dtype=float16").severity == "refuse"


def test_an_8_bit_optimizer_saves_nothing_beside_frozen_weights() -> None:
    finding = only("optimizer-8bit-pointless", "training.optimizer=adamw_8bit")
    assert 0.7 < float(finding.evidence["saved_bytes"]) / (6 * 10_092_544) < 1.1


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_weights_that_fit_plain_need_not_be_quantised(kind: str) -> None:
    finding = only("quantised-needlessly", f"model.quantization={kind}")
    assert (finding.severity, finding.changes[0].value) == ("note", "none")


@pytest.mark.parametrize("divided", ["parallel.tensor=2", "parallel.shard=zero2"])
def test_an_optimizer_in_8_bits_is_not_divided(divided: str) -> None:
    finding = found("launch.gpu=H100x4", "parallel.data=2", divided, "training.optimizer=adamw_8bit")["optimizer-8bit-divided"]
    assert (finding.severity, [(change.path, change.value) for change in finding.changes]) == ("refuse", [("training.optimizer", "adamw")])


def test_a_paged_optimizer_without_a_gpu_is_refused() -> None:
    finding = found(HERE, "training.optimizer=paged_adamw_8bit")["paged-on-cpu"]
    assert (finding.severity, finding.changes[0].value) == ("refuse", "adamw_8bit")


def test_a_quantised_base_is_computed_the_fastest_way() -> None:
    assert "fast-path-off" not in found(HERE, "model.quantization=nf4")


def test_a_quantised_model_that_fits_one_device_need_not_be_divided() -> None:
    finding = only("quantization-unplanned", *DIVIDED, "model.quantization=nf4", "parallel.data=2", beside=("quantised-needlessly",))
    assert [(change.path, change.value) for change in finding.changes] == [
        ("parallel.tensor", 1),
        ("parallel.pipeline", 1),
        ("parallel.data", 4),
    ]


def test_more_ranks_than_devices_are_refused_here_and_rented_elsewhere() -> None:
    assert only("more-ranks-than-devices", HERE, "parallel.data=2", world=World(host=host(gpu()))).severity == "refuse"
    assert "more-ranks-than-devices" not in found(HERE, "parallel.data=16")  # a processor has room for one on each of its cores
    finding = found(HERE, "parallel.data=32")["more-ranks-than-devices"]
    assert (finding.severity, finding.message.endswith("are 32 ranks, and there are 16 cores")) == ("refuse", True)
    assert [(change.path, change.value) for change in finding.changes] == [("parallel.data", 16)]
    finding = only("more-ranks-than-devices", "launch.gpu=H100", "parallel.data=2")
    assert (finding.severity, finding.changes[0].value) == ("warn", "H100x2")


def test_a_pipeline_of_one_micro_batch_takes_turns() -> None:
    finding = only("pipeline-bubble", "launch.gpu=H100x2", "parallel.pipeline=2", "training.micro_batch_size=16")
    assert finding.evidence == {"stages": 2, "micro_batches": 1.0, "idle_share": 0.5}


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("fast-path-off", [HERE]),
        ("fast-path-off", [HERE, "lora.dropout=0.1"]),
        ("fast-path-off", ["lora.use_dora=true"]),  # on a GPU, layers are transformers' in any case
        ("bfloat16-emulated", ["launch.gpu=T4"]),
        ("bfloat16-emulated", ["launch.gpu=L4", "model.dtype=bfloat16"]),
        ("float16-on-cpu", ["launch.gpu=T4", "model.dtype=float16"]),
        ("optimizer-8bit-pointless", ["training.optimizer=adamw_8bit", "lora=none", "training.learning_rate=3e-5"]),
        ("quantised-needlessly", []),
        (
            "quantised-needlessly",
            ["model.base=Qwen/Qwen2.5-7B-Instruct", "launch.gpu=T4", "model.dtype=float16", "model.quantization=int8"],
        ),
        ("paged-on-cpu", ["training.optimizer=paged_adamw_8bit"]),
        ("paged-on-cpu", [HERE, "training.optimizer=adamw_8bit"]),
        ("optimizer-8bit-divided", ["launch.gpu=H100x2", "parallel.data=2", "training.optimizer=adamw_8bit"]),
        ("quantization-unplanned", [*DIVIDED]),
        ("more-ranks-than-devices", ["launch.gpu=H100x2", "parallel.data=2"]),
        ("pipeline-bubble", ["launch.gpu=H100x2", "parallel.pipeline=2"]),  # an `auto` micro batch fills it
    ],
)
def test_what_just_is_no_mistake_is_not_found(code: str, changes: list[str]) -> None:
    assert code not in found(*changes)
