"""The summed loss at supervised positions equals the loss over all logits, for any model that calls its head."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel

from luthier.train.batch import collate
from luthier.train.objective import logits_at_targets, nll_sum
from tests.train.workshop import CPU, SHAPE, VOCABULARY, in_batches, ragged_rows, tiny_model


def gemma_with_soft_caps() -> PreTrainedModel:
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SHAPE, vocab_size=VOCABULARY, final_logit_softcapping=2.0, initializer_range=0.5))


def with_adapter() -> nn.Module:
    return get_peft_model(tiny_model(tied=False), LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))


@pytest.mark.parametrize("make", [tiny_model, lambda: tiny_model("llama"), gemma_with_soft_caps, with_adapter])
def test_logits_at_the_targets_are_those_of_the_whole_model(make: object) -> None:
    model = make().eval()  # type: ignore[operator]
    batch = in_batches(ragged_rows(), 8)[0]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        found = logits_at_targets(model, batch)
    whole = model(input_ids=batch.ids_BT).logits.flatten(0, 1)[batch.sources_N]
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


def test_the_loss_is_a_sum_over_supervised_tokens_of_rows_alone() -> None:
    model, rows = tiny_model().eval(), ragged_rows()
    alone = 0.0
    for row in rows:
        logits = model(input_ids=torch.tensor(row.ids[None], dtype=torch.long)).logits[0, :-1]
        targets = torch.tensor(row.ids[1:], dtype=torch.long).masked_fill(~torch.tensor(row.supervised[1:]), -100)
        alone += F.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").item()
    assert nll_sum(model, in_batches(rows, 8)[0]).item() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_what_fills_the_padding_does_not_matter(name: str) -> None:
    model, rows = tiny_model(name).eval(), ragged_rows()
    losses = [nll_sum(model, collate(rows, range(8), CPU, pad_id)) for pad_id in (0, 17, VOCABULARY - 1)]
    assert losses[0] == losses[1] == losses[2]


def test_a_model_that_hides_its_head_is_computed_whole_and_says_so() -> None:
    class Hidden(nn.Module):
        """Multiplies by the head's matrix itself, as a model with fused layers may."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_model().eval()

        def get_output_embeddings(self) -> nn.Module:
            return nn.Identity()

        def forward(self, **inputs: object) -> object:
            return self.inner(**inputs)

    batch = in_batches(ragged_rows(), 8)[0]
    with pytest.warns(UserWarning, match="every position"):
        loss = nll_sum(Hidden(), batch)
    torch.testing.assert_close(loss, nll_sum(tiny_model().eval(), batch))
