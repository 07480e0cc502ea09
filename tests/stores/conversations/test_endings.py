"""The end of a turn that cannot be written now: it is kept, and written at the next chance."""

# ruff: noqa: ASYNC110 - a thread writes, and announces nothing

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import TypeAlias

import anyio
import psycopg
import pytest
from attrs import evolve
from returns.result import Failure

from llm_effects import AuthenticationFailed, LLMEnv, converse, load_conversation, run, scripted_env, start_conversation
from llm_effects.config.services import StorageConfig
from llm_effects.effects.effect import result_of
from llm_effects.effects.env import Conversations, new_id, wall_clock
from llm_effects.manager import new_memory
from llm_effects.stores.conversations.rules import MAX_KEPT, MAX_WRITERS, Ending, KeptEndings
from llm_effects.stores.conversations.sql import SqlConversations
from llm_effects.stores.open import open_storage
from llm_effects.stores.sql import database
from llm_effects.stores.sql.database import file_database, open_database
from llm_effects.testing.stored_chat import Chat, new_message, new_turn, texts, value_of
from llm_effects.values import TurnState
from llm_effects.values.errors import StorageFailed
from tests.fixtures.postgres_server import postgres_server

__all__ = ["postgres_server"]

pytestmark = pytest.mark.anyio

Locked: TypeAlias = Callable[[], AbstractContextManager[None]]


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(database, "LOCK_WAIT_S", 0.1)
    monkeypatch.setattr(database, "PAUSES_S", ())
    if request.param == "postgres":
        server: str = request.getfixturevalue("postgres_server").new_url()
        return server
    return f"sqlite:///{tmp_path}/talks.db"


def opened(url: str) -> Conversations:
    if url.startswith("sqlite"):
        return SqlConversations(file_database(Path(url.removeprefix("sqlite:///")), lock_wait_seconds=0.1))
    return SqlConversations(open_database(url).unwrap())


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Keep all others from writing, while they can still read."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as file:
            file.execute("BEGIN IMMEDIATE")
            yield
    else:
        with psycopg.connect(url) as connection:
            connection.execute("LOCK TABLE llm_conversations, llm_turns IN EXCLUSIVE MODE")
            yield


async def env_with_chat(url: str, *replies: object) -> LLMEnv:
    env = evolve(scripted_env(*replies), conversations=opened(url), now=wall_clock, new_id=new_id)
    (await run(start_conversation("c"), env)).unwrap()
    return env


async def asked(env: LLMEnv, turn_id: str = "t") -> object:
    return await run(converse("c", "why?", turn_id=turn_id), env)


async def state_seen_by_others(url: str) -> TurnState:
    other = Chat(opened(url), id="c", owner=None)
    state = (await other.read()).turns[0].state
    await other.store.aclose()
    return state


async def until_others_see(url: str, state: TurnState) -> None:
    with anyio.fail_after(30):
        while await state_seen_by_others(url) is not state:
            await anyio.sleep(0.01)


class Lock:
    """A lock that the answer of a model takes: after its question was stored, before its answer is."""

    def __init__(self, url: str, reply: object) -> None:
        self.context, self.reply = locked(url), reply

    def __call__(self, _: object) -> object:
        self.context.__enter__()
        return self.reply

    def release(self) -> None:
        self.context.__exit__(None, None, None)


async def test_an_answer_that_cannot_be_written_is_kept_and_written_with_the_next_operation(url: str) -> None:
    lock = Lock(url, "because")
    env = await env_with_chat(url, lock)
    first = (await asked(env)).unwrap()
    assert (first.content, first.cached) == ("because", False)
    assert "kept, and written with the next operation" in first.warnings[-1]
    again = (await asked(env)).unwrap()  # still locked
    assert (again.content, again.cached) == ("because", True)
    turn = (await run(load_conversation("c"), env)).unwrap().turns[0]
    assert (turn.state, await state_seen_by_others(url)) == (TurnState.FINISHED, TurnState.PENDING)
    lock.release()
    await value_of(env.conversations.page(None, 10))
    await until_others_see(url, TurnState.FINISHED)
    other = evolve(scripted_env(), conversations=opened(url), now=wall_clock, new_id=new_id)
    assert (await asked(other)).unwrap().content == "because"
    assert texts(await Chat(other.conversations, id="c", owner=None).read()) == ["why?", "because"]
    await other.conversations.aclose()
    await env.conversations.aclose()


async def test_closing_writes_what_is_kept_whichever_store_is_closed_first(url: str) -> None:
    lock = Lock(url, "because")
    storage = open_storage(StorageConfig(url=url), new_memory()).unwrap()
    env = evolve(scripted_env(lock), conversations=storage.conversations, now=wall_clock, new_id=new_id)
    if url.startswith("sqlite"):
        env = evolve(env, conversations=opened(url))
    (await run(start_conversation("c"), env)).unwrap()
    assert (await asked(env)).unwrap().content == "because"
    lock.release()
    assert await state_seen_by_others(url) is TurnState.PENDING
    await (env.conversations if url.startswith("sqlite") else storage.ledger).aclose()
    assert await state_seen_by_others(url) is TurnState.FINISHED
    await storage.ledger.aclose()


async def test_what_closing_cannot_write_is_logged(url: str, caplog: pytest.LogCaptureFixture) -> None:
    lock = Lock(url, "because")
    env = await env_with_chat(url, lock)
    await asked(env)
    await env.conversations.aclose()
    lock.release()
    assert caplog.messages == ["conversations were closed with 1 turns whose end is not written"]


async def test_a_failure_that_cannot_be_written_does_not_hold_its_lease(url: str) -> None:
    lock = Lock(url, AuthenticationFailed())
    env = await env_with_chat(url, lock, "because")
    assert (await asked(env)).failure().tag == "AuthenticationFailed"
    assert (await asked(env)).failure().tag == "StorageFailed"  # still locked
    lock.release()
    assert (await asked(env)).unwrap().content == "because"
    await env.conversations.aclose()


async def test_a_write_that_fails_at_once_is_repeated_with_the_next_operation(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = await Chat(opened(url), id="c", owner=None).start()
    await chat.begin(new_turn("why?", turn_id="t"))
    with locked(url):
        answer = (new_message("because", "assistant"),)
        await result_of(chat.store.finish_turn("c", None, "t", TurnState.FINISHED, answer))

    def fail(_: object, operation: str, __: object, done: Callable[[object], None], **___: object) -> bool:
        done(Failure(StorageFailed(operation=operation)))
        return True

    with monkeypatch.context() as patch:
        patch.setattr(database.Database, "post", fail)
        await value_of(chat.store.page(None, 1))
    await value_of(chat.store.page(None, 1))
    await until_others_see(url, TurnState.FINISHED)
    await chat.store.aclose()


async def test_a_kept_failure_leaves_a_turn_alone_that_another_writer_has_begun_again(url: str) -> None:
    chat = await Chat(opened(url), id="c", owner=None).start()
    turn = await chat.begin(new_turn("why?", turn_id="t", writer="mine"))
    with locked(url):
        failed = await result_of(chat.store.finish_turn("c", None, "t", TurnState.FAILED, (), error="x"))
    assert failed.failure().tag == "StorageFailed"
    other = evolve(chat, store=opened(url))
    await other.begin(new_turn("why?", turn_id="t", writer="other", at=61))
    await chat.store.aclose()  # writes what is kept
    assert (await other.read()).turns[0].state is TurnState.PENDING
    await other.finish(turn.id, "because")
    assert texts(await other.read()) == ["why?", "because"]
    await other.store.aclose()


async def test_the_end_of_a_turn_that_was_deleted_is_forgotten(url: str) -> None:
    env = await env_with_chat(url, "because")
    lock = locked(url)
    chat = Chat(env.conversations, id="c", owner=None)
    await chat.begin(new_turn("why?", turn_id="t"))
    with lock:
        answer = (new_message("because", "assistant"),)
        await result_of(chat.store.finish_turn("c", None, "t", TurnState.FINISHED, answer))
    other = opened(url)
    assert await value_of(other.delete("c", None))
    await value_of(chat.store.page(None, 1))
    await other.aclose()
    await chat.store.aclose()
    assert chat.store._kept.all() == ()  # type: ignore[attr-defined]


def test_what_is_kept_is_bounded() -> None:
    kept = KeptEndings()
    for number in range(MAX_KEPT + 1):
        ending = Ending(
            owner=None, conversation_id="c", turn_id=str(number), state=TurnState.FAILED, messages=(), error=None
        )
        kept.keep(ending)
    for number in range(MAX_WRITERS + 1):
        kept.remember((None, "c", str(number)), "w")
    assert [len(kept.all()), kept.all()[0].turn_id, len(kept._writers)] == [MAX_KEPT, "1", MAX_WRITERS]
