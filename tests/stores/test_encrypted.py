"""Encrypted stores: they behave as others, hold no text in the clear, and lose single values with a key."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, field, frozen

from llm_effects import LLMEnv, LLMRequest, Message, generate, run, scripted_env
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
from llm_effects.manager import new_memory
from llm_effects.stores.open import Storage, open_cache, open_storage
from llm_effects.testing.conversation_checks import CONVERSATION_CHECKS, Check
from llm_effects.testing.lifecycle_checks import a_search_without_a_word_is_refused, messages_are_found_by_their_words
from llm_effects.testing.store_checks import CACHE_CHECKS, CacheCheck
from llm_effects.testing.stored_chat import Chat, new_message, new_turn, value_of
from llm_effects.values.conversations import UNREADABLE, JournalEntry, Summary
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

    def encrypt(self, plain: bytes) -> tuple[str, bytes]:
        name = list(self.known)[-1]
        return name, bytes((each + self.known[name]) % 256 for each in plain) + b"end"

    def decrypt(self, name: str, data: bytes) -> bytes:
        if not data.endswith(b"end"):
            raise ValueError(name)
        return bytes((each - self.known[name]) % 256 for each in data[:-3])

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
        assert done == JournalEntry(key="done", intent=b"", result=None)
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

    def encrypt(plain: bytes) -> tuple[str, bytes]:
        if not working[0]:
            raise ConnectionError("the secret of the key store")
        return Keys().encrypt(plain)

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
