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

from llm_effects.config import LLMConfig
from llm_effects.config.models import ModelConfig
from llm_effects.config.routing import BreakerConfig
from llm_effects.effects.env import Hedges, Retries
from llm_effects.limits.circuit_breaker import CELLS, PROBE_WAIT_S, BreakerPermit, PermitKind, Refusal
from llm_effects.limits.quotas import ActualUsage, Allowance, Demand, Permit, Quota, RateLimits, lease_seconds
from llm_effects.stores.limits.memory import MemoryLimits, ModelState, ModelStates, entered, left_alone, turned_away
from llm_effects.stores.redis import Argument, RedisScripts, passwords_of, redis_client
from llm_effects.values.errors import ConfigurationError, LLMError

# What a Redis server does by itself, all at once: the rules of ``limits`` and ``breakers`` in Lua, in milliseconds.
#
# The server's clock counts for all. The first argument of each script is 0, or a time for tests. Every key has an end.


_NOW: Final = """
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
"""

_ENTER: Final = (
    _NOW
    + """
-- KEYS: who is in (until when), requests by second, tokens by second, what the server of the model said
-- ARGV: now, id, places (0: any number), requests and tokens a minute (0: any number), lease,
--       requests and tokens needed; gives 1 and the second, or 0 and how long to wait (-1: until somebody leaves)
local function window(key, limit, need)
  local cutoff, used, cells = math.floor(now / 1000) - 60, 0, {}
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    local cell, amount = tonumber(all[i]), tonumber(all[i + 1])
    if cell < cutoff then
      redis.call('HDEL', key, all[i])
    else
      used = used + amount
      cells[#cells + 1] = {cell, amount}
    end
  end
  table.sort(cells, function(a, b) return a[1] < b[1] end)
  local wait = 0
  for _, cell in ipairs(cells) do
    if used + need <= limit then break end
    used = used - cell[2]
    wait = (cell[1] + 61) * 1000 - now
  end
  return wait
end

local function pause(what, key, limit, need)
  local said = redis.call('HMGET', KEYS[4], what .. ':until', what .. ':left', what .. ':limit')
  local wait, till, left = 0, tonumber(said[1] or 0), tonumber(said[2] or 0)
  if now < till and (left <= 0 or need > left) then wait = till - now end
  if limit == 0 or need == 0 then return wait end
  if said[3] then limit = math.min(limit, math.max(tonumber(said[3]), need)) end
  return math.max(wait, window(key, limit, need))
end

local function take(what, key, limit, need)
  if limit > 0 and need > 0 then
    redis.call('HINCRBY', key, math.floor(now / 1000), need)
    redis.call('PEXPIRE', key, 62000)
  end
  if tonumber(redis.call('HGET', KEYS[4], what .. ':until') or 0) > now then
    redis.call('HINCRBY', KEYS[4], what .. ':left', -need)
  end
end

local places, rpm, tpm, lease = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local requests, tokens = tonumber(ARGV[7]), tonumber(ARGV[8])
local wait = math.max(pause('requests', KEYS[2], rpm, requests), pause('tokens', KEYS[3], tpm, tokens))
if wait > 0 then return {0, wait} end
if places > 0 then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
  if redis.call('ZCARD', KEYS[1]) >= places then return {0, -1} end
  redis.call('ZADD', KEYS[1], now + lease, ARGV[2])
  if redis.call('PTTL', KEYS[1]) < lease then redis.call('PEXPIRE', KEYS[1], lease) end
end
take('requests', KEYS[2], rpm, requests)
take('tokens', KEYS[3], tpm, tokens)
return {1, math.floor(now / 1000)}
"""
)

_LEAVE: Final = (
    _NOW
    + """
-- KEYS: as above; ARGV: now, id, second of the ticket, requests and tokens to put right by,
--       age of what the server of the model said (-1: nothing),
--       then of requests and of tokens: limit, left, for how long (-1: unsaid)
redis.call('ZREM', KEYS[1], ARGV[2])
local function put_right(key, by)
  if by == 0 or redis.call('HEXISTS', key, ARGV[3]) == 0 then return end
  if redis.call('HINCRBY', key, ARGV[3], by) < 0 then redis.call('HSET', key, ARGV[3], 0) end
end
put_right(KEYS[2], tonumber(ARGV[4]))
put_right(KEYS[3], tonumber(ARGV[5]))

local function heed(what, at, limit, left, reset)
  if (limit < 0 and left < 0) or at < tonumber(redis.call('HGET', KEYS[4], what .. ':heard') or 0) then return end
  redis.call('HSET', KEYS[4], what .. ':heard', at)
  if limit > 0 then redis.call('HSET', KEYS[4], what .. ':limit', limit) end
  if left >= 0 and reset >= 0 then
    redis.call('HSET', KEYS[4], what .. ':left', left, what .. ':until', at + reset)
    if redis.call('PTTL', KEYS[4]) < reset then redis.call('PEXPIRE', KEYS[4], reset) end
  end
  if redis.call('PTTL', KEYS[4]) < 3600000 then redis.call('PEXPIRE', KEYS[4], 3600000) end
end
local age = tonumber(ARGV[6])
if age >= 0 then
  heed('requests', now - age, tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]))
  heed('tokens', now - age, tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12]))
end
return {1}
"""
)

_ADMIT: Final = (
    _NOW
    + """
-- KEYS: the breaker; ARGV: now, lease, 1 for "let me through anyway", when to ask again while a probe is under way
local known = redis.call('HMGET', KEYS[1], 'open', 'probing', 'epoch')
local epoch = tonumber(known[3] or 0)
if not known[1] then return {'counted', epoch, 0} end
local wait = tonumber(known[1]) - now
if wait <= 0 and tonumber(known[2] or 0) <= now then
  redis.call('HSET', KEYS[1], 'probing', now + tonumber(ARGV[2]))
  return {'probe', epoch, 0}
end
return {ARGV[3] == '1' and 'forced' or 'refused', epoch, wait > 0 and wait or tonumber(ARGV[4])}
"""
)

_RECORD: Final = (
    _NOW
    + """
-- KEYS: the breaker, tries by cell, faults by cell
-- ARGV: now, kind, epoch, what became of it (1 failed, 0 worked, -1 says nothing), milliseconds of a cell,
--       cells, least tries, rate, how long to stay open; gives how long it is open, or 0
local epoch, failed = tonumber(redis.call('HGET', KEYS[1], 'epoch') or 0), tonumber(ARGV[4])
if tonumber(ARGV[3]) ~= epoch then return {0} end
if failed < 0 then
  if ARGV[2] == 'probe' then redis.call('HDEL', KEYS[1], 'probing') end
  return {0}
end

local function begin(open)
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
  redis.call('HSET', KEYS[1], 'epoch', epoch + 1)
  if open > 0 then redis.call('HSET', KEYS[1], 'open', now + open) end
  redis.call('PEXPIRE', KEYS[1], 3600000 + open)
  return {open}
end
local open = tonumber(ARGV[9])
if ARGV[2] ~= 'counted' then
  if failed == 0 then return begin(0) end
  return ARGV[2] == 'probe' and begin(open) or {0}
end

local width, cells = tonumber(ARGV[5]), tonumber(ARGV[6])
local cell = math.floor(now / width)
local function count(key, by)
  local sum = by
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    if tonumber(all[i]) < cell - cells then
      redis.call('HDEL', key, all[i])
    else
      sum = sum + tonumber(all[i + 1])
    end
  end
  if by > 0 then
    redis.call('HINCRBY', key, cell, by)
    redis.call('PEXPIRE', key, math.ceil(width * (cells + 1)))
  end
  return sum
end
local tries, faults = count(KEYS[2], 1), count(KEYS[3], failed)
if failed == 1 and tries >= tonumber(ARGV[7]) and faults >= tonumber(ARGV[8]) * tries then return begin(open) end
return {0}
"""
)

SCRIPTS: Final[Mapping[str, str]] = {"enter": _ENTER, "leave": _LEAVE, "admit": _ADMIT, "record": _RECORD}
"""The scripts by what they do."""


PREFIX: Final = "llm_effects:limits:"
"""What our keys begin with."""

TIMEOUT_S: Final = 0.5
"""How long the server may answer nothing, in seconds, before this process counts alone."""

POLL_S: Final = 0.025
"""How often the first in line asks for a place that another process may have given back, in seconds."""

ALONE: Final = "the server of the limits does not answer: they are counted in this process alone"
"""The warning of an answer."""

_COUNTS: Final = ("slots", "requests", "tokens", "said")
_BREAKER: Final = ("breaker", "tries", "faults")
_KINDS: Final[Mapping[bytes | int, PermitKind]] = {b"counted": "counted", b"probe": "probe", b"forced": "forced"}


def open_redis_limits(
    config: LLMConfig, memory: MemoryLimits, *, prefix: str = PREFIX, patience_seconds: float = TIMEOUT_S
) -> Result["RedisLimits", ConfigurationError]:
    """Make the limits of a configuration's URL, without connecting; budgets go on in ``memory``.

    >>> from llm_effects.config.services import LimitsConfig
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
        self._rooms = ModelStates(POLL_S)
        self.retries: Retries = memory.retries
        self.hedges: Hedges = memory.hedges

    def acquire(
        self, model: str, quota: Quota, need: Demand, timeout: float, deadline: float
    ) -> Permit | FutureResult[Permit, LLMError]:
        """Take a turn, or wait for one."""
        room = self._rooms.of(model)
        if quota.unlimited:
            return entered(room, quota, need, timeout, deadline)
        return FutureResult(self._entered(room, quota, need, timeout, deadline))

    async def release(self, ticket: Permit, bill: ActualUsage) -> None:
        """Give a place back, here and there."""
        self._rooms.of(ticket.model).release(ticket, bill)
        if ticket.id:
            await self._scripts.run(
                "leave", self._keys(ticket.model, _COUNTS), (0, ticket.id, *_put_right(ticket, bill))
            )

    def admit(self, model: str, deadline: float, *, force: bool) -> FutureResult[BreakerPermit, LLMError]:
        """Ask the model's breaker to be let through."""
        return FutureResult(self._admitted(self._rooms.of(model), deadline, force=force))

    async def record(self, model: str, config: BreakerConfig, passage: BreakerPermit, *, failed: bool | None) -> None:
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
        self, room: ModelState, quota: Quota, need: Demand, timeout: float, deadline: float
    ) -> Result[Permit, LLMError]:
        async def ask(ahead: Demand) -> Permit | float:
            here = room.ask(quota, need, ahead)
            return await self._asked_there(room, here, deadline) if isinstance(here, Permit) else here

        got = await room.line.turn(need, ask, timeout, deadline)
        return Success(got) if isinstance(got, Permit) else Failure(turned_away(room.model, quota, need, got))

    async def _asked_there(self, room: ModelState, here: Permit, deadline: float) -> Permit | float:
        ticket, quota, need, answered = evolve(here, id=uuid4().hex), here.quota, here.demand, False
        limits = (quota.concurrency or 0, quota.requests or 0, quota.tokens or 0)
        arguments = (0, ticket.id, *limits, _lease_ms(deadline), need.requests, need.tokens)
        try:
            told = await self._scripts.run("enter", self._keys(room.model, _COUNTS), arguments)
            answered = True
        finally:
            if not answered:  # a way of cancelling that knows no shield: what the server gave, the lease gives back
                room.undo(here)
        if not is_successful(told):
            return evolve(ticket, warning=ALONE)
        granted, number = (int(each) for each in told.unwrap())
        if granted:
            return evolve(ticket, shared_cell=number)
        room.undo(here)
        return number / 1000 if number > 0 else inf

    async def _admitted(self, room: ModelState, deadline: float, *, force: bool) -> Result[BreakerPermit, LLMError]:
        arguments = (0, _lease_ms(deadline), int(force), ceil(PROBE_WAIT_S * 1000))
        told = await self._scripts.run("admit", self._keys(room.model, _BREAKER[:1]), arguments)
        if not is_successful(told):
            answer = room.admit(deadline, force=force)
            return Success(answer) if isinstance(answer, BreakerPermit) else Failure(left_alone(room.model, answer))
        word, epoch, wait_ms = told.unwrap()
        room.shut(int(wait_ms) / 1000)
        kind = _KINDS.get(word)
        if kind is None:
            return Failure(left_alone(room.model, Refusal(int(wait_ms) / 1000)))
        return Success(BreakerPermit(kind, int(epoch), shared=True))

    def _keys(self, model: str, kinds: tuple[str, ...]) -> tuple[str, ...]:
        """Name the keys of a model; the braces keep them on one server of a cluster."""
        known = self._identities.get(model) or sha256(model.encode()).hexdigest()[:32]
        return tuple(f"{self._prefix}{{{known}}}:{kind}" for kind in kinds)


def _lease_ms(deadline: float) -> int:
    return ceil(lease_seconds(deadline, anyio.current_time()) * 1000)


def _put_right(ticket: Permit, bill: ActualUsage) -> tuple[Argument, ...]:
    cell, need, said = ticket.shared_cell, ticket.demand, bill.reported_limits
    by = (0, 0, 0) if cell is None else (cell, bill.requests - need.requests, bill.tokens - need.tokens)
    return (*by, *((-1,) * 7 if said is None else _said(said)))


def _said(said: RateLimits) -> tuple[Argument, ...]:
    return (round((anyio.current_time() - said.at) * 1000), *_allowed(said.requests), *_allowed(said.tokens))


def _allowed(said: Allowance) -> tuple[int, int, int]:
    reset = -1 if said.reset is None else ceil(said.reset * 1000)
    return said.limit or -1, -1 if said.remaining is None else said.remaining, reset


def _became(config: BreakerConfig, passage: BreakerPermit, failed: bool | None) -> tuple[Argument, ...]:
    became = -1 if failed is None else int(failed)
    width = config.window_seconds * 1000 / CELLS
    told = (0, passage.kind, passage.epoch, became, width, CELLS)
    return (*told, config.min_attempts, config.failure_rate, ceil(config.open_seconds * 1000))
