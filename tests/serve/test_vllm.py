"""The command that starts vLLM, word for word; and what vLLM could not serve as it was trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import RecipeError, UsageError
from luthier.data.repository import Repository
from luthier.flow.vllm import chosen
from luthier.plan.shape import known_config
from luthier.recipe.load import load
from luthier.recipe.schema import Model, Recipe
from luthier.recipe.serving import Serving
from luthier.runs.store import RunFolder
from luthier.serve import vllm
from tests.runs.summaries import summary

ROOT = Path(__file__).parents[2]
LORA: dict[str, Any] = {"peft_type": "LORA", "r": 64, "lora_alpha": 128, "target_modules": ["q_proj"]}


def repository(folder: Path, config: dict[str, Any]) -> Repository:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return Repository(location=str(folder), revision="main", is_folder=True, cached_only=False)


def finished(folder: Path, recipe: Recipe, **adapter: Any) -> RunFolder:
    """What serving looks at of a run."""
    run = RunFolder(folder / recipe.name)
    run.adapter.mkdir(parents=True)
    (run.adapter / "adapter_config.json").write_text(json.dumps({**LORA, **adapter}))
    summary().model_copy(update={"max_length": 2304}).write(run.data)
    return run


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"name": "coach", "model": {"base": "demo"}, "data": {"sources": [{"path": "rows.jsonl"}]}, **sections})


def words(served: vllm.Served, serving: Serving) -> str:
    return " ".join(vllm.command(served, serving, "PYTHON"))


def after(word: str, text: str) -> str:
    return text.split(f" {word} ")[1].split(" ")[0]


def test_the_coach_of_seed_000_is_served_with_its_adapter_on_8101(tmp_path: Path) -> None:
    """Its recipe's own section `serving`; the adapter is the run's final one, which is its best."""
    coach = load(ROOT / "recipes" / "chess-coach-4b.yaml").recipe
    base = repository(tmp_path / "Qwen3-4B-Thinking-2507", dict(known_config(coach.model.base) or {}))
    run = finished(tmp_path / "runs", coach)
    served = vllm.of_run(run, coach, base, "bfloat16")
    assert words(served, coach.serving).replace(str(tmp_path), "") == (
        "PYTHON -m vllm.entrypoints.openai.api_server --model /Qwen3-4B-Thinking-2507 --served-model-name Qwen/Qwen3-4B-Thinking-2507 "
        "--host 127.0.0.1 --port 8101 --dtype bfloat16 --max-model-len 4096 --enable-lora --max-lora-rank 64 "
        "--lora-modules chess-coach-4b=/runs/chess-coach-4b/adapter --chat-template /runs/chess-coach-4b/adapter/chat_template.jinja "
        "--generation-config /runs/chess-coach-4b/serving"
    )
    assert served.note == "the adapter was trained over int8, and answers over the base's own weights"


def test_the_base_of_seed_000_in_fp8_is_served_on_8100_and_nothing_is_said_twice_of_its_bits(tmp_path: Path) -> None:
    alone = chosen(str(ROOT / "recipes" / "serving" / "qwen3.5-35b-a3b-fp8.yaml"), ())
    base = repository(tmp_path / "fp8", {"quantization_config": {"quant_method": "fp8"}})
    assert words(vllm.of_model(alone.model, alone.serving, base), alone.serving).replace(str(tmp_path), "") == (
        "PYTHON -m vllm.entrypoints.openai.api_server --model /fp8 --served-model-name Qwen/Qwen3.5-35B-A3B-FP8 "
        "--host 127.0.0.1 --port 8100"
    )
    twice = Serving(engine="vllm", options={"quantization": "fp8"})
    with pytest.raises(UsageError, match=r"config\.json says how this checkpoint is quantised, and so does"):
        vllm.of_model(alone.model, twice, base)


def test_seed_002_is_served_eagerly_at_its_length_over_four_bits(tmp_path: Path) -> None:
    found = load(ROOT / "recipes" / "nothing-gpt-3b.yaml").recipe
    base = repository(tmp_path / "Llama-3.2-3B-Instruct", dict(known_config(found.model.base) or {}))
    text = words(vllm.of_run(finished(tmp_path, found, r=32), found, base, "bfloat16"), found.serving)
    assert " --max-model-len 1024 --quantization bitsandbytes --enable-lora --max-lora-rank 32 " in text
    assert text.endswith(" --enforce-eager")


@pytest.mark.parametrize(
    ("rank", "given"), [(1, 1), (2, 8), (8, 8), (9, 16), (64, 64), (65, 128), (200, 256), (257, 320), (321, 512), (512, 512)]
)
def test_a_rank_is_rounded_up_to_one_of_vllms(rank: int, given: int, tmp_path: Path) -> None:
    base = repository(tmp_path / "base", {})
    served = vllm.of_run(finished(tmp_path, recipe(), r=rank), recipe(), base, "bfloat16")
    assert after("--max-lora-rank", words(served, Serving())) == str(given)


def test_the_largest_of_several_ranks_counts(tmp_path: Path) -> None:
    run = finished(tmp_path, recipe(), r=8, rank_pattern={"q_proj": 24})
    assert vllm.of_run(run, recipe(), repository(tmp_path / "base", {}), "float16").rank == 24


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        ({"use_dora": True}, "it is DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 513}, "its rank 513 is above 512"),
        ({"rank_pattern": {"q_proj": 600}}, "its rank 600 is above 512"),
        ({"bias": "all"}, "it has biases"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "it is on fused experts"),
    ],
)
def test_an_adapter_that_vllm_would_refuse_or_misread_is_served_merged_or_not_at_all(
    adapter: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    run, base = finished(tmp_path, recipe(), **adapter), repository(tmp_path / "base", {})
    with pytest.raises(UsageError, match=reason) as refused:
        vllm.of_run(run, recipe(), base, "bfloat16")
    assert "luthier export coach --to merged" in refused.value.change
    run.merged.mkdir()
    (run.merged / "config.json").write_text("{}")
    served = vllm.of_run(run, recipe(), base, "bfloat16")
    text = words(served, Serving())
    assert after("--model", text) == str(run.merged) and "lora" not in text and served.asked_as == "coach"
    assert reason in served.note


def test_a_plain_adapter_has_no_reason_against_it() -> None:
    assert vllm.unloadable({**LORA, "use_rslora": True, "bias": "none", "modules_to_save": None, "target_parameters": None}) == ()


def test_fp4_is_not_what_vllm_makes_of_a_base_unless_it_is_told_to(tmp_path: Path) -> None:
    four = recipe(model={"base": "demo", "quantization": "fp4"})
    run, base = finished(tmp_path, four), repository(tmp_path / "base", {})
    with pytest.raises(UsageError, match="trained over fp4, and vLLM makes nf4"):
        vllm.of_run(run, four, base, "bfloat16")
    plain = recipe(model={"base": "demo", "quantization": "fp4"}, serving={"engine": "vllm", "options": {"quantization": "none"}})
    assert "--quantization" not in words(vllm.of_run(run, plain, base, "bfloat16"), plain.serving)


def test_a_model_that_was_trained_whole_is_served_from_its_folder(tmp_path: Path) -> None:
    whole = recipe(lora="none")
    run = finished(tmp_path, whole)
    text = words(vllm.of_run(run, whole, repository(tmp_path / "base", {}), "float32"), Serving())
    assert after("--model", text) == str(run.adapter) and after("--served-model-name", text) == "coach" and "--enable-lora" not in text


def test_no_more_tokens_are_asked_for_than_the_base_can_take(tmp_path: Path) -> None:
    run = finished(tmp_path, recipe())
    for config, longest in (({"max_position_embeddings": 128}, "128"), ({"text_config": {"max_position_embeddings": 64}}, "64")):
        base = repository(tmp_path / longest, config)
        assert after("--max-model-len", words(vllm.of_run(run, recipe(), base, "float16"), Serving())) == longest


def test_a_models_own_template_and_a_revision_are_told(tmp_path: Path) -> None:
    hub = Repository(location="Qwen/Qwen3-0.6B", revision="abc", is_folder=False, cached_only=True)
    base = repository(tmp_path / "base", {})
    model = Model(base="demo", chat_template="/templates/mine.jinja", trust_remote_code=True)
    text = words(vllm.of_model(model, Serving(), base), Serving())
    assert after("--chat-template", text) == "/templates/mine.jinja" and text.endswith("--trust-remote-code")
    served = vllm.Served(model=hub.location, name="Qwen/Qwen3-0.6B", revision=hub.revision)
    assert after("--revision", words(served, Serving())) == "abc"


def test_every_option_has_an_effect() -> None:
    served = vllm.Served(model="m", name="m")
    options = {"enforce_eager": True, "gpu_memory_utilization": 0.5, "tensor_parallel": 2, "max_num_seqs": 16}
    text = words(served, Serving(engine="vllm", port=1, options={**options, "more": ("--swap-space", "0")}))
    assert text.endswith("--port 1 --gpu-memory-utilization 0.5 --max-num-seqs 16 --tensor-parallel-size 2 --enforce-eager --swap-space 0")
    assert vllm.python_of(Serving(engine="vllm", options={"python": "/bin/sh"})) == "/bin/sh"


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("more=['--api-key', 'x']", "everybody on the machine could read it"),
        ("more=['--api_key', 'x']", "everybody on the machine could read it"),
        ("more=['--api-k', 'x']", "everybody on the machine could read it"),
        ("more=['--host=0.0.0.0']", "it answers on 127.0.0.1"),
        ("more=['--max-lora-rank', '8']", "it follows from the run"),
        ("more=['-q', 'fp8']", "set serving.options.quantization"),
        ("enforce_egaer=true", r"did you mean `options.enforce_eager`\?"),
        ("gpu_memory_utilization=1.5", "`options.gpu_memory_utilization` of vllm"),
        ("python='a b'", "`options.python` of vllm"),
    ],
)
def test_a_word_that_is_not_read_or_is_given_already_is_an_error(option: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("name: coach\nmodel: {base: demo}\ndata: {sources: [{path: rows.jsonl}]}\nserving: {engine: vllm}\n")
    with pytest.raises(RecipeError, match=told):
        load(file, [f"serving.options.{option}"])
    file.write_text(file.read_text().replace("vllm", "embedded"))
    with pytest.raises(RecipeError, match="embedded does not read `options"):
        load(file, [f"serving.options.{option}"])


def test_without_an_environment_for_vllm_the_error_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUTHIER_VLLM", raising=False)
    with pytest.raises(UsageError, match="none is named") as refused:
        vllm.python_of(Serving(engine="vllm"))
    assert "pip install vllm" in refused.value.change and "serving.engine=embedded" in refused.value.change
    monkeypatch.setenv("LUTHIER_VLLM", "/nowhere/python")
    with pytest.raises(UsageError, match="no Python for vLLM"):
        vllm.python_of(Serving(engine="vllm"))


def test_the_bases_own_sampling_settings_stay_beside_the_ids_that_end_an_answer(tmp_path: Path) -> None:
    base = repository(tmp_path / "base", {})
    (Path(base.location) / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": 2}')
    assert vllm.stops(base, (2, 7)) == {"temperature": 0.6, "eos_token_id": [2, 7]}
