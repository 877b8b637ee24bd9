"""How a model is rewarded on validation rows: its likeliest answers, which no draw makes better or worse."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import luthier.model  # noqa: F401  # isort: skip  # before PEFT: it imports bitsandbytes in silence, and without code of the hub
from peft import PeftModel
from transformers import PreTrainedModel

from luthier.core import files
from luthier.data.rows import Example
from luthier.data.tokenizer import ChatTokenizer
from luthier.recipe.rl import REWARD, Rl
from luthier.rl import record
from luthier.rl.rewards import Rewarding
from luthier.rl.rollout import Player
from luthier.rl.sampler import Embedded, How
from luthier.runs.store import RunFolder
from luthier.score import intervals
from luthier.train.ranks import Ranks


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Measures the mean reward of a model after a step, with its interval in events.jsonl (`TrainingJob.score`)."""

    rl: Rl
    examples: Sequence[Example]
    tokenizer: ChatTokenizer
    rewarding: Rewarding
    ranks: Ranks
    folder: RunFolder

    def __call__(self, model: PreTrainedModel | PeftModel, step: int) -> Mapping[str, float]:
        """`reward`; an answer that cannot be rewarded counts as the least that any got. Nothing without validation rows."""
        if not self.examples:
            return {}
        player = Player(
            sampler=Embedded(model=model, tokenizer=self.tokenizer, ranks=self.ranks),
            rewarding=self.rewarding,
            tokenizer=self.tokenizer,
            ranks=self.ranks,
            how=How(max_new_tokens=self.rl.max_new_tokens, temperature=0.0),
            with_environment=bool(self.rl.environment),
        )
        episodes = player.play(list(enumerate(self.examples)), [""] * len(self.examples))
        given = [episode.rewarded.total for episode in episodes if episode.rewarded.total is not None]
        least = min(given, default=0.0)
        totals = [least if episode.rewarded.total is None else episode.rewarded.total for episode in episodes]
        found = intervals.mean(totals, keys=[example.key for example in self.examples])
        if not self.folder.read_only:
            with files.told("held-out answers", self.folder.path):
                record.write(self.folder.answers(step) / "rewarded.jsonl", episodes, self.examples)
        told = {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
        self.folder.event("held_out", step=step, failed=len(totals) - len(given), **told)
        return {REWARD: found.value}
