"""`luthier serve` beside `transformers serve`: tokens a second, latency and time to the first token, at 1, 8 and 32 clients.

    python bench/serve.py --pairs 5 --json serve.json              # the demo's base
    python bench/serve.py --hidden 512 --layers 8 --pairs 5        # random weights of a larger one, with the demo's tokenizer

Both serve the same folder, in the same type, all the while, and take turns: a burst of the same questions to one, then to the other, each
client asking the next as soon as it has its answer. Answers are greedy and streamed; tokens are those that the server's own usage counts.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from luthier.core.environment import SETTINGS
from luthier.core.jsonl import dumps
from luthier.demo import BASE
from luthier.model.load import resolve_device, resolve_dtype

CLIENTS = (1, 8, 32)
ANSWER = 32
"""Tokens at most."""
SUBJECTS = (
    "the first of its pages",
    "a parser",
    "what was written before",
    "three names",
    "the shortest way",
    "its own log",
    "an empty list",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where one of both listens, and by what name its model is asked."""

    name: str
    url: str
    token: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """One answer: tokens, and seconds to the first and to the last."""

    tokens: int
    first: float
    whole: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Burst:
    """What so many clients got of one server."""

    seconds: float
    answers: tuple[Heard, ...]

    @property
    def tokens_per_second(self) -> float:
        """Of all clients together."""
        return sum(answer.tokens for answer in self.answers) / self.seconds


def main() -> None:
    """Measure, print a table, keep the figures."""
    options = _parse()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = _larger(folder / "model", options.hidden, options.layers) if options.hidden else BASE
        servers = (stack.enter_context(luthier(model, folder)), stack.enter_context(peer(model, options.peer)))
        load_before = os.getloadavg()[0]
        for server in servers:
            asyncio.run(burst(server, 8, 16))  # kernels are chosen, caches allocated
        table = {clients: rounds(servers, clients, options) for clients in options.clients}
    told = _report(table, servers)
    print(f"load {load_before:.1f} before; {torch.__version__}, {model.name}, {_dtype()}\n\n" + told)
    if options.json:
        kept = {str(clients): [[asdict(burst) for burst in pair] for pair in pairs] for clients, pairs in table.items()}
        options.json.write_text(dumps({"options": vars(options) | {"json": ""}, "load_before": load_before, "pairs": kept}))


def rounds(servers: Sequence[Server], clients: int, options: argparse.Namespace) -> list[tuple[Burst, ...]]:
    """Pairs of neighbouring bursts; who begins changes."""
    found = []
    for number in range(options.pairs):
        order = servers if number % 2 == 0 else tuple(reversed(servers))
        told = {server.name: asyncio.run(burst(server, clients, max(clients, 8))) for server in order}
        found.append(tuple(told[server.name] for server in servers))
    return found


async def burst(server: Server, clients: int, requests: int) -> Burst:
    """So many requests by so many clients."""
    waiting = iter(_questions(requests))
    limits = httpx.Limits(max_connections=clients)
    headers = {"authorization": f"Bearer {server.token}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=600, limits=limits) as client:

        async def one() -> list[Heard]:
            return [await _ask(client, server.model, question) for question in waiting]

        began = time.perf_counter()
        told = await asyncio.gather(*(one() for _ in range(clients)))
        return Burst(seconds=time.perf_counter() - began, answers=tuple(answer for answers in told for answer in answers))


@contextmanager
def luthier(model: Path, folder: Path) -> Iterator[Server]:
    """Ours."""
    token, port = folder / "token", _free_port()
    command = ["-m", "luthier.cli.main", "serve", str(model), "--port", str(port), "--token-file", str(token)]
    with _running(command, f"http://127.0.0.1:{port}", token) as url:
        yield Server(name="luthier", url=url, token=token.read_text().strip(), model=model.name)


@contextmanager
def peer(model: Path, more: str) -> Iterator[Server]:
    """transformers' own, with the same type."""
    port = _free_port()
    command = ["-c", "from transformers.cli.transformers import main; main()", "serve", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", _dtype(), "--log-level", "error", *more.split()]
    with _running(command, f"http://127.0.0.1:{port}", model) as url:
        yield Server(name="transformers", url=url, token="none", model=str(model))


@contextmanager
def _running(command: Sequence[str], url: str, token: Path) -> Iterator[str]:
    """A server as a process of its own, once it is healthy."""
    environment = {**os.environ, **SETTINGS, "HF_HUB_OFFLINE": "1"}  # without which the peer's threads spin while others have the cores
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        try:
            while not _healthy(url, token):
                if process.poll() is not None:
                    raise SystemExit(f"it has ended: {' '.join(command)}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def _healthy(url: str, token: Path) -> bool:
    headers = {"authorization": f"Bearer {token.read_text().strip()}"} if token.is_file() else {}
    try:
        return httpx.get(f"{url}/health", headers=headers, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


async def _ask(client: httpx.AsyncClient, model: str, question: str) -> Heard:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": ANSWER, "temperature": 0.0, "stream": True}
    began, first, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", "/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}}) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"{answer.status_code}: {(await answer.aread()).decode()}")
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if not first and any(choice["delta"].get("content") for choice in event["choices"]):
                first = time.perf_counter() - began
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    whole = time.perf_counter() - began
    return Heard(tokens=tokens, first=first or whole, whole=whole)


def _questions(number: int) -> list[str]:
    """The same for both; of unlike lengths, and no two alike."""
    return [f"{place}: tell me of " + ", ".join(SUBJECTS[(place + each) % 7] for each in range(1 + place % 7)) for place in range(number)]


def _larger(folder: Path, hidden: int, layers: int) -> Path:
    """Random weights of Qwen3's kind."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 128),
        head_dim=64,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _dtype() -> str:
    """What Luthier serves a plain model in, on this device."""
    dtype, _ = resolve_dtype("auto", resolve_device())
    return str(dtype).removeprefix("torch.")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
        return port


def _report(table: dict[int, list[tuple[Burst, ...]]], servers: Sequence[Server]) -> str:
    names = " | ".join(f"{server.name}: tokens/s | answer p50, p95 | first token p50, p95" for server in servers)
    lines = [f"| clients | {names} | luthier is |", "|---:|" + "---:|" * (3 * len(servers)) + "---|"]
    for clients, pairs in table.items():
        cells = []
        for place in range(len(servers)):
            bursts = [pair[place] for pair in pairs]
            answers = [answer for burst in bursts for answer in burst.answers]
            cells.append(f"{statistics.median(burst.tokens_per_second for burst in bursts):,.0f}")
            cells += [_percentiles([getattr(answer, what) for answer in answers]) for what in ("whole", "first")]
        gains = [ours.tokens_per_second / theirs.tokens_per_second for ours, theirs in pairs]
        gain = f"{statistics.median(gains):.2f} × ({min(gains):.2f} … {max(gains):.2f})"
        lines.append(f"| {clients} | {' | '.join(cells)} | {gain} |")
    return "\n".join(lines)


def _percentiles(seconds: Sequence[float]) -> str:
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return f"{cuts[9]:.2f} s, {cuts[18]:.2f} s"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="bursts of each, in turns")
    parser.add_argument("--hidden", type=int, default=0, help="width of a model with random weights; 0: the demo's base")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--peer", default="", help="more words for transformers serve, such as --continuous-batching")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--json", type=Path, help="keep every answer's figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
