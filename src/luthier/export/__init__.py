"""What leaves Luthier: a run's model in forms that others load, each compared with what was trained before it is called done."""

import luthier.model  # noqa: F401  # first: it imports bitsandbytes in silence, where PEFT would not
