"""The journal of a run: what is meant to be done is noted before it is, and what came of it after.

So a run that broke off goes on where it was: answers that were paid for are read, calls that ended are told again, and
a call that was begun and has no result is never begun a second time.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Final, TypeVar, final

import anyio
from attrs import evolve, field, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.effect import Effect, effect, result_of
from llm_effects.effects.env import Conversations, LLMEnv
from llm_effects.tools.steps import ToolAnswer, ToolOutcome
from llm_effects.values.conversations import JournalEntry
from llm_effects.values.errors import InvalidRequest, LLMError, StorageFailed, checked, describe
from llm_effects.values.messages import ToolCall, ToolResult
from llm_effects.values.responses import LLMResponse
from llm_effects.values.serialization import Entry, dump_entry, dump_value, load_entry, load_value

KEEPING_S: Final = 5.0
"""How long the store may take, in seconds; no cancellation cuts it short where it notes what was done."""

_Known = TypeVar("_Known")

_PLAIN: Final = re.compile(r"[\w.-]{1,128}", re.ASCII)


def call_key(step: int, call_id: str) -> str:
    """Give the key of a call in its run; an id that not every store can keep goes by its hash.

    >>> call_key(2, "call_0")
    '2/call_0'
    """
    known = call_id if _PLAIN.fullmatch(call_id) else hashlib.sha256(call_id.encode(errors="replace")).hexdigest()
    return f"{step}/{known}"


@final
@frozen(kw_only=True)
class RunJournal:
    """The journal of one run, with what it held when the run was taken up."""

    store: Conversations
    run_id: str
    owner: str | None
    entries: Mapping[str, JournalEntry] = field(factory=dict[str, JournalEntry])

    async def begin_answer(self, step: int, question: str) -> Result[LLMResponse | None, LLMError]:
        """Note that the model is about to be asked; gives its answer if it was asked before."""
        noted = await _in_time(self.store.intend(self.run_id, self.owner, str(step), question.encode()))
        if not is_successful(noted):
            return Failure(noted.failure())
        entry = noted.unwrap()
        if entry.intent != question.encode():
            used = f"run_id: {self.run_id!r} was used for another question: a new run needs a new one"
            return Failure(InvalidRequest(message=used))
        return Success(None) if entry.result is None else _response(entry.result)

    async def keep_answer(self, step: int, question: str, answer: LLMResponse) -> Result[LLMResponse, LLMError]:
        """Note an answer before anything is done that it asks for; gives the one that counts.

        Where two runs of one name asked at once, that is the first: the ids of its calls are those that are noted.
        """
        with anyio.move_on_after(KEEPING_S, shield=True):
            result = dump_entry(Entry(response=answer))
            kept = await result_of(self.store.conclude(self.run_id, self.owner, str(step), result))
            if not is_successful(kept):
                return Failure(kept.failure())
            return (await self.begin_answer(step, question)).map(lambda first: first or answer)
        return Failure(_late("the answer of the model"))

    def recall(self, step: int, call: ToolCall) -> ToolAnswer | None:
        """Tell what came of a call before the run was taken up again; nothing, if it was not begun."""
        entry = self.entries.get(call_key(step, call.id))
        return None if entry is None else _noted(call, entry)

    async def begin_call(self, step: int, call: ToolCall) -> Result[ToolAnswer | None, LLMError]:
        """Note that a call is about to be carried out; gives what came of it if it was begun before."""
        intent = dump_value(call).encode()
        begun = await _in_time(self.store.intend(self.run_id, self.owner, call_key(step, call.id), intent))
        return begun.map(lambda entry: None if entry.fresh else _noted(call, entry))

    async def end_call(self, step: int, answer: ToolAnswer) -> str | None:
        """Note what came of a call, also when cancelled; gives what went wrong with that, if anything did."""
        with anyio.move_on_after(KEEPING_S, shield=True):
            result = dump_value(answer).encode()
            kept = await result_of(self.store.conclude(self.run_id, self.owner, call_key(step, answer.call.id), result))
            return None if is_successful(kept) else describe(kept.failure())
        return describe(_late("the result of a tool"))


@final
@frozen
class NoJournal:
    """Notes nothing: what runs without a name cannot be taken up again."""

    async def begin_answer(self, _step: int, _question: str) -> Result[LLMResponse | None, LLMError]:
        """Know of no answer."""
        return Success(None)

    async def keep_answer(self, _step: int, _question: str, answer: LLMResponse) -> Result[LLMResponse, LLMError]:
        """Give the answer."""
        return Success(answer)

    def recall(self, _step: int, _call: ToolCall) -> ToolAnswer | None:
        """Know of no call."""
        return None

    async def begin_call(self, _step: int, _call: ToolCall) -> Result[ToolAnswer | None, LLMError]:
        """Let it run."""
        return Success(None)

    async def end_call(self, _step: int, _answer: ToolAnswer) -> str | None:
        """Find nothing wrong."""
        return None


async def open_journal(run_id: str | None, owner: str | None, env: LLMEnv) -> Result[RunJournal | NoJournal, LLMError]:
    """Read what a run has noted; one without a name notes nothing."""
    if run_id is None:
        return Success(NoJournal())
    read = await _in_time(env.conversations.journal(run_id, owner))
    if not is_successful(read):
        return Failure(read.failure())
    entries = {entry.key: entry for entry in read.unwrap()}
    return Success(RunJournal(store=env.conversations, run_id=run_id, owner=owner, entries=entries))


async def _in_time(asked: FutureResult[_Known, LLMError]) -> Result[_Known, LLMError]:
    with anyio.move_on_after(KEEPING_S):
        return await result_of(asked)
    return Failure(_late("what is meant to be done"))


def _response(result: bytes) -> Result[LLMResponse | None, LLMError]:
    entry = load_entry(result)
    if entry is None:
        strange = "it holds an answer that cannot be read: another version of this library may have written it"
        return Failure(StorageFailed(operation="journal", message=strange))
    return Success(entry.response)


def _noted(call: ToolCall, entry: JournalEntry) -> ToolAnswer:
    known = None if entry.result is None else load_value(entry.result.decode(errors="replace"), ToolAnswer)
    if known is None:
        result = ToolResult(call.id, UNKNOWN_SAYS, is_error=True)
        return ToolAnswer(call=call, result=result, outcome=ToolOutcome.UNKNOWN)
    return evolve(known, replayed=True)


UNKNOWN_SAYS: Final = "It is not known whether this was done: a run broke off in the middle of it."
"""What stands for the result of a call that may or may not have happened."""


def _late(what: str) -> StorageFailed:
    return StorageFailed(operation="journal", message=f"{what} was not noted within {KEEPING_S:g} s", transient=True)


# What nobody but the caller can know: whether a call happened, in a run that broke off in the middle of it.


def resolve_tool_call(
    run_id: str, step: int, call: ToolCall, content: str, *, is_error: bool = False, owner: str | None = None
) -> Effect[None]:
    """Say what came of a call whose outcome was unknown; the same run again goes on from there.

    ``content`` is what the model will be told: the result, if it happened, or that it did not (``is_error``), after
    which the model may call again. ``step`` is the number of its ``ToolStep``. What the run has noted stays; a call
    that it has not begun is an ``InvalidRequest``.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> unheard_of = resolve_tool_call("nightly", 1, ToolCall("c1", "restart"), "it was restarted")
    >>> anyio.run(run, unheard_of, scripted_env()).failure().tag
    'InvalidRequest'
    """

    async def perform(env: LLMEnv) -> Result[None, LLMError]:
        result = checked(ToolResult, call.id, content, is_error=is_error)
        if not is_successful(result):
            return Failure(result.failure())
        outcome = ToolOutcome.FAILED if is_error else ToolOutcome.DONE
        answer = ToolAnswer(call=call, result=result.unwrap(), outcome=outcome)
        key, noted = call_key(step, call.id), dump_value(answer).encode()
        return await result_of(env.conversations.conclude(run_id, owner, key, noted))

    return effect(perform)
