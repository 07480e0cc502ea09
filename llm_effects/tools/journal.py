"""The journal of a run: each step is noted before it is done, and its result afterwards.

A run that broke off continues where it was: answers that were paid for are read, calls that ended keep their results,
and a call that was started but has no result never runs a second time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import partial
from typing import Final, TypeVar, final

import anyio
from attrs import evolve, field, frozen
from returns.result import Failure, Result, Success

from llm_effects.conversations.operations import STORE_TIMEOUT_S
from llm_effects.effects.effect import Effect, effect, from_result, from_service, run, succeed, then
from llm_effects.effects.env import LLMEnv
from llm_effects.tools.steps import ToolAnswer, ToolOutcome
from llm_effects.values.conversations import JournalEntry
from llm_effects.values.errors import InvalidRequest, LLMError, StorageFailed, checked
from llm_effects.values.messages import ToolCall, ToolResult
from llm_effects.values.responses import LLMResponse
from llm_effects.values.serialization import Entry, dump_entry, dump_value, load_entry, load_value

UNKNOWN_TEXT: Final = "It is not known whether this was done: a run broke off in the middle of it."
"""Stands in for the result of a call that may or may not have happened."""

_Value = TypeVar("_Value")

_PLAIN: Final = re.compile(r"[\w.-]{1,128}", re.ASCII)


@final
@frozen(kw_only=True)
class RunJournal:
    """The journal of one run, with the entries that it had when the run was resumed."""

    run_id: str
    owner: str | None
    entries: Mapping[str, JournalEntry] = field(factory=dict[str, JournalEntry])

    def begin_answer(self, step: int, question: str) -> Effect[LLMResponse | None]:
        """Note that the model is about to be asked; the value is its answer if it was asked before."""
        entry = from_service(
            lambda env: env.conversations.intend(self.run_id, self.owner, str(step), question.encode())
        )
        return in_time(entry.bind_result(partial(self._answer_in, question)), "noting the question")

    def _answer_in(self, question: str, entry: JournalEntry) -> Result[LLMResponse | None, LLMError]:
        if entry.intent != question.encode():
            used = f"run_id: {self.run_id!r} was used for another question: a new run needs a new one"
            return Failure(InvalidRequest(message=used))
        return Success(None) if entry.result is None else _load_answer(entry.result)

    def end_answer(self, step: int, question: str, answer: LLMResponse) -> Effect[LLMResponse]:
        """Store an answer before its calls are run; the value is the answer that counts.

        If two runs with the same id asked at once, that is the first one: the ids of its calls are in the journal.
        """
        result = dump_entry(Entry(response=answer))
        stored = from_service(lambda env: env.conversations.conclude(self.run_id, self.owner, str(step), result))
        first = then(stored, lambda _: self.begin_answer(step, question)).map(lambda first: first or answer)
        return in_time(first, "storing the answer of the model", shield=True)

    def recall(self, step: int, call: ToolCall) -> ToolAnswer | None:
        """Return the result of a call from before the run was resumed, or ``None`` if it was not started."""
        entry = self.entries.get(call_key(step, call.id))
        return None if entry is None else _load_result(call, entry)

    def begin_call(self, step: int, call: ToolCall) -> Effect[ToolAnswer | None]:
        """Note that a call is about to run; the value is its result if it was started before."""
        key, intent = call_key(step, call.id), dump_value(call).encode()
        entry = from_service(lambda env: env.conversations.intend(self.run_id, self.owner, key, intent))
        known = entry.map(lambda entry: None if entry.fresh else _load_result(call, entry))
        return in_time(known, "noting the call")

    def end_call(self, step: int, answer: ToolAnswer) -> Effect[None]:
        """Store the result of a call, even when cancelled."""
        stored = _store_result(self.run_id, self.owner, step, answer)
        return in_time(stored, "storing the result of a tool", shield=True)


@final
@frozen
class NoJournal:
    """A journal that stores nothing: a run without an id cannot be resumed."""

    def begin_answer(self, _step: int, _question: str) -> Effect[LLMResponse | None]:
        """Return no answer."""
        return succeed(None)

    def end_answer(self, _step: int, _question: str, answer: LLMResponse) -> Effect[LLMResponse]:
        """Return the answer."""
        return succeed(answer)

    def recall(self, _step: int, _call: ToolCall) -> ToolAnswer | None:
        """Return no result."""
        return None

    def begin_call(self, _step: int, _call: ToolCall) -> Effect[ToolAnswer | None]:
        """Return no result."""
        return succeed(None)

    def end_call(self, _step: int, _answer: ToolAnswer) -> Effect[None]:
        """Store nothing."""
        return succeed(None)


def open_journal(run_id: str | None, owner: str | None) -> Effect[RunJournal | NoJournal]:
    """Read the journal of a run; a run without an id has none."""
    if run_id is None:
        return succeed(NoJournal())

    def journal_of(entries: tuple[JournalEntry, ...]) -> RunJournal | NoJournal:
        return RunJournal(run_id=run_id, owner=owner, entries={entry.key: entry for entry in entries})

    entries = from_service(lambda env: env.conversations.journal(run_id, owner))
    return in_time(entries, "reading the journal").map(journal_of)


def in_time(operation: Effect[_Value], what: str, *, shield: bool = False) -> Effect[_Value]:
    """Limit the time of an operation of the store; with ``shield`` cancellation does not interrupt it."""

    async def limited(env: LLMEnv) -> Result[_Value, LLMError]:
        with anyio.move_on_after(STORE_TIMEOUT_S, shield=shield):
            return await run(operation, env)
        message = f"{what} did not finish within {STORE_TIMEOUT_S:g} s"
        return Failure(StorageFailed(operation="journal", message=message, transient=True))

    return effect(limited)


def call_key(step: int, call_id: str) -> str:
    """Return the key of a call in its run; an id that not every store can keep is hashed.

    >>> call_key(2, "call_0")
    '2/call_0'
    """
    is_plain = _PLAIN.fullmatch(call_id)
    return f"{step}/{call_id if is_plain else hashlib.sha256(call_id.encode(errors='replace')).hexdigest()}"


def _load_answer(result: bytes) -> Result[LLMResponse | None, LLMError]:
    entry = load_entry(result)
    if entry is None:
        message = "it holds an answer that cannot be read: another version of this library may have written it"
        return Failure(StorageFailed(operation="journal", message=message))
    return Success(entry.response)


def _load_result(call: ToolCall, entry: JournalEntry) -> ToolAnswer:
    known = None if entry.result is None else load_value(entry.result.decode(errors="replace"), ToolAnswer)
    if known is None:
        result = ToolResult(call.id, UNKNOWN_TEXT, is_error=True)
        return ToolAnswer(call=call, result=result, outcome=ToolOutcome.UNKNOWN)
    return evolve(known, replayed=True)


def _store_result(run_id: str, owner: str | None, step: int, answer: ToolAnswer) -> Effect[None]:
    key, result = call_key(step, answer.call.id), dump_value(answer).encode()
    return from_service(lambda env: env.conversations.conclude(run_id, owner, key, result))


# The decision of the caller, who alone can know whether a call happened in a run that broke off in the middle of it.


def resolve_tool_call(
    run_id: str, step: int, call: ToolCall, content: str, *, is_error: bool = False, owner: str | None = None
) -> Effect[None]:
    """Store the result of a call whose outcome was unknown; the same run then continues from there.

    ``content`` is what the model will see: the result, if the call happened, or that it did not (``is_error``), after
    which the model may call again. ``step`` is the number of its ``ToolStep``. A result that the run has stored stays;
    a call that the run has not started is an ``InvalidRequest``.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> unknown = resolve_tool_call("nightly", 1, ToolCall("c1", "restart"), "it was restarted")
    >>> anyio.run(run, unknown, scripted_env()).failure().tag
    'InvalidRequest'
    """
    outcome = ToolOutcome.FAILED if is_error else ToolOutcome.DONE
    result = from_result(checked(ToolResult, call.id, content, is_error=is_error))
    answer = result.map(lambda result: ToolAnswer(call=call, result=result, outcome=outcome))
    return then(answer, partial(_store_result, run_id, owner, step))
