"""The recipe's section `serving`: who answers with what was trained."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from luthier.recipe.section import PositiveInt, Scalar, Section


class Serving(Section):
    """What the adapter is for: the engine that will answer with it."""

    engine: Literal["embedded", "vllm"] = "embedded"
    """Luthier's own, or vLLM, which is faster and loads fewer kinds of adapters."""
    max_model_len: PositiveInt | Literal["auto"] = "auto"
    """Tokens of prompt and answer; `auto`: `data.max_length`, or the longest row, and the longest answer of a task; a server takes 4,096
    at least, where the model does."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Where it answers; 0: one that is free."""
    options: dict[str, Scalar | tuple[Scalar, ...]] = {}
    """What the engine reads besides; listed below."""

    @model_validator(mode="after")
    def _options_are_read(self) -> Self:
        from luthier.recipe.options import check_engine_options  # which are sections, too

        check_engine_options(self.engine, self.options)
        return self
