"""`luthier serve` as a process: it ends when it is asked to, also while it loads, and says what it cannot do."""

import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from luthier.core.generation import Drawn
from luthier.data.tokenizer import load_tokenizer
from luthier.model.load import load_model, resolve_dtype
from luthier.recipe.schema import Model
from luthier.serve.sampler import RemoteSampler
from tests.model.zoo import adapted

COMMAND = [sys.executable, "-m", "luthier.cli.main", "serve"]


def refused(*words: str) -> str:
    """What it says where the call is wrong."""
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not done.stdout.startswith("ready")
    return done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_order_while_it_loads(number: signal.Signals) -> None:
    with subprocess.Popen([*COMMAND, "demo", "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        assert server.stdout.readline().startswith("http://127.0.0.1:")
        server.send_signal(number)
        assert server.wait(timeout=30) == 0
        assert "Traceback" not in server.stderr.read()


def test_what_it_cannot_serve_it_says(tmp_path: Path) -> None:
    assert "neither a run nor a model" in refused("no-such-run", "--port", "0")
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert "cannot be had" in refused("demo", "--port", str(other.getsockname()[1]))
    (tmp_path / "empty").write_text("")
    assert "the file is empty" in refused("demo", "--port", "0", "--token-file", str(tmp_path / "empty"))
    assert "there is no such folder" in refused("demo", "--port", "0", f"serving.options.adapters_from={tmp_path / 'none'}")


@torch.no_grad()
def nats_apart(model: PeftModel, prompts: Sequence[Sequence[int]], found: Sequence[Drawn]) -> float:
    """Of a token on average, between what a server told of it and what this model does."""
    apart = []
    for ids, drawn in zip(prompts, found, strict=True):
        logits_TV = model(input_ids=torch.tensor([[*ids, *drawn.ids]])).logits[0, len(ids) - 1 : -1].float()
        told_T = logits_TV.log_softmax(-1).gather(-1, torch.tensor(drawn.ids)[:, None])[:, 0]
        apart += (told_T - torch.tensor(drawn.logprobs)).abs().tolist()
    return sum(apart) / len(apart)


def test_it_draws_for_another_process_from_each_adapter_that_this_one_writes(tmp_path: Path) -> None:
    """The split topology: here is who trains, there who answers."""
    tokenizer, device = load_tokenizer(Model(base="demo")), torch.device("cpu")
    peft = adapted(load_model(Model(base="demo"), resolve_dtype("auto", device)[0], device), r=8).eval()
    prompts, seeds = [tokenizer.encode(text) for text in ("Who takes the ticket?", "Simon can start on Friday.")] * 8, list(range(16))
    words = ["demo", "--port", "0", f"serving.options.adapters_from={tmp_path}"]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            url, token = server.stdout.readline().strip(), server.stdout.readline().removeprefix("token ").strip()
            sampler, before = RemoteSampler.at(url, token, tokenizer.stop_ids), []
            for step in range(2):
                peft.save_pretrained(tmp_path / f"step-{step}")
                sampler.give(f"step-{step}", tmp_path / f"step-{step}")
                found = sampler.draw(prompts, seeds, max_new_tokens=12, temperature=1.0)
                assert nats_apart(peft, prompts, found) < 0.05  # of bfloat16
                assert not before or nats_apart(peft, prompts, before) > 0.2
                before = found
                with torch.no_grad():
                    for name, weight in peft.named_parameters():
                        if "lora_B" in name:
                            weight.mul_(2.0)  # a step of training
        finally:
            server.terminate()
    assert server.returncode == 0
