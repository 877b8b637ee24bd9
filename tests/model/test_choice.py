"""An answer out of a closed set is the one that decoding under constraint writes, and takes few passes."""

from collections.abc import Sequence

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from luthier.core.chat import Conversation, Message
from luthier.core.generation import Asked, Choices, Sampling
from luthier.data.tokenizer import ChatTokenizer
from luthier.model.choice import closed
from luthier.model.generate import LocalCompleter
from luthier.model.sample import chosen
from tests.data.families import family
from tests.model.zoo import adapted
from tests.train.workshop import tiny_model

LABELS = ["net", "net-misc", "mail", "math", "maths", "games", "größer", "admin", "python", "x11", "web", "sound", "science"]
QUESTIONS = [f"{word} package {number}" for number in range(10) for word in ("which", "a", "zoo", "größe")]
TOKENIZER = family("chatml")


def ask(*questions: str) -> list[Conversation]:
    return [Conversation(messages=(Message(role="user", content=question),)) for question in questions]


@pytest.fixture(scope="module")
def base() -> PreTrainedModel:
    return tiny_model(vocabulary=len(TOKENIZER.pretrained)).eval()


@pytest.fixture(scope="module")
def tuned() -> PeftModel:
    return adapted(tiny_model(vocabulary=len(TOKENIZER.pretrained))).eval()


def written_as(label: str, tokenizer: ChatTokenizer) -> tuple[int, ...]:
    """A label's tokens with an end of turn."""
    return (*tokenizer.encode(label), tokenizer.stop_ids[-1])


def after(model: torch.nn.Module, ids: Sequence[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)


@torch.no_grad()
def decoded_under_constraint(model: torch.nn.Module, prompt: Sequence[int], labels: Sequence[str]) -> str:
    """The oracle: no cache, no batch, no trie; to the very end of turn."""
    left = {written_as(label, TOKENIZER): label for label in labels}
    place = 0
    while len(left) > 1 or place < len(next(iter(left))):
        told = after(model, [*prompt, *next(iter(left))[:place]])
        may = {stop: ids[place] for ids in left for stop in (TOKENIZER.stop_ids if ids[place] in TOKENIZER.stop_ids else (ids[place],))}
        likeliest = may[max(may, key=lambda id: float(told[id]))]
        left = {ids: label for ids, label in left.items() if ids[place] == likeliest}
        place += 1
    return next(iter(left.values()))


@torch.no_grad()
def likeliest_as_a_whole(model: torch.nn.Module, prompt: Sequence[int], labels: Sequence[str]) -> str:
    def total(label: str) -> float:
        ids = written_as(label, TOKENIZER)
        return sum(float(after(model, [*prompt, *ids[:place]])[id]) for place, id in enumerate(ids))

    return max(labels, key=total)


@pytest.mark.parametrize("batch_tokens", [1, 16_384])
def test_the_choice_is_what_decoding_under_constraint_writes(base: PreTrainedModel, tuned: PeftModel, batch_tokens: int) -> None:
    prompts = [TOKENIZER.prompt_ids(each) for each in ask(*QUESTIONS)]
    said = {}
    for name, model in (("base", base), ("tuned", tuned)):
        found = LocalCompleter(model, TOKENIZER, batch_tokens=batch_tokens).choose(ask(*QUESTIONS), labels=LABELS)
        said[name] = [each.text for each in found]
        assert said[name] == [decoded_under_constraint(model, prompt, LABELS) for prompt in prompts]
        assert all(each.stopped and each.num_tokens <= max(len(written_as(label, TOKENIZER)) for label in LABELS) for each in found)
    assert said["base"] != said["tuned"] and len({*said["base"], *said["tuned"]}) > 2


def test_that_is_not_always_the_likeliest_as_a_whole(base: PreTrainedModel) -> None:
    found = [each.text for each in LocalCompleter(base, TOKENIZER).choose(ask(*QUESTIONS), labels=LABELS)]
    whole = [likeliest_as_a_whole(base, TOKENIZER.prompt_ids(each), LABELS) for each in ask(*QUESTIONS)]
    assert 0 < sum(one != other for one, other in zip(found, whole, strict=True)) < len(found)


def test_nothing_is_written_once_one_label_alone_is_left(base: PreTrainedModel) -> None:
    completer = LocalCompleter(base, TOKENIZER)
    assert {each.num_tokens for each in completer.choose(ask(*QUESTIONS), labels=["apple", "berry", "cherry"])} == {1}
    either = completer.choose(ask(*QUESTIONS), labels=["net", "net-misc"])
    assert {each.num_tokens for each in either} == {1}  # the end of turn, or what goes on


def test_choices_end_where_one_answer_is_left_and_any_stop_token_may_end_one() -> None:
    found = closed({(1, 2, 9): "a", (1, 2, 3, 4, 9): "b", (5, 6, 9): "c"}, stop_ids=(8, 9))
    assert (found.beginning, found.choices) == ((), {1: {2: {8: {}, 9: {}, 3: {}}}, 5: {}})
    assert found.said == {(1, 2, 8): "a", (1, 2, 9): "a", (1, 2, 3): "b", (5,): "c"}
    alike = closed({(1, 2, 9): "a", (1, 2, 3, 9): "b"}, stop_ids=(9,))
    assert (alike.beginning, alike.choices) == ((1, 2), {9: {}, 3: {}})  # what all begin with is not asked


def test_a_row_that_is_held_to_choices_leaves_the_others_free() -> None:
    logits_BV = torch.tensor([[0.1, 0.5, 0.4], [0.1, 0.5, 0.4], [0.1, 0.5, 0.4]]).log()
    choices: Choices = {0: {}, 2: {1: {}}}
    free, held, drawing = (Asked(ids=(1,), sampling=Sampling(max_new_tokens=9, temperature=warm)) for warm in (0.0, 0.0, 5.0))
    found = chosen(logits_BV, [free, held, drawing], [0, 0, 0], [{}, choices, {0: {}}])
    assert [(token.id, token.end) for token in found] == [(1, ""), (2, ""), (0, "stop")]
    assert found[1].logprob == pytest.approx(torch.tensor(0.4).log().item())  # among all tokens
