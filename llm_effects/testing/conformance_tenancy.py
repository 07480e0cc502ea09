"""What a store must keep apart: owners, odd ids, and many writers at once."""

from typing import Final
from uuid import uuid4

import anyio
from attrs import evolve
from returns.pipeline import is_successful

from llm_effects.effects import result_of
from llm_effects.services import Conversations
from llm_effects.testing.conformance import Check, Talk, asked, made, must, refused, same, texts
from llm_effects.turns import Summary, Turn, TurnState


async def another_owner_sees_nothing(store: Conversations) -> None:
    """Nor does nobody: what is another's is not there, for every operation."""
    mine = await Talk(store).started()
    turn = await mine.begun(asked("secret"))
    await made(store.intend(mine.id, mine.owner, "key", b"secret"))
    before = await mine.read()
    for talk in (mine.of("other" + uuid4().hex), mine.of(None)):
        same(await made(store.load(talk.id, talk.owner)), None, "what another reads")
        same(await made(store.delete(talk.id, talk.owner)), False, "what another drops")
        same(await made(store.journal(talk.id, talk.owner)), (), "what another's run noted")
        await _is_refused_everything(talk, turn)
        must(mine.id not in {each.id for each in await made(store.page(talk.owner, 1000))}, "another's page has it")
        must((await made(store.intend(talk.id, talk.owner, uuid4().hex, b""))).fresh, "a run of another is not new")
    same(await mine.read(), before, "what is mine")


async def _is_refused_everything(talk: Talk, turn: Turn) -> None:
    store, wrong = talk.store, "InvalidRequest"
    await refused(store.begin_turn(talk.id, talk.owner, 1, turn), wrong)
    await refused(store.finish_turn(talk.id, talk.owner, turn.id, TurnState.FINISHED, ()), wrong)
    await refused(store.append(talk.id, talk.owner, 1, (asked("mine"),)), wrong)
    await refused(store.summarise(talk.id, talk.owner, Summary(upto=1, text="mine")), wrong)
    await refused(store.conclude(talk.id, talk.owner, "key", b""), wrong)


async def owners_may_use_the_same_ids(store: Conversations) -> None:
    """Each has a conversation of their own."""
    shared = Talk(store)
    talks = [shared.of(each) for each in ("a" + shared.id, "A" + shared.id, "\uff41" + shared.id)]
    for number, talk in enumerate(talks):
        await (await talk.started()).turned(f"question {number}", "answer")
    for number, talk in enumerate(talks):
        same(texts(await talk.read()), [f"question {number}", "answer"], "what one of them said")
        same(await made(store.delete(talk.id, talk.owner)), True, "the first drop")


ODD_IDS: Final = (
    "../../etc/passwd",
    "'; DROP TABLE llm_messages; --",
    '" OR ""="',
    "%",
    "_",
    "*",
    "a",
    "A",
    "\u0430",  # the Cyrillic letter that looks like a
    "é",
    "e\u0301",
    "ﬀ",
    "a ",
    " a",
    "a\n",
    "\x01",
    "\u202e",
    "😀",
    ":name",
    "?",
    "$1",
    "{id}",
    "llm:*:[a-z]",
    "0",
    "00",
    "0.0",
    "null",
    "x" * 512,
)
"""Ids that a careless store mixes up, or takes for something else."""


async def odd_ids_are_ids(store: Conversations) -> None:
    """Of conversations, turns and owners alike, each for itself."""
    talk = Talk(store)
    for each in ODD_IDS:
        await evolve(talk, id=each).started()
        await evolve(talk, id=each).begun(asked(f"in {each}", turn_id=each))
    for each in ODD_IDS:
        history = await evolve(talk, id=each).read()
        same(([turn.id for turn in history.turns], texts(history)), ([each], [f"in {each}"]), f"what {each!r} holds")
    same([each.id for each in await made(store.page(talk.owner, 100))], sorted(ODD_IDS), "all of them")


async def what_is_no_id_is_refused(store: Conversations) -> None:
    """Blank, too long, or no text for every database."""
    talk = await Talk(store).started()
    for each in ("", " ", "a\0", "\ud800", "x" * 513, "ä" * 257):
        for future in (
            store.load(each, talk.owner),
            store.load(talk.id, each),
            store.delete(each, talk.owner),
            store.begin_turn(each, talk.owner, 0, asked("one")),
            store.finish_turn(talk.id, talk.owner, each, TurnState.FINISHED, ()),
            store.append(talk.id, each, 0, ()),
            store.summarise(each, talk.owner, Summary(upto=1, text="")),
            store.page(each, 1),
            store.page(talk.owner, 1, after=each),
            store.intend(each, talk.owner, "key", b""),
            store.conclude("run", talk.owner, each, b""),
            store.journal(each, talk.owner),
        ):
            await refused(future, "InvalidRequest")


async def many_writers_lose_nothing(store: Conversations) -> None:
    """Each acknowledged turn is there once, in the order of the numbers."""
    talk = await Talk(store).started()
    acknowledged: dict[int, str] = {}

    async def write(writer: int) -> None:
        for step in range(4):
            turn = await _insisting(talk, asked(f"{writer} {step}", writer=str(writer)))
            acknowledged[turn.number] = (await talk.ended(turn.id, "yes")).id

    async with anyio.create_task_group() as tasks:
        for writer in range(6):
            tasks.start_soon(write, writer)
    history = await talk.read()
    same({turn.number: turn.id for turn in history.turns}, acknowledged, "the turns")
    same([turn.number for turn in history.turns], list(range(1, 25)), "their numbers")
    same(history.conversation.version, 48, "the version")
    same(sorted(texts(history)), sorted([*(f"{w} {s}" for w in range(6) for s in range(4)), *["yes"] * 24]), "all")


async def _insisting(talk: Talk, turn: Turn) -> Turn:
    while True:
        result = await result_of(talk.store.begin_turn(talk.id, talk.owner, await talk.version(), turn))
        if is_successful(result):
            return result.unwrap()
        same(result.failure().tag, "ConversationConflict", "the failure")
        await anyio.lowlevel.checkpoint()


async def of_many_who_begin_a_turn_one_has_it(store: Conversations) -> None:
    """The others are given the one's."""
    talk = await Talk(store).started()
    turn = asked("one")
    writers: list[str] = []

    async def begin(writer: str) -> None:
        begun = await made(store.begin_turn(talk.id, talk.owner, 0, evolve(turn, writer=writer)))
        writers.append(begun.writer)

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(begin, str(number))
    same((len(writers), len(set(writers))), (8, 1), f"the writers {writers}")
    same((await talk.version(), texts(await talk.read())), (1, ["one"]), "what is there")


async def of_many_who_start_one_does(store: Conversations) -> None:
    """The others are told of a conflict; and of many who note an intent one is the first."""
    talk = Talk(store)
    won: list[str] = []

    async def start() -> None:
        result = await result_of(store.start(talk.new))
        won.append("started" if is_successful(result) else result.failure().tag)
        entry = await made(store.intend("run", talk.owner, "key", b""))
        won.append("fresh" if entry.fresh else "stale")

    async with anyio.create_task_group() as tasks:
        for _ in range(6):
            tasks.start_soon(start)
    same(sorted(won), sorted(["started", "fresh", *["ConversationConflict"] * 5, *["stale"] * 5]), "who won")


TENANCY_CHECKS: Final[tuple[Check, ...]] = (
    another_owner_sees_nothing,
    owners_may_use_the_same_ids,
    odd_ids_are_ids,
    what_is_no_id_is_refused,
    many_writers_lose_nothing,
    of_many_who_begin_a_turn_one_has_it,
    of_many_who_start_one_does,
)
