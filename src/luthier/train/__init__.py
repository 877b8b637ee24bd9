"""The training loop, Luthier's own: data → loss → update, and everything a killed run needs to go on."""

import luthier.model  # noqa: F401  # first: it imports bitsandbytes in silence, and without code of the hub, where PEFT would not
