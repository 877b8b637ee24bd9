"""`luthier serve` as a process: it ends when it is asked to, also while it loads, and says what it cannot do."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from luthier.data.tokenizer import load_tokenizer
from luthier.model.decode import Decoder
from luthier.model.load import load_model
from luthier.recipe.schema import Model
from luthier.serve.sampler import RemoteSampler
from tests.model.test_decode import Heard, asked
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
    assert "did you mean `options.adapters_from`?" in refused("demo", "--port", "0", f"serving.options.adapter_from={tmp_path}")


def test_it_draws_for_another_process_from_each_adapter_that_this_one_writes(tmp_path: Path) -> None:
    """The split topology: here is who trains, there who answers."""
    tokenizer, model = load_tokenizer(Model(base="demo")), load_model(Model(base="demo"), torch.float32, torch.device("cpu"))
    peft = adapted(model, r=8)
    prompts, seeds = [tokenizer.encode(text) for text in ("Who takes the ticket?", "Simon can start on Friday.")] * 4, list(range(8))
    words = ["demo", "--port", "0", f"serving.options.adapters_from={tmp_path}"]
    with subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            url, token = server.stdout.readline().strip(), server.stdout.readline().removeprefix("token ").strip()
            sampler = RemoteSampler.at(url, token, tokenizer.stop_ids)
            for step in range(2):
                peft.save_pretrained(tmp_path / f"step-{step}")
                sampler.give(f"step-{step}", tmp_path / f"step-{step}")
                found = sampler.draw(prompts, seeds, max_new_tokens=12, temperature=1.0)
                decoder, heard = Decoder(peft.eval(), max_length=100), [Heard() for _ in prompts]
                for ids, seed, listener in zip(prompts, seeds, heard, strict=True):
                    asked_for = asked(ids, 12, stop=tokenizer.stop_ids, adapter="default", temperature=1.0, seed=seed)
                    decoder.submit(asked_for, listener)
                while decoder.step():
                    pass
                assert [list(each.ids) for each in found] == [each.ids for each in heard]
                for each, listener in zip(found, heard, strict=True):
                    assert each.logprobs == pytest.approx([one.logprob for one in listener.tokens], abs=1e-4)
                with torch.no_grad():
                    for name, weight in peft.named_parameters():
                        if "lora_" in name:
                            weight.mul_(1.5)  # a step of training
        finally:
            server.terminate()
    assert server.returncode == 0
