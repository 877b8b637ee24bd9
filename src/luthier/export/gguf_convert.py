"""llama.cpp's converter, in a process and a Python of its own: `PYTHON gguf_convert.py CHECKOUT PRE MODEL …`. Standard library only.

A tokenizer that the converter does not know is taken to cut text by the rule PRE, where Luthier knows that.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def main() -> None:
    """Run it with the words that follow."""
    checkout, pre, *words = sys.argv[1:]
    sys.path[0] = checkout  # in place of this file's folder, which has a gguf.py of its own
    converter = import_module("convert_hf_to_gguf")
    split = find_spec("conversion") is not None  # since 2026 the models have files of their own
    kind: Any = (import_module("conversion.base") if split else converter).TextModel
    known = kind.get_vocab_base_pre

    def rule(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            if not pre:
                raise
            return pre

    kind.get_vocab_base_pre = rule
    sys.argv = ["convert_hf_to_gguf.py", *words]
    converter.main()


if __name__ == "__main__":
    main()
