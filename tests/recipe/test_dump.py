"""`dump` writes what `load` reads back, whatever the recipe says."""

from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.recipe.load import difference, dump, load
from luthier.recipe.schema import Recipe

ODD = ("no", "on", "1e-4", "0x1F", "017", "1_000", "~", "null", "a: b", "# c", "- d", "2024-01-01", "?0", "@x", "y\n ", "\x85", "\u2028\n")
TEXTS = st.text(max_size=40) | st.sampled_from(ODD)
SCALARS = TEXTS | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
SOURCES = st.fixed_dictionaries(
    {
        "path": st.sampled_from(["/data/a.jsonl", "/data/*.csv", "/data/tie: on #1.json"]),
        "where": st.dictionaries(TEXTS, SCALARS | st.lists(SCALARS, max_size=3).map(tuple), max_size=3),
    }
)
RECIPES = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,20}\Z"),
        "seed": st.integers(0, 2**63 - 1),
        "model": st.fixed_dictionaries({"base": st.just("demo"), "revision": TEXTS}),
        "lora": st.sampled_from(["none", {"target_modules": ("q_proj", "no")}, {"alpha": 1e-300}, {"alpha": 7}]),
        "data": st.fixed_dictionaries(
            {"sources": st.lists(SOURCES, min_size=1, max_size=2), "system_prompts": TEXTS | st.dictionaries(TEXTS, TEXTS, max_size=3)}
        ),
        "training": st.sampled_from([{}, {"epochs": 0.5}, {"max_steps": 7, "warmup_steps": 0}, {"epochs": 2, "learning_rate": 1e-5}]),
        "checkpoints": st.fixed_dictionaries({"eval_steps": st.sampled_from(["epoch", "10%", 1, 1.0, 25])}),
        "evaluation": st.fixed_dictionaries({"baseline": st.dictionaries(TEXTS, st.just({"value": 1, "n": 9}), max_size=2)}),
        "decision": st.fixed_dictionaries(
            {"deploy": st.dictionaries(TEXTS, st.sampled_from([">= 0.98", "better than baseline"]), max_size=2)}
        ),
    }
).map(Recipe.model_validate)


@given(RECIPES)
@settings(max_examples=60, deadline=None)
def test_a_dumped_recipe_loads_equal_and_dumps_to_the_same_text(recipe: Recipe) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(dump(recipe), encoding="utf-8")
        loaded = load(path)
    assert loaded.recipe == recipe
    assert loaded.text == dump(recipe)


def test_a_default_and_the_same_value_written_out_give_the_same_text(tmp_path: Path) -> None:
    least = "name: a\nmodel: {base: demo}\ndata: {sources: [{path: /x.jsonl}]}\n"
    (tmp_path / "least.yaml").write_text(least)
    (tmp_path / "more.yaml").write_text(least + "lora: {alpha: 32}\ntraining: {epochs: 3, learning_rate: 3e-4}\n")
    assert load(tmp_path / "least.yaml").text == load(tmp_path / "more.yaml").text


def test_the_resolved_text_says_every_value_in_the_schemas_order_and_prompts_as_they_read(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        'data: {system_prompts: "You coach chess.\\nBe short.", sources: [{path: /x.jsonl}]}\n'
        "lora: {target_modules: [q_proj, v_proj]}\nmodel: {base: demo}\nname: coach\n"
    )
    text = load(tmp_path / "r.yaml").text
    assert text.startswith("name: coach\nseed: 42\nmodel:\n  base: demo\n  revision: main\n")
    assert "  target_modules: [q_proj, v_proj]\n" in text
    assert "  system_prompts: |-\n    You coach chess.\n    Be short.\n" in text
    assert "  epochs: 3.0\n" in text
    assert "max_steps" not in text


def test_a_difference_names_every_changed_key_with_both_values() -> None:
    old = "seed: 1\nlora: {r: 8}\ndata:\n  sources: [{path: a}]\n  group_by: ''\n"
    new = "seed: 1\nlora: none\ndata:\n  sources: [{path: a}, {path: b}]\n  group_by: place\n"
    assert difference(old, new) == [
        "lora.r: 8 → absent",
        'data.group_by: "" → "place"',
        'lora: absent → "none"',
        'data.sources.1.path: absent → "b"',
    ]
    assert difference(old, old) == []
