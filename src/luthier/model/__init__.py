"""Models rented from transformers, adapters rented from PEFT."""
