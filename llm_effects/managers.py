"""Methods for people who want them: a thin object around an environment, and its factories."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType
from typing import Self, TypeAlias, TypeVar, final

import anyio
from attrs import evolve
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects.calls import Sink
from llm_effects.config import LLMConfig
from llm_effects.config.sources import load_config
from llm_effects.conversations.dialogues import converse
from llm_effects.effects import Effect, fail, settle
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError
from llm_effects.events import Failed, StreamEvent
from llm_effects.fleet import is_here, price_list
from llm_effects.live import live_clients, live_env, new_memory, wall_clock, warm
from llm_effects.messages import Message
from llm_effects.pipeline import generate, stream
from llm_effects.providers.registry import target_of
from llm_effects.requests import LLMRequest
from llm_effects.responses import LLMResponse
from llm_effects.routing import route
from llm_effects.routing.candidates import Facts, RoutingDecision
from llm_effects.stores.limits_memory import MemoryLimits
from llm_effects.stores.memory import MemoryHealth
from llm_effects.streams import only, open_stream, refused
from llm_effects.tokens import estimate_tokens
from llm_effects.transports import Transport

_Value = TypeVar("_Value")


Adapt: TypeAlias = Callable[[LLMEnv], LLMEnv]
"""Swaps services of the live environment, by ``attrs.evolve``."""


def as_it_is(env: LLMEnv) -> LLMEnv:
    """Swap nothing."""
    return env


@final
class LLMManager:
    """An environment with methods. Use it with ``async with``, or plainly and close it with ``aclose()``.

    Inside ``async with`` connections are kept from call to call. Used plainly it works from any event loop, also
    from several ``anyio.run`` one after another, and keeps no connection longer than its calls. It may be entered again
    after it was left; what is known of the models stays, and so do conversations and the ledger in memory.

    A configuration that could not be read is told by every operation, as its ``ConfigurationError``.
    """

    def __init__(self, config: Result[LLMConfig, LLMError], adapt: Adapt = as_it_is) -> None:
        self._config = config
        self._adapt = adapt
        self._health = MemoryHealth()
        self._counted = MemoryLimits()
        self._memory = new_memory()
        self._scope = AsyncExitStack()
        self._open()

    def _open(self) -> None:
        self._closed = False
        config = self._config.value_or(LLMConfig(models={}))
        self._transport = Transport()
        self._clients = live_clients(config, self._transport)
        live = live_env(config, self._clients, self._memory, self._counted)
        self._live = evolve(live, health=self._health)
        self._env = self._adapt(self._live)

    @property
    def env(self) -> LLMEnv:
        """The environment itself, for ``settle``."""
        return self._env

    @property
    def config(self) -> Result[LLMConfig, LLMError]:
        """The configuration, or what was wrong with it."""
        return self._config

    def generate(self, request: LLMRequest) -> FutureResult[LLMResponse, LLMError]:
        """Answer a request: a future to compose further, or to await for its ``IOResult``."""
        return self._checked(generate(request))(self._env)

    def stream(self, request: LLMRequest, sink: Sink) -> FutureResult[LLMResponse, LLMError]:
        """Answer a request with every event awaited into ``sink`` as it comes."""
        if not is_successful(self._config):
            return refused(self._config.failure(), sink)(self._env)
        return stream(request, sink)(self._env)

    def open_stream(self, request: LLMRequest) -> AbstractAsyncContextManager[AsyncIterator[StreamEvent]]:
        """Answer a request event by event, for ``async for``."""
        if not is_successful(self._config):
            return only(Failed(self._config.failure()))
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
        """Take one turn of a stored conversation."""
        if not is_successful(self._config) and sink is not None:
            return refused(self._config.failure(), sink)(self._env)
        turn = converse(conversation_id, message, owner=owner, turn_id=turn_id, sink=sink, pinned=pinned)
        return self._checked(turn)(self._env)

    async def run(self, effect: Effect[_Value]) -> Result[_Value, LLMError]:
        """Run any effect: its plain ``Result``."""
        return await settle(self._checked(effect), self._env)

    async def aclose(self) -> None:
        """Close every connection and free the models in this process; closing twice is fine."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            await self._scope.aclose()
            await self._clients.aclose()
            await self._live.cache.aclose()
            await self._live.limits.aclose()
            await self._live.ledger.aclose()
            await self._live.conversations.aclose()

    async def __aenter__(self) -> Self:
        if self._closed:
            self._open()
        await warm(self._env)
        await self._scope.enter_async_context(self._transport.scope())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _checked(self, effect: Effect[_Value]) -> Effect[_Value]:
        return effect if is_successful(self._config) else fail(self._config.failure())


def make_llm_manager(config: LLMConfig, adapt: Adapt = as_it_is) -> LLMManager:
    """Make a manager of a configuration; nothing is connected or loaded before the first call.

    ``adapt`` swaps services of its environment: ``lambda env: evolve(env, clients=...)``.

    >>> import anyio
    >>> from llm_effects import LLMRequest
    >>> manager = make_llm_manager(LLMConfig(models={}))
    >>> anyio.run(manager.run, generate(LLMRequest(prompt="why?"))).failure().message
    'models: none is configured: add one, or install the local model'
    """
    return LLMManager(Result.from_value(config), adapt)


def create_default_llm_manager(environ: Mapping[str, str] | None = None) -> LLMManager:
    """Make a manager of the environment variables: LM Studio, GPT and Claude where there is a key, the local model.

    >>> create_default_llm_manager({"LLM_CACHE_MAX_SIZE": "many"}).config.failure().tag
    'ConfigurationError'
    """
    return LLMManager(load_config(environ=environ))


def create_default_local_client(environ: Mapping[str, str] | None = None) -> LLMManager:
    """Make a manager that never leaves this machine: the local models of the environment variables only.

    >>> sorted(create_default_local_client({"OPENAI_API_KEY": "sk-x"}).config.unwrap().models)[0]
    'lm-studio'
    """
    return LLMManager(load_config(environ=environ).map(_only_local))


def _only_local(config: LLMConfig) -> LLMConfig:
    """Keep the models of this machine, and those that are wrongly configured, to be told."""
    made = {name: target_of(name, model) for name, model in config.models.items()}
    kept = {name for name, target in made.items() if not is_successful(target) or is_here(target.unwrap())}
    return evolve(config, models={name: model for name, model in config.models.items() if name in kept})


def make_model_router(config: LLMConfig) -> Callable[[LLMRequest], Result[RoutingDecision, LLMError]]:
    """Make the pure router of a configuration: which models would be asked, when nothing is known of them yet.

    >>> from llm_effects import ModelConfig
    >>> router = make_model_router(LLMConfig(models={"studio": ModelConfig(provider="lm-studio")}))
    >>> router(LLMRequest(prompt="why?")).unwrap().candidates[0].model
    'studio'
    """
    prices = price_list(config)

    def decide(request: LLMRequest) -> Result[RoutingDecision, LLMError]:
        facts = Facts(statistics={}, prices=prices, tokens=estimate_tokens(request), at=wall_clock())
        return route(request, config, facts)

    return decide
