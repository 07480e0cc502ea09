"""Simulated models: clients whose answers, delays and failures follow a scenario, kept in time by the real timers."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from random import Random
from typing import ClassVar, Final, final

import anyio
from attrs import define, evolve, field, frozen
from returns.future import FutureResult
from returns.result import Failure, Success

from llm_effects.config.models import ModelConfig
from llm_effects.effects.call import Call, Timers, opening_of
from llm_effects.effects.effect import Answer
from llm_effects.providers.draft import events_of
from llm_effects.testing.simulation.invariants import NO_USAGE, Exchange, Watch
from llm_effects.testing.simulation.world import SLOWER, WORDS, Fault, FaultKind, drawn
from llm_effects.values.errors import (
    AuthenticationFailed,
    ContentRefused,
    LLMError,
    MalformedResponse,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    was_sent,
)
from llm_effects.values.events import Restarted, Started, StreamEvent, TextDelta
from llm_effects.values.json import dump
from llm_effects.values.messages import Text, ToolCall, ToolResult
from llm_effects.values.records import ModelHealth
from llm_effects.values.requests import LLMRequest, request_messages
from llm_effects.values.responses import FinishReason, LLMResponse, Usage
from llm_effects.values.tokens import estimate_tokens

TOOL: Final = "look_up"
"""The name of the tool that simulated models call."""

TOOL_CALLS: Final = 2
"""How often they call it, at once."""


# The right answer to a question: it holds a digest of all that shapes it, and no model gives another one.


def digest_of(request: LLMRequest, *, anchored: bool) -> str:
    """Return a digest of a question.

    It covers all that shapes an answer. Of the messages of an ``anchored`` question it covers the last one of the user
    only: others are added on the way, by its conversation or by tools.

    >>> first, second = LLMRequest(prompt="why?"), LLMRequest(prompt="why?", owner="ann")
    >>> digest_of(first, anchored=False) == digest_of(second, anchored=False)
    False
    """
    wanted = request.preferences
    messages = [(each.role, each.text) for each in request_messages(request)]
    asked = [each for each in messages if each[0] == "user"][-1:] if anchored else messages
    shape = (
        *(asked, request.system, str(request.task_type), request.model, request.owner),
        *(wanted.max_tokens, wanted.temperature, wanted.top_p, wanted.stop, wanted.seed, wanted.reasoning_effort),
        sorted(each.value for each in request.allow),
    )
    return hashlib.sha256(repr(shape).encode()).hexdigest()[:8]


def text_of(digest: str) -> str:
    """Return the answer to a question: some words, all different.

    >>> text_of("00c0ffee")[:21]
    '00c0ffee.0 00c0ffee.1'
    """
    return " ".join(f"{digest}.{number}" for number in range(1 + int(digest, 16) % WORDS))


@final
@frozen(kw_only=True)
class Plan:
    """The plan of a model for one call: the ``words`` after ``delay_s``, and then the answer or an error.

    A stream takes ``between_s`` from one word to the next. ``stalls`` means that it never ends.
    """

    delay_s: float
    words: tuple[str, ...] = ()
    between_s: float = 0.0
    end: LLMResponse | LLMError | None = None

    @property
    def stalls(self) -> bool:
        """Whether the answer never ends."""
        return self.end is None


@final
@define(eq=False)
class SimulatedClients:
    """The models of a scenario. As in the live clients, the time limits of an attempt are kept here."""

    keeps_time: ClassVar[bool] = True

    watch: Watch
    _asked: Counter[tuple[int, str]] = field(factory=Counter[tuple[int, str]])

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Answer or fail, as the scenario says."""
        return FutureResult(self.answer(call))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """Report a healthy model."""
        return FutureResult.from_value(ModelHealth(model=name, provider=model.provider, reachable=True, ready=True))

    async def answer(self, call: Call) -> Answer:
        """Answer or fail, as the scenario says, without a future."""
        exchange = self.watch.begin(call)
        timers = Timers(self.watch.scenario.config.models[call.model], call.attempt.record, call.sink is not None)
        try:
            with timers.scope:
                timers.start()
                return await perform(self._plan(exchange), exchange, timers)
            return Failure(evolve(timers.expired(), model=call.model, partial=call.history.partial))
        finally:
            self.watch.end(exchange)

    def _plan(self, exchange: Exchange) -> Plan:
        scenario, model = self.watch.scenario, exchange.model
        self._asked[exchange.caller, model] += 1
        draw = drawn(scenario.seed, exchange.caller, model, self._asked[exchange.caller, model])
        now = exchange.began
        active = (each for each in scenario.faults if each.model == model and each.overlaps(now, now))
        fault = next((each for each in active if draw.random() < each.share), None)
        behaviour = scenario.behaviour(model)
        if fault is None and draw.random() < behaviour.error_rate:
            fault = Fault(model=model, kind=draw.choice(USUAL_FAULTS), at=exchange.began, seconds=1.0)
        healthy = healthy_plan(exchange.call, behaviour.latency_s(draw))
        return healthy if fault is None else faulty_plan(healthy, fault, exchange, draw)


USUAL_FAULTS: Final[tuple[FaultKind, ...]] = ("overloaded", "reset", "malformed")
"""What goes wrong with a model that has an error rate, without a fault."""


def healthy_plan(call: Call, latency_s: float) -> Plan:
    """Return the plan of a model that answers rightly, after so many seconds; half of them until its first word."""
    end = answer_to(call)
    words = tuple(f"{word} " for word in end.content.split(" ")) if end.content else ()
    words = (*words[:-1], words[-1].rstrip()) if words else ()
    if call.attempt.continues and words:
        words = (f" {words[0]}", *words[1:])
    streamed = call.sink is not None and words
    first = latency_s / 2 if streamed else latency_s
    return Plan(delay_s=first, words=words, between_s=(latency_s - first) / max(len(words), 1), end=end)


def answer_to(call: Call) -> LLMResponse:
    """Return the right answer to a call: its rest, where another model has begun it."""
    request = call.request
    usage = Usage(input_tokens=estimate_tokens(request), output_tokens=1)
    if request.tools and not any(isinstance(part, ToolResult) for each in request.messages for part in each.parts):
        digest = digest_of(request, anchored=True)
        calls = tuple(ToolCall(f"{digest}-{each}", TOOL, dump({"key": digest}).decode()) for each in range(TOOL_CALLS))
        finish = FinishReason.TOOL_CALLS
        return LLMResponse(
            content="", parts=calls, model=call.model, provider="simulated", usage=usage, finish_reason=finish
        )
    text = _right_text(call)
    usage = evolve(usage, output_tokens=len(text.split()))
    served = call.model
    return LLMResponse(
        content=text, parts=(Text(text),), model=call.model, provider="simulated", served_model=served, usage=usage
    )


def _right_text(call: Call) -> str:
    request = call.request
    if request.response_schema is not None:
        first = evolve(request, prompt=None, messages=request_messages(request)[:1])
        return dump({"digest": digest_of(first, anchored=True), "score": 7}).decode()
    anchored = bool(request.tools) or call.turn is not None
    if not call.attempt.continues:
        return text_of(digest_of(request, anchored=anchored))
    *asked, beginning = request.messages
    whole = text_of(digest_of(evolve(request, messages=asked), anchored=anchored))
    return whole.removeprefix(beginning.text).lstrip()


def faulty_plan(healthy: Plan, fault: Fault, exchange: Exchange, draw: Random) -> Plan:
    """Return what becomes of a healthy plan under a fault."""
    match fault.kind:
        case "slow":
            return evolve(healthy, delay_s=healthy.delay_s * SLOWER, between_s=healthy.between_s * SLOWER)
        case "stalled":
            return _cut(healthy, None, draw)
        case "reset":
            return _cut(healthy, NetworkError(message="reset", phase="reset"), draw)
        case "malformed":
            return _cut(healthy, MalformedResponse(message="the stream ends early"), draw)
        case "wrong":
            return _wrong(healthy)
        case "refusal":
            return Plan(delay_s=healthy.delay_s, end=ContentRefused(category="simulated"))
        case "throttled":
            left = min(fault.at + fault.seconds - exchange.began, _LONGEST_PAUSE_S)
            pause = draw.choice((None, left, _SHORT_PAUSE_S))
            return Plan(delay_s=_REJECTED_S, end=RateLimitExceeded(retry_after=pause, status=429))
        case _:
            return Plan(delay_s=draw.uniform(0.0, 2 * _REJECTED_S), end=_REJECTIONS[fault.kind])


_REJECTED_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 60.0
_SHORT_PAUSE_S: Final = 0.5

_REJECTIONS: Final[Mapping[FaultKind, LLMError]] = {
    "refused": NetworkError(message="connection refused", phase="refused"),
    "overloaded": ModelUnavailable(reason="overloaded", status=503),
    "unauthorized": AuthenticationFailed(message="no such key", status=401),
}


def _cut(healthy: Plan, end: LLMError | None, draw: Random) -> Plan:
    kept = draw.randint(0, len(healthy.words))
    return evolve(healthy, words=healthy.words[:kept], end=end)


def _wrong(healthy: Plan) -> Plan:
    """Return half of an answer, cut off at its limit, with an impossible count of tokens."""
    words = healthy.words[: len(healthy.words) // 2]
    if not isinstance(healthy.end, LLMResponse):
        return healthy
    text = "".join(words)
    usage = evolve(healthy.end.usage, input_tokens=10**12)
    end = evolve(healthy.end, content=text, parts=(Text(text),) if text else (), usage=usage)
    return evolve(healthy, words=words, end=evolve(end, finish_reason=FinishReason.LENGTH))


# What a plan looks like to its caller.


async def perform(plan: Plan, exchange: Exchange, timers: Timers) -> Answer:
    """Carry out a plan: wait, send the words to the sink, and end."""
    call = exchange.call
    await anyio.sleep(plan.delay_s)
    exchange.usage = evolve(exchange.usage, input_tokens=estimate_tokens(call.request))
    await deliver(_events(plan, call), plan.between_s, exchange, timers)
    match plan.end:
        case None:
            await anyio.sleep(math.inf)
            return Failure(MalformedResponse())  # not reached
        case LLMResponse():
            exchange.usage = evolve(exchange.usage, output_tokens=len(plan.end.content.split()))
            return Success(plan.end)
        case error:
            exchange.sent = was_sent(error)
            rejected = not exchange.sent or (error.status or 0) >= 400
            exchange.usage = NO_USAGE if rejected else exchange.usage
            return Failure(evolve(error, model=call.model, partial=call.history.partial if call.sink else ""))


def _events(plan: Plan, call: Call) -> Iterator[StreamEvent]:
    """Yield the events of a plan: its opening comes with the first content, or with an answer that has none."""
    end = plan.end
    content = events_of(end) if isinstance(end, LLMResponse) and end.tool_calls else map(TextDelta, plan.words)
    opening = opening_of(call)
    for number, event in enumerate(content):
        if number == 0 and opening is not None:
            yield opening
        yield event
    if not plan.words and isinstance(end, LLMResponse) and not end.tool_calls and opening is not None:
        yield opening


async def deliver(events: Iterable[StreamEvent], between_s: float, exchange: Exchange, timers: Timers) -> None:
    """Send events to the sink of a call, if it has one, while the timers of the model pause."""
    sink, record = exchange.call.sink, exchange.call.attempt.record
    if sink is None:
        return
    for event in events:
        record.content_at = anyio.current_time() if record.content_at is None else record.content_at
        timers.wait_for_consumer()
        await sink(event)
        exchange.usage = _one_more(exchange.usage, event)
        if not isinstance(event, Started | Restarted):  # the opening comes with the first content
            timers.wait_for_model()
            await anyio.sleep(between_s)


def _one_more(usage: Usage, event: StreamEvent) -> Usage:
    return evolve(usage, output_tokens=(usage.output_tokens or 0) + isinstance(event, TextDelta))
