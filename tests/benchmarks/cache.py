"""Cache hits in each store against a bare loopback call, by size: ``python -m tests.benchmarks.cache``.

Redis is measured if ``redis-server`` is installed.
"""

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx

from llm_effects import LLMConfig, LLMRequest, ModelConfig, generate, open_env, run
from llm_effects.config import CacheConfig
from llm_effects.testing.scripted import answer
from llm_effects.values.serialization import Entry, dump_entry
from tests.benchmarks.stub import stub
from tests.benchmarks.transport import PLAIN, QUESTION, alternating

SIZES = (100, 10_000, 100_000)


@contextmanager
def redis() -> Iterator[str | None]:
    if shutil.which("redis-server") is None:
        yield None
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        time.sleep(0.3)
        yield f"redis://127.0.0.1:{port}/0"
        server.kill()


async def measure_hits(url: str, size: int, rounds: int) -> None:
    with stub() as base:
        model = ModelConfig(provider="openai-compatible", model="stub", endpoint=base, api_key="sk-benchmark")
        config = LLMConfig(models={"stub": model}, cache=CacheConfig(url=url, max_size=200_000))
        async with httpx.AsyncClient() as client, open_env(config) as env:
            for number in range(size):
                await env.cache.put(f"{number:064x}", dump_entry(Entry(response=answer("x"))), None)

            async def bare() -> object:
                return (await client.post(f"{base}/chat/completions", json=QUESTION, headers=PLAIN)).json()

            async def ours() -> object:
                return (await run(generate(LLMRequest(prompt="Why is the sky blue?")), env)).unwrap()

            bare_us, hit_us = await alternating(rounds, bare, ours)
            store = url.partition(":")[0]
            print(f"{store:7} {size:7} entries: a hit {hit_us:.0f} us, {hit_us / bare_us:.3f} x bare httpx")


async def main(sizes: tuple[int, ...] = SIZES, rounds: int = 300) -> None:
    with tempfile.TemporaryDirectory() as folder, redis() as server:
        for size in sizes:
            await measure_hits("memory://", size, rounds)
            await measure_hits(f"sqlite:///{Path(folder) / str(size)}.db", size, rounds)
            if server is not None:
                await measure_hits(server, size, rounds)


if __name__ == "__main__":
    anyio.run(main)
