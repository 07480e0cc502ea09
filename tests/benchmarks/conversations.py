"""The time of turns and loads as conversations grow: ``python -m tests.benchmarks.conversations [MESSAGES]``.

For each store: a turn (begin and finish, with a question and an answer) and a load of the newest five turns, by the
length of the conversation, up to 10,000 messages, and by the size of the store, up to MESSAGES (1,000,000; in memory
100,000). The figures are the first decile of the samples, since the machine may be busy; what counts is the ratio of
the last to the first. Postgres is measured if it is installed.
"""

import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from uuid import uuid4

import anyio
import pytest
from attrs import evolve
from returns.result import Result, Success
from sqlalchemy import Connection, text

from llm_effects.effects.env import Conversations
from llm_effects.stores.conversations.sql import SqlConversations
from llm_effects.testing.stored_chat import Chat, new_message, new_turn, value_of
from llm_effects.values.conversations import Turn, TurnState
from llm_effects.values.errors import LLMError
from tests.fixtures.conversation_worker import opened
from tests.fixtures.postgres_server import start

LENGTHS: Final = (10, 100, 1_000, 10_000)
SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
NEWEST: Final = 5
TEXT: Final = "The p99 of the checkout service went up after the last deploy; the pool is exhausted. " * 3
SAMPLES: Final = 40


def whole_turns(count: int) -> tuple[Turn, ...]:
    """Build finished turns of two messages each."""
    turns = (new_turn(TEXT) for _ in range(count))
    return tuple(
        evolve(turn, state=TurnState.FINISHED, messages=(*turn.messages, new_message(TEXT, "assistant")))
        for turn in turns
    )


async def grow(chat: Chat, messages: int) -> None:
    """Append turns until a conversation has this many messages."""
    conversation = (await chat.read(0)).conversation
    missing = messages // 2 - conversation.turns
    while missing > 0:
        conversation = await value_of(
            chat.store.append(chat.id, chat.owner, conversation.version, whole_turns(min(missing, 500)))
        )
        missing = messages // 2 - conversation.turns


async def fill(store: Conversations, conversations: int) -> None:
    """Add conversations of 1,000 messages for ten owners; in a database, by copying one of them."""
    if isinstance(store, SqlConversations) and conversations:
        chat = await Chat(store).start()
        await grow(chat, 1_000)
        for first in range(0, conversations, 20):
            batch = range(first, min(first + 20, conversations))
            await value_of(store.database.write("copy", partial(copy, conversation_id=chat.id, copies=batch)))
        return
    for number in range(conversations):
        await grow(await Chat(store, owner=f"owner {number % 10}").start(), 1_000)


KEYS: Final = count(10_000_000, 10)  # distinct from those that the database assigns

COPIES: Final = (
    """INSERT INTO llm_conversations SELECT :new, :owner, :id, version, turns, updated_at, last_model, document
    FROM llm_conversations WHERE key = :key""",
    """INSERT INTO llm_turns SELECT :new, number, id, document FROM llm_turns WHERE conversation = :key""",
    """INSERT INTO llm_messages
    SELECT :new, turn, place, id, pinned, document FROM llm_messages WHERE conversation = :key""",
)


def copy(connection: Connection, conversation_id: str, copies: range) -> Result[None, LLMError]:
    key = connection.execute(
        text("SELECT key FROM llm_conversations WHERE id = :id"), {"id": conversation_id}
    ).scalar_one()
    for number in copies:
        values = {"key": key, "new": next(KEYS), "owner": f"owner {number % 10}", "id": uuid4().hex}
        for statement in COPIES:
            connection.execute(text(statement), values)
    return Success(None)


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    """Return the time of some work, in milliseconds."""
    times = []
    for _ in range(SAMPLES):
        started = time.perf_counter()
        await work()
        times.append((time.perf_counter() - started) * 1000)
    return statistics.quantiles(times, n=10)[0]


async def measure(chat: Chat) -> tuple[float, float]:
    """Measure a turn and a load of a conversation."""
    version = await chat.version()

    async def turn() -> None:
        nonlocal version
        begun = await value_of(chat.store.begin_turn(chat.id, chat.owner, version, new_turn(TEXT)))
        await chat.finish(begun.id, TEXT)
        version += 2

    return await timed(turn), await timed(lambda: chat.read(NEWEST))


def report(name: str, unit: str, figures: dict[int, tuple[float, float]]) -> None:
    first, last = (figures[each] for each in (min(figures), max(figures)))
    for place, what in enumerate(("a turn", f"newest {NEWEST} turns")):
        row = "  ".join(f"{size:,}: {figure[place]:.2f} ms" for size, figure in figures.items())
        print(f"{name:9} {what:16} by {unit}:  {row}   last/first {last[place] / first[place]:.2f}", flush=True)


async def compare(name: str, url: str, largest: int) -> None:
    store = opened(url)
    await measure(await Chat(store).start())  # to exclude one-time costs
    lengths = {}
    for length in LENGTHS:
        chat = await Chat(store).start()
        await grow(chat, length)
        lengths[length] = await measure(chat)
    report(name, "messages in it", lengths)
    sizes, stored = {}, sum(LENGTHS)
    for size in (each for each in SIZES if each <= (largest if name != "memory" else 100_000)):
        await fill(store, max(0, size - stored) // 1_000)
        stored = max(stored, size)
        chat = await Chat(store).start()
        await grow(chat, 100)
        sizes[stored] = await measure(chat)
    report(name, "messages in all", sizes)
    await store.aclose()


@contextmanager
def postgres() -> Generator[str]:
    with start() as server:
        yield server.new_url()


def main(largest: int) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        urls = {"memory": "memory://", "SQLite": f"sqlite:///{folder}/conversations.db"}
        try:
            urls["Postgres"] = stack.enter_context(postgres())
        except pytest.skip.Exception as reason:
            print(reason)
        for name, url in urls.items():
            anyio.run(compare, name, url, largest)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else SIZES[-1])
