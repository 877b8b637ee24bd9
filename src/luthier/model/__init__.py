"""Models rented from transformers, adapters rented from PEFT."""

from luthier.model.patches import load_bitsandbytes

load_bitsandbytes()
