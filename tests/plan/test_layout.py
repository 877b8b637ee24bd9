"""What `auto` becomes: the fastest that fits, and why the rest was rejected."""

from dataclasses import replace

import pytest

from luthier.core.errors import PlanRefused
from luthier.core.hardware import Hardware
from luthier.plan.hardware import device_of
from luthier.plan.layout import HEADROOM, Place, Task, arrived, choose, layout_of, place_of, remedies, stands_here
from luthier.plan.setup import Sizes
from luthier.plan.shape import known_config, shape_of
from luthier.plan.stated import StatedWorkload
from luthier.recipe.schema import Recipe
from luthier.runs.workload import MicroBatchSize
from tests.plan.check.cases import gpu

PROCESSOR = Hardware(processor="EPYC", cores=2, memory_bytes=24 * 2**30, bfloat16=True, gpus=())


class Shared(StatedWorkload):
    """Rows of which half the tokens are shared."""

    def shared_share(self) -> float:
        return 0.5


def task(base: str = "Qwen/Qwen3-0.6B", gpu: str = "A100-80GB", **sections: object) -> Task:
    fields = {"name": "plan", "model": {"base": base}, "data": {"sources": [{"path": "rows.jsonl"}]}, "launch": {"gpu": gpu}}
    recipe = Recipe.model_validate({**fields, **sections})
    config = known_config(base)
    assert config
    workload = StatedWorkload(rows=2000, validation_rows=200, mean=300, longest=1000)
    return Task(recipe=recipe, shape=shape_of(config), workload=workload, place=place_of(gpu, PROCESSOR))


def with_free(given: Task, free_bytes: int) -> Task:
    return replace(given, place=replace(given.place, free_bytes=free_bytes))


def told(given: Task) -> dict[str, object]:
    return {item.path: item.value for item in choose(given).resolved}


def test_what_fits_is_taken_whole() -> None:
    chosen = choose(task())
    assert chosen.setup.micro_batch == MicroBatchSize(rows=16, tokens=16000, packing="bins")
    assert not chosen.setup.checkpoint_activations
    assert chosen.rejected == ()
    assert told(task()) == {
        "model.attention": "luthier",
        "model.dtype": "bfloat16",
        "data.packing": "bins",
        "parallel.data": 1,
        "training.micro_batch_size": 16,
        "training.gradient_checkpointing": False,
    }


@pytest.mark.parametrize(("stages", "tokens"), [(2, 16 * 300 // 8), (3, 16 * 300 // 16)])
def test_a_pipeline_is_filled_by_small_micro_batches(stages: int, tokens: int) -> None:
    short = replace(
        task(gpu="A100-80GBx4", parallel={"pipeline": stages, "data": 1}),
        workload=StatedWorkload(rows=2000, validation_rows=0, mean=300, longest=300),
    )
    chosen = choose(short)
    assert chosen.setup.micro_batch.tokens == max(tokens, 300)
    assert chosen.survey.micro_batches == {2: 8, 3: 16}[stages]


def test_where_memory_is_short_the_micro_batch_goes_before_recomputing() -> None:
    large = choose(task())
    needed = {False: large.memory.peak_bytes}
    short = choose(with_free(task(), int(large.memory.peak_bytes * 0.8)))
    assert (short.setup.micro_batch.tokens, short.setup.checkpoint_activations) == (8000, False)
    assert [(item.path, item.value) for item in short.rejected] == [("training.micro_batch_size", "16000 tokens")]
    assert f"{needed[False] / 1e9:.3g}" in short.rejected[0].why
    one_row = choose(with_free(task(training={"gradient_checkpointing": False}), 1))
    assert one_row.setup.micro_batch.tokens == 1000
    shortest = choose(with_free(task(), int(one_row.memory.peak_bytes / HEADROOM * 0.99)))
    assert shortest.setup.checkpoint_activations
    assert shortest.memory.fits


def test_what_the_recipe_says_is_taken_also_where_it_does_not_fit() -> None:
    said = with_free(task(training={"micro_batch_size": 4, "gradient_checkpointing": False}), 1)
    chosen = choose(said)
    assert chosen.setup.micro_batch == MicroBatchSize(rows=4, tokens=4000, packing="bins")
    assert not chosen.memory.fits
    assert {item.why for item in chosen.resolved if item.path.startswith("training")} == {"the recipe says so"}


def test_sizes_that_were_tried_and_failed_are_not_tried_again() -> None:
    first = choose(task(training={"micro_batch_size": 4}))
    second = choose(replace(task(training={"micro_batch_size": 4}), failed=(first.setup.sizes,)))
    assert second.setup.micro_batch == MicroBatchSize(rows=4, tokens=2000, packing="bins")
    assert second.rejected[-1].why == "tried, and out of memory"
    every = [
        Sizes(micro_batch=MicroBatchSize(rows=16, tokens=tokens, packing="bins"), checkpoint_activations=on)
        for on in (False, True)
        for tokens in (16000, 8000, 4000, 2000, 1000)
    ]
    with pytest.raises(PlanRefused, match=r"(?s)of one row of 1000 tokens, was tried and is out of memory.*set model\.quantization=nf4"):
        choose(replace(task(), failed=tuple(every)))


def test_after_a_failure_only_what_needs_less_is_tried() -> None:
    tight = with_free(task(), 1)
    smallest = choose(tight)
    bytes_needed = smallest.memory.peak_bytes
    with pytest.raises(PlanRefused):
        choose(replace(tight, failed=(smallest.setup.sizes,), failed_bytes=bytes_needed))
    large = choose(task())
    following = choose(replace(task(), failed=(large.setup.sizes,), failed_bytes=large.memory.peak_bytes))
    assert following.memory.peak_bytes < large.memory.peak_bytes


def test_a_run_that_goes_on_keeps_its_sizes() -> None:
    begun = Sizes(micro_batch=MicroBatchSize(rows=3, tokens=777, packing="tree"), checkpoint_activations=True)
    chosen = choose(replace(task(), begun=begun))
    assert chosen.setup.sizes == begun
    assert {item.why for item in chosen.resolved if item.path.startswith("training")} == {"as when the run began"}


@pytest.mark.parametrize(
    ("sections", "engine"),
    [
        ({}, "fused"),
        ({"lora": "none"}, "packed"),
        ({"lora": {"use_dora": True}}, "packed"),
        ({"data": {"sources": [{"path": "rows.jsonl"}], "packing": "off"}}, "plain"),
        ({"model": {"base": "Qwen/Qwen3-0.6B", "attention": "sdpa"}}, "plain"),
        ({"model": {"base": "Qwen/Qwen3-0.6B", "quantization": "nf4"}}, "fused"),
        ({"model": {"base": "Qwen/Qwen3-0.6B", "quantization": "nf4"}, "lora": {"use_dora": True}}, "packed"),
    ],
)
def test_the_engine_on_a_processor_follows_from_the_recipe(sections: dict[str, object], engine: str) -> None:
    here = replace(task(**sections), place=Place(device=place_of("here", PROCESSOR).device, count=1, free_bytes=10**11))
    assert choose(here).setup.engine == engine
    assert choose(task(**sections)).setup.engine == ("packed" if engine == "fused" else engine)


def test_rows_are_packed_as_a_tree_where_enough_is_shared() -> None:
    given = task()
    shared = Shared(rows=2000, validation_rows=200, mean=300, longest=1000)
    assert told(replace(given, workload=shared))["data.packing"] == "tree"
    assert told(given)["data.packing"] == "bins"


def test_packs_that_cannot_be_are_refused_only_where_the_recipe_wants_them() -> None:
    model = {"base": "Qwen/Qwen3-0.6B", "attention": "sdpa"}
    assert told(task(model=model))["data.packing"] == "off"
    with pytest.raises(PlanRefused, match=r"(?s)model\.attention is sdpa.*data\.packing: off"):
        choose(task(model=model, data={"sources": [{"path": "rows.jsonl"}], "packing": "tree"}))


def test_a_gpu_without_bfloat16_computes_in_float16_and_a_processor_in_float32() -> None:
    assert told(task(gpu="T4"))["model.dtype"] == "float16"
    old = replace(task(), place=Place(device=place_of("here", replace(PROCESSOR, bfloat16=False)).device, count=1, free_bytes=10**11))
    assert told(old)["model.dtype"] == "float32"
    assert told(task(gpu="T4", model={"base": "Qwen/Qwen3-0.6B", "dtype": "bfloat16"}))["model.dtype"] == "bfloat16"


def test_the_allocator_is_the_hosts() -> None:
    for name in ("luthier", "jemalloc", "glibc"):
        here = place_of("here", replace(PROCESSOR, allocator=name))  # type: ignore[arg-type]  # a name of a kind
        assert choose(replace(task(), place=here)).setup.allocator == name


def test_replicas_are_what_the_devices_leave() -> None:
    assert told(task(gpu="H200x4"))["parallel.data"] == 4
    split = task(gpu="H200x4", parallel={"tensor": 2})
    assert told(split)["parallel.data"] == 2
    assert split.rows_per_step == 8


def test_remedies_are_changes_after_which_it_fits_the_cheapest_first() -> None:
    seven = task("Qwen/Qwen2.5-7B-Instruct", "T4", model={"base": "Qwen/Qwen2.5-7B-Instruct", "dtype": "float32"})
    assert not choose(seven).memory.fits
    changes = remedies(seven)
    assert changes
    assert len(changes) <= 3
    for change in changes:
        section, _, field = change.path.partition(".")
        recipe = seven.recipe.model_copy(update={section: getattr(seven.recipe, section).model_copy(update={field: change.value})})
        place = place_of(recipe.launch.gpu, PROCESSOR)
        assert choose(replace(seven, recipe=recipe, place=place)).memory.fits
        assert "GB" in change.why


def test_a_device_is_found_by_its_name() -> None:
    place = place_of("H200x4", PROCESSOR)
    assert (place.device, place.count) == device_of("H200x4")
    assert place.free_bytes == place.device.memory_bytes
    assert place_of("here", PROCESSOR).device.name == "EPYC"


def test_ranks_on_a_processor_divide_its_memory_and_are_at_most_its_cores() -> None:
    whole, half = place_of("here", PROCESSOR), place_of("here", PROCESSOR, 2)
    assert (half.count, half.device.memory_bytes) == (2, whole.device.memory_bytes // 2)
    assert half.free_bytes == pytest.approx(whole.free_bytes / 2, rel=0.2)  # what is free changes while tests run
    assert place_of("here", PROCESSOR, 3).count == 2  # of 2 cores
    gpus = replace(PROCESSOR, gpus=(gpu(), gpu()))
    assert place_of("here", gpus, 2) == place_of("here", gpus)


def test_devices_and_ranks_of_several_nodes_are_counted_and_divided_on_each() -> None:
    assert place_of("H100x4", PROCESSOR, nodes=2).count == 8
    two = place_of("here", PROCESSOR, 4, nodes=2)
    assert two.count == 4
    assert two.device.memory_bytes == PROCESSOR.memory_bytes // 2
    assert place_of("here", PROCESSOR, 1, nodes=2).count == 2


def test_devices_that_are_named_and_stand_here_have_the_memory_that_is_free_and_the_price_of_rented_ones() -> None:
    own = replace(PROCESSOR, gpus=(gpu(free_bytes=70 * 10**9),) * 2)
    assert [stands_here(name, own) for name in ("H100", "h100x2", "H100x4", "L4")] == [True, True, False, False]
    assert not stands_here("H100", PROCESSOR)
    place = arrived("H100x2", own)
    assert (place.count, place.free_bytes, place.device.local) == (2, 70 * 10**9, True)
    assert place.device.price_per_hour == device_of("H100")[0].price_per_hour


def test_all_ranks_know_the_layout_before_there_is_a_plan() -> None:
    for sections in ({"gpu": "H200x4"}, {"gpu": "H200x4", "parallel": {"tensor": 2}}, {"gpu": "H200", "parallel": {"data": 3}}):
        given = task(**sections)
        assert layout_of(given.recipe) == choose(given).setup.layout
    assert layout_of(task(gpu="here").recipe).devices == 1


def test_where_ranks_on_a_processor_have_too_little_memory_one_process_has_all_of_it() -> None:
    two = task(parallel={"data": 2}, training={"micro_batch_size": 1, "gradient_checkpointing": True})
    needed = choose(task(training={"micro_batch_size": 1, "gradient_checkpointing": True})).memory.peak_bytes
    tight = replace(two, place=replace(place_of("here", PROCESSOR, 2), free_bytes=int(0.6 * needed)))
    assert not choose(tight).memory.fits
    assert next((change.path, change.value) for change in remedies(tight)) == ("parallel.data", 1)
    assert not any(change.path in ("parallel.shard", "parallel.tensor", "parallel.pipeline") for change in remedies(tight))
