"""Erasing an owner, and what is too old: in memory, in a file and on a server, with every store of an environment."""

import shutil
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from attrs import define, evolve, field
from redis import Redis
from returns.future import FutureResult

from llm_effects import (
    LLM,
    AsyncLLM,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    generate,
    generate_many,
    run,
    scripted_env,
    usage_report,
)
from llm_effects.batches import store_journal
from llm_effects.config import CacheConfig, StorageConfig
from llm_effects.config.services import BudgetConfig, RetentionConfig
from llm_effects.conversations import apply_retention, converse, erase_owner, list_conversations, start_conversation
from llm_effects.effects.effect import result_of
from llm_effects.effects.lifecycle import APPROVALS_RUN, Chosen, Receipt
from llm_effects.limits.budgets import accounts_of
from llm_effects.manager import new_memory
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.stores.cache.redis import open_redis
from llm_effects.stores.cache.sqlite import SqliteCache
from llm_effects.stores.conversations.sql import SqlConversations
from llm_effects.stores.ledger.sql import SqlLedger
from llm_effects.stores.open import open_storage
from llm_effects.stores.sql.database import file_database
from llm_effects.testing import calling
from llm_effects.testing.scripted import EPOCH
from llm_effects.testing.stored_chat import Chat, expect_failure, new_turn, value_of
from llm_effects.tools import Toolkit, ask_later, run_tools, tool
from llm_effects.values.conversations import TurnState
from llm_effects.values.errors import StorageFailed
from llm_effects.values.messages import ToolCall
from llm_effects.values.serialization import owner_prefix
from llm_effects.values.validation import InvalidValue
from tests.fixtures.holds import hold
from tests.fixtures.ledger_rows import rows_of
from tests.fixtures.postgres_server import Postgres, postgres_server
from tests.fixtures.redis_server import redis_server

__all__ = ["postgres_server", "redis_server"]

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    match request.param:
        case "postgres":
            yield request.getfixturevalue("postgres_server").new_url()
        case kind:
            yield "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/talks.db"


@pytest.fixture
async def env(url: str, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LLMEnv]:
    """An environment with real stores: answers cached in a file, or on a Redis server beside Postgres."""
    storage = StorageConfig(url=url)
    opened = open_storage(storage, new_memory()).unwrap()
    scripted = scripted_env(*["because"] * 8)
    on_server = url.startswith("postgres")
    cache = (
        open_redis(request.getfixturevalue("redis_server"), timeout_seconds=30.0).unwrap()
        if on_server
        else SqliteCache(tmp_path / "cache.db", scripted.now, lock_wait_seconds=30.0, timeout_seconds=30.0)
    )
    config = evolve(
        scripted.config,
        storage=storage,
        cache=CacheConfig(url=f"sqlite:///{tmp_path}/cache.db"),
        budgets=(BudgetConfig(name="each", limit_usd=1, scope="owner:*"),),
    )
    yield evolve(scripted, config=config, conversations=opened.conversations, ledger=opened.ledger, cache=cache)
    for store in (opened.ledger, opened.conversations, cache):
        await store.aclose()


@tool(risk="dangerous")
def erase(path: str) -> str:
    """Erase a file."""
    return path


async def used_by(owner: str, env: LLMEnv) -> None:
    """Let an owner have a conversation, a cached answer, and a run of tools that waits for approval."""
    (await run(start_conversation("c", owner=owner), env)).unwrap()
    (await run(converse("c", "why?", owner=owner), env)).unwrap()
    (await run(generate(LLMRequest(prompt="how?", owner=owner)), env)).unwrap()
    waiting = evolve(env, clients=scripted_env(calling(ToolCall("c1", "erase", '{"path": "/tmp"}'))).clients)
    asked = LLMRequest(prompt="erase it", owner=owner)
    accounts = accounts_of(env.config.budgets, asked, env.now())
    await value_of(env.ledger.reserve(evolve(hold(f"hold of {owner}", "0.1"), accounts=accounts)))
    (await run(run_tools(asked, Toolkit((erase,)), approve=ask_later, run_id="run"), waiting)).unwrap()


async def test_fault_266_everything_of_an_owner_is_erased_and_nothing_of_another(env: LLMEnv) -> None:
    for owner in ("alice", "bob"):
        await used_by(owner, env)
    receipt = (await run(erase_owner("alice"), env)).unwrap()
    assert receipt.complete, receipt.kept
    assert receipt.owner == "alice"
    assert {name: number > 0 for name, number in receipt.erased.items()} == dict.fromkeys(
        ("conversations", "messages", "journal_entries", "approvals", "ledger_rows", "budgets", "cache_entries"), True
    )
    rows = await value_of(env.ledger.rows())
    assert {row.owner for row in rows} == {"bob"}
    assert (await run(list_conversations(owner="alice"), env)).unwrap() == ()
    assert len((await run(list_conversations(owner="bob"), env)).unwrap()) == 1
    again = (await run(erase_owner("alice"), env)).unwrap()
    assert not any(again.erased.values())
    cached = LLMRequest(prompt="how?", owner="bob", cache="only")
    assert (await run(generate(cached), env)).unwrap().cached
    assert (await run(generate(evolve(cached, owner="alice")), env)).failure().tag == "StorageFailed"


async def test_fault_266_answers_of_an_owner_in_the_journal_of_a_batch_are_erased_too(env: LLMEnv) -> None:
    requests = [LLMRequest(prompt="why?", owner=owner, cache="bypass") for owner in ("alice", "bob", None)]
    many = generate_many(requests, journal=store_journal("nightly", owner="analyst"))
    (await run(many, env)).unwrap()
    receipt = (await run(erase_owner("alice"), env)).unwrap()
    assert receipt.erased["journal_entries"] == 1
    again = evolve(env, clients=scripted_env("asked again").clients)
    answers = [each.unwrap().content for each in (await run(many, again)).unwrap()]
    assert answers == ["asked again", "because", "because"]


@define
class Gone:
    """A store whose erasing fails, around one that works."""

    store: Any = field()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def erase_rows(self, _: object) -> FutureResult[Any, StorageFailed]:
        return FutureResult.from_failure(StorageFailed(operation="erase_rows", message="the server is gone"))


class OfOld:
    """A cache that cannot delete by owner."""

    async def aclose(self) -> None:
        pass


async def test_fault_267_a_store_that_is_gone_is_in_the_receipt_and_the_others_are_erased() -> None:
    scripted = scripted_env()
    env: Any = evolve(scripted, ledger=Gone(scripted.ledger), cache=OfOld())
    await Chat(env.conversations, owner="alice").start()
    receipt: Receipt = (await run(erase_owner("alice"), env)).unwrap()
    assert receipt.erased["conversations"] == 1
    assert not receipt.complete
    assert [each.store for each in receipt.kept] == ["ledger", "cache"]
    assert "the server is gone" in receipt.kept[0].reason
    assert "expires within 3600 s" in receipt.kept[1].reason


async def test_a_cache_in_memory_says_that_other_processes_have_their_own() -> None:
    env = evolve(scripted_env(), cache=MemoryCache())
    [kept] = (await run(erase_owner("alice"), env)).unwrap().kept
    assert kept.store == "cache"
    assert "other processes" in kept.reason


async def test_fault_268_what_waits_to_be_written_does_not_come_back(env: LLMEnv) -> None:
    chat = await Chat(env.conversations, owner="alice").start()
    turn = await chat.begin(new_turn("why?"))
    for row in rows_of(3):
        env.ledger.record(evolve(row, owner="alice"))
    receipt = (await run(erase_owner("alice"), env)).unwrap()
    assert receipt.erased["ledger_rows"] == 3
    await expect_failure(
        env.conversations.finish_turn(chat.id, "alice", turn.id, TurnState.FINISHED, ()), "InvalidRequest"
    )
    assert list(await value_of(env.ledger.rows())) == []
    assert await value_of(env.conversations.page("alice", 9)) == ()


async def test_fault_269_data_is_kept_by_age_with_rules_for_single_owners(env: LLMEnv) -> None:
    now = datetime.now(UTC)
    for owner, days in (("alice", 100), ("bob", 100), ("carol", 10), (None, 100), ("dora", 5)):
        chat = await Chat(env.conversations, owner=owner).start()
        await chat.begin(evolve(new_turn("why?"), begun_at=now - timedelta(days=days), messages=()))
    rules = {"bob": RetentionConfig(), "dora": RetentionConfig(conversations_days=3)}
    storage = StorageConfig(
        url=env.config.storage.url, retention=RetentionConfig(conversations_days=30), owner_retention=rules
    )
    dated = evolve(env, config=evolve(env.config, storage=storage), now=lambda: now)
    receipt = (await run(apply_retention(), dated)).unwrap()
    assert receipt.complete
    assert receipt.erased["conversations"] == 3
    left = [
        owner
        for owner in ("alice", "bob", "carol", None, "dora")
        if (await result_of(env.conversations.page(owner, 9))).unwrap()
    ]
    assert left == ["bob", "carol"]


async def test_the_ledger_and_journals_have_ages_of_their_own(env: LLMEnv) -> None:
    await used_by("alice", env)
    storage = StorageConfig(retention=RetentionConfig(ledger_days=30, journals_days=1))
    later = evolve(env, config=evolve(env.config, storage=storage), now=lambda: datetime.now(UTC) + timedelta(days=2))
    receipt = (await run(apply_retention(), later)).unwrap()
    assert receipt.erased["journal_entries"] > 0
    assert receipt.erased["approvals"] == 1
    assert receipt.erased["ledger_rows"] > 0  # of the year of the scripted clock
    assert "conversations" not in receipt.erased
    assert datetime.now(UTC) > EPOCH


async def until_one_waits(server: Postgres, url: str) -> None:
    """Wait until a transaction waits for a lock."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with anyio.fail_after(30):
        while server.execute(waits, url.rpartition("/")[2]) == [(0,)]:  # noqa: ASYNC110 - another process
            await anyio.sleep(0.01)


@pytest.mark.parametrize("run_id", ["run", APPROVALS_RUN])
async def test_fault_280_a_run_that_goes_on_while_it_is_erased_is_kept_whole(postgres_server: Any, run_id: str) -> None:
    url = postgres_server.new_url()
    storage = open_storage(StorageConfig(url=url), new_memory()).unwrap()
    store: Any = storage.conversations
    for key in ("a", "b")[run_id == APPROVALS_RUN :]:
        await value_of(store.intend(run_id, "alice", key, b""))
    chosen, erased = Chosen(owners=("alice",), before=datetime.now(UTC) + timedelta(days=1)), list[object]()

    async def erase_journals() -> None:
        erased.append(await value_of(store.erase_journals(chosen)))

    with closing(psycopg.connect(url)) as other:
        other.execute("UPDATE llm_journal SET at = '2999-01-01' WHERE key = 'b'")
        async with anyio.create_task_group() as group:
            group.start_soon(erase_journals)
            await until_one_waits(postgres_server, url)
            other.commit()
    left = [each.key for each in await value_of(store.journal(run_id, "alice"))]
    await store.aclose()
    assert erased == [{"journal_entries": 0, "approvals": 0}]
    assert left == ["a", "b"][run_id == APPROVALS_RUN :]


async def test_fault_280_a_result_of_an_erased_step_is_not_taken_for_stored(postgres_server: Any) -> None:
    url = postgres_server.new_url()
    store = open_storage(StorageConfig(url=url), new_memory()).unwrap().conversations
    await value_of(store.intend("run", "alice", "a", b""))
    with closing(psycopg.connect(url)) as other:
        other.execute("DELETE FROM llm_journal")
        async with anyio.create_task_group() as group:
            group.start_soon(partial(expect_failure, store.conclude("run", "alice", "a", b"result"), "InvalidRequest"))
            await until_one_waits(postgres_server, url)
            other.commit()
    await store.aclose()


@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
async def test_fault_281_what_an_older_program_writes_ages_from_the_first_retention(url: str) -> None:
    storage = open_storage(StorageConfig(url=url), new_memory()).unwrap()
    for key in ("a", "b"):
        await value_of(storage.conversations.intend("run", "alice", key, b""))
    await value_of(storage.conversations.intend(APPROVALS_RUN, "alice", "c", b""))
    execute(url, "UPDATE llm_journal SET at = NULL WHERE key IN ('b', 'c')")
    execute(url, "UPDATE llm_journal SET at = '2020-01-01' WHERE key = 'a'")
    env: LLMEnv = evolve(scripted_env(), conversations=storage.conversations, ledger=storage.ledger)
    rules = StorageConfig(retention=RetentionConfig(journals_days=1))
    env = evolve(env, config=evolve(env.config, storage=rules))
    for days, left in ((0, 2), (0.9, 2), (1.1, 0)):
        at = datetime.now(UTC) + timedelta(days=days)
        (await run(apply_retention(), evolve(env, now=lambda at=at: at))).unwrap()
        assert len(await value_of(storage.conversations.journal("run", "alice"))) == left
        assert len(await value_of(storage.conversations.journal(APPROVALS_RUN, "alice"))) == left / 2
    await storage.ledger.aclose()
    await storage.conversations.aclose()


def execute(url: str, statement: str) -> None:
    """Execute a statement as another program."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file, file:
            file.execute(statement)
    else:
        with psycopg.connect(url) as connection:
            connection.execute(statement.encode())


EACH = (
    BudgetConfig(name="each", limit_usd=1, scope="owner:*", period="day"),
    BudgetConfig(name="n" * 2000, limit_usd=1, scope="owner:*", period="month"),
)


async def reserve(env: LLMEnv, owner: str, at: datetime, budgets: tuple[BudgetConfig, ...] = EACH) -> None:
    """Reserve in the accounts of an owner."""
    accounts = accounts_of(budgets, LLMRequest(prompt="?", owner=owner), at)
    await value_of(env.ledger.reserve(evolve(hold(f"{owner} {at}", "0.1"), accounts=accounts)))


async def test_fault_283_accounts_with_long_keys_are_erased_with_their_owner(env: LLMEnv) -> None:
    for owner in ("alice", '"' * 512, "bob"):
        await reserve(env, owner, env.now())
    for owner in ("alice", '"' * 512):
        assert (await run(erase_owner(owner), env)).unwrap().erased["budgets"] == 2
    left = evolve(hold("h", "1"), accounts=accounts_of(EACH, LLMRequest(prompt="?", owner="bob"), env.now()))
    await expect_failure(env.ledger.reserve(left), "BudgetExceeded")


async def test_fault_283_what_was_spent_in_old_periods_goes_with_the_rows_of_the_ledger(env: LLMEnv) -> None:
    now = datetime(2026, 11, 23, 12, tzinfo=UTC)
    everyone = (*EACH, BudgetConfig(name="all", limit_usd=1))
    for owner in ("alice", "bob"):
        for days in (0, 20, 100):
            await reserve(env, owner, now - timedelta(days=days), everyone)
    storage = StorageConfig(retention=RetentionConfig(ledger_days=30), owner_retention={"bob": RetentionConfig()})
    later = evolve(env, config=evolve(env.config, storage=storage), now=lambda: now)
    assert (await run(apply_retention(), later)).unwrap().erased["budgets"] == 3  # of August: two of alice, one of all
    assert (await run(erase_owner("bob"), env)).unwrap().erased["budgets"] == 5  # two months share an account
    assert (await run(erase_owner("alice"), env)).unwrap().erased["budgets"] == 3


@pytest.mark.parametrize("url", ["sqlite", "postgres"], indirect=True)
async def test_fault_283_keys_of_an_earlier_version_that_name_nobody_are_erased_too(url: str) -> None:
    storage = open_storage(StorageConfig(url=url), new_memory()).unwrap()
    await value_of(storage.ledger.rows())
    execute(url, f"INSERT INTO llm_budgets VALUES ('{'0a' * 32}', '1', '0')")
    env: LLMEnv = evolve(scripted_env(), conversations=storage.conversations, ledger=storage.ledger)
    assert (await run(erase_owner("alice"), env)).unwrap().erased["budgets"] == 1
    await storage.ledger.aclose()


async def places_of(needle: str, folder: Path) -> list[str]:
    """Return the names of the files that hold a text, read by another process: reading here would drop their locks."""
    found = await anyio.run_process(["grep", "-rail", needle, str(folder)], check=False)
    return sorted(Path(each).name for each in found.stdout.decode().splitlines())


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_fault_287_no_open_file_holds_what_an_erased_owner_wrote(env: LLMEnv, tmp_path: Path) -> None:
    for number in range(3):
        name = f"needle {number}"
        (await run(start_conversation(name, owner="alice", metadata={"needle": "needle"}), env)).unwrap()
        (await run(converse(name, f"why needle{number}?", owner="alice"), env)).unwrap()
    (await run(generate(LLMRequest(prompt="needle", owner="alice")), env)).unwrap()
    await value_of(env.cache.put("deleted before", b"needle" * 5_000, 60))
    await value_of(env.cache.delete("deleted before"))
    await value_of(env.cache.put(f"{owner_prefix('alice')}more", b"needle", 60))
    for number in range(3):  # more segments of the index of words
        await Chat(env.conversations, owner=f"bob{number}").start()
    assert {"cache.db-wal", "talks.db-wal"} <= set(await places_of("needle", tmp_path))
    receipt = (await run(erase_owner("alice"), env)).unwrap()
    assert receipt.complete, receipt.kept
    assert await places_of("needle", tmp_path) == []


async def test_fault_287_a_log_that_another_program_reads_is_in_the_receipt(tmp_path: Path) -> None:
    database = file_database(tmp_path / "talks.db", lock_wait_seconds=0.1)
    scripted = scripted_env("because")
    cache = SqliteCache(tmp_path / "cache.db", scripted.now, lock_wait_seconds=0.1)
    env = evolve(scripted, conversations=SqlConversations(database), ledger=SqlLedger(database), cache=cache)
    (await run(start_conversation("c", owner="alice"), env)).unwrap()
    await value_of(cache.put(f"{owner_prefix('alice')}key", b"needle", 60))
    with (
        closing(sqlite3.connect(tmp_path / "talks.db")) as talks,
        closing(sqlite3.connect(tmp_path / "cache.db")) as file,
    ):
        for each, table in ((talks, "llm_conversations"), (file, "entries")):
            each.execute("BEGIN")
            assert each.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,)
        receipt = (await run(erase_owner("alice"), env)).unwrap()
    assert receipt.erased["conversations"] == 1
    assert [each.store for each in receipt.kept] == ["conversations", "journals", "ledger", "cache"]
    assert all("log" in each.reason for each in receipt.kept)
    assert (await run(erase_owner("alice"), env)).unwrap().complete
    await env.ledger.aclose()
    await cache.aclose()


async def test_fault_287_nothing_of_an_erased_owner_is_in_dumps_of_servers(
    postgres_server: Postgres, redis_server: str
) -> None:
    url = postgres_server.new_url()
    opened = open_storage(StorageConfig(url=url), new_memory()).unwrap()
    cache = open_redis(redis_server, timeout_seconds=30.0).unwrap()
    scripted = scripted_env(*["needle"] * 9)
    config = evolve(scripted.config, storage=StorageConfig(url=url), cache=CacheConfig(url=redis_server), budgets=EACH)
    env = evolve(scripted, config=config, conversations=opened.conversations, ledger=opened.ledger, cache=cache)
    await used_by("needle", env)
    (await run(usage_report(by="owner"), env)).unwrap()

    def dumped() -> bytes:
        program = shutil.which("pg_dump") or str(max(Path("/usr/lib/postgresql").glob("*/bin/pg_dump")))
        dump = subprocess.run([program, url], check=True, capture_output=True).stdout
        with Redis.from_url(redis_server) as client:
            return dump + b"".join(key + (client.dump(key) or b"") for key in client.keys("*"))

    hidden = (b"needle", b"needle".hex().encode())
    assert [each in await anyio.to_thread.run_sync(dumped) for each in hidden] == [True, True]
    assert (await run(erase_owner("needle"), env)).unwrap().complete
    assert [each in await anyio.to_thread.run_sync(dumped) for each in hidden] == [False, False]
    for store in (opened.ledger, opened.conversations, cache):
        await store.aclose()


def test_rules_are_read_from_a_configuration() -> None:
    from llm_effects.config.loading import load_config

    rules = {"retention": {"ledger_days": 400}, "owner_retention": {"legal": {"conversations_days": 2555}}}
    config: LLMConfig = load_config({"models": {}, "storage": rules}).unwrap()
    assert config.storage.retention == RetentionConfig(ledger_days=400)
    assert config.storage.owner_retention == {"legal": RetentionConfig(conversations_days=2555)}
    wrong = load_config({"models": {}, "storage": {"retention": {"ledger_days": 0}}}).failure()
    assert "storage.retention.ledger_days" in str(wrong)


@pytest.mark.parametrize("owner", ["", " ", "a\0"])
def test_a_rule_of_no_owner_is_refused(owner: str) -> None:
    with pytest.raises(InvalidValue, match="owner_retention: the owner"):
        StorageConfig(owner_retention={owner: RetentionConfig(conversations_days=1)})


async def test_the_longest_time_is_one_that_every_calendar_has(env: LLMEnv) -> None:
    with pytest.raises(InvalidValue, match="conversations_days: must be at most 365000"):
        RetentionConfig(conversations_days=1_000_000)
    storage = StorageConfig(retention=RetentionConfig(conversations_days=365_000))
    receipt = (await run(apply_retention(), evolve(env, config=evolve(env.config, storage=storage)))).unwrap()
    assert receipt.erased == {"conversations": 0, "messages": 0}


async def test_the_plain_faces_erase() -> None:
    async with AsyncLLM(scripted_env("because")) as llm:
        await llm.start_conversation("c", owner="alice")
        assert (await llm.erase_owner("alice")).erased["conversations"] == 1
        assert (await llm.apply_retention()).erased == {}


def test_the_blocking_face_erases() -> None:
    with LLM(scripted_env("because")) as llm:
        llm.start_conversation("c", owner="alice")
        assert llm.erase_owner("alice").erased["conversations"] == 1
        assert llm.apply_retention().complete
