"""The cost of a stored turn against a plain call, by length: ``python -m tests.benchmarks.converse``.

The model answers at once, so all of the time is the library's and the store's. Calls alternate; figures are medians.
"""

import tempfile
from itertools import count
from pathlib import Path

import anyio
from attrs import evolve

from llm_effects import (
    LLMConfig,
    LLMEnv,
    LLMRequest,
    Message,
    ModelConfig,
    converse,
    generate,
    run,
    scripted_env,
    start_conversation,
)
from llm_effects.config import StorageConfig
from llm_effects.conversations import append_messages
from llm_effects.stores.conversations.memory import MemoryConversations
from tests.benchmarks.turns import alternating
from tests.fixtures.storages import open_conversations

LENGTHS = (0, 100, 10_000)
EXCHANGE = tuple(Message(role, "word " * 20) for role in ("user", "assistant"))
MODEL = ModelConfig(provider="lm-studio", model="m", context_length=4096)


async def start_with(env: LLMEnv, turns: int) -> None:
    """Start a conversation with this many earlier turns."""
    (await run(start_conversation("c"), env)).unwrap()
    for _ in range(turns):
        (await run(append_messages("c", EXCHANGE), env)).unwrap()


async def one_turn(url: str, turns: int, rounds: int) -> float:
    config = LLMConfig(models={"m": MODEL}, storage=StorageConfig(url=url))
    store = open_conversations(config.storage, MemoryConversations()).unwrap()
    ids = (f"id-{number}" for number in count())
    env = evolve(scripted_env("word " * 20, config=config), conversations=store, new_id=lambda: next(ids))
    await start_with(env, turns)
    questions = (f"question {number}" for number in count())

    async def plain() -> object:
        return (await run(generate(LLMRequest(prompt=next(questions))), env)).unwrap()

    async def stored() -> object:
        return (await run(converse("c", next(questions)), env)).unwrap()

    plain_us, stored_us = await alternating(rounds, plain, stored)
    await store.aclose()
    print(f"{url.partition(':')[0]:7} {turns:6} turns before: generate {plain_us:.0f} us, converse {stored_us:.0f} us")
    return stored_us


async def main(turns: tuple[int, ...] = LENGTHS, rounds: int = 200) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number in turns:
            await one_turn("memory://", number, rounds)
            await one_turn(f"sqlite:///{Path(folder) / str(number)}.db", number, rounds)


if __name__ == "__main__":
    anyio.run(main)
