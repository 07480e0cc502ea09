"""Every conversation store passes the same checks: memory, SQLite and Postgres."""

import threading
from collections.abc import Iterator
from typing import TypeAlias

import anyio
import pytest
from attrs import evolve

from llm_effects import make_llm_manager
from llm_effects.config import LLMConfig
from llm_effects.config.services import StorageConfig
from llm_effects.effects.env import Conversations
from llm_effects.stores.conversations.memory import MemoryConversations
from llm_effects.testing.conversation_checks import CONVERSATION_CHECKS, Check
from llm_effects.testing.stored_chat import Chat, texts
from tests.fixtures.postgres_server import postgres_server
from tests.fixtures.storages import open_conversations

__all__ = ["postgres_server"]

URL: TypeAlias = str


@pytest.fixture(scope="module", params=["memory", "sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[URL]:
    if request.param == "postgres":
        yield request.getfixturevalue("postgres_server").new_url()
    else:
        folder = tmp_path_factory.mktemp("conversations")
        yield "memory://" if request.param == "memory" else f"sqlite:///{folder}/conversations.db"


@pytest.fixture(scope="module")
def store(url: URL) -> Iterator[Conversations]:
    """Return one store for all checks: it outlives the event loop of each."""
    store = open_conversations(StorageConfig(url=url), MemoryConversations()).unwrap()
    yield store
    anyio.run(store.aclose)


@pytest.mark.anyio
@pytest.mark.parametrize("check", CONVERSATION_CHECKS, ids=lambda check: check.__name__)
async def test_the_store_passes_the_check(store: Conversations, check: Check) -> None:
    await check(store)


@pytest.mark.anyio
async def test_conversations_are_there_when_a_manager_is_entered_again(url: URL) -> None:
    before = set(threading.enumerate())
    manager = make_llm_manager(LLMConfig(models={}, storage=StorageConfig(url=url)))
    async with manager:
        chat = await Chat(manager.env.conversations).start()
        await chat.add_turn("why?", "because")
    async with manager:
        assert texts(await evolve(chat, store=manager.env.conversations).read()) == ["why?", "because"]
    ours = ("llm-effects-w", "llm-effects-r")
    assert not [each for each in set(threading.enumerate()) - before if each.name.startswith(ours)]
