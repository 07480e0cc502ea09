"""Checks that every layer of a pipeline must pass, alone around a function that stands for the rest.

Each check takes the layer, and an environment in which it lets calls through. A layer that breaks a rule fails the
check of that rule with an ``AssertionError``.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import anyio
from attrs import define, evolve, field
from returns.result import Failure, Result, Success

from llm_effects.effects.call import AttemptContext, Call, CallHistory, Sink, committing, opening_of
from llm_effects.effects.effect import Answer, Policy, innermost, run
from llm_effects.effects.env import LLMEnv
from llm_effects.testing.scripted import answer, scripted_env
from llm_effects.testing.stored_chat import ensure, expect
from llm_effects.values.errors import InvalidRequest, NetworkError, RateLimitExceeded
from llm_effects.values.events import Restarted, Started, StreamEvent, TextDelta, streamed_text
from llm_effects.values.requests import LLMRequest


class LayerCheck(Protocol):
    """A check of one rule that a layer must keep, in an environment of its own or in yours."""

    @property
    def __name__(self) -> str:
        """The rule."""
        ...

    def __call__(self, layer: Policy, env: LLMEnv | None = None) -> Awaitable[None]:
        """Raise ``AssertionError`` if the layer breaks the rule."""
        ...


Rest = Callable[[Call], Awaitable[Answer]]


@define
class _Trial:
    """One layer around a function that stands for the rest, and what reaches either."""

    layer: Policy
    rest: Rest
    env: LLMEnv = field(factory=scripted_env)
    asked: int = 0
    running: int = 0
    events: list[StreamEvent] = field(factory=list[StreamEvent])

    @classmethod
    def of(cls, layer: Policy, rest: Rest, env: LLMEnv | None) -> _Trial:
        """Return a trial in the environment given, or in a scripted one."""
        return cls(layer, rest, scripted_env() if env is None else env)

    async def call(self, prompt: str = "Why?", deadline: float = math.inf, sink: Sink | None = None) -> Answer:
        """Send one call through the layer, to the first model of the configuration."""
        history = CallHistory()
        call = Call(
            id=self.env.new_id(),
            request=LLMRequest(prompt=prompt),
            sink=None if sink is None else committing(sink, history),
            deadline=deadline,
            history=history,
            attempt=AttemptContext(model=next(iter(self.env.config.models), "")),
        )
        return await run(self.layer(innermost(self._answer))(call), self.env)

    async def streamed(self) -> Answer:
        """Send one call with a sink that notes its events."""
        return await self.call(sink=self._note)

    async def _note(self, event: StreamEvent) -> None:
        self.events.append(event)

    async def _answer(self, call: Call, _: LLMEnv) -> Answer:
        self.asked += 1
        self.running += 1
        try:
            return await self.rest(call)
        finally:
            self.running -= 1

    @property
    def text(self) -> str:
        """The text that the consumer has: of the last answer, if it was restarted."""
        return streamed_text(self.events)


async def _send(call: Call, *texts: str) -> None:
    if call.sink is not None:
        opening = opening_of(call)
        for event in (*(() if opening is None else (opening,)), *map(TextDelta, texts)):
            await call.sink(event)


async def _answers(call: Call) -> Answer:
    await _send(call, "Be", "cause.")
    return Success(answer("Because."))


async def an_answer_passes(layer: Policy, env: LLMEnv | None = None) -> None:
    """Check that a call reaches the rest, and that its answer comes back, twice."""
    trial = _Trial.of(layer, _answers, env)
    for _ in range(2):
        result = await trial.call()
        ensure(isinstance(result, Success), f"the rest answers, but the layer returned {result}")
    ensure(trial.asked, "no call reached the rest: give the check an environment in which the layer lets calls through")


async def an_error_is_returned(layer: Policy, env: LLMEnv | None = None) -> None:
    """Check that an error stays a value."""

    async def fail(_: Call) -> Answer:
        return Failure(InvalidRequest(message="prompt: blank"))

    try:
        result: object = await _Trial.of(layer, fail, env).call()
    except Exception as problem:  # noqa: BLE001 - whatever a layer makes of it
        result = problem
    ensure(isinstance(result, Result), f"an error of the rest must be returned in a Result, not as {result!r}")


class _Defect(Exception):  # noqa: N818 - a defect of the rest
    """A defect that no layer knows."""


async def an_exception_passes(layer: Policy, env: LLMEnv | None = None) -> None:
    """Check that a defect of the rest arrives as it is: not as an error, and in no group."""
    defect = _Defect("a bug")

    async def fail(_: Call) -> Answer:
        raise defect

    await _expect_defect(_Trial.of(layer, fail, env).call(), defect, "of the rest")


async def an_exception_of_the_consumer_passes(layer: Policy, env: LLMEnv | None = None) -> None:
    """Check that a defect of the sink arrives as it is."""
    defect = _Defect("a bug")

    async def sink(event: StreamEvent) -> None:
        if isinstance(event, TextDelta):
            raise defect

    await _expect_defect(_Trial.of(layer, _answers, env).call(sink=sink), defect, "of the consumer")


async def _expect_defect(calling: Awaitable[Answer], defect: _Defect, where: str) -> None:
    try:
        result = await calling
    except Exception as problem:  # noqa: BLE001 - whatever a layer makes of it
        ensure(problem is defect, f"an exception {where} became {problem!r}")
    else:
        raise AssertionError(f"an exception {where} was swallowed: the layer returned {result}")


async def a_cancellation_passes(layer: Policy, env: LLMEnv | None = None) -> None:
    """Check that a cancelled call ends, and with it all that it started."""

    async def wait(_: Call) -> Answer:
        await anyio.sleep_forever()
        return Failure(NetworkError())

    trial = _Trial.of(layer, wait, env)
    ended = "the call went on"
    with anyio.move_on_after(0.05):
        ended = f"the layer returned {await trial.call()}"
        await anyio.sleep(0.2)
        ended = "the layer swallowed the cancellation"
    expect(trial.running, 0, "how many calls of the rest outlive a cancelled call")
    ensure(trial.asked and ended == "the call went on", f"after a cancellation {ended}")


async def a_stream_passes(layer: Policy, env: LLMEnv | None = None) -> None:
    """Check that the consumer has one opening, then the text of the answer, each piece once."""
    trial = _Trial.of(layer, _answers, env)
    result = await trial.streamed()
    ensure(isinstance(result, Success), f"the rest answers, but the layer returned {result}")
    expect(trial.text, result.unwrap().content, "the text of the events and the content of the answer")
    openings = [isinstance(event, Started) for event in trial.events]
    expect(openings, [True, *[False] * (len(openings) - 1)], "which events open the stream")


async def a_committed_call_is_not_repeated(layer: Policy, env: LLMEnv | None = None) -> None:
    """Check that no text is doubled after a stream breaks, whatever the error."""
    for error in (NetworkError(phase="reset"), RateLimitExceeded(retry_after=0.0)):

        async def breaks(call: Call, error: NetworkError | RateLimitExceeded = error) -> Answer:
            await _send(call, "half")
            return Failure(evolve(error, partial="half"))

        trial = _Trial.of(layer, breaks, env)
        await trial.streamed()
        expect(trial.text.count("half"), 1, f"how often the consumer has a text that broke with {error.tag}")
        restarts = sum(isinstance(event, Restarted) for event in trial.events)
        expect(restarts, 0, "restarts of a request whose recovery is to fail")


async def the_deadline_is_kept(layer: Policy, env: LLMEnv | None = None) -> None:
    """Check that no pause outlasts the deadline, here of a tenth of a second."""

    async def fail(_: Call) -> Answer:
        return Failure(RateLimitExceeded(retry_after=3600.0))

    trial = _Trial.of(layer, fail, env)
    with anyio.move_on_after(5) as scope:
        await trial.call(deadline=anyio.current_time() + 0.1)
    ensure(not scope.cancelled_caught, "the layer sleeps past the deadline of the call")


async def calls_at_once_do_not_mix(layer: Policy, env: LLMEnv | None = None) -> None:
    """Check that each of twenty calls has its own answer."""

    async def echo(call: Call) -> Answer:
        await anyio.sleep(0.001)
        return Success(answer(f"<{call.request.prompt}>"))

    trial = _Trial.of(layer, echo, env)
    answers = dict[str, Answer]()

    async def ask(prompt: str) -> None:
        answers[prompt] = await trial.call(prompt)

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(ask, f"{number}")
    wrong = {prompt: each for prompt, each in answers.items() if f"<{prompt}>" not in each.map(_content).value_or("")}
    expect(wrong, {}, "answers to another question")


def _content(response: object) -> str:
    return str(getattr(response, "content", ""))


LAYER_CHECKS: Final[tuple[LayerCheck, ...]] = (
    an_answer_passes,
    an_error_is_returned,
    an_exception_passes,
    an_exception_of_the_consumer_passes,
    a_cancellation_passes,
    a_stream_passes,
    a_committed_call_is_not_repeated,
    the_deadline_is_kept,
    calls_at_once_do_not_mix,
)
"""Every check of a layer."""
