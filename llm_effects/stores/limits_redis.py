"""Limits and breakers that many processes share through a Redis server.

Every call is let in by the count of this process first, and then by the server's. So most of those who must wait ask
nobody, and a server that is gone leaves each process with its own count of what it did, up to the whole limits.
"""

from collections.abc import Mapping
from hashlib import sha256
from math import ceil, inf
from typing import Final, final
from uuid import uuid4

import anyio
from attrs import evolve
from redis import Redis
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import BreakerConfig, LLMConfig, ModelConfig
from llm_effects.errors import ConfigurationError, LLMError
from llm_effects.guards import Hedges, Retries
from llm_effects.limits import Allowance, Bill, Need, Quota, RateLimits, Ticket, lease
from llm_effects.limits.breakers import CELLS, PROBING_S, Kind, Passage, Refusal
from llm_effects.stores.limits_memory import MemoryLimits, entered
from llm_effects.stores.limits_scripts import SCRIPTS
from llm_effects.stores.redis_scripts import Argument, RedisScripts
from llm_effects.stores.redis_servers import passwords_of, redis_client
from llm_effects.stores.refusals import left_alone, turned_away
from llm_effects.stores.rooms import Room, Rooms

PREFIX: Final = "llm_effects:limits:"
"""What our keys begin with."""

PATIENCE_S: Final = 0.5
"""How long the server may answer nothing, in seconds, before this process counts alone."""

POLL_S: Final = 0.025
"""How often the first in line asks for a place that another process may have given back, in seconds."""

ALONE: Final = "the server of the limits does not answer: they are counted in this process alone"
"""The warning of an answer."""

_COUNTS: Final = ("slots", "requests", "tokens", "said")
_BREAKER: Final = ("breaker", "tries", "faults")
_KINDS: Final[Mapping[bytes | int, Kind]] = {b"counted": "counted", b"probe": "probe", b"anyway": "anyway"}


def open_redis_limits(
    config: LLMConfig, memory: MemoryLimits, *, prefix: str = PREFIX, patience_seconds: float = PATIENCE_S
) -> Result["RedisLimits", ConfigurationError]:
    """Make the limits of a configuration's URL, without connecting; budgets go on in ``memory``.

    >>> from llm_effects.config import LimitsConfig
    >>> config = LLMConfig(models={}, limits=LimitsConfig(url="redis://host"))
    >>> type(open_redis_limits(config, MemoryLimits()).unwrap()).__name__
    'RedisLimits'
    """
    url = config.limits.url
    names = {name: identity(name, model) for name, model in config.models.items()}

    def made(client: Redis) -> RedisLimits:
        scripts = RedisScripts(client, SCRIPTS, patience_seconds=patience_seconds, secrets=passwords_of(url))
        return RedisLimits(scripts, names, memory, prefix=prefix)

    return redis_client(url, patience_seconds, "limits.url").map(made)


def identity(name: str, model: ModelConfig) -> str:
    """Name a model for all processes: by its name here, and by what and where it is, without a secret.

    >>> len(identity("gpt", ModelConfig(provider="openai")))
    32
    """
    told = (name, model.provider, model.endpoint, model.model, model.model_path)
    return sha256(repr(told).encode()).hexdigest()[:32]


@final
class RedisLimits:
    """Shared counts. A model without limits is not counted there; its breaker is."""

    def __init__(
        self, scripts: RedisScripts, identities: Mapping[str, str], memory: MemoryLimits, *, prefix: str = PREFIX
    ) -> None:
        self._scripts = scripts
        self._identities = identities
        self._prefix = prefix
        self._rooms = Rooms(POLL_S)
        self.retries: Retries = memory.retries
        self.hedges: Hedges = memory.hedges

    def enter(
        self, model: str, quota: Quota, need: Need, patience: float, deadline: float
    ) -> Ticket | FutureResult[Ticket, LLMError]:
        """Take a turn, or wait for one."""
        room = self._rooms.of(model)
        if quota.free:
            return entered(room, quota, need, patience, deadline)
        return FutureResult(self._entered(room, quota, need, patience, deadline))

    async def leave(self, ticket: Ticket, bill: Bill) -> None:
        """Give a place back, here and there."""
        self._rooms.of(ticket.model).leave(ticket, bill)
        if ticket.id:
            await self._scripts.run(
                "leave", self._keys(ticket.model, _COUNTS), (0, ticket.id, *_put_right(ticket, bill))
            )

    def admit(self, model: str, deadline: float, *, anyway: bool) -> FutureResult[Passage, LLMError]:
        """Ask the model's breaker to be let through."""
        return FutureResult(self._admitted(self._rooms.of(model), deadline, anyway=anyway))

    async def record(self, model: str, config: BreakerConfig, passage: Passage, *, failed: bool | None) -> None:
        """Tell the model's breaker what became of one that it let through."""
        room = self._rooms.of(model)
        if not passage.shared:
            room.record(config, passage, failed=failed)
        elif failed is not None or passage.kind == "probe":
            told = await self._scripts.run("record", self._keys(model, _BREAKER), _became(config, passage, failed))
            shut_ms = int(told.unwrap()[0]) if is_successful(told) else 0
            if shut_ms or (passage.kind != "counted" and failed is False):
                room.shut(shut_ms / 1000)

    def opened(self) -> Mapping[str, float]:
        """Give the models that are left alone as far as it was told here, and until when."""
        return self._rooms.opened()

    async def aclose(self) -> None:
        """Close all connections and end the threads."""
        await self._scripts.aclose()

    async def _entered(
        self, room: Room, quota: Quota, need: Need, patience: float, deadline: float
    ) -> Result[Ticket, LLMError]:
        async def ask(ahead: Need) -> Ticket | float:
            here = room.ask(quota, need, ahead)
            return await self._asked_there(room, here, deadline) if isinstance(here, Ticket) else here

        got = await room.line.turn(need, ask, patience, deadline)
        return Success(got) if isinstance(got, Ticket) else Failure(turned_away(room.model, quota, need, got))

    async def _asked_there(self, room: Room, here: Ticket, deadline: float) -> Ticket | float:
        ticket, quota, need, answered = evolve(here, id=uuid4().hex), here.quota, here.need, False
        limits = (quota.concurrency or 0, quota.requests or 0, quota.tokens or 0)
        arguments = (0, ticket.id, *limits, _lease_ms(deadline), need.requests, need.tokens)
        try:
            told = await self._scripts.run("enter", self._keys(room.model, _COUNTS), arguments)
            answered = True
        finally:
            if not answered:  # a way of cancelling that knows no shield: what the server gave, the lease gives back
                room.undo(here)
        if not is_successful(told):
            return evolve(ticket, note=ALONE)
        granted, number = (int(each) for each in told.unwrap())
        if granted:
            return evolve(ticket, cell_there=number)
        room.undo(here)
        return number / 1000 if number > 0 else inf

    async def _admitted(self, room: Room, deadline: float, *, anyway: bool) -> Result[Passage, LLMError]:
        arguments = (0, _lease_ms(deadline), int(anyway), ceil(PROBING_S * 1000))
        told = await self._scripts.run("admit", self._keys(room.model, _BREAKER[:1]), arguments)
        if not is_successful(told):
            answer = room.admit(deadline, anyway=anyway)
            return Success(answer) if isinstance(answer, Passage) else Failure(left_alone(room.model, answer))
        word, epoch, wait_ms = told.unwrap()
        room.shut(int(wait_ms) / 1000)
        kind = _KINDS.get(word)
        if kind is None:
            return Failure(left_alone(room.model, Refusal(int(wait_ms) / 1000)))
        return Success(Passage(kind, int(epoch), shared=True))

    def _keys(self, model: str, kinds: tuple[str, ...]) -> tuple[str, ...]:
        """Name the keys of a model; the braces keep them on one server of a cluster."""
        known = self._identities.get(model) or sha256(model.encode()).hexdigest()[:32]
        return tuple(f"{self._prefix}{{{known}}}:{kind}" for kind in kinds)


def _lease_ms(deadline: float) -> int:
    return ceil(lease(deadline, anyio.current_time()) * 1000)


def _put_right(ticket: Ticket, bill: Bill) -> tuple[Argument, ...]:
    cell, need, said = ticket.cell_there, ticket.need, bill.said
    by = (0, 0, 0) if cell is None else (cell, bill.requests - need.requests, bill.tokens - need.tokens)
    return (*by, *((-1,) * 7 if said is None else _said(said)))


def _said(said: RateLimits) -> tuple[Argument, ...]:
    return (round((anyio.current_time() - said.at) * 1000), *_allowed(said.requests), *_allowed(said.tokens))


def _allowed(said: Allowance) -> tuple[int, int, int]:
    reset = -1 if said.reset is None else ceil(said.reset * 1000)
    return said.limit or -1, -1 if said.remaining is None else said.remaining, reset


def _became(config: BreakerConfig, passage: Passage, failed: bool | None) -> tuple[Argument, ...]:
    became = -1 if failed is None else int(failed)
    width = config.window_seconds * 1000 / CELLS
    told = (0, passage.kind, passage.epoch, became, width, CELLS)
    return (*told, config.min_attempts, config.failure_rate, ceil(config.open_seconds * 1000))
