"""Ids are shown as text without transformers, and the same text."""

import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core.errors import UsageError
from luthier.data.decode import decoder
from luthier.data.tokenizer import load_tokenizer
from luthier.recipe.schema import Model


def test_it_says_what_transformers_says() -> None:
    model = Model(base="demo")
    full = load_tokenizer(model)
    light = decoder(model, Path("nowhere"))
    ids = full.encode("<|im_start|>user\nWhat is ½ of 9 °C , really ?<|im_end|>\n")
    for start in range(len(ids)):
        for end in range(start, len(ids) + 1):
            assert light.decode(ids[start:end]) == full.decode(ids[start:end])


def test_a_base_of_the_hub_is_read_from_the_adapter_where_it_lies(tmp_path: Path) -> None:
    model = Model(base="nobody/has-this")
    with pytest.raises(UsageError, match="nobody/has-this is not on this machine"):
        decoder(model, tmp_path)
    load_tokenizer(Model(base="demo")).save(tmp_path)
    assert decoder(model, tmp_path).decode(load_tokenizer(Model(base="demo")).encode("hello")) == "hello"


def test_nothing_heavy_is_loaded() -> None:
    code = "import sys; from pathlib import Path; from luthier.data.decode import decoder; from luthier.recipe.schema import Model; "
    code += "decoder(Model(base='demo'), Path('.')); sys.exit('transformers' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
