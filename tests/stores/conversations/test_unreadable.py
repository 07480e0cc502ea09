"""Rows that this version cannot read, and fields that only a newer version knows: each harms only itself."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from attrs import evolve
from returns.result import Result, Success
from sqlalchemy import Connection, text

from llm_effects import LLMEnv, converse, list_conversations, load_conversation, run, scripted_env, start_conversation
from llm_effects.conversations import export_conversation, fork_conversation, import_conversation
from llm_effects.stores.conversations.sql import SqlConversations
from llm_effects.stores.sql.database import open_database
from llm_effects.testing.stored_chat import Chat, new_message, new_turn, value_of
from llm_effects.values import TurnState
from llm_effects.values.conversations import UNREADABLE, UNREADABLE_TEXT
from tests.fixtures.postgres_server import postgres_server

__all__ = ["postgres_server"]

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgres"])
async def env(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LLMEnv]:
    """Return an environment with the conversations a, b and c, of two turns each."""
    sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/talks.db" if sqlite else request.getfixturevalue("postgres_server").new_url()
    env = evolve(scripted_env("ok"), conversations=SqlConversations(open_database(url).unwrap()))
    for name in "abc":
        (await run(start_conversation(name, owner="ada"), env)).unwrap()
        for question in ("one", "two"):
            (await run(converse(name, question, owner="ada"), env)).unwrap()
    yield env
    await env.conversations.aclose()


async def execute(env: LLMEnv, statement: str, **values: object) -> list[tuple[object, ...]]:
    def work(connection: Connection) -> Result[list[tuple[object, ...]], object]:
        rows = connection.execute(text(statement), values)
        return Success([tuple(row) for row in rows] if rows.returns_rows else [])

    return await value_of(env.conversations.database.write("test", work))  # type: ignore[attr-defined]


async def extend_all(env: LLMEnv, table: str) -> None:
    """Add a field to each row of a table, as a newer version would."""
    for (document,) in await execute(env, f"SELECT document FROM {table}"):
        new = json.dumps({**json.loads(str(document)), "mood": "good"})
        await execute(env, f"UPDATE {table} SET document = :new WHERE document = :old", new=new, old=document)


BROKEN = ["{", "[]", '{"mood":1}', ""]


@pytest.mark.parametrize("document", BROKEN)
async def test_an_unreadable_conversation_is_one_marked_entry_of_the_list(env: LLMEnv, document: str) -> None:
    await execute(env, "UPDATE llm_conversations SET document = :d WHERE id = 'b'", d=document)
    listed = (await run(list_conversations(owner="ada"), env)).unwrap()
    assert [(each.id, each.owner, each.unreadable, each.turns) for each in listed] == [
        ("a", "ada", False, 2),
        ("b", "ada", True, 2),
        ("c", "ada", False, 2),
    ]
    assert (await run(load_conversation("b", owner="ada"), env)).failure().tag == "StorageFailed"
    assert (await run(converse("a", "three", owner="ada"), env)).unwrap().content == "ok"


async def test_a_conversation_with_an_unreadable_time_is_one_marked_entry_of_the_list(env: LLMEnv) -> None:
    await execute(env, "UPDATE llm_conversations SET updated_at = 'tomorrow' WHERE id = 'b'")
    listed = (await run(list_conversations(owner="ada"), env)).unwrap()
    assert [each.unreadable for each in listed] == [False, True, False]


@pytest.mark.parametrize("document", BROKEN)
async def test_an_unreadable_message_harms_only_its_turn(env: LLMEnv, document: str) -> None:
    before = (await run(load_conversation("a", owner="ada"), env)).unwrap()
    name = before.turns[0].messages[1].id
    await execute(env, "UPDATE llm_messages SET document = :d WHERE id = :id", d=document, id=name)
    first, second = (await run(load_conversation("a", owner="ada"), env)).unwrap().turns
    assert (first.number, first.state, first.error, second) == (1, TurnState.FAILED, UNREADABLE, before.turns[1])
    assert [each.id for each in first.messages] == [each.id for each in before.turns[0].messages]
    assert [each.message.text for each in first.messages] == ["one", UNREADABLE_TEXT]
    assert (await run(converse("a", "three", owner="ada"), env)).unwrap().content == "ok"
    assert [each.text for each in env.clients.calls[-1].request.messages] == ["two", "ok", "three"]  # type: ignore[attr-defined]
    assert (await run(fork_conversation("a", new_id="d", owner="ada"), env)).unwrap().turns == 2
    exported = (await run(export_conversation("a", owner="ada"), env)).unwrap()
    assert (await run(import_conversation(exported, new_id="e", owner="ada"), env)).unwrap().turns == 2


async def test_an_unreadable_turn_harms_only_itself(env: LLMEnv) -> None:
    before = (await run(load_conversation("a", owner="ada"), env)).unwrap()
    await execute(env, "UPDATE llm_turns SET document = '{' WHERE id = :id", id=before.turns[0].id)
    first, second = (await run(load_conversation("a", owner="ada"), env)).unwrap().turns
    assert (first.id, first.error, first.messages) == (before.turns[0].id, UNREADABLE, before.turns[0].messages)
    assert second == before.turns[1]
    again = await run(converse("a", "one", owner="ada", turn_id=first.id), env)
    assert again.failure().tag == "StorageFailed"


async def test_an_unreadable_summary_counts_as_none(env: LLMEnv) -> None:
    statement = "INSERT INTO llm_summaries SELECT key, 1, '{' FROM llm_conversations"
    await execute(env, statement)
    assert (await run(load_conversation("a", owner="ada"), env)).unwrap().summary is None


@pytest.mark.parametrize("table", ["llm_conversations", "llm_turns", "llm_messages"])
async def test_unknown_fields_of_a_newer_version_are_ignored_and_kept(env: LLMEnv, table: str) -> None:
    chat = Chat(env.conversations, id="a", owner="ada")
    await chat.begin(new_turn("three", turn_id="t"))
    before = await chat.read()
    await extend_all(env, table)
    assert await chat.read() == before
    await value_of(chat.store.finish_turn("a", "ada", "t", TurnState.FINISHED, (new_message("3", "assistant"),)))
    assert (await run(converse("a", "four", owner="ada"), env)).unwrap().content == "ok"
    assert (await run(fork_conversation("a", new_id="d", owner="ada"), env)).unwrap().turns == 4
    exported = (await run(export_conversation("a", owner="ada"), env)).unwrap()
    assert (await run(import_conversation(exported, new_id="e", owner="ada"), env)).unwrap().turns == 4
    assert len((await run(list_conversations(owner="ada"), env)).unwrap()) == 5
    extended = [json.loads(str(row[0])).get("mood") for row in await execute(env, f"SELECT document FROM {table}")]
    assert extended.count("good") == {"llm_conversations": 3, "llm_turns": 7, "llm_messages": 13}[table]
