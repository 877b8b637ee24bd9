"""A server that has answered thousands takes no more memory than one that has answered hundreds."""

import gc
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from tests.serve.workshop import Place, questions, user

MEGABYTE = 2**20


@pytest.mark.slow
def test_memory_is_flat_over_2000_requests_and_none_is_lost(server: Place) -> None:
    asked, process = questions(100), psutil.Process()
    before = sum(server.site.counts.requests.values())

    with server.plain() as plain:

        def ask(number: int) -> bool:
            text = f"{asked[number % 100]} {number}"
            body = {"model": ("tuned", "v1.5", "base")[number % 3], "messages": user(text), "max_tokens": 4, "stream": number % 2 == 0}
            answer = plain.post("/v1/chat/completions", json=body)
            return answer.status_code == 200 and ("data: [DONE]" in answer.text) == body["stream"]

        sizes = []
        with ThreadPoolExecutor(8) as pool:
            for start in range(0, 2500, 250):
                assert all(pool.map(ask, range(start, start + 250)))
                gc.collect()
                sizes.append(process.memory_info().rss)
    assert sum(server.site.counts.requests.values()) - before == 2500
    assert server.metric("luthier_answers_open") == 0
    assert max(sizes[2:]) - sizes[1] < 8 * MEGABYTE, [size // MEGABYTE for size in sizes]  # 2,000 requests, after 500 that fill the caches
