"""The recipe: one file that says what to train, on what, how, and when the result is good enough."""

from luthier.recipe.schema import Recipe

__all__ = ["Recipe"]
