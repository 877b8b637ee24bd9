"""Luthier fine-tunes open chat models and proves the result; `luthier.flow` is the Python API, one function per verb."""

__version__ = "0.1.0"
