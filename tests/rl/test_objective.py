"""The loss of rewarded answers: TRL's to float32, GSPO's by hand, and what a ratio beyond the clip has no gradient for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from luthier.data.store import HeldRows, TokenRow
from luthier.model.adapt import add_lora
from luthier.model.fuse import fuse
from luthier.recipe.schema import Lora
from luthier.rl.objective import PolicyLoss
from luthier.runs.workload import MicroBatchSize, Packing
from luthier.train.batch import MicroBatch, micro_batches
from luthier.train.objective import nll
from tests.train.workshop import CPU, step_gradients, tiny_model

PROMPTS = ((5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21), (30, 31, 32, 33, 34))
ANSWERS = ((40, 41, 42, 3), (43, 3), (40, 41, 50, 51, 52, 3), (60, 61, 3), (62, 63, 64, 65, 66, 3), (67, 3))
"""Three for each prompt, of which two begin alike."""
ADVANTAGES = (1.1, -0.7, -0.4, 0.9, 0.3, -1.2)


def rows() -> list[TokenRow]:
    found = []
    for number, answer in enumerate(ANSWERS):
        prompt = PROMPTS[number // 3]
        ids = np.array((*prompt, *answer), np.int32)
        found.append(TokenRow(ids=ids, supervised=np.arange(len(ids)) >= len(prompt)))
    return found


def policy() -> nn.Module:
    """A model with an adapter that has learned something."""
    model = add_lora(tiny_model(), Lora(r=4, alpha=8), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return model


def drawn() -> list[np.ndarray]:
    """How probable the tokens were to another policy."""
    random = np.random.default_rng(3)
    return [-random.uniform(3.5, 5.5, len(answer)).astype(np.float32) for answer in ANSWERS]


def loss(algorithm: Any = "grpo", kl: float = 0.0, clip: float = 0.2) -> PolicyLoss:
    begun = [values + np.float32(0.3) for values in drawn()] if kl else []
    return PolicyLoss(algorithm=algorithm, clip=clip, kl=kl, advantages_R=np.array(ADVANTAGES, np.float32), drawn_R=drawn(), begun_R=begun)


def batches(objective: PolicyLoss, packing: Packing = "off", tokens: int = 10**6) -> list[MicroBatch]:
    held = HeldRows(rows(), np.repeat([0, 1], 3))
    size = MicroBatchSize(rows=6, tokens=tokens, packing=packing)
    return [replace(batch, objective=objective) for batch in micro_batches(held, np.arange(6), size, CPU)]


def trl_loss(model: nn.Module, tmp_path: Path, **settings: Any) -> tuple[float, list[Tensor]]:
    """TRL's GRPO on the same tokens, with the same advantages, and the same probabilities of who drew them."""
    pytest.importorskip("trl", reason="pip install -c constraints.txt 'luthier[trl]'")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from tests.data.families import family

    config = GRPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        per_device_train_batch_size=6,
        num_generations=3,
        max_completion_length=6,
        temperature=1.0,
        gradient_checkpointing=False,
        bf16=False,
        use_bias_correction_kl=False,
        **settings,
    )
    trainer = GRPOTrainer(
        model=model,
        args=config,
        processing_class=family("chatml").pretrained,
        train_dataset=Dataset.from_list([{"prompt": "one"}, {"prompt": "two"}]),
        reward_funcs=lambda **given: [0.0] * len(given["completions"]),
    )
    longest_prompt, longest = max(map(len, PROMPTS)), max(map(len, ANSWERS))
    prompt_ids, prompt_mask, ids, mask, old = [], [], [], [], []
    for number, (answer, values) in enumerate(zip(ANSWERS, drawn(), strict=True)):
        prompt = PROMPTS[number // 3]
        prompt_ids.append([0] * (longest_prompt - len(prompt)) + list(prompt))
        prompt_mask.append([0] * (longest_prompt - len(prompt)) + [1] * len(prompt))
        ids.append([*answer, *[0] * (longest - len(answer))])
        mask.append([1] * len(answer) + [0] * (longest - len(answer)))
        old.append([*values.tolist(), *[0.0] * (longest - len(answer))])
    inputs = {
        "prompt_ids": torch.tensor(prompt_ids),
        "prompt_mask": torch.tensor(prompt_mask),
        "completion_ids": torch.tensor(ids),
        "completion_mask": torch.tensor(mask),
        "advantages": torch.tensor(ADVANTAGES),
        "old_per_token_logps": torch.tensor(old),
        "ref_per_token_logps": torch.tensor(old) + 0.3,
        "num_items_in_batch": torch.tensor(mask).sum(),
    }
    trainer.current_gradient_accumulation_steps = 1
    model.zero_grad()
    model.train()
    found = trainer._compute_loss(model, inputs)
    found.backward()
    return found.item(), [weight.grad.clone() for weight in model.parameters() if weight.requires_grad]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"kl": 0.0}, {"loss_type": "dapo", "beta": 0.0}),
        ({"kl": 0.1}, {"loss_type": "dapo", "beta": 0.1}),
        ({"algorithm": "gspo", "clip": 0.2}, {"loss_type": "grpo", "beta": 0.0, "importance_sampling_level": "sequence"}),
        ({"algorithm": "gspo", "clip": 0.2, "kl": 0.1}, {"loss_type": "grpo", "beta": 0.1, "importance_sampling_level": "sequence"}),
    ],
    ids=["grpo", "grpo-kl", "gspo", "gspo-kl"],
)
def test_loss_and_gradients_are_those_of_trl(ours: dict[str, Any], theirs: dict[str, Any], tmp_path: Path) -> None:
    model = policy()
    expected, gradients = trl_loss(model, tmp_path, **theirs)
    model.zero_grad()
    found, own = step_gradients(model, batches(loss(**ours)))
    assert found == pytest.approx(expected, rel=1e-5)
    for one, other in zip(own, gradients, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("algorithm", ["grpo", "gspo"])
@pytest.mark.parametrize(("packing", "tokens"), [("off", 40), ("bins", 64), ("tree", 10**6), ("tree", 40)])
def test_however_answers_are_divided_it_is_one_loss_and_gradient(algorithm: str, packing: Packing, tokens: int) -> None:
    model = policy()
    whole, expected = step_gradients(model, batches(loss(algorithm, kl=0.1)))
    fuse(model, pack=packing != "off", longest=64)
    found, own = step_gradients(model, batches(loss(algorithm, kl=0.1), packing, tokens))
    assert found == pytest.approx(whole, rel=1e-5)
    for one, other in zip(own, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


class Fixed(nn.Module):
    """A model of three words whose log-probabilities are what is learned."""

    def __init__(self, logits: Sequence[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def get_output_embeddings(self) -> None:
        """It has no head."""

    def forward(self, input_ids: Tensor, **_: object) -> Any:
        """The same everywhere."""
        return type("Out", (), {"logits": self.logits.expand(*input_ids.shape, 3)})


def of_tokens(answers: Sequence[Sequence[int]], objective: PolicyLoss) -> MicroBatch:
    """Answers to a prompt of one token, in one micro batch."""
    made = [TokenRow(ids=np.array((0, *ids), np.int32), supervised=np.arange(len(ids) + 1) > 0) for ids in answers]
    size = MicroBatchSize(rows=len(made), tokens=100, packing="off")
    (batch,) = micro_batches(HeldRows(made, np.zeros(len(made), np.int64)), np.arange(len(made)), size, CPU)
    return replace(batch, objective=objective)


def worked(algorithm: Any, drawn_R: Sequence[Sequence[float]], advantages: Sequence[float], clip: float) -> PolicyLoss:
    return PolicyLoss(
        algorithm=algorithm,
        clip=clip,
        kl=0.0,
        advantages_R=np.array(advantages, np.float32),
        drawn_R=[np.array(values, np.float32) for values in drawn_R],
        begun_R=[],
    )


@pytest.mark.filterwarnings("ignore:Fixed does not call its head")
def test_gspo_by_hand() -> None:
    """Two answers: log ρ of 0.2, 0.4 and of -0.3. Their ratios are e^0.3 = 1.350 and e^-0.3 = 0.741; with ε = 0.1 and A = 1, -1 the first
    is clipped to 1.1, the second to 0.9: (-1.1 + 0.9) / 2 = -0.1, times three tokens, which the step divides by: -0.3."""
    third = float(np.log(1 / 3))
    objective = worked("gspo", [[third - 0.2, third - 0.4], [third + 0.3]], [1.0, -1.0], clip=0.1)
    model = Fixed([0.0, 0.0, 0.0])
    found = objective(model, of_tokens([(1, 2), (2,)], objective))
    assert found.item() == pytest.approx(-0.3, rel=1e-5)
    found.backward()
    assert model.logits.grad.abs().max() == 0  # both are likely, and unlikely, enough


@pytest.mark.filterwarnings("ignore:Fixed does not call its head")
def test_gspo_by_hand_within_the_clip() -> None:
    """The same within ε = 0.5: -1.350 and +0.741, the mean times three tokens -0.913."""
    third = float(np.log(1 / 3))
    objective = worked("gspo", [[third - 0.2, third - 0.4], [third + 0.3]], [1.0, -1.0], clip=0.5)
    assert objective(Fixed([0.0, 0.0, 0.0]), of_tokens([(1, 2), (2,)], objective)).item() == pytest.approx(
        3 * (-np.exp(0.3) + np.exp(-0.3)) / 2, rel=1e-5
    )


@pytest.mark.filterwarnings("ignore:Fixed does not call its head")
@pytest.mark.parametrize(("advantage", "log_ratio", "learned"), [(1, 0.5, False), (1, -0.5, True), (-1, 0.5, True), (-1, -0.5, False)])
def test_a_token_is_learned_from_until_it_has_moved_far_enough_where_it_should(advantage: float, log_ratio: float, learned: bool) -> None:
    objective = worked("grpo", [[float(np.log(1 / 3)) - log_ratio]], [advantage], clip=0.2)
    model = Fixed([0.0, 0.0, 0.0])
    objective(model, of_tokens([(1,)], objective)).backward()
    assert (model.logits.grad.abs().max() > 0) == learned
    assert objective.tally.read()[3] == (not learned)


def test_the_tally_tells_how_far_the_policy_has_moved() -> None:
    model, objective = policy().eval(), loss(kl=0.1)
    for batch in batches(objective):
        objective(model, batch)
    tokens, apart, away, _ = objective.tally.read()
    assert tokens == sum(map(len, ANSWERS))
    assert apart > 0 and away > 0


def test_the_temperature_divides_the_logits() -> None:
    model, objective = policy().eval(), loss()
    warm = [replace(batch, temperature=2.0) for batch in batches(objective)]
    (batch,) = batches(objective)
    with torch.no_grad():
        logits = model(input_ids=batch.ids_BT).logits / 2.0
        expected = logits.flatten(0, 1)[batch.sources_N].log_softmax(-1).gather(-1, batch.targets_N[:, None])[:, 0]
        torch.testing.assert_close(-nll(model, warm[0]), expected)
