"""The recipe's section `rl`: what answers are rewarded for, and how the model learns from it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from luthier.recipe.section import PositiveInt, Section

REWARD = "reward"
"""What is measured of a run that is rewarded: the mean over validation rows."""
ENVIRONMENT, LENGTH = "environment", "length"
"""Rewards besides those by a scorer's name: an environment's own, and one for answers that end in time."""


class Rl(Section):
    """Reinforcement: answers are drawn, rewarded, and made likelier or less so. `luthier rl` reads it."""

    rewards: Annotated[dict[str, float], Field(min_length=1)]
    """Reward → weight: `{exact: 1.0, length: 0.2}`. A scorer's name (`exact`, `label`, `json`, `json_schema`, `regex`, `number`,
    `contains`), `length` (1 up to half of `max_new_tokens`, then falling to 0), `environment` (its own), or `module:function` of your own
    (answer, reference) → number."""
    algorithm: Literal["grpo", "gspo"] = "grpo"
    """Whether each token's ratio to who wrote it is clipped (GRPO, arXiv:2402.03300), or each answer's (GSPO, 2507.18071)."""
    environment: str = ""
    """`module:Class` that replies to answers, for dialogues of several turns (docs/guide/rl.md). Empty: one answer to each prompt."""
    sampler: str = "embedded"
    """Who writes the answers: `embedded`, the model that is trained; or a server, `http://HOST:PORT/v1`, which is given each step's
    adapter: vLLM or `luthier serve` on other devices."""
    group_size: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt, which are compared with each other. Of `training.global_batch_size` answers a step."""
    max_new_tokens: PositiveInt = 256
    """Longest answer; one that is cut is rewarded, counted, and not trained on."""
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    """At which answers are drawn, and the model is trained; a server's is 1."""
    updates: PositiveInt = 1
    """Of the model by the same answers, before new ones are drawn."""
    clip: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = "auto"
    """How far from 1 a ratio may go and still be trained on; `auto`: 0.2 (GRPO), 0.0003 (GSPO), as published."""
    kl: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the divergence from the model that the run begins with (`lora.init_from`, or the base)."""

    @property
    def clipped_at(self) -> float:
        """`clip`, resolved."""
        if self.clip != "auto":
            return self.clip
        return 0.2 if self.algorithm == "grpo" else 3e-4

    @property
    def by_server(self) -> bool:
        """Whether a server writes the answers."""
        return self.sampler != "embedded"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.by_server and not self.sampler.startswith(("http://", "https://")):
            raise ValueError(f"`sampler` is {self.sampler!r}: write `embedded`, or a server as http://HOST:PORT/v1")
        if self.by_server and self.temperature != 1:
            raise ValueError("a server tells how probable tokens are at temperature 1 only: leave `temperature` out")
        if bool(self.environment) != (ENVIRONMENT in self.rewards):
            raise ValueError("`environment` (who replies) and the reward `environment` (what it gives) belong together")
        if not any(self.rewards.values()):
            raise ValueError("all weights in `rewards` are 0")
        return self
