"""The values of a tool run: the outcome of each call, each step, the whole run, its events and its limits."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from decimal import Decimal
from enum import Enum, unique
from typing import Literal, TypeAlias, final

from attrs import field, frozen

from llm_effects.effects.effect import Effect
from llm_effects.values.display import shown
from llm_effects.values.messages import Message, Text, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import LLMResponse
from llm_effects.values.validation import instance, number, text

Risk: TypeAlias = Literal["read", "write", "dangerous"]
"""What a call of a tool may do: only read, change something, or change something that may need approval."""


@final
@unique
class ToolOutcome(Enum):
    """The outcome of a call. Only a call that is ``DONE``, ``FAILED`` or ``TIMED_OUT`` has started to run.

    ``WAITING``: it has not run, and waits for approval. ``UNKNOWN``: it was started in a run that broke off, and may or
    may not have happened; it is not run again.
    """

    DONE = "done"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    UNKNOWN_TOOL = "unknown_tool"
    BAD_ARGUMENTS = "bad_arguments"
    REFUSED = "refused"
    NOT_RUN = "not_run"
    WAITING = "waiting"
    UNKNOWN = "unknown"


@final
@frozen(kw_only=True)
class Decision:
    """The decision about a call that waited: ``approved`` or refused, with the ``reason`` that the model sees.

    ``by`` is the name of the person, where it was given.
    """

    __repr__ = shown

    approved: bool
    at: datetime
    reason: str = ""
    by: str | None = None


@final
@frozen(kw_only=True)
class Approval:
    """A call that waits for approval, or did: until it has a ``decision``.

    ``arguments`` is JSON text of what the function receives, with characters that cannot be seen as escapes; show this
    to people. ``reason`` says why the call needs approval, ``untrusted`` names the tools with untrusted results that
    the model has seen before. ``id`` is a digest of the run, the step and the exact call. An ``unreadable`` one in a
    list has only its ``id``, and the ``reason`` why.
    """

    __repr__ = shown

    id: str
    run_id: str
    step: int
    call: ToolCall
    arguments: str
    reason: str
    asked_at: datetime
    risk: Risk = "dangerous"
    untrusted: tuple[str, ...] = ()
    owner: str | None = None
    conversation_id: str | None = None
    decision: Decision | None = None
    unreadable: bool = False


@final
@frozen(kw_only=True)
class ToolAnswer:
    """A call, and the result that the model sees. ``latency_ms`` is the time the tool took, in milliseconds.

    ``replayed`` is true if the result was read from the journal of the run, and nothing ran now. ``approval`` is what
    the call waits for, or waited for.
    """

    call: ToolCall
    result: ToolResult
    outcome: ToolOutcome
    latency_ms: float = 0.0
    replayed: bool = False
    approval: Approval | None = None


@final
@frozen(kw_only=True)
class ToolStep:
    """One answer of the model, and the results of its calls in their order. ``number`` counts from 1."""

    number: int
    response: LLMResponse
    answers: tuple[ToolAnswer, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The answer and the results, as they go back to the model."""
        text = Text(self.response.content, stays=self.response.stays)
        answer = Message("assistant", self.response.parts or (text,))
        results = tuple(each.result for each in self.answers)
        return (answer, Message("tool", results)) if results else (answer,)


@final
@unique
class ToolEnd(Enum):
    """Why a run ended. Unless it is ``ANSWERED``, calls of its last answer were not run.

    ``CUT_OFF``: the last answer was not whole. ``OUT_OF_STEPS``: the model still wanted tools. ``WAITING``: calls of
    the last answer need approval, and the run continues once ``decide_approval`` has decided. ``UNKNOWN``: a call of
    the last answer may or may not have happened, in a run that broke off; ``resolve_tool_call`` decides which.
    """

    ANSWERED = "answered"
    CUT_OFF = "cut_off"
    OUT_OF_STEPS = "out_of_steps"
    WAITING = "waiting"
    UNKNOWN = "unknown"


@final
@frozen(kw_only=True)
class ToolRun:
    """A whole run: its steps, and its last answer with the attempts, usage, cost and time of all of them."""

    response: LLMResponse
    steps: tuple[ToolStep, ...]
    end: ToolEnd = ToolEnd.ANSWERED
    run_id: str | None = None

    @property
    def answers(self) -> tuple[ToolAnswer, ...]:
        """The results of all calls, in order."""
        return tuple(each for step in self.steps for each in step.answers)

    @property
    def unknown(self) -> tuple[ToolCall, ...]:
        """The calls of the last step that may or may not have happened."""
        return tuple(each.call for each in self.steps[-1].answers if each.outcome is ToolOutcome.UNKNOWN)

    @property
    def waiting(self) -> tuple[Approval, ...]:
        """The approvals that calls of the last step wait for."""
        waits = (each.approval for each in self.steps[-1].answers if each.outcome is ToolOutcome.WAITING)
        return tuple(approval for approval in waits if approval is not None)

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages after the question: answers, results, and the last answer. Every call has its result."""
        return tuple(message for step in self.steps for message in step.messages)


@final
@frozen
class Approved:
    """A call may run."""


@final
@frozen
class Refused:
    """A call may not run; the model sees the ``reason``."""

    reason: str = field(default="the user refused", validator=text())


@final
@frozen
class Waiting:
    """A call waits until ``decide_approval`` decides, in this process or another; the run ends meanwhile.

    ``reason`` says why, in place of the reason of the policy.
    """

    reason: str | None = field(default=None, validator=text())


Verdict: TypeAlias = Approved | Refused | Waiting
"""The decision about a call that needs approval."""

Approve: TypeAlias = Callable[[ToolCall], Awaitable[Verdict] | Effect[Verdict]]
"""Decides about each call that needs approval, one at a time."""


@final
@frozen(kw_only=True)
class ProposedCall:
    """A call before it runs, with valid arguments, for a policy of approval.

    ``untrusted`` names the tools whose untrusted results the model has seen before: in this run, in the request, or
    in the conversation.
    """

    call: ToolCall
    risk: Risk
    untrusted: tuple[str, ...] = ()


ApprovalPolicy: TypeAlias = Callable[[ProposedCall], str | None]
"""Returns why a call needs approval, or ``None`` if it may run."""


@final
@frozen
class ToolStarted:
    """A tool is about to run."""

    step: int
    call: ToolCall


@final
@frozen
class ToolFinished:
    """A call has its result, whether it ran or not."""

    step: int
    answer: ToolAnswer


ToolEvent: TypeAlias = ToolStarted | ToolFinished | ToolStep
"""An event of a run, besides those of its streams; a whole step follows everything that belongs to it."""

ToolSink: TypeAlias = Callable[[ToolEvent], Awaitable[None]]
"""Receives the events of a run; each is awaited."""


@final
@frozen(kw_only=True)
class ToolLimits:
    """Limits of a run. ``parallel``: tools that run at once. ``timeout_s``: the whole run, in seconds.

    Once ``max_cost`` (USD) is spent, no tool runs and no model is asked; attempts of unknown cost do not count. A
    result longer than ``result_chars`` characters is cut, with a note for the model. With ``answer_last`` the last
    step may call no tool: the model has to answer with what it knows by then.
    """

    parallel: int = field(default=8, validator=number(at_least=1, whole=True))
    timeout_s: float | None = field(default=None, validator=number(above=0))
    max_cost: Decimal | None = field(default=None, validator=instance(Decimal))
    result_chars: int = field(default=50_000, validator=number(at_least=1, whole=True))
    answer_last: bool = field(default=False, validator=instance(bool))


@final
@frozen(kw_only=True)
class KeptRun:
    """The arguments of a run that waits, from which it is continued; they are in its journal."""

    request: LLMRequest
    max_steps: int
    limits: ToolLimits
    conversation_id: str | None = None
