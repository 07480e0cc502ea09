"""One client, which measures itself: ``python peer.py NAME BASE_URL``, then a line of input for each run.

The lines are ``call``, ``stream`` and ``hit``. It runs in the virtual environment of the library that it measures, and
needs nothing else.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import count

QUESTION = "Why is the sky blue?"
BODY = {"model": "stub", "messages": [{"role": "user", "content": QUESTION}]}
KEY = "sk-benchmark"

Run = Callable[[], Awaitable[object]]
Runs = dict[str, Run]


async def bare(base: str, stack: AsyncExitStack) -> Runs:
    import httpx

    client = await stack.enter_async_context(httpx.AsyncClient())
    headers = {"authorization": f"Bearer {KEY}"}
    url = f"{base}/chat/completions"

    async def call() -> object:
        return (await client.post(url, json=BODY, headers=headers)).json()

    async def stream() -> None:
        async with client.stream("POST", url, json={**BODY, "stream": True}, headers=headers) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    json.loads(line[6:])

    return {"call": call, "stream": stream}


async def ours(base: str, stack: AsyncExitStack) -> Runs:
    from llm_effects import LLMConfig, LLMRequest, ModelConfig, StreamEvent, generate, open_env, run
    from llm_effects import stream as streamed

    model = ModelConfig(provider="openai-compatible", model="stub", endpoint=base, api_key=KEY)
    env = await stack.enter_async_context(open_env(LLMConfig(models={"stub": model})))
    requests = (LLMRequest(prompt=f"{QUESTION} ({number})") for number in count())

    async def sink(event: StreamEvent) -> None:
        pass

    async def call() -> object:
        return (await run(generate(next(requests)), env)).unwrap()

    async def stream() -> object:
        return (await run(streamed(next(requests), sink), env)).unwrap()

    async def hit() -> object:
        return (await run(generate(LLMRequest(prompt=QUESTION)), env)).unwrap()

    return {"call": call, "stream": stream, "hit": hit}


async def openai(base: str, stack: AsyncExitStack) -> Runs:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=base, api_key=KEY)

    async def call() -> object:
        return await client.chat.completions.create(**BODY)

    async def stream() -> None:
        async for _ in await client.chat.completions.create(**BODY, stream=True):
            pass

    return {"call": call, "stream": stream}


async def litellm(base: str, stack: AsyncExitStack) -> Runs:
    import litellm as library
    from litellm import Router

    library.cache = library.Cache()

    params = {"model": "openai/stub", "api_base": base, "api_key": KEY}
    router = Router(model_list=[{"model_name": "stub", "litellm_params": params}])

    async def call() -> object:
        return await router.acompletion(**BODY)

    async def stream() -> None:
        async for _ in await router.acompletion(**BODY, stream=True):
            pass

    async def hit() -> object:
        return await router.acompletion(**BODY, caching=True)

    return {"call": call, "stream": stream, "hit": hit}


async def langchain(base: str, stack: AsyncExitStack) -> Runs:
    from langchain_core.caches import InMemoryCache
    from langchain_core.globals import set_llm_cache
    from langchain_openai import ChatOpenAI

    set_llm_cache(InMemoryCache())
    model = ChatOpenAI(base_url=base, api_key=KEY, model="stub")

    async def hit() -> object:
        return await model.ainvoke(QUESTION)

    return {"hit": hit}


CLIENTS = {"httpx": bare, "llm_effects": ours, "openai": openai, "litellm": litellm, "langchain": langchain}


async def main(name: str, base: str) -> None:
    async with AsyncExitStack() as stack:
        runs = await CLIENTS[name](base, stack)
        for line in sys.stdin:
            started = time.perf_counter()
            await runs[line.strip()]()
            print((time.perf_counter() - started) * 1e6, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
