"""A policy on a server: answers drawn from the adapter that it was given last, as tokens with log-probabilities. Light.

What is asked is vLLM's interface, which `luthier serve` has, too: adapters that come and go, token ids in and out, stops by token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import RunError, UsageError
from luthier.core.generation import Drawn
from luthier.serve.asking import WAITS, answered, patiently
from luthier.serve.wire import Unanswered, Wire

COMPLETIONS, LOAD, UNLOAD = "/v1/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
AT_ONCE = 64
"""Answers that are asked at once: twice as many as `luthier serve` writes, so that none of its places waits for the next request."""
TOKENS = "take `luthier serve`, or a vLLM that knows return_token_ids"
ADAPTERS = (
    "start it with serving.options.adapters_from=FOLDER (luthier serve), "
    "or with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 (vLLM), whose folder it sees, too"
)


@dataclass(slots=True, kw_only=True)
class RemoteSampler:
    """`give` it an adapter, then `draw`. The server has to see the adapter's folder under the same path."""

    wire: Wire
    stop_ids: tuple[int, ...]
    """Besides those that the server knows itself."""
    waits: Sequence[float] = WAITS
    given: str = ""
    """The adapter that answers."""

    @classmethod
    def at(cls, url: str, token: str, stop_ids: Sequence[int]) -> "RemoteSampler":
        """Once the server answers; raises UsageError for what is no address, RunError where it cannot tell tokens, or take adapters."""
        found = cls(wire=Wire.to(url, token), stop_ids=tuple(stop_ids))
        found._refuse_without_tokens()
        found._refuse_without_adapters()
        return found

    def give(self, name: str, folder: Path) -> None:
        """Answer with the adapter of a folder from now on, under this name; the one before is unloaded."""
        known = self.wire.models()
        self._tell(LOAD, {"lora_name": name, "lora_path": str(folder.resolve()), "load_inplace": name in known})
        before, self.given = self.given, name
        if before != name and before in known:  # else the server was started anew
            self._tell(UNLOAD, {"lora_name": before})

    def draw(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int, temperature: float, top_p: float = 1.0
    ) -> list[Drawn]:
        """One answer for each prompt and seed, in order: the likeliest where temperature or top_p is 0.

        Log-probabilities are those before temperature and top_p, as the server computed them.
        """
        if not self.given:
            raise UsageError("the server was given no adapter yet", where=self.wire.url)
        how = {"temperature": temperature, "top_p": top_p} if top_p else {"temperature": 0}
        asked = {"model": self.given, "max_tokens": max_new_tokens, **how, **self._told()}
        bodies = [{**asked, "prompt": list(ids), "seed": seed} for ids, seed in zip(prompts, seeds, strict=True)]
        return answered(bodies, lambda body: patiently(lambda: self._drawn(body), self.waits), AT_ONCE)

    def _told(self) -> dict[str, Any]:
        return {"logprobs": 0, "return_token_ids": True, "stop_token_ids": list(self.stop_ids)}

    def _drawn(self, body: dict[str, Any]) -> Drawn:
        told = self.wire.told(COMPLETIONS, body)
        try:
            choice: Mapping[str, Any] = told["choices"][0]
            end = choice["finish_reason"]
            ids, logprobs = tuple(map(int, choice["token_ids"])), tuple(map(float, choice["logprobs"]["token_logprobs"]))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise self._unlike(f"the server's answer does not tell {error}") from error
        if len(ids) != len(logprobs):
            raise self._unlike(f"the server tells {len(ids)} tokens and {len(logprobs)} log-probabilities")
        if end not in ("stop", "length"):
            raise Unanswered(f"the answer broke off: {end}", where=self.wire.url + COMPLETIONS)
        return Drawn(ids=ids, logprobs=logprobs, stopped=end == "stop")

    def _unlike(self, what: str) -> RunError:
        return RunError(what, where=self.wire.url + COMPLETIONS, change=TOKENS)

    def _refuse_without_tokens(self) -> None:
        """One token is written, by whichever model comes first."""
        models = patiently(self.wire.models, self.waits)
        if not models:
            raise RunError("the server has no model", where=self.wire.url)
        try:
            self._drawn({"model": models[0], "prompt": [0], "max_tokens": 1, "temperature": 0, **self._told()})
        except Unanswered as error:
            if error.code not in (400, 404, 422):
                raise
            raise self._unlike(f"the server tells no token ids: {error.what}") from error

    def _refuse_without_adapters(self) -> None:
        """What is wrong with an empty name is told only by who would take a right one."""
        try:
            self._tell(LOAD, {"lora_name": "", "lora_path": ""})
        except Unanswered as error:
            if error.code in (400, 422):
                return
            if error.code in (404, 405):
                raise RunError(f"the server takes no adapters: {error.what}", where=self.wire.url + LOAD, change=ADAPTERS) from error
            raise

    def _tell(self, path: str, body: dict[str, Any]) -> None:
        with self.wire.open(path, body) as answer:
            answer.read()  # vLLM's is no JSON
