"""Simulated callers: each calls as its scenario says, and checks what it gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Final, final

import anyio
from attrs import define, evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Success

from llm_effects.batches import generate_many
from llm_effects.conversations.converse import NOT_SAVED, converse
from llm_effects.conversations.operations import load_conversation
from llm_effects.effects.effect import Answer, Generate, run
from llm_effects.effects.env import LLMEnv
from llm_effects.limits.quotas import quota_of
from llm_effects.pipeline import deliver_ending, pulled, run_call
from llm_effects.policies.cache import is_cached
from llm_effects.routing.statistics import PATIENCE, usual_time
from llm_effects.structured import generate_as
from llm_effects.testing.simulation.invariants import CALLER, EPSILON, Invariant, Watch
from llm_effects.testing.simulation.models import TOOL, TOOL_CALLS, digest_of, text_of
from llm_effects.testing.simulation.world import CONVERSATIONS, LONGEST, Caller, CallerKind
from llm_effects.tools import run_tools, tool, toolkit
from llm_effects.values.conversations import Turn, TurnState
from llm_effects.values.errors import LLMError
from llm_effects.values.events import (
    Completed,
    Failed,
    Restarted,
    Started,
    StreamEvent,
    TextDelta,
    streamed_text,
)
from llm_effects.values.requests import CachePolicy, LLMRequest, Recovery, request_messages
from llm_effects.values.responses import Attempt, FinishReason, LLMResponse


@final
@define(eq=False)
class Seen:
    """The view of a caller: its result, its events, and when it began and ended. ``result`` is ``None`` if it left."""

    caller: Caller
    began: float
    ended: float = 0.0
    result: Answer | None = None
    events: list[StreamEvent] = field(factory=list[StreamEvent])
    last_event_at: float | None = None

    @property
    def text(self) -> str:
        """The text of the events since the last restart."""
        return streamed_text(self.events)

    @property
    def begun_again(self) -> bool:
        """Whether an answer began again after some of it."""
        restarts = [place for place, event in enumerate(self.events) if isinstance(event, Restarted)]
        return any(isinstance(event, TextDelta) for place in restarts for event in self.events[:place])

    async def take(self, event: StreamEvent) -> None:
        """Receive an event, for as long as the caller needs for it."""
        self.events.append(event)
        if isinstance(event, Completed | Failed):
            self.last_event_at = anyio.current_time()
        await anyio.sleep(self.caller.pause)


@final
@frozen
class Actor:
    """A caller at work: in an environment, through a pipeline, under a watch."""

    caller: Caller
    env: LLMEnv
    pipeline: Generate
    watch: Watch

    async def act(self) -> Seen:
        """Wait until it is time, call, and check what comes of it."""
        CALLER.set(self.caller.number)
        await anyio.sleep_until(self.caller.at)
        seen = Seen(self.caller, anyio.current_time())
        leaves = self.caller.leaves_after
        with anyio.move_on_after(None if leaves is None else leaves):
            await _CALLS[self.caller.kind](self, seen)
        seen.ended = anyio.current_time()
        self._check(seen)
        return seen

    # The calls.

    async def generate(self, seen: Seen) -> None:
        """Ask for an answer."""
        seen.result = await run(run_call(self.pipeline, self.caller.request), self.env)

    async def stream(self, seen: Seen) -> None:
        """Ask for a stream."""
        result = await run(run_call(self.pipeline, self.caller.request, seen.take), self.env)
        await deliver_ending(result, seen.take)
        seen.result = result

    async def pull(self, seen: Seen) -> None:
        """Pull a stream, event by event."""
        opened = pulled(lambda sink, _: run_call(self.pipeline, self.caller.request, sink))
        async with opened(self.env) as events:
            async for event in events:
                await seen.take(event)

    async def converse(self, seen: Seen) -> None:
        """Add a turn to a conversation: streamed, where the caller pauses over its events."""
        turn = partial(converse, self.caller.conversation, self.caller.request, turn_id=self.caller.turn)
        sink = seen.take if self.caller.pause else None
        seen.result = await run(turn(sink=sink, pipeline=self.pipeline), self.env)

    async def tools(self, seen: Seen) -> None:
        """Run tools, and count how often each call ran."""
        ran = Counter[str]()

        async def look_up(key: str) -> str:
            """Look a key up."""
            ran[key] += 1
            await anyio.sleep(0.2)
            return key

        kit = toolkit(tool(look_up, name=TOOL))
        finished = await run(run_tools(self.caller.request, kit, pipeline=self.pipeline), self.env)
        calls = len(finished.unwrap().answers) if is_successful(finished) else TOOL_CALLS
        self.watch.expect("tools", ran.total() <= calls, f"{calls} calls of a tool ran {ran.total()} times")
        seen.result = finished.map(lambda each: each.response)

    async def typed(self, seen: Seen) -> None:
        """Ask for a value of a type."""
        structured = await run(generate_as(self.caller.request, Verdict), self.env)
        if is_successful(structured):
            digest = structured.unwrap().value.digest
            asked = evolve(self.caller.request, prompt=None, messages=request_messages(self.caller.request)[:1])
            self.watch.expect("cache", digest == digest_of(asked, anchored=True), f"{digest} answers another question")
        seen.result = structured.map(lambda each: each.response)

    async def many(self, _: Seen) -> None:
        """Ask a batch of questions."""
        request = evolve(self.caller.request, preferences=evolve(self.caller.request.preferences, timeout_ms=None))
        results = await run(generate_many([request] * 3, concurrency=2), self.env)
        for result in results.value_or(()):
            if is_successful(result):
                self._check_text(result.unwrap(), request)
                self._check_cost(result.unwrap())

    # The checks.

    def _check(self, seen: Seen) -> None:
        self._check_time(seen)
        if seen.events:
            self._check_events(seen)
        result = seen.result
        if result is None:
            return
        if not is_successful(result):
            self._check_found(seen, result.failure())
        else:
            self._check_cost(result.unwrap())
            if self.caller.kind != "typed":
                self._check_text(result.unwrap())
        if self.caller.kind in {"generate", "stream", "typed"}:
            self._check_attempts(result)

    def _check_time(self, seen: Seen) -> None:
        caller, expect = self.caller, self.watch.expect
        if caller.leaves_after is not None:
            late = seen.ended - seen.began - caller.leaves_after
            expect("deadline", late <= EPSILON, f"a caller that left was kept for {late:.3f} s")
        limit_ms = self.time_ms
        if caller.kind in {"tools", "many"}:
            return
        ended = seen.ended if seen.last_event_at is None else seen.last_event_at
        took = ended - seen.began - (caller.pause if caller.kind == "pull" else 0.0)
        expect("deadline", took <= limit_ms / 1000 + EPSILON, f"a call of {limit_ms:g} ms took {took:.3f} s")

    @property
    def time_ms(self) -> float:
        """The time of the whole call, in milliseconds."""
        return self.caller.request.preferences.timeout_ms or self.env.config.routing.timeout_ms

    def _check_events(self, seen: Seen) -> None:
        expect, events = self.watch.expect, seen.events
        names = [type(event).__name__ for event in events]
        ends = [place for place, event in enumerate(events) if isinstance(event, Completed | Failed)]
        expect("events", ends in ([], [len(events) - 1]), f"events after the last: {names}")
        left = self.caller.leaves_after is not None or self.caller.kind == "converse"
        expect("events", ends or left, f"no last event: {names}")
        starts = [place for place, event in enumerate(events) if isinstance(event, Started)]
        opened = starts == [0] or (starts == [] and len(events) == 1 and ends)
        expect("events", opened, f"the stream starts {len(starts)} times: {names}")
        alone = not is_cached(self.caller.request, self.env.config)  # else it may have followed another call
        again = seen.begun_again and alone and self.caller.request.recovery is Recovery.FAIL
        expect("events", not again, f"an answer began again after its first content: {names}")
        match events[-1]:
            case Completed(response):
                expect("text", seen.text == response.content, f"{seen.text!r} was streamed of {response.content!r}")
                seen.result = seen.result or Success(response)
            case Failed(error):
                expect("text", seen.text == error.partial, f"{seen.text!r} was streamed, {error.partial!r} is partial")
                seen.result = seen.result or Failure(error)
            case _:
                pass

    def _check_text(self, response: LLMResponse, request: LLMRequest | None = None) -> None:
        anchored, content = self.caller.kind in {"converse", "tools"}, response.content
        asked = self._same_turn() if self.caller.kind == "converse" and response.cached else [self.caller.request]
        right = [text_of(digest_of(each, anchored=anchored)) for each in ([request] if request else asked)]
        whole = response.finish_reason is not FinishReason.LENGTH
        matches = content in right if whole else any(each.startswith(content.rstrip()) for each in right)
        shared: Invariant = "cache" if response.cached or not response.attempts else "text"
        self.watch.expect(shared, matches, f"{content!r} does not answer a question whose answer is {right[0]!r}")

    def _same_turn(self) -> list[LLMRequest]:
        """Return the requests of all callers that take this turn: its stored answer may be to any of them."""
        mine, all_callers = self.caller, self.watch.scenario.callers
        same = (each for each in all_callers if (each.conversation, each.turn) == (mine.conversation, mine.turn))
        return [each.request for each in same if each.request.prompt == mine.request.prompt]

    def _check_cost(self, response: LLMResponse) -> None:
        attempts = response.attempts
        costs = [each.cost.usd for each in attempts]  # summed here, not by the function that is checked
        known = [usd for usd in costs if usd is not None]
        total = sum(known, Decimal(0)) if len(known) == len(costs) else None
        self.watch.expect("cost", response.cost.usd == total, f"attempts of {costs} USD cost {response.cost}")
        for each in attempts:
            price = self.env.prices.cost(each.model, each.usage, self.env.now())
            paid = not each.succeeded or each.cost == price
            self.watch.expect("cost", paid, f"an attempt at {each.model} cost {each.cost}, not {price}")

    def _check_attempts(self, result: Answer) -> None:
        attempts = result.unwrap().attempts if is_successful(result) else result.failure().attempts
        mine = (each.model for each in self.watch.exchanges if each.caller == self.caller.number)
        told, made = Counter(each.model for each in attempts), Counter(mine)
        self.watch.expect("cost", told == made, f"the attempts {dict(told)} were recorded, {dict(made)} were made")

    # A healthy model is found in time.

    def _check_found(self, seen: Seen, error: LLMError) -> None:
        if error.tag not in NOT_FOUND or seen.text or self.caller.kind not in {"generate", "stream", "pull"}:
            return
        cut_short = {each.model for each in error.attempts if self._had_its_time(each)}
        healthy = [name for name in self._candidates() if self._is_healthy(name, seen) and name not in cut_short]
        self.watch.expect("healthy", not healthy, f"{error.tag}, though {', '.join(healthy)} was healthy all the time")

    def _had_its_time(self, attempt: Attempt) -> bool:
        """Return whether a model had as much time as one that is not stalled needs by its statistics."""
        usual_s = usual_time(self.env.health.statistics().get(attempt.model), streamed=self.caller.kind != "generate")
        return usual_s is not None and attempt.latency_ms >= PATIENCE * usual_s * 1000 - 1

    def _candidates(self) -> list[str]:
        config, request = self.env.config, self.caller.request
        enough = config.routing.max_attempts >= len(config.models)
        plain = not config.budgets and request.cache is not CachePolicy.ONLY and enough
        pinned = request.model
        return [name for name in config.models if plain and pinned in {None, name}]

    def _is_healthy(self, name: str, seen: Seen) -> bool:
        config, scenario = self.env.config, self.watch.scenario
        model, behaviour = config.models[name], scenario.behaviour(name)
        longest_ms = LONGEST * behaviour.median_s * 1000
        limits = (model.timeout_ms, model.first_content_ms, model.between_content_ms)
        share = (1 - config.routing.candidate_share) ** (len(config.models) - 1)
        left_ms = self.time_ms * (1.0 if self.caller.request.model else share)
        since = seen.began - config.routing.breaker.open_seconds
        troubled = any(each.model == name and each.overlaps(since, seen.ended) for each in scenario.faults)
        closed = name not in self.env.limits.opened() and self.watch.closed_since.get(name, -1.0) < seen.began
        quick = longest_ms * 2 < min(*limits, left_ms)
        return quick and closed and not troubled and not behaviour.error_rate and quota_of(model).unlimited


_CALLS: Final[Mapping[CallerKind, Callable[[Actor, Seen], Awaitable[None]]]] = {
    "generate": Actor.generate,
    "stream": Actor.stream,
    "pull": Actor.pull,
    "converse": Actor.converse,
    "tools": Actor.tools,
    "typed": Actor.typed,
    "many": Actor.many,
}

NOT_FOUND: Final = frozenset(
    {
        *("ModelUnavailable", "RateLimitExceeded", "TimeoutError", "NetworkError", "MalformedResponse"),
        *("AuthenticationFailed", "RequestFailed"),
    }
)
"""Errors that a call must not end in while a model is healthy."""


async def check_conversations(seen: Sequence[Seen], watch: Watch, env: LLMEnv) -> None:
    """Check that every turn has ended, and that every answer that a caller has is stored, once and unchanged."""
    turns = dict[tuple[str, str], Turn]()
    for conversation in CONVERSATIONS:
        history = await run(load_conversation(conversation), env)
        for turn in history.unwrap().turns if is_successful(history) else ():
            roles = [each.message.role for each in turn.messages]
            watch.expect("messages", (conversation, turn.id) not in turns, f"{turn.id} is stored twice")
            watch.expect("messages", turn.state is not TurnState.PENDING, f"{turn.id} has not ended")
            watch.expect("messages", roles in (["user"], ["user", "assistant"]), f"{turn.id} has {roles}")
            turns[conversation, turn.id] = turn
    for each in seen:
        if each.caller.kind == "converse" and each.result is not None and is_successful(each.result):
            _check_stored(each.caller, each.result.unwrap(), turns, watch)


def _check_stored(caller: Caller, answer: LLMResponse, turns: Mapping[tuple[str, str], Turn], watch: Watch) -> None:
    if any(warning.startswith(NOT_SAVED) for warning in answer.warnings):
        return
    turn = turns.get((caller.conversation, caller.turn))
    texts = [] if turn is None else [each.message.text for each in turn.messages]
    expected = [caller.request.prompt, answer.content]
    watch.expect("messages", texts == expected, f"{caller.turn} is stored as {texts}, not {expected}")


@final
@frozen
class Verdict:
    """A typed answer of a simulated model."""

    digest: str
    score: int
