"""Many processes on one storage, some of them killed: nothing that was acknowledged is lost."""

import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from attrs import evolve
from returns.pipeline import is_successful

from llm_effects import run, scripted_env
from llm_effects.conversations import fork_conversation
from llm_effects.testing.stored_chat import value_of
from llm_effects.values.conversations import TurnState
from tests.fixtures.conversation_worker import (
    COPIED,
    OWNER,
    SHARED,
    copied_history,
    lines_of,
    opened,
    problems_in,
    python,
    read_at_last,
    started,
)
from tests.fixtures.postgres_server import postgres_server

__all__ = ["postgres_server"]

ROUNDS = int(os.environ.get("CONVERSATION_KILL_ROUNDS", "20"))
"""How often a writing process is killed, for each storage."""

CANCELLED = int(os.environ.get("CONVERSATION_CANCEL_ROUNDS", "40"))
"""How often a fork is cancelled, for each storage."""

TURNS = int(os.environ.get("CONVERSATION_TURNS", "8"))
"""How many turns each of four processes has."""


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "postgres":
        yield request.getfixturevalue("postgres_server").new_url()
    else:
        yield f"sqlite:///{tmp_path}/conversations.db"
        with closing(sqlite3.connect(tmp_path / "conversations.db")) as file:
            assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert file.execute("PRAGMA foreign_key_check").fetchall() == []


def test_fault_120_four_processes_lose_nothing(url: str) -> None:
    anyio.run(started, url)
    acknowledged = lines_of(python("hammer", url, "w", str(TURNS)), seconds=60 + 2 * TURNS)
    history = anyio.run(read_at_last, url)
    assert problems_in(history) == []
    assert [f"{turn.number} {turn.id}" for turn in history.turns] == sorted(
        acknowledged, key=lambda line: int(line.split()[0])
    )
    assert len(history.turns) == 4 * TURNS
    assert {turn.state for turn in history.turns} == {TurnState.FINISHED}


def test_fault_121_a_killed_process_loses_nothing_that_was_acknowledged(url: str) -> None:
    anyio.run(started, url)
    lines = lines_of(python("killed", url, "seed", str(ROUNDS)), seconds=60 + 2 * ROUNDS)
    history = anyio.run(read_at_last, url)
    begun = {line.split()[1] for line in lines if line.startswith("begun")}
    ended = {line.split()[1] for line in lines if line.startswith("ended")}
    assert len(begun) >= ROUNDS // 2
    assert problems_in(history) == []
    assert begun <= {turn.id for turn in history.turns}
    assert ended <= {turn.id for turn in history.turns if turn.state is TurnState.FINISHED}
    assert len(history.turns) <= len(begun) + ROUNDS


def test_a_killed_import_leaves_a_whole_conversation_or_none(url: str) -> None:
    anyio.run(started, url)
    *broken, copies = lines_of(python("copy", url, "seed", str(ROUNDS)), seconds=60 + 2 * ROUNDS)
    assert broken == []
    assert int(copies) > ROUNDS


@pytest.mark.anyio
async def test_a_cancelled_fork_leaves_a_whole_conversation_or_none(url: str) -> None:
    draw = random.Random("seed")
    store = opened(url)
    env = evolve(scripted_env(), conversations=store)
    await value_of(store.start(copied_history().conversation))
    await value_of(store.append(SHARED, OWNER, 0, copied_history().turns))
    for round_ in range(CANCELLED):
        with anyio.move_on_after(draw.uniform(0, 0.03)):
            await run(fork_conversation(SHARED, new_id=f"f{round_}", owner=OWNER), env)
        again = await run(fork_conversation(SHARED, new_id=f"f{round_}", owner=OWNER), env)
        assert is_successful(again) or again.failure().tag == "ConversationConflict"
    forks = await value_of(store.page(OWNER, CANCELLED + 1))
    assert len(forks) == CANCELLED + 1
    assert {each.turns for each in forks} == {COPIED}
    await store.aclose()


def test_fault_127_processes_can_migrate_at_once(url: str) -> None:
    """Start with no tables: four processes create them at once, and one starts the conversation."""
    assert sorted(lines_of(python("start", url, "w", "1"))) == ["ConversationConflict"] * 3 + ["started"]
