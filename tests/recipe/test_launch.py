"""The section `launch`: what each backend reads, and what is said of a key that it does not."""

from pathlib import Path

import pytest

from luthier.core.errors import RecipeError
from luthier.recipe.load import load, training_text
from luthier.recipe.options import OPTIONS, SlurmOptions

RECIPE = """\
name: animals
model: {base: demo}
data: {sources: [{path: rows.jsonl}]}
launch:
  on: slurm
  gpu: H100x4
  env_file: keys/.env
  options:
    partition: gpu
    setup: [module load cuda]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def test_options_and_an_env_file_beside_the_recipe_are_read(file: Path) -> None:
    launch = load(file, ["launch.options.cpus=8"]).recipe.launch
    assert launch.env_file == str(file.parent / "keys" / ".env")
    options = SlurmOptions.model_validate(launch.options)
    assert (options.partition, options.setup, options.cpus) == ("gpu", ("module load cuda",), 8)


def test_where_it_is_trained_does_not_make_another_recipe(file: Path) -> None:
    here = ["launch.on=local", "launch.gpu=here", "launch.options={}", "launch.env_file=", "parallel.data=2"]
    assert training_text(load(file).text) == training_text(load(file, here).text)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("launch.options.partion=a", r"slurm does not read `options.partion`; did you mean `options.partition`\?"),
        ("launch.options.cpus=many", r"`options.cpus` of slurm: input should be a valid integer"),
        ("launch.options.partition='a b'", r"`options.partition` of slurm: string should match pattern"),
        ("launch.on=local", r"local does not read `options.partition`; its options: none; options=\{\} leaves out those of another"),
        ("launch.on=ray", r"ray does not read `options.partition`; its options: address, cpus"),
        ("launch.on=kubernetes", 'found "kubernetes", expected `local`, `torchrun`, `slurm`, `ray` or `modal`'),
    ],
)
def test_what_the_backend_does_not_read_is_an_error(file: Path, change: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load(file, [change])


def test_the_error_names_the_line_of_the_option(file: Path) -> None:
    file.write_text(RECIPE.replace("partition", "partion"))
    with pytest.raises(RecipeError, match=r"recipe.yaml:9: launch.options.partion: slurm does not read"):
        load(file)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["parallel.nodes=2"], "parallel.nodes is 2, which launch.on: local does not read: torchrun and slurm do"),
        (["parallel.nodes=2", "launch.on=torchrun", "parallel.data=3"], "are 3 ranks, which 2 `nodes` cannot divide evenly"),
        (["launch.on=modal", "launch.gpu=here"], "`gpu` is `here`, and on: modal rents one"),
    ],
)
def test_what_a_host_cannot_do_is_said_when_the_recipe_is_read(file: Path, changes: list[str], told: str) -> None:
    on = [] if any(change.startswith("launch.on") for change in changes) else ["launch.on=local"]
    with pytest.raises(RecipeError, match=told):
        load(file, ["launch.options={}", *on, *changes])


def test_every_option_is_explained() -> None:
    assert [f"{on}.{name}" for on, kind in OPTIONS.items() for name, field in kind.model_fields.items() if not field.description] == []
