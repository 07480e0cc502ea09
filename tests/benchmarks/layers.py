"""One call through every layer against bare httpx, in one run: ``python -m tests.benchmarks.layers``.

Calls alternate, so that both run under the same load; the figures are medians and their ratio.
"""

from collections.abc import Iterator
from itertools import count

import anyio
import httpx

from llm_effects import LLMConfig, LLMRequest, ModelConfig, Preferences, generate, open_env, run
from tests.benchmarks.stub import stub
from tests.benchmarks.transport import PLAIN, QUESTION, alternating


def questions() -> Iterator[LLMRequest]:
    """Generate distinct questions, so that the cache is read and written but never hit."""
    preferences = Preferences(max_tokens=100, temperature=0.2)
    return (LLMRequest(prompt=f"Why is the sky blue? ({number})", preferences=preferences) for number in count())


async def one_call(rounds: int = 1000) -> None:
    with stub() as base:
        model = ModelConfig(provider="openai-compatible", model="stub", endpoint=base, api_key="sk-benchmark")
        async with httpx.AsyncClient() as client, open_env(LLMConfig(models={"stub": model})) as env:

            async def bare() -> object:
                return (await client.post(f"{base}/chat/completions", json=QUESTION, headers=PLAIN)).json()

            requests = questions()

            async def ours() -> object:
                return (await run(generate(next(requests)), env)).unwrap()

            httpx_us, ours_us = await alternating(rounds, bare, ours)
            ratio = ours_us / httpx_us
            print(f"one call, every layer: bare httpx {httpx_us:.0f} us, ours {ours_us:.0f} us, ratio {ratio:.3f}")


if __name__ == "__main__":
    for backend in ("asyncio", "trio"):
        print(backend, end=": ")
        anyio.run(one_call, backend=backend)
