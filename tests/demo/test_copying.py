"""The hand-set copying heads: a model that has seen nothing repeats random tokens."""

import random

import pytest
import torch
from transformers import AutoTokenizer, Qwen3ForCausalLM

from luthier.demo import BASE
from luthier.demo.copying import install_copying
from luthier.demo.pretrain import new_model


@pytest.fixture
def untrained() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return new_model(AutoTokenizer.from_pretrained(BASE)).eval()


@torch.inference_mode()
def copied_share(model: Qwen3ForCausalLM) -> float:
    """Share of tokens predicted rightly in the second copy of a run of random tokens."""
    rng, right, total = random.Random(0), 0, 0
    for _ in range(20):
        run = [rng.randrange(300, 3000) for _ in range(rng.randrange(6, 24))]
        guessed = model(input_ids=torch.tensor([run + run])).logits[0, len(run) : -1].argmax(-1)
        right += (guessed == torch.tensor(run[1:])).sum().item()
        total += len(run) - 1
    return right / total


def test_an_untrained_model_with_copying_heads_copies_and_one_without_does_not(untrained):
    assert copied_share(untrained) < 0.1
    install_copying(untrained)
    assert copied_share(untrained) > 0.7
