"""The probe: slices with the model's own widths and kinds of layers, real steps, and arithmetic that makes the whole model of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.core.hardware import this_machine
from luthier.data.survey import extents
from luthier.model.adapt import base_of
from luthier.plan.hardware import here
from luthier.plan.rate import circumstances
from luthier.plan.setup import Engine, Setup
from luthier.plan.shape import ModelShape, known_config, shape_of
from luthier.recipe.schema import Lora
from luthier.runs.workload import Extent, MicroBatchSize, Survey
from luthier.train import probe as probing
from luthier.train.probe import CannotProbe, Part, Trial, probe, random_rows, rate_of, slices_of
from luthier.train.slices import fill, sliced, text_config
from tests.model.zoo import tiny
from tests.train.workshop import ragged_rows, stored

SETUP = Setup(
    device="cpu",
    dtype="float32",
    quantization="none",
    double_quant=False,
    lora=Lora(r=4, alpha=8),
    optimizer="adamw",
    engine="fused",
    chunked_head=True,
    micro_batch=MicroBatchSize(rows=4, tokens=200, packing="bins"),
    checkpoint_activations=False,
)


def config(family: str = "qwen3", layers: int = 12, **changed: Any) -> dict[str, Any]:
    return tiny(family, num_hidden_layers=layers, **changed).config.to_dict()


def trial(folder: Path, values: dict[str, Any], setup: Setup = SETUP) -> Trial:
    rows = stored(ragged_rows(), folder)
    taken = np.arange(len(rows))
    parts = extents(rows, taken, setup.micro_batch)
    survey = Survey(steps=(parts,), heaviest=parts[:1], validation=())
    found = circumstances(here(replace(this_machine(), gpus=()))[0], 1, shape_of(values), setup, survey)
    return Trial(config=values, setup=setup, rows=rows, taken=taken, circumstances=found)


def slices(values: dict[str, Any], folder: Path) -> list[ModelShape]:
    whole, wanted = text_config(values), trial(folder, values)
    return [probing._shape(sliced(whole, layers), wanted) for layers in slices_of(whole, wanted)]


@pytest.mark.parametrize(("engine", "packing"), [("fused", "tree"), ("fused", "bins"), ("plain", "off")])
def test_a_probe_is_a_rate_under_these_circumstances(tmp_path: Path, engine: Engine, packing: Any) -> None:
    setup = replace(SETUP, engine=engine, micro_batch=replace(SETUP.micro_batch, packing=packing))
    wanted = trial(tmp_path, config(), setup)
    found = probe(wanted, seconds=0.1)
    assert found.circumstances == wanted.circumstances
    assert (found.source, found.name) == ("probe", "qwen3")
    assert 1e6 < found.flops < 1e13


def test_a_whole_model_is_trained_in_float32(tmp_path: Path) -> None:
    full = replace(SETUP, lora="none", engine="packed", chunked_head=False, dtype="bfloat16", checkpoint_activations=True)
    assert probe(trial(tmp_path, config(), full), seconds=0.1).circumstances.trained == "all"


def test_the_engine_is_the_one_that_was_found_to_work(tmp_path: Path) -> None:
    """Phi-3's layers are not among those that Luthier computes itself."""
    assert probe(trial(tmp_path, config("phi3")), seconds=0.1).circumstances.engine == "packed"


def test_two_slices_have_the_models_widths_and_fewer_layers(tmp_path: Path) -> None:
    small, large = slices(config(layers=40), tmp_path)
    assert (small.hidden, small.vocabulary, small.intermediate) == (large.hidden, large.vocabulary, large.intermediate) == (48, 96, 80)
    assert 2 == small.num_layers < large.num_layers < 40


def test_a_model_of_few_layers_is_timed_whole(tmp_path: Path) -> None:
    (only,) = slices(config(layers=4), tmp_path)
    assert only.num_layers == 4


def test_layers_of_every_kind_are_in_the_larger_slice(tmp_path: Path) -> None:
    """Gemma 3: five layers with a sliding window, then one without."""
    values = known_config("google/gemma-3-4b-it")
    assert values
    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    text = {**values["text_config"], **small, "vocab_size": 4096}
    _, large = slices({**values, "text_config": text}, tmp_path)
    assert large.sliding_layers > large.full_attention_layers > 0


def test_what_lies_between_the_slices_is_the_rest_of_the_layers_rate() -> None:
    """A second for the head and two layers, and a tenth for each further one: 12 layers take 2 seconds."""
    small, large = Part(operations=6e9, seconds=1.0), Part(operations=9e9, seconds=1.3)
    assert rate_of([small, large], 16e9) == pytest.approx(16e9 / 2.0)
    assert rate_of([large], 9e9) == pytest.approx(9e9 / 1.3)


def test_a_disturbed_clock_gives_a_rate_all_the_same() -> None:
    disturbed = Part(operations=6e9, seconds=1.4), Part(operations=9e9, seconds=1.3)
    assert 0 < rate_of(list(disturbed), 16e9) < 16e9 / 1.4


@pytest.mark.parametrize(("lora", "tokens"), [(SETUP.lora, 54), ("none", 100)])
def test_where_all_weights_are_trained_a_whole_micro_batch_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: Any, tokens: int
) -> None:
    """And for an adapter rows of so many tokens as are worth timing: 50, which the first four of 5, 30, 12, 7, 21, 9, 16 and 11 have."""
    monkeypatch.setattr(probing, "SECONDS", 0.0)
    monkeypatch.setattr(probing, "FEWEST_TOKENS", 50)
    setup = replace(SETUP, lora=lora, engine="packed", micro_batch=replace(SETUP.micro_batch, tokens=100))
    wanted = trial(tmp_path, config(), setup)
    taken = probing._some_rows(shape_of(wanted.config), wanted)
    assert int(wanted.rows.lengths[taken].sum()) == tokens


def test_layers_that_were_left_out_for_a_step_are_there_again(tmp_path: Path) -> None:
    """Otherwise the second step would be a small one, too."""
    wanted = trial(tmp_path, config("gemma2", layers=6))
    ready = probing._ready(text_config(wanted.config), replace(wanted, setup=replace(SETUP, engine="plain")))
    decoder = base_of(ready.model).get_decoder()
    layers, kinds = list(decoder.layers), list(decoder.config.layer_types)
    with probing._layers(ready.model, all_layers=False):
        assert list(decoder.layers) == [layers[0], layers[-1]]
        assert decoder.config.layer_types == [kinds[0], kinds[-1]]
    assert list(decoder.layers) == layers
    assert (decoder.config.num_hidden_layers, decoder.config.layer_types) == (6, kinds)


def test_no_weight_is_anything_but_a_number() -> None:
    model = tiny("qwen2")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.fill_(float("nan"))
    fill(model)
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_quantised_weights_cannot_be_probed(tmp_path: Path) -> None:
    with pytest.raises(CannotProbe):
        probe(trial(tmp_path, config(), replace(SETUP, quantization="nf4")))


def test_a_model_that_cannot_be_packed_cannot_be_probed_in_packs(tmp_path: Path) -> None:
    values = config("gemma2", sliding_window=8)  # shorter than the rows, in layers that do not tell attention their window
    with pytest.raises(CannotProbe, match="packed"):
        probe(trial(tmp_path, values))


def test_too_little_memory_for_the_slices_is_said_before_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "free_memory_bytes", lambda: 1000)
    with pytest.raises(CannotProbe, match="memory"):
        probe(trial(tmp_path, config()))


def test_rows_that_are_only_stated_are_as_long_as_stated() -> None:
    stated = Extent(rows=5, tokens=500, supervised=100, places=500, needed=100, targets=100, pairs=25_250, longest=100)
    rows = random_rows(stated, 96)
    assert extents(rows, np.arange(5), MicroBatchSize(rows=5, tokens=500, packing="bins")) == (stated,)
