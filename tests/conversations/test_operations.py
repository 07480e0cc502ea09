"""Stored conversations: start, load, list, delete, append, fork, export and import."""

import json
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from attrs import evolve
from hypothesis import given

from llm_effects import (
    Document,
    Effect,
    Image,
    LLMEnv,
    Message,
    Reasoning,
    Text,
    ToolCall,
    converse,
    list_conversations,
    load_conversation,
    run,
    scripted_env,
    start_conversation,
    then,
)
from llm_effects.conversations import (
    append_messages,
    delete_conversation,
    export_conversation,
    fork_conversation,
    import_conversation,
)
from llm_effects.conversations.operations import Archive
from llm_effects.effects.effect import result_of
from llm_effects.testing import run_in_virtual_time
from llm_effects.values import History, Origin, Summary, Turn, TurnState
from llm_effects.values.serialization import dump_value, parse_value
from tests.fixtures.histories import history, turns
from tests.fixtures.slow_stores import Slow

pytestmark = pytest.mark.anyio

GREETING = (Message("user", "I am Ada."), Message("assistant", "Hello Ada."))


async def value(effect: Effect[Any], env: LLMEnv) -> Any:
    return (await run(effect, env)).unwrap()


async def problem(effect: Effect[Any], env: LLMEnv) -> Any:
    return (await run(effect, env)).failure()


async def env_with_conversation(*replies: str, **start: object) -> LLMEnv:
    env = scripted_env(*replies or ("ok",))
    await value(start_conversation("c", **start), env)
    return env


async def test_a_new_conversation_has_its_system_metadata_and_owner() -> None:
    env = await env_with_conversation(system="Be brief.", metadata={"ticket": "17"}, owner="ada")
    loaded: History = await value(load_conversation("c", owner="ada"), env)
    created = loaded.conversation
    assert (created.system, created.metadata, created.owner) == ("Be brief.", {"ticket": "17"}, "ada")
    assert (loaded.turns, loaded.complete) == ((), True)


async def test_a_conversation_without_an_id_gets_a_new_one() -> None:
    env = scripted_env()
    assert (await value(start_conversation(), env)).id != (await value(start_conversation(), env)).id


@pytest.mark.parametrize(
    ("given", "place"), [({"conversation_id": " "}, "id"), ({"system": ""}, "system"), ({"owner": "a\0"}, "owner")]
)
async def test_values_that_no_store_accepts_are_rejected(given: dict[str, str], place: str) -> None:
    refused = await problem(start_conversation(**given), scripted_env())
    assert (refused.tag, refused.message.split(":")[0]) == ("InvalidRequest", place)


async def test_owners_see_only_their_own_conversations() -> None:
    env = await env_with_conversation(owner="ada")
    await value(start_conversation("c", owner="bob"), env)
    await value(start_conversation("d", owner="bob"), env)
    assert [each.id for each in await value(list_conversations(owner="bob"), env)] == ["c", "d"]
    assert [each.id for each in await value(list_conversations(owner="bob", limit=1, after="c"), env)] == ["d"]
    assert await value(list_conversations(), env) == ()
    assert await value(delete_conversation("d", owner="ada"), env) is False
    assert await value(delete_conversation("d", owner="bob"), env) is True
    for effect in (
        load_conversation("c"),
        append_messages("c", GREETING),
        fork_conversation("c"),
        export_conversation("c"),
    ):
        assert (await problem(effect, env)).tag == "InvalidRequest"


async def test_appending_the_same_turn_id_twice_stores_one_turn() -> None:
    env = await env_with_conversation()
    for _ in range(2):
        await value(append_messages("c", GREETING, turn_id="t"), env)
    loaded: History = await value(load_conversation("c"), env)
    assert [[each.message for each in turn.messages] for turn in loaded.turns] == [list(GREETING)]


@pytest.mark.parametrize("messages", [(), "hello", (1,), None])
async def test_appending_anything_but_messages_is_rejected(messages: Any) -> None:
    env = await env_with_conversation()
    assert (await problem(append_messages("c", messages), env)).message.startswith("messages: ")
    assert (await value(load_conversation("c"), env)).turns == ()


async def test_a_fork_has_the_turns_up_to_a_message_and_then_diverges() -> None:
    env = await env_with_conversation("one", "two", "three", "other", system="s")
    for question in ("a", "b"):
        await value(converse("c", question), env)
    turns = (await value(load_conversation("c"), env)).turns
    middle = turns[0].messages[-1].id
    forked = await value(fork_conversation("c", middle, new_id="d"), env)
    assert (forked.forked_from, forked.system, forked.last_model) == (("c", middle), "s", "scripted")
    await value(converse("d", "x"), env)
    assert [each.text for each in env.clients.calls[-1].request.messages] == ["a", "one", "x"]
    await value(converse("c", "y"), env)
    assert [each.text for each in env.clients.calls[-1].request.messages] == ["a", "one", "b", "two", "y"]


async def test_a_fork_at_a_question_continues_from_it() -> None:
    env = await env_with_conversation("one", "two")
    await value(converse("c", "a"), env)
    question = (await value(load_conversation("c"), env)).turns[0].messages[0].id
    await value(fork_conversation("c", question, new_id="d"), env)
    await value(converse("d", "please"), env)
    assert [each.text for each in env.clients.calls[-1].request.messages] == ["a\n\nplease"]


async def test_a_fork_at_an_unknown_message_is_rejected_and_stores_nothing() -> None:
    env = await env_with_conversation()
    assert "'nowhere'" in (await problem(fork_conversation("c", "nowhere", new_id="d"), env)).message
    assert (await problem(load_conversation("d"), env)).tag == "InvalidRequest"


async def test_a_fork_keeps_a_summary_only_if_everything_it_covers_was_copied() -> None:
    env = await env_with_conversation()
    for at in range(4):
        await value(append_messages("c", (Message("user", f"q{at}"),)), env)
    (await result_of(env.conversations.summarise("c", None, Summary(upto=2, text="short")))).unwrap()
    turns = (await value(load_conversation("c"), env)).turns
    await value(fork_conversation("c", turns[2].messages[0].id, new_id="d"), env)
    await value(fork_conversation("c", turns[1].messages[0].id, new_id="e"), env)
    assert (await value(load_conversation("d"), env)).summary == Summary(upto=2, text="short")
    assert (await value(load_conversation("e"), env)).summary is None


async def test_a_fork_that_fails_half_way_stores_nothing() -> None:
    store = Slow()
    env = evolve(scripted_env(), conversations=store)
    await value(then(start_conversation("c"), lambda _: append_messages("c", GREETING)), env)
    store.failing["start_copy"] = 1
    assert (await problem(fork_conversation("c", new_id="d"), env)).tag == "StorageFailed"
    assert (await problem(load_conversation("d"), env)).tag == "InvalidRequest"


def test_a_fork_cancelled_half_way_stores_nothing() -> None:
    async def main() -> tuple[list[str], str]:
        store = Slow(seconds=1)
        env = evolve(scripted_env(), conversations=store)
        await value(then(start_conversation("c"), lambda _: append_messages("c", GREETING)), env)
        with anyio.move_on_after(2.5):  # before the copy is stored
            await run(fork_conversation("c", new_id="d"), env)
        return store.done[-2:], (await problem(load_conversation("d"), env)).tag

    assert run_in_virtual_time(main) == (["load", "start_copy"], "InvalidRequest")


OPAQUE = '{"type":"thinking","thinking":"a\\u0020b… \U0001f600","signature":"EqQB+/=="}'


async def test_an_exported_conversation_is_imported_unchanged() -> None:
    env = await env_with_conversation(system="s", metadata={"ticket": "17"}, owner="ada")
    await value(converse("c", "hi", owner="ada"), env)
    rich = (
        Message("user", (Text("look"), Image(b"\x89PNG\0", "image/png"), Document(b"%PDF", "application/pdf"))),
        Message("assistant", (Reasoning("hm", OPAQUE, Origin("anthropic", "m")), ToolCall("1", "f", "{not json"))),
    )
    await value(append_messages("c", rich, owner="ada", pinned=True), env)
    before: History = await value(load_conversation("c", owner="ada"), env)
    document = await value(export_conversation("c", owner="ada"), env)
    assert json.loads(document)["conversation"]["metadata"] == {"ticket": "17"}
    elsewhere = scripted_env()
    await value(import_conversation(document, owner="bob"), elsewhere)
    after: History = await value(load_conversation("c", owner="bob"), elsewhere)
    assert [turn.messages for turn in after.turns] == [turn.messages for turn in before.turns]
    assert evolve(after.conversation, owner="ada", version=0) == evolve(before.conversation, version=0)


async def test_importing_an_existing_id_is_a_conflict_unless_it_gets_a_new_one() -> None:
    env = await env_with_conversation()
    await value(append_messages("c", GREETING), env)
    document = await value(export_conversation("c"), env)
    assert (await problem(import_conversation(document), env)).tag == "ConversationConflict"
    assert (await value(import_conversation(document, new_id="d"), env)).id == "d"
    fresh = await value(import_conversation(document, fresh_ids=True), env)
    ids = [(turn.id, turn.messages[0].id) for turn in (await value(load_conversation("c"), env)).turns]
    new = [(turn.id, turn.messages[0].id) for turn in (await value(load_conversation(fresh.id), env)).turns]
    assert not {each for pair in ids for each in pair} & {each for pair in new for each in pair}


@given(turns())
def test_any_history_survives_a_round_trip_through_json(drawn: tuple[Turn, ...]) -> None:
    archive = Archive(conversation=history(*drawn).conversation, turns=drawn)
    assert parse_value(json.loads(dump_value(archive)), Archive).unwrap() == archive


async def test_an_imported_pending_turn_has_failed() -> None:
    env = await env_with_conversation()
    await value(append_messages("c", GREETING), env)
    table = json.loads(await value(export_conversation("c"), env))
    table["turns"][0]["state"] = "pending"
    await value(import_conversation(json.dumps(table), new_id="d"), env)
    assert (await value(load_conversation("d"), env)).turns[0].state is TurnState.FAILED


def broken() -> Iterator[tuple[str, object, str]]:
    yield "turns.0.messages.0.message.role", "king", "turns[0].messages[0].message.role: "
    yield "turns.0.messages.0.message.parts.0.type", "Spell", "turns[0].messages[0].message.parts[0]: "
    yield "turns.0.messages.0.at", "yesterday", "turns[0].messages[0].at: "
    yield "turns.0.messages.0.at", "2026-01-01T00:00:00", "turns[0].messages[0].at: must have a time zone"
    yield "turns.0.state", "mad", "turns[0].state: "
    yield "turns.0.number", 7, "turns[0].number: must be 1"
    yield "turns.0.id", "", "id: must not be blank"
    yield "turns.0.id", 7, "turns[0].id: has the wrong type"
    yield "turns.0.messages.0.message.parts.0.text", 7, "turns[0].messages[0].message.parts[0]"
    yield "turns.0.messages.0.pinned", "no", "turns[0].messages[0].pinned: has the wrong type"
    yield "turns.0.messages.0.tokens", "7", "turns[0].messages[0].tokens: has the wrong type"
    yield "conversation.metadata", {"team": 7}, "conversation.metadata"
    yield "turns", {"a": 1}, "turns"
    yield "conversation", None, "conversation"
    yield "version", 2, "version: must be 1"
    yield "format", "zip", "document: must have"
    yield "summary", {"upto": 10**9, "text": "all of it"}, "summary.upto: "
    yield "surprise", 1, "surprise"


@pytest.mark.parametrize(("path", "wrong", "says"), tuple(broken()))
async def test_a_broken_document_is_rejected_with_its_place_and_stores_nothing(
    path: str, wrong: object, says: str
) -> None:
    env = await env_with_conversation()
    await value(append_messages("c", GREETING), env)
    table = json.loads(await value(export_conversation("c"), env))
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    holder: Any = table
    for step in way:
        holder = holder[step]
    holder[last] = wrong
    refused = await problem(import_conversation(json.dumps(table), new_id="d"), env)
    assert refused.tag == "InvalidRequest"
    assert says in refused.message
    assert (await problem(load_conversation("d"), env)).tag == "InvalidRequest"


@pytest.mark.parametrize("document", ["", "[", "null", "[]", '"x"', "[" * 100_000, b"\xff\xfe", '{"format":1}'])
async def test_a_document_that_is_not_an_archive_is_rejected(document: str | bytes) -> None:
    refused = await problem(import_conversation(document), scripted_env())
    assert (refused.tag, refused.message.startswith("document: ")) == ("InvalidRequest", True)


async def test_a_document_with_a_repeated_turn_id_is_rejected() -> None:
    env = await env_with_conversation()
    await value(append_messages("c", GREETING), env)
    table = json.loads(await value(export_conversation("c"), env))
    table["turns"].append({**table["turns"][0], "number": 2})
    refused = await problem(import_conversation(json.dumps(table), new_id="d"), env)
    assert refused.message.startswith("turns[1].id: ")
