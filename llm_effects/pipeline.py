"""The onion: one file that shows every layer between a request and its answer.

A layer takes a ``Generate`` and gives a ``Generate``. To leave one out or to add your own, build another:

>>> from llm_effects.pipeline import complete, observed, retried, routed, bounded, layered
>>> without_retries = layered(complete, observed, routed, bounded)
"""

from collections.abc import Callable
from typing import Final

import anyio
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.calls import Call, Sink, Trail, committing
from llm_effects.effects import Answer, Effect, Generate, effect, settle
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError
from llm_effects.events import Completed, Failed, StreamEvent
from llm_effects.policies import layered
from llm_effects.policies.bounded import bounded
from llm_effects.policies.broken import broken
from llm_effects.policies.budgeted import budgeted
from llm_effects.policies.cached import cached
from llm_effects.policies.coalesced import coalesced
from llm_effects.policies.complete import complete
from llm_effects.policies.hedged import hedged
from llm_effects.policies.limited import limited
from llm_effects.policies.observed import observed
from llm_effects.policies.reasked import reasked
from llm_effects.policies.retried import retried
from llm_effects.policies.routed import facts_of, routed
from llm_effects.policies.traced import traced
from llm_effects.requests import LLMRequest
from llm_effects.responses import LLMResponse, total_cost
from llm_effects.routing import route
from llm_effects.routing.candidates import RoutingDecision

__all__ = [
    "bounded",
    "broken",
    "budgeted",
    "cached",
    "coalesced",
    "complete",
    "explain",
    "generate",
    "generate_call",
    "hedged",
    "layered",
    "limited",
    "observed",
    "reasked",
    "retried",
    "routed",
    "run_call",
    "stream",
    "traced",
]

# Inner to outer. The model is chosen by ``routed``: what stands before it acts on one attempt or one candidate,
# what stands after it on the whole call. ``coalesced`` stands outside ``cached``, so that who comes after a flight
# finds its answer stored.
generate_call: Generate = layered(
    complete, observed, budgeted, limited, broken, retried, hedged, reasked, routed, cached, coalesced, bounded, traced
)


LAST_WORD_S: Final = 30.0
"""How long a consumer may take over the last event of a stream, in seconds."""


def generate(request: LLMRequest) -> Effect[LLMResponse]:
    """Answer a request with the model that suits it, through every layer.

    Gives the answer with its usage, cost (USD), latency (milliseconds) and attempts, or an ``LLMError``.

    >>> import anyio
    >>> from llm_effects import RateLimitExceeded, scripted_env, settle
    >>> anyio.run(settle, generate(LLMRequest(prompt="why?")), scripted_env("because")).unwrap().content
    'because'
    >>> refused = scripted_env(RateLimitExceeded(quota=True))
    >>> anyio.run(settle, generate(LLMRequest(prompt="why?")), refused).failure().tag
    'RateLimitExceeded'
    """
    return run_call(generate_call, request)


def stream(request: LLMRequest, sink: Sink) -> Effect[LLMResponse]:
    """Answer a request as ``generate`` does, with every event awaited into ``sink`` as it comes.

    The last event is ``Completed`` or ``Failed``; a cancelled stream tells neither. Until the first content other
    models may be tried unseen; after it ``request.recovery`` decides.

    >>> import anyio
    >>> from llm_effects import scripted_env, settle
    >>> async def show(event: object) -> None:
    ...     print(type(event).__name__)
    >>> done = anyio.run(settle, stream(LLMRequest(prompt="why?"), show), scripted_env("because"))
    Started
    TextDelta
    Completed
    """

    async def run(env: LLMEnv) -> Answer:
        result = await settle(run_call(generate_call, request, sink), env)
        with anyio.move_on_after(LAST_WORD_S):  # for a consumer that never returns
            await sink(ending(result))
        return result

    return effect(run)


def ending(result: Answer) -> StreamEvent:
    """Give the last event of a stream."""
    return Completed(result.unwrap()) if is_successful(result) else Failed(result.failure())


def explain(request: LLMRequest, *, streamed: bool = False) -> Effect[RoutingDecision]:
    """Tell which models ``generate`` would ask, in order, and why others are left out, without asking any.

    Every number that decided is in it. ``streamed`` asks for ``stream`` instead, where the first content counts.

    >>> import anyio
    >>> from llm_effects import scripted_env, settle
    >>> decision = anyio.run(settle, explain(LLMRequest(prompt="why?")), scripted_env()).unwrap()
    >>> [candidate.model for candidate in decision.candidates]
    ['scripted']
    """

    async def run(env: LLMEnv) -> Result[RoutingDecision, LLMError]:
        return route(request, env.config, facts_of(request, env, streamed=streamed))

    return effect(run)


def as_it_is(call: Call) -> Call:
    """Change nothing."""
    return call


def run_call(
    onion: Generate, request: LLMRequest, sink: Sink | None = None, adapt: Callable[[Call], Call] = as_it_is
) -> Effect[LLMResponse]:
    """Send a request through an onion and put what its trail tells into the answer, or into the error.

    ``adapt`` puts into the call what its maker knows besides: its conversation, a deadline.
    """

    async def run(env: LLMEnv) -> Answer:
        trail = Trail()
        told = None if sink is None else committing(sink, trail)
        call = adapt(Call(id=env.new_id(), request=request, sink=told, trail=trail))
        started = anyio.current_time()
        result = await settle(onion(call), env)
        if is_successful(result):
            return Success(_told(result.unwrap(), call, (anyio.current_time() - started) * 1000))
        return Failure(_error_told(result.failure(), call))

    return effect(run)


def _told(response: LLMResponse, call: Call, latency_ms: float) -> LLMResponse:
    attempts = tuple(call.trail.attempts)
    return evolve(
        response,
        task_type=call.request.task_type,
        attempts=attempts,
        cost=total_cost(attempt.cost for attempt in attempts),
        latency_ms=latency_ms,
    )


def _error_told(error: LLMError, call: Call) -> LLMError:
    trail = call.trail
    partial = error.partial if call.sink is None else trail.partial
    earlier = tuple(each for each in trail.errors if each is not error)
    return evolve(error, attempts=tuple(trail.attempts), partial=partial, earlier=earlier)
