"""The clients that are compared, each in a process of its own: ``python -m tests.benchmarks.clients NAME LOOP URL...``.

The URLs are those of the servers in ``workers.py``. The process prints the versions of what it measures as JSON, then
answers each line of input, a case and a number of runs, with the seconds of processor time and of elapsed time that
they took together, and with the figure that the case returns itself, if any; or with ``failed``, if a peer did. With
``first`` before the name, it prints the same for its imports and one call, and ends. A peer runs in the virtual
environment of its library, and needs nothing else: only the standard library is imported at the top.
"""

# ruff: noqa: E402

import time

BEGAN, USED = time.perf_counter(), time.process_time()

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TypeAlias

QUESTION = "Why is the sky blue?"
LONG = f"{QUESTION} " * (1_000_000 // len(f"{QUESTION} "))
"""A prompt of a megabyte."""

BODY = {"model": "stub", "messages": [{"role": "user", "content": QUESTION}]}
KEY = "sk-benchmark"

PATIENT_S = 300
"""The time-out of clients that make a thousand calls at once."""

Run: TypeAlias = Callable[[], Awaitable[object]]
Urls: TypeAlias = dict[str, str]
"""The base URL of each server by its name: ``fast``, ``slow``, ``gaps``, ``held``."""

PACKAGES = {
    "bare": ("httpx",),
    "httpx": ("httpx", "anyio", "msgspec"),
    "aiohttp": ("aiohttp", "anyio", "msgspec"),
    "openai": ("openai",),
    "anthropic": ("anthropic",),
    "litellm": ("litellm",),
    "pydantic-ai": ("pydantic-ai-slim",),
    "langchain": ("langchain-openai",),
    "any-llm": ("any-llm-sdk",),
}


def at_once(call: Run, calls: int) -> Run:
    """Make so many calls at once."""

    async def burst() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(calls):
                tasks.create_task(call())  # type: ignore[arg-type]

    return burst


def runs_of(call: Run, stream: Run, slow: Run, gaps: Run) -> dict[str, Run]:
    """Return what every client is asked: calls and streams, one by one and many at once."""
    return {
        "call": call,
        "stream": stream,
        "100": at_once(call, 100),
        "1000": at_once(slow, 1000),
        "streams": at_once(gaps, 1000),
    }


async def bare(urls: Urls, stack: AsyncExitStack) -> dict[str, Run]:
    import httpx

    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
    client = await stack.enter_async_context(httpx.AsyncClient(limits=limits, timeout=PATIENT_S))
    headers = {"authorization": f"Bearer {KEY}"}

    async def call(base: str) -> object:
        return (await client.post(f"{base}/chat/completions", json=BODY, headers=headers)).json()

    async def stream(base: str) -> None:
        body = {**BODY, "stream": True}
        async with client.stream("POST", f"{base}/chat/completions", json=body, headers=headers) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    json.loads(line[6:])

    async def prompt() -> object:
        body = {**BODY, "messages": [{"role": "user", "content": LONG}]}
        return (await client.post(f"{urls['fast']}/chat/completions", json=body, headers=headers)).json()

    asks = (call, "fast"), (stream, "fast"), (call, "slow"), (stream, "gaps")
    return {**runs_of(*(partial(ask, urls[server]) for ask, server in asks)), "prompt": prompt}


async def ours(transport: str, urls: Urls, stack: AsyncExitStack) -> dict[str, Run]:
    from tests.benchmarks import inside

    return await inside.runs(transport, urls, stack)


async def first_of_ours(transport: str, urls: Urls, stack: AsyncExitStack) -> dict[str, Run]:
    """Import only what one call needs, and load the configuration."""
    from llm_effects import generate, open_env, run
    from llm_effects.config.loading import load_config

    model = {"provider": "openai-compatible", "model": "stub", "endpoint": urls["fast"], "api_key": KEY}
    config = load_config({"models": {"stub": model}, "transport": transport}).unwrap()
    env = await stack.enter_async_context(open_env(config))

    async def call() -> object:
        return (await run(generate(QUESTION), env)).unwrap()

    return {"call": call}


async def openai(urls: Urls, stack: AsyncExitStack) -> dict[str, Run]:
    from openai import AsyncOpenAI

    settings = {"api_key": KEY, "max_retries": 0, "timeout": PATIENT_S}
    clients = {name: AsyncOpenAI(base_url=url, **settings) for name, url in urls.items()}  # type: ignore[arg-type]

    async def call(server: str) -> object:
        return await clients[server].chat.completions.create(**BODY)  # type: ignore[call-overload]

    async def stream(server: str) -> None:
        async for _ in await clients[server].chat.completions.create(**BODY, stream=True):  # type: ignore[call-overload]
            pass

    return runs_of(*map(partial, (call, stream, call, stream), ("fast", "fast", "slow", "gaps")))


async def anthropic(urls: Urls, stack: AsyncExitStack) -> dict[str, Run]:
    from anthropic import AsyncAnthropic

    client = AsyncAnthropic(base_url=urls["fast"].removesuffix("/v1"), api_key=KEY, max_retries=0)

    async def call() -> object:
        return await client.messages.create(**BODY, max_tokens=100)  # type: ignore[call-overload]

    async def stream() -> None:
        async for _ in await client.messages.create(**BODY, max_tokens=100, stream=True):  # type: ignore[call-overload]
            pass

    return {"call": call, "stream": stream, "100": at_once(call, 100)}


async def litellm(urls: Urls, stack: AsyncExitStack) -> dict[str, Run]:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # or it asks a server for prices, and waits where there is none

    import litellm as library
    from litellm import Router

    library.cache = library.Cache()
    params = {name: {"model": "openai/stub", "api_base": url, "api_key": KEY} for name, url in urls.items()}
    router = Router(
        model_list=[{"model_name": name, "litellm_params": each} for name, each in params.items()],
        num_retries=0,
        timeout=PATIENT_S,
    )

    async def call(server: str, **settings: object) -> object:
        return await router.acompletion(server, BODY["messages"], **settings)

    async def stream(server: str) -> None:
        async for _ in await router.acompletion(server, BODY["messages"], stream=True):
            pass

    runs = runs_of(*map(partial, (call, stream, call, stream), ("fast", "fast", "slow", "gaps")))
    return {**runs, "hit": partial(call, "fast", caching=True)}


async def pydantic_ai(urls: Urls, stack: AsyncExitStack) -> dict[str, Run]:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    agent = Agent(OpenAIChatModel("stub", provider=OpenAIProvider(base_url=urls["fast"], api_key=KEY)))

    async def call() -> object:
        return await agent.run(QUESTION)

    async def stream() -> None:
        async with agent.run_stream(QUESTION) as answer:
            async for _ in answer.stream_text(delta=True, debounce_by=None):
                pass

    return {"call": call, "stream": stream, "100": at_once(call, 100)}


async def langchain(urls: Urls, stack: AsyncExitStack) -> dict[str, Run]:
    from langchain_core.caches import InMemoryCache
    from langchain_openai import ChatOpenAI

    settings = {"base_url": urls["fast"], "api_key": KEY, "model": "stub", "max_retries": 0}
    model, cached = ChatOpenAI(**settings), ChatOpenAI(**settings, cache=InMemoryCache())  # type: ignore[arg-type]

    async def call() -> object:
        return await model.ainvoke(QUESTION)

    async def hit() -> object:
        return await cached.ainvoke(QUESTION)

    async def stream() -> None:
        async for _ in model.astream(QUESTION):
            pass

    return {"call": call, "stream": stream, "100": at_once(call, 100), "hit": hit}


async def any_llm(urls: Urls, stack: AsyncExitStack) -> dict[str, Run]:
    from any_llm import AnyLLM

    client = AnyLLM.create("openai", api_key=KEY, api_base=urls["fast"])

    async def call() -> object:
        return await client.acompletion(**BODY)

    async def stream() -> None:
        async for _ in await client.acompletion(**BODY, stream=True):
            pass

    return {"call": call, "stream": stream, "100": at_once(call, 100)}


CLIENTS: dict[str, Callable[[Urls, AsyncExitStack], Awaitable[dict[str, Run]]]] = {
    "bare": bare,
    "httpx": partial(ours, "httpx"),
    "aiohttp": partial(ours, "fast"),
    "openai": openai,
    "anthropic": anthropic,
    "litellm": litellm,
    "pydantic-ai": pydantic_ai,
    "langchain": langchain,
    "any-llm": any_llm,
}

FIRST = {**CLIENTS, "httpx": partial(first_of_ours, "httpx"), "aiohttp": partial(first_of_ours, "fast")}


def versions(name: str, loop: str) -> dict[str, str]:
    """Return the versions of the interpreter, of the loop, and of what a client uses."""
    import platform
    from importlib.metadata import PackageNotFoundError, version  # not at the top, where first calls would pay for it

    found = {"python": platform.python_version()}
    for package in (*PACKAGES[name], *([loop] if loop != "asyncio" else [])):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


async def timed(run: Run, times: int) -> tuple[float, float, float]:
    """Return the processor time and the elapsed time of so many runs, in seconds, and the figure of the last."""
    result: object = None
    began, used = time.perf_counter(), time.process_time()
    for _ in range(times):
        result = await run()
    took = time.process_time() - used, time.perf_counter() - began
    return *took, result if isinstance(result, float) else 0.0


async def answer_lines(name: str, urls: Urls) -> None:
    """Make the runs that each line of input asks for."""
    async with AsyncExitStack() as stack:
        runs = await CLIENTS[name](urls, stack)
        for line in sys.stdin:
            case, times = line.split()
            try:
                print(*await timed(runs[case], int(times)), flush=True)
            except Exception as error:
                if "llm_effects" in sys.modules or name == "bare":
                    raise
                print("failed", type(error).__name__, flush=True)


async def answer_first(name: str, urls: Urls) -> None:
    """Make the first call of a process, and print what it took since the process began to import."""
    async with AsyncExitStack() as stack:
        await (await FIRST[name](urls, stack))["call"]()
        print(time.process_time() - USED, time.perf_counter() - BEGAN, 0.0, flush=True)


def main(first: bool, name: str, loop: str, *servers: str) -> None:
    """Measure a client in an event loop."""
    urls = dict(server.split("=", 1) for server in servers)
    if not first:
        print(json.dumps(versions(name, loop)), flush=True)
    work = answer_first if first else answer_lines
    if loop == "uvloop":
        import uvloop

        uvloop.run(work(name, urls))
    else:
        asyncio.run(work(name, urls))


if __name__ == "__main__":
    main(sys.argv[1] == "first", *(word for word in sys.argv[1:] if word != "first"))
