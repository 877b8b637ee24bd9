"""A small server with vLLM's words and vLLM's routes, in a process of its own: transformers and PEFT compute what it tells.

Not vLLM, and no mock of Luthier: it is what a test can have without 3.5 GB. The file that `STAND_IN` names makes it wrong: `base` drops the
adapter in silence, `scaled` doubles it (a wrong alpha), `bos` adds a token to each prompt, `dies` ends with an error while it loads.
"""

import argparse
import http.server
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    words = argparse.ArgumentParser(allow_abbrev=False)
    words.add_argument("-m", dest="module", required=True, choices=["vllm.entrypoints.openai.api_server"])
    for word in ("--model", "--served-model-name", "--host", "--port", "--dtype"):
        words.add_argument(word, required=True)
    for word in ("--max-model-len", "--max-lora-rank", "--lora-modules", "--chat-template", "--generation-config"):
        words.add_argument(word)
    words.add_argument("--enable-lora", action="store_true")
    words.add_argument("--enforce-eager", action="store_true")
    given = words.parse_args()
    if way() == "dies":
        sys.exit("ValueError: LoRA rank 64 is greater than max_lora_rank 16.")
    print("INFO: loading", given.model, flush=True)
    http.server.HTTPServer((given.host, int(given.port)), handler(given)).serve_forever()


def way() -> str:
    """How it is to be wrong now."""
    return Path(os.environ["STAND_IN"]).read_text()


def handler(given: argparse.Namespace) -> type[http.server.BaseHTTPRequestHandler]:
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=given.dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    if given.chat_template:
        tokenizer.chat_template = Path(given.chat_template).read_text(encoding="utf-8")
    names = [given.served_model_name]
    if given.enable_lora:
        name, _, folder = given.lora_modules.partition("=")
        names.append(name)
        model = PeftModel.from_pretrained(model, folder).eval()

    def compute(ids: list[int]) -> torch.Tensor:
        layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)] if way() == "scaled" else []
        for layer in layers:
            layer.scale_layer(2.0)
        logits = model(torch.tensor([ids])).logits[0]
        for layer in layers:
            layer.unscale_layer()
        return logits

    def told(body: dict[str, Any]) -> dict[str, Any]:
        ids = body["prompt"]
        if len(ids) + body["max_tokens"] > int(given.max_model_len):
            raise ValueError("the prompt is longer than max_model_len")
        with torch.no_grad():
            if given.enable_lora and (way() == "base" or body["model"] == given.served_model_name):
                with model.disable_adapter():
                    logits = compute(ids)
            else:
                logits = compute(ids)
        each = logits.float().log_softmax(-1)
        after = [{str(id): {"logprob": each[place, id].item()}} for place, id in enumerate(ids[1:])]
        return {"choices": [{"index": 0, "text": "", "prompt_logprobs": [None, *after]}]}

    def tokenized(body: dict[str, Any]) -> dict[str, Any]:
        text = tokenizer.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=body["add_generation_prompt"])
        ids = tokenizer.encode(text, add_special_tokens=False)
        return {"tokens": [0, *ids] if way() == "bos" else ids}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/health":
                self.say(200, {})
            elif self.allowed():
                self.say(200, {"data": [{"id": name} for name in names]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":  # which vLLM guards with no token
                self.say(200, tokenized(body))
            elif self.allowed():
                self.say(200, told(body))

        def allowed(self) -> bool:
            known = self.headers.get("Authorization") == f"Bearer {os.environ['VLLM_API_KEY']}"
            if not known:
                self.say(401, {"error": "Unauthorized"})
            return known

        def say(self, code: int, body: dict[str, Any]) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *args: Any) -> None:
            print("INFO:", self.requestline, flush=True)

    return Handler


if __name__ == "__main__":
    main()
