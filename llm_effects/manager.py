"""The live environment (``open_env``), and ``LLMManager``: the same operations as methods, with its factories."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeAlias, TypeVar, final

import anyio
from anyio import to_thread
from anyio.lowlevel import EventLoopToken, current_token
from attrs import evolve
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.clients.client import LiveClients
from llm_effects.clients.transport.transport import Transport
from llm_effects.config import LLMConfig
from llm_effects.config.loading import load_config
from llm_effects.config.models import ModelConfig
from llm_effects.effects.background import held_tasks
from llm_effects.effects.call import Sink
from llm_effects.effects.combinators import gather
from llm_effects.effects.effect import Answer, Effect, effect, fail, from_env, from_service, result_of, run, then
from llm_effects.effects.env import Cache, Limits, LLMEnv, Telemetry, new_id, wall_clock
from llm_effects.effects.mistakes import check_config, entered_by
from llm_effects.effects.tasks import task_group
from llm_effects.limits.quotas import ActualUsage, Demand, Permit, Quota
from llm_effects.pipeline import generate, open_stream, stream
from llm_effects.policies.routing import no_model_remedy
from llm_effects.providers.registry import is_on_this_machine, ready_targets, target_of, targets_of, why_it_leaves
from llm_effects.providers.target import Target
from llm_effects.routing.candidates import RoutingContext, RoutingDecision
from llm_effects.routing.prices import PriceList, not_listed, price_list
from llm_effects.routing.router import route
from llm_effects.stores.conversations.memory import MemoryConversations
from llm_effects.stores.disabled import NoTelemetry, unusable_cache, unusable_limits
from llm_effects.stores.health import MemoryHealth
from llm_effects.stores.ledger.memory import MemoryLedger
from llm_effects.stores.limits.memory import MemoryLimits
from llm_effects.stores.open import Storage, open_cache, open_limits, open_storage, usable
from llm_effects.telemetry.logs import log_refresh_defect
from llm_effects.values.errors import AuthenticationFailed, ConfigurationError, LLMError, describe
from llm_effects.values.events import Failed, StreamEvent
from llm_effects.values.messages import Message
from llm_effects.values.records import Check, CheckState, ModelHealth
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import LLMResponse
from llm_effects.values.secrets import Secret, shown_url
from llm_effects.values.tokens import EstimatedTokens, estimate_tokens
from llm_effects.values.validation import InvalidValue

if TYPE_CHECKING:
    from llm_effects.clients.local_engine import Engine

_Value = TypeVar("_Value")

# The live environment: built from a configuration, closed on exit.

WARM_UP_S: Final = 1.0
"""How long opening an environment waits for the newest rows of its ledger, in seconds."""

HISTORY: Final = timedelta(hours=3)
"""The greatest age of the rows that warm up routing: older attempts have hardly any weight."""

HISTORY_ROWS: Final = 500
"""How many rows warm up routing."""

CHECK_S: Final = 10.0
"""How long ``check_setup`` waits for a store, in seconds."""


def open_env(
    config: LLMConfig, *, check: bool = False, warm: bool = False, transport: Callable[[], Transport] | None = None
) -> AbstractAsyncContextManager[LLMEnv]:
    """Open the live environment of a configuration; on exit every connection is closed and every model freed.

    ``transport`` builds the HTTP edge, for another pool, other limits, a proxy or other certificates. If models are
    wrongly configured, the first operation fails with a ``ConfigurationError`` that names all problems. With ``check``,
    entering raises ``InvalidValue`` with every problem that ``check_setup`` finds: a model without its key or file, a
    rejected key, a store that cannot be written, or no model that could answer. With ``warm``, each server is asked for
    its health first, for at most ``WARM_UP_S``, so that the first call finds an open connection.

    >>> import anyio
    >>> from llm_effects import LLMRequest, ModelConfig, generate, run
    >>> async def main() -> str:
    ...     async with open_env(LLMConfig(models={"gpt": ModelConfig(provider="openai-chat", model="m")})) as env:
    ...         return (await run(generate(LLMRequest(prompt="why?")), env)).failure().message
    >>> anyio.run(main).splitlines()[0]
    'models.gpt.api_key: is missing: openai-chat answers only with a key'
    """
    check_config(config)
    return _open(config, transport_of(config) if transport is None else transport(), check=check, warm=warm)


@entered_by("async with open_env(config) as env")
@asynccontextmanager
async def _open(config: LLMConfig, transport: Transport, *, check: bool, warm: bool) -> AsyncGenerator[LLMEnv]:
    clients = live_clients(config, transport)
    env = live_env(config, clients)
    try:
        if check:
            problems = await _problems(env)
            if problems:
                raise InvalidValue(problems)
        await _load(env, transport)
        async with transport.scope(), _refreshing(env) as opened:
            if warm:
                await _warm_connections(env, clients)
            yield opened
    finally:
        with anyio.CancelScope(shield=True):
            await _close(env, clients)


@asynccontextmanager
async def _refreshing(env: LLMEnv) -> AsyncGenerator[LLMEnv]:
    """Open a scope for refreshes, if the cache returns stale answers and the environment has none."""
    if not (env.config.cache.enabled and env.config.cache.stale_seconds) or env.background is not None:
        yield env
        return
    async with held_tasks(log_refresh_defect) as background:
        yield evolve(env, background=background)


def transport_of(config: LLMConfig) -> Transport:
    """Build the transport that a configuration asks for."""
    needs_http = any(model.provider != "llama" for model in config.models.values())
    return Transport(kind=config.transport if needs_http else "httpx")


async def _warm_connections(env: LLMEnv, clients: LiveClients) -> None:
    """Ask each server for its health at once, and keep the connections that this opens."""

    async def warm(name: str, model: ModelConfig) -> None:
        await result_of(clients.probe(name, model))

    with anyio.move_on_after(WARM_UP_S):
        async with anyio.create_task_group() as tasks:
            for name, model in env.config.models.items():
                if name not in clients.engines:
                    tasks.start_soon(warm, name, model)


def check_setup() -> Effect[tuple[Check, ...]]:
    """Check an environment before its first call: every model and every store, all at once.

    ``open_env(config, check=True)`` raises the problems that this finds. A store must accept a write. A server is asked
    for its models, which shows a rejected key at no cost. A model that cannot answer is a warning while another may.

    >>> from llm_effects import run_sync, scripted_env
    >>> [(check.place, check.state) for check in run_sync(check_setup(), scripted_env()).unwrap()]
    [('models.scripted', 'ok'), ('storage.url', 'ok'), ('cache.url', 'ok'), ('limits.url', 'ok')]
    """
    from llm_effects.clients.health_checks import check_health

    stores = (
        _check_store("storage.url", lambda config: config.storage.url, _use_storage),
        _check_store("cache.url", lambda config: config.cache.url, _use_cache),
        _check_store("limits.url", lambda config: config.limits.url, _use_limits),
    )
    return gather((then(check_health(), _check_models), *stores)).map(_flat)


def _flat(parts: tuple[tuple[Check, ...], ...]) -> tuple[Check, ...]:
    return tuple(check for part in parts for check in part)


def _check_models(health: tuple[ModelHealth, ...]) -> Effect[tuple[Check, ...]]:
    return from_env(lambda env: (*_incomplete(env.config), *_model_checks(env.config, health)))


def _incomplete(config: LLMConfig) -> Iterator[Check]:
    """Yield a problem for each model that lacks a field, such as its key."""
    targets = targets_of(config)
    for line in () if is_successful(targets) else _problem(targets.failure()).splitlines():
        place, _, remedy = line.partition(": ")
        yield Check(place, "problem", remedy)


def _model_checks(config: LLMConfig, health: tuple[ModelHealth, ...]) -> Iterator[Check]:
    """Yield a check of each complete model, and one of all servers on this machine if there is nothing else."""
    targets = ready_targets(config)
    checked = [each for each in health if each.model in targets]
    usable = any(each.error is None for each in checked)
    only_servers_here = all(map(_is_server_here, targets.values()))
    for each in checked:
        certain = each.error in _CERTAIN and not config.models[each.model].last_resort
        is_problem = each.error is not None and (certain or not (usable or only_servers_here))
        state: CheckState = "problem" if is_problem else "ok" if each.ready else "warning"
        yield Check(f"models.{each.model}", state, each.message.removeprefix(f"{each.error} ({each.model}): "))
    if checked and not usable and only_servers_here:
        yield Check("models", "problem", f"no server on this machine answers: {no_model_remedy()}")


_CERTAIN: Final = frozenset({AuthenticationFailed.tag, ConfigurationError.tag})
"""Errors of a model that do not pass, so that they are problems even where other models answer."""


def _is_server_here(target: Target) -> bool:
    return is_on_this_machine(target) and target.preset.wire != "llama"


def _check_store(
    place: str, url: Callable[[LLMConfig], str | Secret], use: Callable[[LLMEnv], Effect[object]]
) -> Effect[tuple[Check, ...]]:
    async def check(env: LLMEnv) -> Result[tuple[Check, ...], LLMError]:
        with anyio.move_on_after(CHECK_S):
            used = await run(use(env), env)
            if is_successful(used):
                return Success((Check(place, "ok", shown_url(url(env.config))),))
            return Success((Check(place, "problem", _problem(used.failure()).removeprefix(f"{place}: ")),))
        return Success((Check(place, "problem", f"did not answer within {CHECK_S:g} s"),))

    return effect(check)


def _use_storage(env: LLMEnv) -> Effect[object]:
    """Read the ledger, which shares its database with the conversations, and store and delete a conversation."""
    from llm_effects.conversations.operations import delete_conversation, start_conversation

    rows = from_service(lambda env: env.ledger.rows(env.now(), newest=1))
    stored = then(rows, lambda _: start_conversation(f"check-{env.new_id()}"))
    return then(stored, lambda conversation: delete_conversation(conversation.id))


def _use_cache(env: LLMEnv) -> Effect[object]:
    key = f"check-{env.new_id()}"
    stored = from_service(lambda env: env.cache.put(key, b"", CHECK_S))
    return then(stored, lambda _: from_service(lambda env: env.cache.delete(key)))


def _use_limits(env: LLMEnv) -> Effect[object]:
    """Acquire a permit of no model and release it; without their server, limits grant it with a warning."""

    async def use(_: LLMEnv) -> Result[object, LLMError]:
        deadline = anyio.current_time() + CHECK_S
        asked = env.limits.acquire("check", Quota(concurrency=1_000), Demand(), CHECK_S, deadline)
        permit = Success(asked) if isinstance(asked, Permit) else await result_of(asked)
        if not is_successful(permit):
            return Failure(permit.failure())
        await env.limits.release(permit.unwrap(), ActualUsage())
        warning = permit.unwrap().warning
        return Failure(ConfigurationError(message=warning)) if warning else Success(None)

    return effect(use)


def _problem(error: LLMError) -> str:
    return error.message if isinstance(error, ConfigurationError) else describe(error)


async def _problems(env: LLMEnv) -> str:
    """List every problem that is known before the first call, one a line."""
    checks = (await run(check_setup(), env)).value_or(())
    return "\n".join(f"{check.place}: {check.message}" for check in checks if check.state == "problem")


async def _close(env: LLMEnv, clients: LiveClients) -> None:
    await clients.aclose()
    await env.cache.aclose()
    await env.limits.aclose()
    await env.ledger.aclose()
    await env.conversations.aclose()


def live_env(
    config: LLMConfig, clients: LiveClients, memory: Storage | None = None, limits: MemoryLimits | None = None
) -> LLMEnv:
    """Build an environment around live clients, with the services that the configuration asks for.

    ``memory`` holds earlier conversations and ledger rows, and ``limits`` earlier counts, if they are kept in memory.
    """
    storage = usable(open_storage(config.storage, memory or new_memory()))
    return LLMEnv(
        config=config,
        clients=clients,
        cache=_cache(config),
        conversations=storage.conversations,
        ledger=storage.ledger,
        health=MemoryHealth(),
        limits=_limits(config, limits or MemoryLimits()),
        prices=price_list(config),
        tokens=EstimatedTokens(),
        telemetry=_telemetry(config),
        now=wall_clock,
        draw=random.random,
        new_id=new_id,
    )


def live_clients(config: LLMConfig, transport: Transport) -> LiveClients:
    """Build the clients of all configured models; nothing is connected or loaded before its first use."""
    targets = ready_targets(config)
    local = {name: target for name, target in targets.items() if target.preset.wire == "llama"}
    return LiveClients(config=config, transport=transport, engines=_engines(local) if local else {})


def _engines(targets: Mapping[str, Target]) -> Mapping[str, Engine]:
    from llm_effects.clients.local_engine import Engine

    return {name: Engine(target) for name, target in targets.items()}


def new_memory() -> Storage:
    """Build an empty storage in memory."""
    return Storage(MemoryConversations(), MemoryLedger())


def _cache(config: LLMConfig) -> Cache:
    cache = open_cache(config.cache, wall_clock)
    return cache.unwrap() if is_successful(cache) else unusable_cache(cache.failure())


def _limits(config: LLMConfig, memory: MemoryLimits) -> Limits:
    limits = open_limits(config, memory)
    return limits.unwrap() if is_successful(limits) else unusable_limits(limits.failure())


def _telemetry(config: LLMConfig) -> Telemetry:
    if not config.telemetry.enabled:
        return NoTelemetry()
    try:
        import_module("opentelemetry")  # without it, the next import takes 15 ms to find its remedy
        from llm_effects.telemetry.otel import open_telemetry
    except ModuleNotFoundError:  # the extra [otel] is not installed
        return NoTelemetry()
    return open_telemetry()


async def _load(env: LLMEnv, transport: Transport) -> None:
    """Load what the first call would wait for, in threads."""
    https = any(target.endpoint.startswith("https:") for target in ready_targets(env.config).values())
    async with task_group() as tasks:
        tasks.start_soon(warm_up, env)
        tasks.start_soon(partial(transport.load, https=https))


async def warm_up(env: LLMEnv) -> None:
    """Load the statistics of models from the newest rows of the ledger, unless that takes too long.

    A price list is imported now, in a thread, so that the first call does not wait for it.
    """
    if isinstance(env.prices, PriceList) and env.prices.listed is not not_listed:
        await to_thread.run_sync(env.prices.load)
    if env.health.statistics():
        return
    with anyio.move_on_after(WARM_UP_S):
        rows = await result_of(env.ledger.rows(env.now() - HISTORY, newest=HISTORY_ROWS))
        for row in rows.value_or(()):
            if row.attempt.usage.service_tier != "batch":  # whose latency is that of a queue
                env.health.observe(row.attempt, row.at)


# The manager.

Adapt: TypeAlias = Callable[[LLMEnv], LLMEnv]
"""Replaces services of the live environment, with ``attrs.evolve``."""


@final
class LLMManager:
    """An environment with methods. Use it with ``async with``, or directly and close it with ``aclose()``.

    Inside ``async with`` connections are reused between calls; of several at once, the last one to end closes it. Used
    directly, it works from any event loop, also from several ``anyio.run`` one after another, and keeps no connection
    longer than its calls. It can be entered again after it was closed: the statistics of models, and conversations and
    ledger rows in memory, are kept.

    If the configuration could not be read, every operation fails with its ``ConfigurationError``.
    """

    def __init__(self, config: Result[LLMConfig, LLMError], adapt: Adapt | None = None, *, warm: bool = False) -> None:
        self._config = config
        self._warm = warm
        self._adapt = adapt
        self._health = MemoryHealth()
        self._limits = MemoryLimits()
        self._memory = new_memory()
        self._scopes: list[tuple[EventLoopToken, AbstractAsyncContextManager[None]]] = []
        self._open()

    def _open(self) -> None:
        self._closed = False
        config = self._config.value_or(LLMConfig(models={}))
        self._transport = transport_of(config)
        self._clients = live_clients(config, self._transport)
        self._live = evolve(live_env(config, self._clients, self._memory, self._limits), health=self._health)
        self._env = self._live if self._adapt is None else self._adapt(self._live)

    @property
    def env(self) -> LLMEnv:
        """The environment, for ``run``."""
        return self._env

    @property
    def config(self) -> Result[LLMConfig, LLMError]:
        """The configuration, or its error."""
        return self._config

    def generate(self, request: str | LLMRequest) -> FutureResult[LLMResponse, LLMError]:
        """Answer a request; compose the future further, or await it for an ``IOResult``."""
        return self._or_config_error(generate(request))(self._env)

    def stream(self, request: str | LLMRequest, sink: Sink) -> FutureResult[LLMResponse, LLMError]:
        """Answer a request, and await every event in ``sink`` as it arrives."""
        if not is_successful(self._config):
            return _failed_stream(self._config.failure(), sink)(self._env)
        return stream(request, sink)(self._env)

    def open_stream(self, request: str | LLMRequest) -> AbstractAsyncContextManager[AsyncIterator[StreamEvent]]:
        """Answer a request as a stream of events, for ``async for``."""
        if not is_successful(self._config):
            return _single_event(Failed(self._config.failure()))
        return open_stream(request)(self._env)

    def converse(
        self,
        conversation_id: str,
        message: str | Message | LLMRequest,
        *,
        owner: str | None = None,
        turn_id: str | None = None,
        sink: Sink | None = None,
        pinned: bool = False,
    ) -> FutureResult[LLMResponse, LLMError]:
        """Run one turn of a stored conversation."""
        if not is_successful(self._config) and sink is not None:
            return _failed_stream(self._config.failure(), sink)(self._env)
        from llm_effects.conversations.converse import converse

        turn = converse(conversation_id, message, owner=owner, turn_id=turn_id, sink=sink, pinned=pinned)
        return self._or_config_error(turn)(self._env)

    def open_converse(
        self,
        conversation_id: str,
        message: str | Message | LLMRequest,
        *,
        owner: str | None = None,
        turn_id: str | None = None,
        pinned: bool = False,
    ) -> AbstractAsyncContextManager[AsyncIterator[StreamEvent]]:
        """Run one turn of a stored conversation as a stream of events, for ``async for``."""
        if not is_successful(self._config):
            return _single_event(Failed(self._config.failure()))
        from llm_effects.conversations.converse import open_converse

        return open_converse(conversation_id, message, owner=owner, turn_id=turn_id, pinned=pinned)(self._env)

    async def run(self, effect: Effect[_Value]) -> Result[_Value, LLMError]:
        """Run any effect and return its plain ``Result``."""
        return await run(self._or_config_error(effect), self._env)

    async def check(self) -> Result[None, LLMError]:
        """Fail with every problem that is known before the first call, as ``open_env(config, check=True)`` does."""
        if not is_successful(self._config):
            return Failure(self._config.failure())
        problems = await _problems(self._live)
        return Failure(ConfigurationError(message=problems)) if problems else Success(None)

    async def aclose(self) -> None:
        """Close every connection and free the models in this process; closing twice is fine."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            while self._scopes:
                _, scope = self._scopes.pop()
                await scope.__aexit__(None, None, None)
            await _close(self._live, self._clients)

    async def __aenter__(self) -> Self:
        if self._closed:
            self._open()
        await _load(self._env, self._transport)
        scope = self._scope()
        await scope.__aenter__()
        self._scopes.append((current_token(), scope))
        if self._warm:
            await _warm_connections(self._live, self._clients)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if len(self._scopes) <= 1:
            await self.aclose()
            return
        here = current_token()
        last = max((place for place, (loop, _) in enumerate(self._scopes) if loop == here), default=-1)
        _, scope = self._scopes.pop(last)
        with anyio.CancelScope(shield=True):
            await scope.__aexit__(None, None, None)

    @asynccontextmanager
    async def _scope(self) -> AsyncGenerator[None]:
        async with self._transport.scope(), _refreshing(self._env) as opened:
            before, self._env = self._env, opened
            yield
            if opened is not before:
                self._env = before

    def __repr__(self) -> str:
        return f"<LLMManager: {self._config.map(_model_names).value_or('its configuration is wrong')}>"

    def _or_config_error(self, effect: Effect[_Value]) -> Effect[_Value]:
        return effect if is_successful(self._config) else fail(self._config.failure())


def _model_names(config: LLMConfig) -> str:
    return ", ".join(config.models) or "no models"


def _failed_stream(error: LLMError, sink: Sink) -> Effect[LLMResponse]:
    """Return a stream that cannot begin: its only event is ``Failed``."""

    async def fail_at_once(_: LLMEnv) -> Answer:
        await sink(Failed(error))
        return Failure(error)

    return effect(fail_at_once)


@asynccontextmanager
async def _single_event(event: StreamEvent) -> AsyncGenerator[AsyncIterator[StreamEvent]]:
    """Open the pull form of a stream of one event."""
    send, receive = anyio.create_memory_object_stream[StreamEvent](1)
    async with receive:
        async with send:
            await send.send(event)
        yield receive


# Factories.


def make_llm_manager(config: LLMConfig, adapt: Adapt | None = None, *, warm: bool = False) -> LLMManager:
    """Make a manager of a configuration; nothing is connected or loaded before the first call.

    ``adapt`` replaces services of its environment: ``lambda env: evolve(env, clients=...)``. With ``warm``, entering it
    opens a connection to each server, as in ``open_env``.

    >>> import anyio
    >>> from llm_effects import LLMRequest
    >>> manager = make_llm_manager(LLMConfig(models={}))
    >>> anyio.run(manager.run, generate(LLMRequest(prompt="why?"))).failure().message
    'models: none is configured: add one, or install the local model'
    """
    check_config(config)
    return LLMManager(Success(config), adapt, warm=warm)


def create_default_llm_manager(environ: Mapping[str, str] | None = None) -> LLMManager:
    """Make a manager from environment variables: LM Studio, GPT and Claude where there is a key, the local model.

    >>> create_default_llm_manager({"LLM_CACHE_MAX_SIZE": "many"}).config.failure().tag
    'ConfigurationError'
    """
    return LLMManager(load_config(environ=environ))


def create_default_local_client(environ: Mapping[str, str] | None = None) -> LLMManager:
    """Make a manager that uses only this machine: the local models of the environment variables.

    >>> sorted(create_default_local_client({"OPENAI_API_KEY": "sk-x"}).config.unwrap().models)[0]
    'lm-studio'
    """
    return LLMManager(load_config(environ=environ).map(_only_local))


def _only_local(config: LLMConfig) -> LLMConfig:
    """Keep the models on this machine, and wrongly configured ones, so that their errors are reported."""

    def is_kept(name: str, model: ModelConfig) -> bool:
        target = target_of(name, model)
        return not is_successful(target) or not why_it_leaves(target.unwrap(), proxied=False)

    return evolve(config, models={name: model for name, model in config.models.items() if is_kept(name, model)})


def make_model_router(config: LLMConfig) -> Callable[[LLMRequest], Result[RoutingDecision, LLMError]]:
    """Make the pure router of a configuration: which models it would choose before anything is known of them.

    >>> from llm_effects import ModelConfig
    >>> router = make_model_router(LLMConfig(models={"studio": ModelConfig(provider="lm-studio")}))
    >>> router(LLMRequest(prompt="why?")).unwrap().candidates[0].model
    'studio'
    """
    prices = price_list(config)

    def decide(request: LLMRequest) -> Result[RoutingDecision, LLMError]:
        context = RoutingContext(statistics={}, prices=prices, tokens=estimate_tokens(request), at=wall_clock())
        return route(request, config, context)

    return decide
