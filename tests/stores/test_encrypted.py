"""Encrypted stores: they behave as others, hold no text in the clear, and lose single values with a key."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, field, frozen

from llm_effects import LLMEnv, LLMRequest, Message, ToolCall, generate, run, run_tools, scripted_env, tool
from llm_effects.config import CacheConfig, StorageConfig
from llm_effects.config.loading import load_config
from llm_effects.config.services import Encryption
from llm_effects.conversations import (
    append_messages,
    converse,
    erase_owner,
    list_conversations,
    load_conversation,
    search_conversations,
    start_conversation,
)
from llm_effects.effects.effect import result_of
from llm_effects.effects.env import Cache, wall_clock
from llm_effects.effects.lifecycle import APPROVALS_RUN
from llm_effects.manager import new_memory
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.stores.encrypted import EncryptedCache, Envelopes
from llm_effects.stores.open import Storage, open_cache, open_storage
from llm_effects.testing import calling
from llm_effects.testing.conversation_checks import CONVERSATION_CHECKS, Check
from llm_effects.testing.lifecycle_checks import a_search_without_a_word_is_refused, messages_are_found_by_their_words
from llm_effects.testing.store_checks import CACHE_CHECKS, CacheCheck
from llm_effects.testing.stored_chat import Chat, expect_failure, new_message, new_turn, value_of
from llm_effects.tools import Approved, Toolkit, ask_later, decide_approval, list_approvals, resume_tools
from llm_effects.values.conversations import UNREADABLE, Summary
from llm_effects.values.messages import Text
from llm_effects.values.serialization import dump_value
from tests.fixtures.postgres_server import postgres_server

__all__ = ["postgres_server"]

pytestmark = pytest.mark.anyio

CHECKS = [
    each
    for each in CONVERSATION_CHECKS
    if each not in {a_search_without_a_word_is_refused, messages_are_found_by_their_words}
]


@frozen
class Keys:
    """Keys by their names, of which the newest encrypts; each adds its number to every byte, and a check at the end."""

    known: dict[str, int] = field(factory=lambda: {"one": 1})

    def encrypt(self, plain: bytes, context: bytes) -> tuple[str, bytes]:
        name = list(self.known)[-1]
        return name, bytes((each + self.known[name]) % 256 for each in plain) + b"end" + context

    def decrypt(self, name: str, data: bytes, context: bytes) -> bytes:
        if not data.endswith(b"end" + context):
            raise ValueError(name)
        return bytes((each - self.known[name]) % 256 for each in data.removesuffix(b"end" + context))

    @property
    def encryption(self) -> Encryption:
        return Encryption(self.encrypt, self.decrypt)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        server: str = request.getfixturevalue("postgres_server").new_url()
        return server
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/talks.db"


def opened(url: str, keys: Keys, memory: Storage | None = None) -> Storage:
    return open_storage(StorageConfig(url=url, encryption=keys.encryption), memory or new_memory()).unwrap()


@pytest.fixture
async def storage(url: str) -> AsyncIterator[Storage]:
    storage = opened(url, Keys())
    yield storage
    await storage.ledger.aclose()
    await storage.conversations.aclose()


async def test_an_encrypted_store_passes_the_checks(storage: Storage) -> None:
    for check in CHECKS:
        await _named(check, storage)


async def _named(check: Check, storage: Storage) -> None:
    try:
        await check(storage.conversations)
    except AssertionError as problem:
        raise AssertionError(check.__name__) from problem


@pytest.fixture(params=["memory", "sqlite"])
async def cache(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Cache]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/cache.db"
    cache = open_cache(CacheConfig(url=url, encryption=Keys().encryption), wall_clock).unwrap()
    yield cache
    await cache.aclose()


@pytest.mark.parametrize("check", CACHE_CHECKS, ids=lambda check: check.__name__)
async def test_an_encrypted_cache_passes_the_check(cache: Cache, check: CacheCheck) -> None:
    await check(cache)


async def test_a_file_holds_no_text_in_the_clear(tmp_path: Path) -> None:
    storage = opened(f"sqlite:///{tmp_path}/talks.db", Keys())
    cache = open_cache(CacheConfig(url=f"sqlite:///{tmp_path}/cache.db", encryption=Keys().encryption), wall_clock)
    env = evolve(scripted_env("needle-a", "needle-b"), conversations=storage.conversations, cache=cache.unwrap())
    env = evolve(env, config=evolve(env.config, cache=CacheConfig(url=f"sqlite:///{tmp_path}/cache.db")))
    (await run(start_conversation("c", owner="alice"), env)).unwrap()
    (await run(converse("c", "needle-q", owner="alice"), env)).unwrap()
    (await run(generate(LLMRequest(prompt="needle-g", owner="alice")), env)).unwrap()
    await value_of(env.conversations.summarise("c", "alice", Summary(upto=1, text="needle-s")))
    await value_of(env.conversations.intend("run", "alice", "k", b"needle-i"))
    await value_of(env.conversations.conclude("run", "alice", "k", b"needle-r"))
    history = (await run(load_conversation("c", owner="alice"), env)).unwrap()
    assert [each.message.text for turn in history.turns for each in turn.messages] == ["needle-q", "needle-a"]
    assert history.summary is not None
    assert history.summary.text == "needle-s"
    assert (await run(generate(LLMRequest(prompt="needle-g", owner="alice")), env)).unwrap().cached
    for store in (storage.ledger, storage.conversations, env.cache):
        await store.aclose()
    for file in list(tmp_path.iterdir()):  # noqa: ASYNC240 - a test
        assert b"needle" not in file.read_bytes(), file


async def test_keys_rotate_and_what_was_plain_stays_readable() -> None:
    memory, keys = new_memory(), Keys()
    plain = await Chat(memory.conversations).start()
    await plain.add_turn("plain?", "plain")
    one = evolve(plain, store=opened("memory://", keys, memory).conversations)
    await one.add_turn("one?", "one")
    both = evolve(plain, store=opened("memory://", Keys({"one": 1, "two": 2}), memory).conversations)
    await both.add_turn("two?", "two")
    texts = [each.message.text for turn in (await both.read()).turns for each in turn.messages]
    assert texts == ["plain?", "plain", "one?", "one", "two?", "two"]


@pytest.mark.parametrize("lost", [{"two": 2}, {"one": 7, "two": 2}])
async def test_fault_275_a_lost_key_makes_a_turn_unreadable_and_not_the_conversation(lost: dict[str, int]) -> None:
    memory = new_memory()
    old = await Chat(opened("memory://", Keys(), memory).conversations).start()
    await old.add_turn("one?", "one")
    await value_of(old.store.summarise(old.id, old.owner, Summary(upto=1, text="a summary")))
    for key in ("done", "begun"):
        await value_of(old.store.intend("run", old.owner, key, b"call"))
    await value_of(old.store.conclude("run", old.owner, "done", b"result"))
    store = opened("memory://", Keys(lost), memory).conversations
    new = evolve(old, store=store)
    await new.add_turn("two?", "two")
    history = await new.read()
    if "one" not in lost:
        assert [turn.error for turn in history.turns] == [UNREADABLE, None]
        assert history.summary is None
        done = (await value_of(store.journal("run", old.owner)))[0]
        assert (done.intent, done.result) == (b"", None)
        assert done.unreadable == "it cannot be decrypted with its key 'one'"
        await expect_failure(store.intend("run", old.owner, "done", b"call"), "StorageFailed")
    assert [each.message.text for each in history.turns[1].messages] == ["two?", "two"]
    env = evolve(scripted_env("three"), conversations=store)
    answered = (await run(converse(old.id, "three?", owner=old.owner), env)).unwrap()
    assert answered.content == "three"


async def test_fault_275_a_damaged_row_is_one_turn_and_a_damaged_entry_a_miss(tmp_path: Path) -> None:
    path = tmp_path / "talks.db"
    storage = opened(f"sqlite:///{path}", Keys())
    chat = await Chat(storage.conversations).start()
    await chat.add_turn("one?", "one")
    await chat.add_turn("two?", "two")
    with closing(sqlite3.connect(path)) as file, file:
        file.execute(
            "UPDATE llm_messages SET document = replace(document, 'bGxt', 'bGxt!') WHERE turn = 1 AND place = 0"
        )
    history = await chat.read()
    assert history.turns[1].answered
    assert "one?" not in [each.message.text for each in history.turns[0].messages]
    await storage.ledger.aclose()
    plain = open_cache(CacheConfig(url=f"sqlite:///{tmp_path}/cache.db"), wall_clock).unwrap()
    await value_of(plain.put("k", b"llm_effects.encrypted:1:b25l:damaged", 60))
    await plain.aclose()
    cache = open_cache(CacheConfig(url=f"sqlite:///{tmp_path}/cache.db", encryption=Keys().encryption), wall_clock)
    assert await value_of(cache.unwrap().get("k")) is None
    await cache.unwrap().aclose()


@tool(risk="dangerous")
def erase(path: str) -> str:
    """Erase a file."""
    return path


async def waiting(env: LLMEnv) -> str:
    """Let a call wait for approval, and return the id of the approval."""
    asked = LLMRequest(prompt="erase it", owner="alice")
    [approval] = (await run(run_tools(asked, Toolkit((erase,)), approve=ask_later, run_id="run"), env)).unwrap().waiting
    return approval.id


@pytest.mark.parametrize("lost", ["a key", "a decision", "a row"])
async def test_fault_282_an_approval_that_cannot_be_read_is_listed_as_such(lost: str) -> None:
    memory = new_memory()
    answers = scripted_env(calling(ToolCall("c1", "erase", '{"path": "/tmp"}')), "done")
    keys = Keys({"one": 1, "two": 2} if lost == "a decision" else {"two": 2})
    before, after = (
        evolve(answers, conversations=opened("memory://", each, memory).conversations) for each in (Keys(), keys)
    )
    name = await waiting(before)
    if lost == "a decision":
        await run(decide_approval(name, Approved(), owner="alice"), after)
        after = evolve(answers, conversations=opened("memory://", Keys(), memory).conversations)
    if lost == "a row":
        after = evolve(answers, conversations=new_memory().conversations)
        await value_of(after.conversations.intend(APPROVALS_RUN, "alice", name, b"{"))
    [approval] = (await run(list_approvals(owner="alice"), after)).unwrap()
    key = {"a key": "'one'", "a decision": "'two'", "a row": "this version"}[lost]
    assert (approval.id, approval.unreadable) == (name, True)
    assert key in approval.reason
    error = (await run(decide_approval(name, Approved(), owner="alice"), after)).failure()
    assert error.tag == "StorageFailed"
    assert key in str(error)
    if lost == "a key":
        resumed = (await run(resume_tools("run", Toolkit((erase,)), owner="alice"), after)).failure()
        assert key in str(resumed)
        [still] = (await run(list_approvals(owner="alice"), before)).unwrap()
        assert still.decision is None  # what cannot be seen was not approved


async def test_fault_282_an_answer_that_cannot_be_read_is_not_asked_for_again() -> None:
    memory = new_memory()
    env = evolve(scripted_env(calling(ToolCall("c1", "erase", '{"path": "/tmp"}'))), conversations=memory.conversations)
    old = evolve(env, conversations=opened("memory://", Keys(), memory).conversations)
    await waiting(old)
    new = evolve(env, conversations=opened("memory://", Keys({"two": 2}), memory).conversations)
    asked = LLMRequest(prompt="erase it", owner="alice")
    error = (await run(run_tools(asked, Toolkit((erase,)), approve=ask_later, run_id="run"), new)).failure()
    assert error.tag == "StorageFailed"
    assert "'one'" in str(error)


async def test_fault_284_a_value_that_was_moved_cannot_be_decrypted(tmp_path: Path) -> None:
    path = tmp_path / "talks.db"
    storage = opened(f"sqlite:///{path}", Keys())
    store = storage.conversations
    chats = [await Chat(store, owner=owner).start() for owner in ("alice", "alice", "bob")]
    for chat in chats:
        await chat.add_turn(f"why {chat.id}?", f"because {chat.id}")
        await value_of(store.summarise(chat.id, chat.owner, Summary(upto=1, text=f"summary {chat.id}")))
    for owner, run_id, key in (("alice", "run", "a"), ("alice", "run", "b"), ("bob", "run", "a")):
        await value_of(store.intend(run_id, owner, key, f"call of {owner}".encode()))
        await value_of(store.conclude(run_id, owner, key, f"result of {owner}".encode()))
    kept = await chats[0].read()
    with closing(sqlite3.connect(path)) as file, file:
        first = "(SELECT document FROM llm_{} WHERE conversation = 1 ORDER BY rowid LIMIT 1)"
        file.execute(
            f"""UPDATE llm_messages SET document = json_set(document, '$.message.parts[0].opaque',
            json_extract({first.format("messages")}, '$.message.parts[0].opaque'))
            WHERE (conversation, place) <> (1, 0)"""
        )
        file.execute(
            f"""UPDATE llm_summaries SET document = json_set(document, '$.text',
            json_extract({first.format("summaries")}, '$.text')) WHERE conversation <> 1"""
        )
        file.execute("UPDATE llm_journal SET intent = result WHERE key = 'b'")
        stored = "(SELECT result FROM llm_journal ORDER BY place LIMIT 1)"
        file.execute(f"UPDATE llm_journal SET result = {stored} WHERE place = 3")
    for chat in chats[1:]:
        history = await chat.read()
        assert history.turns[0].error == UNREADABLE
        assert history.summary is None
        assert "why" not in str([each.message.text for each in history.turns[0].messages])
    history = await chats[0].read()
    assert history.turns[0].messages[0] == kept.turns[0].messages[0]
    assert history.turns[0].error == UNREADABLE  # its question stands in the place of its answer
    assert [each.unreadable is None for each in await value_of(store.journal("run", "alice"))] == [True, False]
    assert [each.unreadable is None for each in await value_of(store.journal("run", "bob"))] == [False]
    await storage.ledger.aclose()
    await storage.conversations.aclose()


async def test_fault_284_a_cached_answer_is_one_of_its_key() -> None:
    plain = MemoryCache()
    cache = EncryptedCache(plain, Envelopes(Keys().encryption))
    await value_of(cache.put("a", b"answer", 60))
    await value_of(plain.put("b", (await value_of(plain.get("a"))) or b"", 60))
    assert await value_of(cache.get("a")) == b"answer"
    assert await value_of(cache.get("b")) is None


async def test_fault_284_what_was_encrypted_before_values_were_bound_stays_readable() -> None:
    plain = MemoryCache()
    cache = EncryptedCache(plain, Envelopes(Keys({"one": 1, "two": 2}).encryption))
    for version, found in ((b"1", b"answer"), (b"2", None), (b"3", None)):
        stored = b"llm_effects.encrypted:%s:b25l:%s" % (version, Keys().encrypt(b"answer", b"")[1])
        await value_of(plain.put("a", stored, 60))
        assert await value_of(cache.get("a")) == found


def test_functions_that_take_no_context_are_refused() -> None:
    with pytest.raises(ValueError, match="encrypt: must take plain, context"):
        Encryption(lambda plain: ("one", plain), Keys().decrypt)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="decrypt: must take key, data, context"):
        Encryption(Keys().encrypt, lambda key, data: data)  # type: ignore[arg-type]


async def test_a_search_says_that_it_cannot_and_metadata_and_erasing_work(storage: Storage) -> None:
    env: LLMEnv = evolve(scripted_env(), conversations=storage.conversations, ledger=storage.ledger)
    (await run(start_conversation("c", owner="alice", metadata={"team": "a"}), env)).unwrap()
    (await run(append_messages("c", (Message("user", "why?"),), owner="alice"), env)).unwrap()
    error = (await run(search_conversations("why", owner="alice"), env)).failure()
    assert "storage.encryption: is set: encrypted text cannot be searched" in str(error)
    listed = (await run(list_conversations(owner="alice", metadata={"team": "a"}), env)).unwrap()
    assert [each.id for each in listed] == ["c"]
    assert (await run(erase_owner("alice"), env)).unwrap().erased["messages"] == 1


async def test_a_failure_to_encrypt_is_a_value_and_costs_no_answer() -> None:
    memory, working = new_memory(), [True]

    def encrypt(plain: bytes, context: bytes) -> tuple[str, bytes]:
        if not working[0]:
            raise ConnectionError("the secret of the key store")
        return Keys().encrypt(plain, context)

    encryption = Encryption(encrypt, Keys().decrypt)
    storage = open_storage(StorageConfig(encryption=encryption), memory).unwrap()
    cache = open_cache(CacheConfig(encryption=encryption), wall_clock).unwrap()
    env: LLMEnv = evolve(scripted_env("because", "because"), conversations=storage.conversations, cache=cache)
    (await run(start_conversation("c"), env)).unwrap()
    working[0] = False
    answered = (await run(generate(LLMRequest(prompt="why?")), env)).unwrap()
    assert answered.content == "because"
    assert "ConnectionError" in str(answered.warnings)
    refused = [
        (await run(converse("c", "why?"), env)).failure(),
        (await run(append_messages("c", (Message("user", "why?"),)), env)).failure(),
        (await result_of(storage.conversations.summarise("c", None, Summary(upto=1, text="s")))).failure(),
        (await result_of(storage.conversations.intend("run", None, "k", b"i"))).failure(),
        (await result_of(storage.conversations.conclude("run", None, "k", b"r"))).failure(),
    ]
    assert {each.tag for each in refused} == {"StorageFailed"}
    assert "secret" not in str([answered.warnings, *refused])


async def test_what_stays_reaches_no_server_elsewhere_even_encrypted(postgres_server: Any) -> None:
    storage = opened(postgres_server.new_url().replace("127.0.0.1", "127.1"), Keys())
    env: LLMEnv = evolve(scripted_env(), conversations=storage.conversations)
    (await run(start_conversation("c"), env)).unwrap()
    message = Message("user", Text("needle", stays="machine"))
    refused = [
        await run(append_messages("c", (message,)), env),
        await result_of(storage.conversations.intend("run", None, "k", dump_value(message).encode())),
    ]
    assert ["storage.url is on another one" in str(each.failure()) for each in refused] == [True, True]
    (await run(append_messages("c", (Message("user", "why?"),)), env)).unwrap()
    await storage.ledger.aclose()
    await storage.conversations.aclose()


async def test_what_stays_is_encrypted_on_this_machine(storage: Storage) -> None:
    chat = await Chat(storage.conversations).start()
    message = Message("user", Text("why?", stays="machine"))
    await chat.begin(evolve(new_turn("?"), messages=(evolve(new_message("?"), message=message),)))
    intent = dump_value(message).encode()
    await value_of(storage.conversations.intend("run", None, "k", intent))
    assert (await chat.read()).turns[0].messages[0].message == message
    assert (await value_of(storage.conversations.journal("run", None)))[0].intent == intent


def test_functions_are_set_in_code_only() -> None:
    problem = load_config({"models": {}, "storage": {"encryption": {"encrypt": "a", "decrypt": "b"}}}).failure()
    assert "storage.encryption" in str(problem)
    with pytest.raises(ValueError, match="a pair of functions"):
        StorageConfig(encryption="aes")  # type: ignore[arg-type]
