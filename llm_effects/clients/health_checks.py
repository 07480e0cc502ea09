"""Health checks: one request to a model's server, or a look at the in-process engine.

Reachable and ready are different answers: a server without a loaded model is reachable, but not ready.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Result, Success

from llm_effects.clients.credentials import Header, KeyedTransport, Sender, send_keyed
from llm_effects.clients.local_engine import Engine
from llm_effects.clients.transport.connections import TransportFault
from llm_effects.clients.transport.transport import Transport
from llm_effects.config.models import ModelConfig
from llm_effects.effects.effect import Effect, effect, result_of
from llm_effects.effects.env import LLMEnv, Now, wall_clock
from llm_effects.effects.tasks import task_group
from llm_effects.providers.readiness import Readiness, probes_of, read, root_of
from llm_effects.providers.registry import provider_of
from llm_effects.providers.target import Target, fixed_headers, key_headers, redact
from llm_effects.providers.wire import Timeouts, WireResponse
from llm_effects.values import caps
from llm_effects.values.errors import (
    AuthenticationFailed,
    ConfigurationError,
    LLMError,
    ModelUnavailable,
    RequestTimeout,
    describe,
)
from llm_effects.values.records import ModelHealth

PROBE_SECONDS: Final = 5.0
"""Seconds that a server may take to answer a health check."""


def check_health(progress: Callable[[ModelHealth], None] | None = None) -> Effect[tuple[ModelHealth, ...]]:
    """Check every configured model concurrently; return them in the order of the configuration.

    A model that is down is not a failure. ``progress`` is called with the health of each model as soon as it is known.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> [health.ready for health in anyio.run(run, check_health(), scripted_env()).unwrap()]
    [True]
    """

    async def perform(env: LLMEnv) -> Result[tuple[ModelHealth, ...], LLMError]:
        health: dict[str, ModelHealth] = {}

        async def probe(name: str, model: ModelConfig) -> None:
            health[name] = await _probe(env, name, model)
            if progress is not None:
                progress(health[name])

        async with task_group() as group:
            for name, model in env.config.models.items():
                group.start_soon(probe, name, model)
        return Success(tuple(health[name] for name in env.config.models))

    return effect(perform)


def check_local_model_health(endpoint: str) -> Effect[ModelHealth]:
    """Check the local server at ``endpoint``, such as ``http://localhost:1234/v1``, configured or not.

    It is probed as an LM Studio, then as any server that lists its models; such a list does not show what is ready.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> anyio.run(run, check_local_model_health("http://localhost:1234/v1"), scripted_env()).unwrap().reachable
    True
    """

    async def perform(env: LLMEnv) -> Result[ModelHealth, LLMError]:
        probed = await result_of(env.clients.probe("local", ModelConfig(provider="lm-studio", endpoint=endpoint)))
        return probed.alt(_without_name)

    return effect(perform)


def _without_name(error: LLMError) -> LLMError:
    """Remove the model name from an error: the endpoint is in no configuration."""
    if not isinstance(error, ConfigurationError):
        return error
    return evolve(error, model=None, message=error.message.removeprefix("models.local."))


async def _probe(env: LLMEnv, name: str, model: ModelConfig) -> ModelHealth:
    result = await result_of(env.clients.probe(name, model))
    if is_successful(result):
        return result.unwrap()
    # Without the endpoint, which may be the wrong value, and may hold a password.
    error = result.failure()
    return ModelHealth(model=name, provider=model.provider, message=describe(error), error=error.tag)


async def probe_server(transport: Transport, target: Target, now: Now = wall_clock) -> Result[ModelHealth, LLMError]:
    """Check a server; ``message`` explains what is missing. A key that rotates is asked for by ``now`` if needed."""
    started = anyio.current_time()
    health = _health(target, message=f"no answer within {PROBE_SECONDS:g} seconds", error=RequestTimeout.tag)
    with anyio.move_on_after(PROBE_SECONDS):
        probed = await send_keyed(target, now, partial(_probe_keyed, transport, target), _is_rejected)
        if not is_successful(probed):
            return probed
        health = probed.unwrap()
    return Success(evolve(health, latency_ms=(anyio.current_time() - started) * 1000))


def _probe_keyed(transport: Transport, target: Target, key: Header | None) -> Awaitable[ModelHealth]:
    return _probe_in_order(transport if key is None else KeyedTransport(transport, key), target)


def _is_rejected(health: ModelHealth) -> bool:
    return health.error == AuthenticationFailed.tag


async def _probe_in_order(transport: Sender, target: Target) -> ModelHealth:
    response = WireResponse(status=0)
    for probe in probes_of(target):
        try:
            response = await _fetch(transport, target, probe.path)
        except TransportFault as fault:
            return _health(target, message=describe(evolve(fault.error, model=target.name)), error=fault.error.tag)
        reading = read(probe, response, target.wire_model)
        if reading is not None:
            return _health_from(target, reading)
    return _unread(target, response)


async def _fetch(transport: Sender, target: Target, path: str) -> WireResponse:
    limits = Timeouts(connect_s=min(PROBE_SECONDS, target.config.connect_ms / 1000), read_s=PROBE_SECONDS)
    own = key_headers(target)
    fixed = (pair for pair in fixed_headers(target) if pair[0] not in dict(own))
    return await transport.fetch(root_of(target.endpoint) + path, (*fixed, *own), limits)


def _unread(target: Target, response: WireResponse) -> ModelHealth:
    """Return the health of a server whose answer is no list of models: many refuse or lack one, and answer requests."""
    if 200 <= response.status < 300:
        problem = f"what answers at {target.endpoint} is not a model server: check the endpoint"
        return _health(target, reachable=True, message=problem)
    error = provider_of(target).classify(target, response)
    by_name = target.preset.wire == "anthropic" and response.status == 404  # the path named the model itself
    certain = by_name or response.status not in _UNCERTAIN
    return _health(target, reachable=True, message=describe(error), error=error.tag if certain else None)


_UNCERTAIN: Final = frozenset({403, 404, 405, 501})
"""Statuses of a server without a list of models, or of a key that may not read it."""


def _health_from(target: Target, reading: Readiness) -> ModelHealth:
    return evolve(
        _health(target, reachable=True, message=redact(target, reading.message)),
        ready=reading.ready,
        error=ModelUnavailable.tag if not reading.ready and (reading.known or _lists_all(target)) else None,
        loaded=tuple(redact(target, name, caps.NAME_CHARACTERS) for name in reading.loaded),
        context_length=reading.context_length or target.capabilities.context_length,
    )


def _lists_all(target: Target) -> bool:
    """Return whether a server lists every name that a model has there: OpenAI itself does, others need not."""
    return target.preset.name.startswith("openai") and target.endpoint == target.preset.endpoint


def _health(target: Target, *, reachable: bool = False, message: str = "", error: str | None = None) -> ModelHealth:
    return ModelHealth(
        model=target.name,
        provider=target.preset.name,
        endpoint=target.endpoint,
        reachable=reachable,
        message=message,
        error=error,
    )


async def probe_engine(engine: Engine, target: Target) -> Result[ModelHealth, LLMError]:
    """Check the in-process model without loading it."""
    started = anyio.current_time()
    checked = await anyio.to_thread.run_sync(engine.check)
    ready = engine.loaded or is_successful(checked)
    health = ModelHealth(
        model=target.name,
        provider=target.preset.name,
        endpoint=target.endpoint,
        reachable=ready,
        ready=ready,
        loaded=(target.endpoint,) if engine.loaded else (),
        context_length=engine.context_length,
        latency_ms=(anyio.current_time() - started) * 1000,
        message="" if ready else describe(checked.failure()),
        error=None if ready else checked.failure().tag,
    )
    return Success(health)
