"""What a store must do with turns: begun once, ended once, in order."""

from typing import Final

from attrs import evolve

from llm_effects.services import Conversations
from llm_effects.testing.conformance import Check, Talk, asked, made, must, refused, said, same, texts
from llm_effects.turns import TurnState


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
