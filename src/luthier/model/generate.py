"""Greedy answers from a model in this process, in batches of like length.

Axes: B rows of a batch, T tokens of the longest prompt, N new tokens.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteriaList

from luthier.core.chat import Completion, Conversation
from luthier.data.tokenizer import ChatTokenizer
from luthier.plan.scoring import BATCH_TOKENS


class LocalCompleter:
    """A Completer over a loaded model, base or adapted. In float32 an answer does not depend on the rows it shares a batch with.

    Whatever sampling or penalties the model's own generation config asks for is left out: the same prompt gives the same answer.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, tokenizer: ChatTokenizer, *, batch_tokens: int = BATCH_TOKENS) -> None:
        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens

    @property
    def device(self) -> torch.device:
        """Where the model lies, so that its memory can be measured."""
        device: torch.device = next(self.model.parameters()).device
        return device

    def complete(self, conversations: Sequence[Conversation], *, max_new_tokens: int) -> list[Completion]:
        """One answer per conversation, in order; long prompts go first, so that what does not fit into memory fails at once."""
        prompts = [self.tokenizer.prompt_ids(conversation) for conversation in conversations]
        completions: dict[int, Completion] = {}
        plain = GenerationConfig(
            max_new_tokens=max_new_tokens, eos_token_id=list(self.tokenizer.stop_ids), pad_token_id=self.tokenizer.pad_id, use_cache=True
        )
        with _generating(self.model, plain):
            for rows in self._batches(prompts, max_new_tokens):
                answered = self._answer([prompts[row] for row in rows], plain)
                completions |= zip(rows, answered, strict=True)
        return [completions[row] for row in range(len(prompts))]

    def _batches(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Iterator[list[int]]:
        """Row numbers, batch by batch: rows × (longest prompt + new tokens) stay within the budget, one row always fits."""
        batch: list[int] = []
        for row in sorted(range(len(prompts)), key=lambda row: -len(prompts[row])):
            if batch and (len(batch) + 1) * (len(prompts[batch[0]]) + max_new_tokens) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def _answer(self, prompts: Sequence[Sequence[int]], plain: GenerationConfig) -> list[Completion]:
        longest = max(len(prompt) for prompt in prompts)
        ids_BT = torch.full((len(prompts), longest), self.tokenizer.pad_id)
        mask_BT = torch.zeros_like(ids_BT)
        for row, prompt in enumerate(prompts):  # padded on the left; the mask goes by position, for pad may be a token of the text
            ids_BT[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_BT[row, longest - len(prompt) :] = 1
        clock = _Clock(self.device)
        output_BT = self.model.generate(
            input_ids=ids_BT.to(self.device),
            attention_mask=mask_BT.to(self.device),
            generation_config=plain,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        new_BN: list[list[int]] = output_BT[:, longest:].tolist()
        seconds = clock.elapsed()
        return [self._completion(prompt, new, clock.first_token_seconds, seconds) for prompt, new in zip(prompts, new_BN, strict=True)]

    def _completion(self, prompt: Sequence[int], new: Sequence[int], first_token_seconds: float, seconds: float) -> Completion:
        """A row up to its first stop token, which is counted but not part of the text; after it there is only padding."""
        end = next((place for place, token in enumerate(new) if token in self.tokenizer.stop_ids), len(new))
        text = self.tokenizer.pretrained.decode(list(new[:end]), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Completion(
            text=str(text),
            num_prompt_tokens=len(prompt),
            num_tokens=min(end + 1, len(new)),
            stopped=end < len(new),
            first_token_seconds=first_token_seconds,
            seconds=seconds,
        )


class _Clock:
    """A stopping criterion that never stops anything: generate calls it after each token, and it keeps the time of the first."""

    def __init__(self, device: torch.device) -> None:
        self.wait: Callable[[], None] = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
        self.first_token_seconds = 0.0
        self.wait()
        self.start = time.perf_counter()

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        if not self.first_token_seconds:
            self.first_token_seconds = self.elapsed()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def elapsed(self) -> float:
        """Seconds since the batch began, with all its work done."""
        self.wait()
        return time.perf_counter() - self.start


@contextmanager
def _generating(model: PreTrainedModel | PeftModel, plain: GenerationConfig) -> Iterator[None]:
    """Inference and evaluation mode, and nothing of the model's own generation config (generate would merge it in, with warnings).

    Afterwards every module is in the mode it was in, so a training loop may ask for answers between two steps.
    """
    training = [module for module in model.modules() if module.training]
    configs = {module: module.generation_config for module in model.modules() if "generation_config" in vars(module)}
    try:
        model.eval()
        for module in configs:
            module.generation_config = plain
        with torch.inference_mode():
            yield
    finally:
        for module in training:
            module.training = True
        for module, config in configs.items():
            module.generation_config = config
