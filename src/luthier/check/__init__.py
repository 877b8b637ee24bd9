"""Numerical self-tests on a user's own recipe, model and rows, before a GPU hour is spent (the traps that peers still fall into)."""

import luthier.model  # noqa: F401  # first: it imports bitsandbytes in silence, and without code of the hub, where PEFT would not
