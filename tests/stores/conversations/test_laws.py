"""Laws of all conversation stores: they agree with each other, for any steps, writers and ids."""

from collections.abc import Iterator
from typing import TypeAlias
from uuid import uuid4

import anyio
import pytest
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from returns.pipeline import is_successful

from llm_effects.effects.effect import result_of
from llm_effects.effects.env import Conversations
from llm_effects.stores.conversations.memory import MemoryConversations
from llm_effects.testing.stored_chat import Chat, new_message, new_turn, texts, value_of
from llm_effects.values.conversations import Summary, TurnState
from llm_effects.values.validation import InvalidValue, check_id
from tests.fixtures.conversation_worker import opened
from tests.fixtures.postgres_server import postgres_server

__all__ = ["postgres_server"]


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "postgres":
        yield request.getfixturevalue("postgres_server").new_url()
    else:
        folder = tmp_path_factory.mktemp("laws")
        yield f"sqlite:///{folder}/conversations.db"
        assert {file.name for file in folder.iterdir()} == {"conversations.db"}


@pytest.fixture(scope="module")
def store(url: str) -> Iterator[Conversations]:
    store = opened(url)
    yield store
    anyio.run(store.aclose)


# Steps of many writers in any order; each writer has seen some version.

Step: TypeAlias = tuple[object, ...]

VERSIONS = st.integers(0, 6)
TURNS = st.sampled_from(["a", "b", "c"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), TURNS, VERSIONS, st.sampled_from(["w1", "w2"]), st.sampled_from([0, 30, 60, 90])),
        st.tuples(st.just("begin"), TURNS, st.none(), st.sampled_from(["w1", "w2"]), st.sampled_from([0, 30, 60, 90])),
        st.tuples(st.just("finish"), TURNS, st.sampled_from(TurnState), st.booleans()),
        st.tuples(st.just("append"), st.lists(TURNS, max_size=3), VERSIONS),
        st.tuples(st.just("summarise"), st.integers(0, 3)),
        st.tuples(st.just("load"), st.none() | st.integers(-1, 4)),
        st.tuples(st.just("delete")),
    ),
    max_size=14,
)


async def run_step(chat: Chat, number: int, step: Step) -> object:
    """Run a step, and return its result."""
    store, key = chat.store, (chat.id, chat.owner)
    match step:
        case ("begin", str(name), int() | None as version, str(writer), int(at)):
            turn = new_turn("q", turn_id=name, writer=writer, at=at)
            turn = evolve(turn, messages=(new_message("q", name=f"q{number}", pinned=name == "a"),))
            now = await chat.version() if version is None else version
            return await result_of(store.begin_turn(*key, now, turn))
        case ("finish", str(name), TurnState() as state, bool(answered)):
            answer = (new_message("a", "assistant", name=f"a{number}"),) if answered else ()
            return await result_of(store.finish_turn(*key, name, state, answer))
        case ("append", list(names), int(version)):
            turns = [new_turn("x", turn_id=str(name)) for name in names]
            turns = [evolve(t, messages=(new_message("x", name=f"x{number}{n}"),)) for n, t in enumerate(turns)]
            return await result_of(store.append(*key, version, tuple(turns)))
        case ("summarise", int(upto)):
            return await result_of(store.summarise(*key, Summary(upto=upto, text=str(number))))
        case ("load", int() | None as newest):
            return await result_of(store.load(*key, newest))
        case _:
            return (await result_of(store.delete(*key)), await result_of(store.start(chat.initial)))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_fault_120_every_store_agrees_with_the_one_in_memory(store: Conversations, steps: list[Step]) -> None:
    async def run() -> None:
        real = await Chat(store, id="c", owner=uuid4().hex).start()
        plain = await evolve(real, store=MemoryConversations()).start()
        for number, step in enumerate(steps):
            assert await run_step(real, number, step) == await run_step(plain, number, step)
        history = await real.read()
        assert history == await plain.read()
        assert [turn.number for turn in history.turns] == list(range(1, history.conversation.turns + 1))

    anyio.run(run)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=4, max_size=12))
def test_fault_120_concurrent_writers_lose_nothing(store: Conversations, data: list[tuple[int, int]]) -> None:
    """Run four writers, each with some turns, which yield to the others before some steps."""

    async def run() -> None:
        chat = await Chat(store, id="c", owner=uuid4().hex).start()
        acknowledged: dict[int, str] = {}

        async def write(writer: int) -> None:
            for number, (_, pauses) in enumerate(each for each in data if each[0] == writer):
                for _ in range(pauses):
                    await anyio.lowlevel.checkpoint()
                turn = new_turn("q", turn_id=f"{writer}.{number}", writer=str(writer))
                begun = None
                while begun is None:
                    result = await result_of(store.begin_turn(chat.id, chat.owner, await chat.version(), turn))
                    begun = result.unwrap() if is_successful(result) else None
                acknowledged[begun.number] = (await chat.finish(turn.id, "a")).id

        async with anyio.create_task_group() as tasks:
            for writer in range(4):
                tasks.start_soon(write, writer)
        history = await chat.read()
        assert {turn.number: turn.id for turn in history.turns} == acknowledged
        assert history.conversation.version == 2 * len(data)
        assert texts(history) == ["q", "a"] * len(data)

    anyio.run(run)


# Ids.

LETTERS = st.characters() | st.sampled_from("\0\ud800'\";%_*\\/.:?${}()-\n\u202eаａ")
IDS = st.text(LETTERS, max_size=20) | st.sampled_from(
    ["../../etc/passwd", "' OR 1=1 --", "x" * 10_000, "*", "\r\nDEL *"]
)


def is_valid(text: str) -> bool:
    try:
        check_id("id", text)
    except InvalidValue:
        return False
    return True


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(owners=st.tuples(IDS, IDS), ids=st.tuples(IDS, IDS))
def test_faults_124_125_an_id_finds_only_its_own_conversation(
    store: Conversations, owners: tuple[str, str], ids: tuple[str, str]
) -> None:
    async def run() -> None:
        (mine, other), (one, two) = owners, ids
        result = await result_of(store.load(one, mine))
        if not (is_valid(mine) and is_valid(one)):
            assert result.failure().tag == "InvalidRequest"
            return
        chat = Chat(store, id=one, owner=mine)
        await value_of(store.delete(one, mine))
        await (await chat.start()).begin(new_turn(f"of {mine}", turn_id=one))
        for owner, name in ((mine, two), (other, one), (other, two)):
            if is_valid(owner) and is_valid(name) and (owner, name) != (mine, one):
                assert await value_of(store.load(name, owner)) is None
                assert await value_of(store.delete(name, owner)) is False
        assert texts(await chat.read()) == [f"of {mine}"]
        assert [each.id for each in await value_of(store.page(mine, 10))] == [one]
        assert await value_of(store.delete(one, mine)) is True

    anyio.run(run)
