"""Numerical self-tests on a user's own recipe, model and rows, before a GPU hour is spent (the traps that peers still fall into)."""
