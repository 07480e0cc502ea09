"""All checks for stores of conversations."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, TypeAlias, TypeVar, final
from uuid import uuid4

import anyio
from attrs import evolve, field, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful

from llm_effects.effects.effect import result_of
from llm_effects.effects.env import Conversations
from llm_effects.values.conversations import (
    Conversation,
    History,
    JournalEntry,
    Provenance,
    StoredMessage,
    Summary,
    Turn,
    TurnState,
)
from llm_effects.values.errors import LLMError
from llm_effects.values.json import repair_surrogates
from llm_effects.values.messages import Image, Message, Origin, Reasoning, Role, Text, ToolCall, ToolResult
from llm_effects.values.responses import Cost, FinishReason, Usage

# What any store of conversations must do, as checks that can be run on a new one.
#
# A check takes a store, which may hold anything: each works for an owner of its own. What the store does wrong is an
# ``AssertionError``.


_Value = TypeVar("_Value")

Check: TypeAlias = Callable[[Conversations], Awaitable[None]]
"""One thing that a store must do."""

DAY: Final = datetime(2026, 1, 1, tzinfo=UTC)


def must(condition: object, what: str) -> None:
    """Say what a store does wrong."""
    if not condition:
        raise AssertionError(what)


def same(given: object, wanted: object, what: str) -> None:
    """Say what a store gives in the place of what."""
    must(given == wanted, f"{what}:\n  given  {given!r}\n  wanted {wanted!r}")


async def made(future: FutureResult[_Value, LLMError]) -> _Value:
    """Give what an operation gives that must not fail."""
    result = await result_of(future)
    must(is_successful(result), f"an operation failed: {result}")
    return result.unwrap()


async def refused(future: FutureResult[_Value, LLMError], tag: str) -> None:
    """See an operation fail as it must."""
    result = await result_of(future)
    must(not is_successful(result), f"an operation must fail with {tag} and gave {result}")
    same(result.failure().tag, tag, "the failure")


def said(text: str, role: Role = "user", *, name: str | None = None, pinned: bool = False) -> StoredMessage:
    """Make a message to store."""
    return StoredMessage(id=name or uuid4().hex, message=Message(role, text), at=DAY, pinned=pinned)


def asked(text: str, *, turn_id: str | None = None, writer: str = "writer", at: float = 0.0) -> Turn:
    """Make a turn that begins ``at`` so many seconds and holds its lease for a minute."""
    begun_at = DAY + timedelta(seconds=at)
    return Turn(
        id=turn_id or uuid4().hex,
        begun_at=begun_at,
        lease_until=begun_at + timedelta(seconds=60),
        writer=writer,
        messages=(said(text),),
    )


@final
@frozen
class Talk:
    """A new conversation of a new owner in a store."""

    store: Conversations
    id: str = field(factory=lambda: uuid4().hex)
    owner: str | None = field(factory=lambda: uuid4().hex)

    @property
    def new(self) -> Conversation:
        """The conversation as it starts."""
        return Conversation(id=self.id, created_at=DAY, updated_at=DAY, owner=self.owner)

    async def started(self) -> "Talk":
        """Start it."""
        await made(self.store.start(self.new))
        return self

    async def read(self, newest: int | None = None) -> History:
        """Read it."""
        history = await made(self.store.load(self.id, self.owner, newest))
        if history is None:
            raise AssertionError("a conversation that was started is not there")
        return history

    async def version(self) -> int:
        """Read how far it has come."""
        return (await self.read(0)).conversation.version

    async def begun(self, turn: Turn) -> Turn:
        """Begin a turn where it has got to."""
        return await made(self.store.begin_turn(self.id, self.owner, await self.version(), turn))

    async def ended(self, turn_id: str, text: str = "", state: TurnState = TurnState.FINISHED) -> Turn:
        """End a turn."""
        came = (said(text, "assistant"),) if text else ()
        return await made(self.store.finish_turn(self.id, self.owner, turn_id, state, came))

    async def turned(self, question: str, answer: str) -> Turn:
        """Have a whole turn."""
        return await self.ended((await self.begun(asked(question))).id, answer)

    def of(self, owner: str | None) -> "Talk":
        """The conversation of somebody else with the same id."""
        return evolve(self, owner=owner)


def texts(history: History) -> list[str]:
    """Give all that was said."""
    return [each.message.text for turn in history.turns for each in turn.messages]


# What a store must give back: every value as it was, the newest of it, and the journal.


async def a_conversation_is_given_as_it_was_started(store: Conversations) -> None:
    """With every field; its counts begin at nothing, and an id is taken once."""
    talk = Talk(store)
    told = evolve(talk.new, system="Be kind.", metadata={"a": "ü", "": ""}, forked_from=("other", "m"), last_model="m")
    same(await made(store.load(talk.id, talk.owner)), None, "what was not started")
    same(await made(store.start(evolve(told, version=7, turns=7))), told, "what was started")
    await refused(store.start(talk.new), "ConversationConflict")
    history = await talk.read()
    same((history.conversation, history.turns, history.complete), (told, (), True), "what was started")


_PARTS: Final = (
    Text("why?"),
    Image(data=bytes(range(256)), media_type="image/png"),
    Image(url="https://host/picture.png"),
    Reasoning("hm", opaque='{"signature": "x"}', origin=Origin("anthropic", "m")),
    ToolCall("call", "find", '{"a": [1, null]}'),
    ToolResult("call", "found", is_error=True),
)

_PROVENANCE: Final = Provenance(
    model="gpt",
    provider="openai",
    served_model="gpt-x",
    usage=Usage(input_tokens=1, cache_read_tokens=2, output_tokens=3, estimated=True),
    cost=Cost(Decimal("0.000000123456789")),
    finish_reason=FinishReason.TOOL_CALLS,
)


async def a_message_is_given_as_it_was_stored(store: Conversations) -> None:
    """With every part, its time to the microsecond, and where it came from."""
    talk = await Talk(store).started()
    at = DAY + timedelta(microseconds=123_457)
    message = StoredMessage(
        id="m", message=Message("assistant", _PARTS), at=at, pinned=True, tokens=9, provenance=_PROVENANCE
    )
    turn = await talk.begun(asked("one"))
    ended = await made(store.finish_turn(talk.id, talk.owner, turn.id, TurnState.FINISHED, (message,)))
    history = await talk.read()
    same(history.turns, (ended,), "the turn")
    same(history.turns[0].messages, (*turn.messages, message), "its messages")
    same((history.conversation.last_model, history.conversation.updated_at), ("gpt", at), "what the end tells")


_ODD: Final = (
    "\0",
    "a\0b",
    "\ud800",
    "\ud83d\ude00",
    "😀",
    "'; DROP TABLE messages; --",
    "%s {} :name ?",
    "e\u0301",
    "\r\n\t ",
)


async def any_text_is_kept(store: Conversations) -> None:
    """Letter by letter; half a surrogate pair may be mended."""
    talk = await Talk(store).started()
    given = (*_ODD, "x" * 200_000)
    for text in given:
        await talk.begun(asked(text))
    kept = texts(await talk.read())
    must(
        all(each in {text, repair_surrogates(text)} for each, text in zip(kept, given, strict=True)),
        f"a text was changed: {kept[:-1]}",
    )


async def the_newest_turns_are_given(store: Conversations) -> None:
    """With the older turns that have something pinned, whole and as they are."""
    talk = await Talk(store).started()
    pinned = await talk.begun(evolve(asked("0"), messages=(said("remember", pinned=True), said("0"))))
    failed = await talk.begun(evolve(asked("1"), messages=(said("1", pinned=True),)))
    failed = await talk.ended(failed.id, state=TurnState.FAILED)
    for number in range(2, 5):
        await talk.begun(asked(str(number)))
    newest = await talk.read(2)
    same((texts(newest), newest.complete, newest.pinned), (["3", "4"], False, (pinned, failed)), "the newest two")
    whole = await talk.read(5)
    same((len(whole.turns), whole.complete, whole.pinned), (5, True, ()), "the newest five")
    same(await talk.read(2**70), whole, "more than there are")
    none = await talk.read(0)
    same((none.turns, none.complete, none.pinned), ((), False, (pinned, failed)), "none")


async def the_summary_that_reaches_furthest_is_given(store: Conversations) -> None:
    """It is no new version."""
    talk = await Talk(store).started()
    summaries = [Summary(upto=2, text="two"), Summary(upto=1, text="one"), Summary(upto=2, text="2", tokens=1)]
    for summary, given in zip(summaries, (summaries[0], summaries[0], summaries[2]), strict=True):
        await made(store.summarise(talk.id, talk.owner, summary))
        same((await talk.read()).summary, given, "the summary")
    same(await talk.version(), 0, "the version")
    await refused(store.summarise("other", talk.owner, summaries[0]), "InvalidRequest")


async def a_conversation_that_is_dropped_is_gone(store: Conversations) -> None:
    """With all that it held; its id may be used again."""
    talk = await Talk(store).started()
    turn = await talk.turned("one", "1")
    await made(store.summarise(talk.id, talk.owner, Summary(upto=1, text="one")))
    same(await made(store.delete(talk.id, talk.owner)), True, "the first")
    same(await made(store.delete(talk.id, talk.owner)), False, "the second")
    same(await made(store.load(talk.id, talk.owner)), None, "what is gone")
    history = await (await talk.started()).read()
    same((history.turns, history.summary, history.conversation.version), ((), None, 0), "what starts anew")
    await made(store.append(talk.id, talk.owner, 0, (turn,)))


async def pages_follow_the_ids(store: Conversations) -> None:
    """In the order of their letters, whatever language the store speaks."""
    talk = Talk(store)
    ids = sorted(["B", "a", "ä", "z", "Z", "1", "10", "2", "_", "😀", "ﬀ"])
    for each in reversed(ids):
        await evolve(talk, id=each).started()
    found = await made(store.page(talk.owner, 100))
    same([each.id for each in found], ids, "all")
    same([each.id for each in await made(store.page(talk.owner, 3, after=ids[4]))], ids[5:8], "three in the middle")
    same([each.id for each in await made(store.page(talk.owner, 3, after="C"))], ids[4:7], "after what is not there")
    same(await made(store.page(talk.owner, 0)), (), "none")
    same(await made(store.page(talk.owner, 3, after=ids[-1])), (), "after the last")


async def a_journal_notes_once(store: Conversations) -> None:
    """The first intent and the first result stay, in order."""
    talk = Talk(store)
    fresh = await made(store.intend("run", talk.owner, "b", b"\0intent"))
    same(fresh, JournalEntry(key="b", intent=b"\0intent", fresh=True), "an intent")
    again = await made(store.intend("run", talk.owner, "b", b"other"))
    same(again, JournalEntry(key="b", intent=b"\0intent"), "the same again")
    await made(store.intend("run", talk.owner, "a", b""))
    for result in (b"\xffdone", b"other"):
        await made(store.conclude("run", talk.owner, "b", result))
    entries = (JournalEntry(key="b", intent=b"\0intent", result=b"\xffdone"), JournalEntry(key="a", intent=b""))
    same(await made(store.journal("run", talk.owner)), entries, "the journal")
    same(await made(store.intend("run", talk.owner, "b", b"")), entries[0], "an intent with its result")
    await refused(store.conclude("run", talk.owner, "c", b""), "InvalidRequest")
    same(await made(store.journal("other", talk.owner)), (), "another run")


RECORD_CHECKS: Final[tuple[Check, ...]] = (
    a_conversation_is_given_as_it_was_started,
    a_message_is_given_as_it_was_stored,
    any_text_is_kept,
    the_newest_turns_are_given,
    the_summary_that_reaches_furthest_is_given,
    a_conversation_that_is_dropped_is_gone,
    pages_follow_the_ids,
    a_journal_notes_once,
)


# What a store must keep apart: owners, odd ids, and many writers at once.


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


# What a store must do with turns: begun once, ended once, in order.


async def turns_are_numbered_and_versions_grow(store: Conversations) -> None:
    """Each beginning and each end is one more version."""
    talk = await Talk(store).started()
    first = await talk.begun(asked("one"))
    same((first.number, first.state, await talk.version()), (1, TurnState.PENDING, 1), "a turn that began")
    ended = await talk.ended(first.id, "1")
    same((ended.number, ended.state, await talk.version()), (1, TurnState.FINISHED, 2), "a turn that ended")
    same((await talk.begun(asked("two"))).number, 2, "the number of the next turn")
    history = await talk.read()
    same((history.conversation.version, history.conversation.turns), (3, 2), "version and turns")
    same(texts(history), ["one", "1", "two"], "what was said")


async def a_stale_version_is_a_conflict(store: Conversations) -> None:
    """Who has not seen the newest turn begins none, and nothing is stored."""
    talk = await Talk(store).started()
    await talk.begun(asked("one"))
    for version in (0, 2, -1):
        await refused(store.begin_turn(talk.id, talk.owner, version, asked("two")), "ConversationConflict")
    same(texts(await talk.read()), ["one"], "what was said")


async def a_turn_begins_once(store: Conversations) -> None:
    """The same turn again is given as it stands, whoever begins it."""
    talk = await Talk(store).started()
    turn = asked("one", writer="mine")
    begun = await talk.begun(turn)
    for again in (turn, evolve(turn, writer="other"), asked("else", turn_id=turn.id, writer="other", at=59)):
        same(await made(store.begin_turn(talk.id, talk.owner, 0, again)), begun, "a turn that began again")
    same((await talk.version(), texts(await talk.read())), (1, ["one"]), "what is there")


async def a_lease_that_is_over_is_taken_up(store: Conversations) -> None:
    """A turn of a dead process goes on: the same messages, another writer, once."""
    talk = await Talk(store).started()
    turn = await talk.begun(asked("one", writer="dead"))
    again = asked("one, again", turn_id=turn.id, writer="mine", at=60)
    await refused(store.begin_turn(talk.id, talk.owner, 0, again), "ConversationConflict")
    taken = await made(store.begin_turn(talk.id, talk.owner, 1, again))
    same((taken.writer, taken.lease_until, taken.messages), ("mine", again.lease_until, turn.messages), "it")
    late = asked("one", turn_id=turn.id, writer="late", at=61)
    same((await made(store.begin_turn(talk.id, talk.owner, 1, late))).writer, "mine", "the writer")
    same((await talk.version(), len((await talk.read()).turns)), (2, 1), "version and turns")


async def a_turn_without_an_answer_is_taken_up(store: Conversations) -> None:
    """One that failed, or was interrupted before anything came; not one of which the user saw something."""
    talk = await Talk(store).started()
    for state in (TurnState.FAILED, TurnState.INTERRUPTED):
        turn = await talk.begun(asked(state.value))
        await made(store.finish_turn(talk.id, talk.owner, turn.id, state, (), error="NetworkError"))
        same((await talk.read(1)).turns[0].error, "NetworkError", "the error")
        again = await talk.begun(asked("again", turn_id=turn.id, writer="other"))
        same((again.state, again.error, again.writer), (TurnState.PENDING, None, "other"), "a turn taken up")
        same(again.messages, turn.messages, "its messages")
        await talk.ended(turn.id, "seen", TurnState.INTERRUPTED)
        seen = await talk.begun(asked("again", turn_id=turn.id, writer="third"))
        same((seen.state, len(seen.messages)), (TurnState.INTERRUPTED, 2), "a turn that has an answer")


async def the_first_end_stays(store: Conversations) -> None:
    """Ending twice is ending once."""
    talk = await Talk(store).started()
    turn = await talk.begun(asked("one"))
    ended = await talk.ended(turn.id, "1")
    version = await talk.version()
    for state in (TurnState.FINISHED, TurnState.FAILED, TurnState.INTERRUPTED):
        same(await talk.ended(turn.id, "2", state), ended, "a turn that ended again")
    same((await talk.version(), texts(await talk.read())), (version, ["one", "1"]), "what is there")


async def an_end_needs_no_version(store: Conversations) -> None:
    """Turns end in any order, and stay where they began."""
    talk = await Talk(store).started()
    first, second = await talk.begun(asked("one")), await talk.begun(asked("two"))
    await talk.ended(second.id, "2")
    await talk.ended(first.id, "1")
    same(texts(await talk.read()), ["one", "1", "two", "2"], "what was said")


async def a_failure_leaves_what_was_asked(store: Conversations) -> None:
    """And an answer that arrives after all is kept."""
    talk = await Talk(store).started()
    turn = await talk.begun(asked("one"))
    same((await talk.ended(turn.id, "half", TurnState.FAILED)).messages, turn.messages, "what a failure leaves")
    version = await talk.version()
    await talk.ended(turn.id, "half", TurnState.FAILED)
    same(await talk.version(), version, "the version after a second failure")
    await talk.ended(turn.id, "1")
    same(texts(await talk.read()), ["one", "1"], "what was said")


async def what_is_not_there_does_not_end(store: Conversations) -> None:
    """Neither a turn nor a conversation, and none ends as pending."""
    talk = await Talk(store).started()
    turn = await talk.begun(asked("one"))
    finished = TurnState.FINISHED
    await refused(store.finish_turn(talk.id, talk.owner, "other", finished, ()), "InvalidRequest")
    await refused(store.finish_turn("other", talk.owner, turn.id, finished, ()), "InvalidRequest")
    await refused(store.finish_turn(talk.id, talk.owner, turn.id, TurnState.PENDING, ()), "InvalidRequest")
    await refused(store.begin_turn("other", talk.owner, 0, asked("one")), "InvalidRequest")
    await refused(store.append("other", talk.owner, 0, (asked("one"),)), "InvalidRequest")
    same(await talk.version(), 1, "the version")


async def whole_turns_are_added_together(store: Conversations) -> None:
    """All or none, at one version; those that are there are left as they are."""
    talk = await Talk(store).started()
    turns = tuple(evolve(asked(text), state=TurnState.FINISHED) for text in "abc")
    await refused(store.append(talk.id, talk.owner, 1, turns), "ConversationConflict")
    after = await made(store.append(talk.id, talk.owner, 0, turns[:2]))
    same((after.version, after.turns), (1, 2), "version and turns")
    await refused(store.append(talk.id, talk.owner, 0, turns), "ConversationConflict")
    same(await made(store.append(talk.id, talk.owner, 0, turns[:2])), after, "what was added again")
    same((await made(store.append(talk.id, talk.owner, 1, (*turns, turns[2])))).turns, 3, "turns")
    history = await talk.read()
    same(texts(history), ["a", "b", "c"], "what was said")
    same([turn.number for turn in history.turns], [1, 2, 3], "the numbers")
    must(all(turn.state is TurnState.FINISHED for turn in history.turns), "a state was lost")


async def a_message_is_stored_once(store: Conversations) -> None:
    """Its id is used once in a conversation; what would use it twice leaves nothing. Another conversation may."""
    talk, fork = await Talk(store).started(), await Talk(store).started()
    turn = evolve(asked("one"), messages=(said("one", name="m"),))
    await talk.begun(turn)
    twice = evolve(asked("two"), messages=(said("two", name="m"),))
    await refused(store.begin_turn(talk.id, talk.owner, 1, twice), "InvalidRequest")
    await refused(store.append(talk.id, talk.owner, 1, (asked("new"), twice)), "InvalidRequest")
    came = (said("1", "assistant"), said("1", "assistant", name="m"))
    await refused(store.finish_turn(talk.id, talk.owner, turn.id, TurnState.FINISHED, came), "InvalidRequest")
    same((await talk.version(), texts(await talk.read())), (1, ["one"]), "what is there")
    await made(store.append(fork.id, fork.owner, 0, (turn,)))


TURN_CHECKS: Final[tuple[Check, ...]] = (
    turns_are_numbered_and_versions_grow,
    a_stale_version_is_a_conflict,
    a_turn_begins_once,
    a_lease_that_is_over_is_taken_up,
    a_turn_without_an_answer_is_taken_up,
    the_first_end_stays,
    an_end_needs_no_version,
    a_failure_leaves_what_was_asked,
    what_is_not_there_does_not_end,
    whole_turns_are_added_together,
    a_message_is_stored_once,
)


CONVERSATION_CHECKS: Final[tuple[Check, ...]] = (*TURN_CHECKS, *RECORD_CHECKS, *TENANCY_CHECKS)
"""What each store of conversations must do: run every one of them on yours, under asyncio and under trio.

>>> import anyio
>>> from llm_effects.stores.conversations.memory import MemoryConversations
>>> for check in CONVERSATION_CHECKS:
...     anyio.run(check, MemoryConversations())
"""
