"""Limits and circuit breakers that many processes share through a Redis server.

Every call first asks the count of this process, and then the server's. So most calls that must wait send nothing, and
when the server is gone each process goes on with its own count, up to the whole limits.
"""

from collections.abc import Mapping
from functools import partial
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
from llm_effects.stores.limits.memory import (
    MemoryLimits,
    ModelState,
    ModelStates,
    acquire_local,
    breaker_open,
    rate_limit_exceeded,
)
from llm_effects.stores.redis import Argument, RedisScripts, Reply, ScriptCall, passwords_of, redis_client
from llm_effects.values import caps
from llm_effects.values.errors import ConfigurationError, LLMError
from llm_effects.values.secrets import reveal

PREFIX: Final = "llm_effects:limits:"
"""The prefix of all our keys."""

TIMEOUT_S: Final = 0.5
"""How long the server may not answer, in seconds, before this process counts alone."""

POLL_S: Final = 0.025
"""How often the first waiter asks for a permit that another process may have released, in seconds."""

ALONE: Final = "the server of the limits does not answer: they are counted in this process alone"
"""The warning on a response whose call was counted by this process alone."""

_COUNTS: Final = ("slots", "requests", "tokens", "reported")
_BREAKER: Final = ("breaker", "tries", "faults")
_KINDS: Final[Mapping[bytes | int, PermitKind]] = {b"counted": "counted", b"probe": "probe", b"forced": "forced"}


def open_redis_limits(
    config: LLMConfig, memory: MemoryLimits, *, prefix: str = PREFIX, timeout_seconds: float = TIMEOUT_S
) -> Result["RedisLimits", ConfigurationError]:
    """Open the limits of a configuration's URL, without connecting; retry and hedge budgets stay in ``memory``.

    >>> from llm_effects.config.services import LimitsConfig
    >>> config = LLMConfig(models={}, limits=LimitsConfig(url="redis://host"))
    >>> type(open_redis_limits(config, MemoryLimits()).unwrap()).__name__
    'RedisLimits'
    """
    url = reveal(config.limits.url)
    identities = {name: identity(name, model) for name, model in config.models.items()}

    def build(client: Redis) -> RedisLimits:
        scripts = RedisScripts(client, SCRIPTS, timeout_seconds=timeout_seconds, secrets=passwords_of(url))
        return RedisLimits(scripts, identities, memory, prefix=prefix)

    return redis_client(url, timeout_seconds, "limits.url").map(build)


def identity(name: str, model: ModelConfig) -> str:
    """Return a model's id for all processes: a hash of its name and of where it runs, without a secret.

    >>> len(identity("gpt", ModelConfig(provider="openai")))
    32
    """
    fields = (name, model.provider, model.endpoint, model.model, model.model_path)
    return sha256(repr(fields).encode()).hexdigest()[:32]


@final
class RedisLimits:
    """Shared limits and breakers. A model without limits uses the server for its breaker only."""

    def __init__(
        self, scripts: RedisScripts, identities: Mapping[str, str], memory: MemoryLimits, *, prefix: str = PREFIX
    ) -> None:
        self._scripts = scripts
        self._identities = identities
        self._prefix = prefix
        self._states = ModelStates(POLL_S)
        self.retries: Retries = memory.retries
        self.hedges: Hedges = memory.hedges

    def acquire(
        self, model: str, quota: Quota, demand: Demand, timeout: float, deadline: float
    ) -> Permit | FutureResult[Permit, LLMError]:
        """Acquire a permit, or wait for one."""
        state = self._states.of(model)
        if quota.unlimited:
            return acquire_local(state, quota, demand, timeout, deadline)
        return FutureResult(self._acquire(state, quota, demand, timeout, deadline))

    async def release(self, permit: Permit, usage: ActualUsage) -> None:
        """Release a permit, in this process and on the server."""
        self._states.release(permit, usage)
        if permit.id:
            arguments = (0, permit.id, *_corrections(permit, usage))
            await self._scripts.run("leave", self._keys(permit.model, _COUNTS), arguments)

    def admit(self, model: str, deadline: float, *, force: bool) -> FutureResult[BreakerPermit, LLMError]:
        """Ask the model's breaker for a permit."""
        return FutureResult(self._admit(self._states.of(model), deadline, force=force))

    async def record(self, model: str, config: BreakerConfig, permit: BreakerPermit, *, failed: bool | None) -> None:
        """Record the outcome of a permitted call in the model's breaker."""
        state = self._states.of(model)
        if not permit.shared:
            state.record(config, permit, failed=failed)
        elif failed is not None or permit.kind == "probe":
            reply = await self._scripts.run("record", self._keys(model, _BREAKER), _outcome(config, permit, failed))
            open_ms = int(reply.unwrap()[0]) if is_successful(reply) else 0
            if open_ms or (permit.kind != "counted" and failed is False):
                state.shut(open_ms / 1000)

    def opened(self) -> Mapping[str, float]:
        """Return until when each open breaker stays open, by model, as far as this process knows."""
        return self._states.opened()

    async def aclose(self) -> None:
        """Close all connections and end the threads."""
        await self._scripts.aclose()

    async def _acquire(
        self, state: ModelState, quota: Quota, demand: Demand, timeout: float, deadline: float
    ) -> Result[Permit, LLMError]:
        async def ask(ahead: Demand) -> Permit | float:
            answer = state.ask(quota, demand, ahead)
            return await self._ask_server(state, answer, deadline) if isinstance(answer, Permit) else answer

        answer = await state.queue.wait(demand, ask, timeout, deadline)
        if isinstance(answer, Permit):
            return Success(answer)
        return Failure(rate_limit_exceeded(state.model, quota, demand, answer))

    async def _ask_server(self, state: ModelState, local: Permit, deadline: float) -> Permit | float:
        """Ask the server for what this process has permitted; undo the local permit where it says no."""
        permit, quota, demand, answered = evolve(local, id=uuid4().hex), local.quota, local.demand, False
        limits = (quota.concurrency or 0, quota.requests or 0, quota.tokens or 0)
        arguments = (0, permit.id, *limits, _lease_ms(deadline), demand.requests, demand.tokens)
        keys = self._keys(state.model, _COUNTS)
        try:
            reply = await self._scripts.run("enter", keys, arguments, partial(_leaving, permit, keys))
            answered = True
        finally:
            if not answered:  # asyncio's own cancellation ignores shields
                state.undo(local)
        if not is_successful(reply):
            return evolve(permit, warning=ALONE)
        granted, number = (int(each) for each in reply.unwrap())
        if granted:
            return evolve(permit, shared_cell=number)
        state.undo(local)
        return number / 1000 if number > 0 else inf

    async def _admit(self, state: ModelState, deadline: float, *, force: bool) -> Result[BreakerPermit, LLMError]:
        arguments = (0, _lease_ms(deadline), int(force), ceil(PROBE_WAIT_S * 1000))
        keys = self._keys(state.model, _BREAKER)
        reply = await self._scripts.run("admit", keys[:1], arguments, partial(_returning, keys))
        if not is_successful(reply):
            answer = state.admit(deadline, force=force)
            return Success(answer) if isinstance(answer, BreakerPermit) else Failure(breaker_open(state.model, answer))
        word, epoch, wait_ms = reply.unwrap()
        state.shut(int(wait_ms) / 1000)
        kind = _KINDS.get(word)
        if kind is None:
            return Failure(breaker_open(state.model, Refusal(int(wait_ms) / 1000)))
        return Success(BreakerPermit(kind, int(epoch), shared=True))

    def _keys(self, model: str, kinds: tuple[str, ...]) -> tuple[str, ...]:
        """Return a model's keys; the braces keep them on one server of a cluster."""
        known = self._identities.get(model) or sha256(model.encode()).hexdigest()[:32]
        return tuple(f"{self._prefix}{{{known}}}:{kind}" for kind in kinds)


# Arguments of the scripts.


def _lease_ms(deadline: float) -> int:
    return ceil(lease_seconds(deadline, anyio.current_time()) * 1000)


def _corrections(permit: Permit, usage: ActualUsage) -> tuple[Argument, ...]:
    cell, demand, limits = permit.shared_cell, permit.demand, usage.reported_limits
    by = (0, 0, 0) if cell is None else (cell, usage.requests - demand.requests, usage.tokens - demand.tokens)
    return (*by, *((-1,) * 7 if limits is None else _reported(limits)))


def _reported(limits: RateLimits) -> tuple[Argument, ...]:
    age_ms = round((anyio.current_time() - limits.at) * 1000)
    return (age_ms, *_allowance(limits.requests), *_allowance(limits.tokens))


def _allowance(allowance: Allowance) -> tuple[int, int, int]:
    reset = -1 if allowance.reset is None else ceil(min(allowance.reset, caps.PAUSE_S) * 1000)
    remaining = -1 if allowance.remaining is None else min(allowance.remaining, caps.COUNT)
    return min(allowance.limit or -1, caps.COUNT), remaining, reset


def _leaving(permit: Permit, keys: tuple[str, ...], reply: Reply) -> ScriptCall | None:
    """Return the script that releases a permit of a call that was cancelled while it asked for it."""
    granted, second = reply or (0, 0)
    unused = _corrections(evolve(permit, shared_cell=int(second)), ActualUsage(requests=0))
    return ("leave", keys, (0, permit.id, *unused)) if granted else None


def _returning(keys: tuple[str, ...], reply: Reply) -> ScriptCall | None:
    """Return the script that returns the probe of a call that was cancelled while it asked for it."""
    return ("record", keys, (0, "probe", int(reply[1]), -1)) if reply and reply[0] == b"probe" else None


def _outcome(config: BreakerConfig, permit: BreakerPermit, failed: bool | None) -> tuple[Argument, ...]:
    width_ms = config.window_seconds * 1000 / CELLS
    outcome = (0, permit.kind, permit.epoch, -1 if failed is None else int(failed), width_ms, CELLS)
    return (*outcome, config.min_attempts, config.failure_rate, ceil(config.open_seconds * 1000))


# The rules of ``limits.quotas`` and ``limits.circuit_breaker`` in Lua, in milliseconds: each script is atomic.
#
# The server's clock counts for all processes. The first argument of each script is 0, or a time for tests. Every key
# expires.


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
-- KEYS: running calls (and when their leases end), requests by second, tokens by second, limits reported by the model
-- ARGV: now, id, concurrency (0: unlimited), requests and tokens a minute (0: unlimited), lease,
--       requests and tokens needed; returns 1 and the second, or 0 and how long to wait (-1: until a release)
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
  local known = redis.call('HMGET', KEYS[4], what .. ':until', what .. ':left', what .. ':limit')
  local wait, till, left = 0, tonumber(known[1] or 0), tonumber(known[2] or 0)
  if now < till and (left <= 0 or need > left) then wait = till - now end
  if limit == 0 or need == 0 then return wait end
  if known[3] then limit = math.min(limit, math.max(tonumber(known[3]), need)) end
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
-- KEYS: as above; ARGV: now, id, second of the permit, corrections of requests and tokens,
--       age of the limits reported by the model (-1: none),
--       then of requests and of tokens: limit, left, for how long (-1: unknown)
redis.call('ZREM', KEYS[1], ARGV[2])
local function correct(key, by)
  if by == 0 or redis.call('HEXISTS', key, ARGV[3]) == 0 then return end
  if redis.call('HINCRBY', key, ARGV[3], by) < 0 then redis.call('HSET', key, ARGV[3], 0) end
end
correct(KEYS[2], tonumber(ARGV[4]))
correct(KEYS[3], tonumber(ARGV[5]))

local function report(what, at, limit, left, reset)
  if (limit < 0 and left < 0) or at < tonumber(redis.call('HGET', KEYS[4], what .. ':reported_at') or 0) then return end
  redis.call('HSET', KEYS[4], what .. ':reported_at', at)
  if limit > 0 then redis.call('HSET', KEYS[4], what .. ':limit', limit) end
  if left >= 0 and reset >= 0 then
    redis.call('HSET', KEYS[4], what .. ':left', left, what .. ':until', at + reset)
    if redis.call('PTTL', KEYS[4]) < reset then redis.call('PEXPIRE', KEYS[4], reset) end
  end
  if redis.call('PTTL', KEYS[4]) < 3600000 then redis.call('PEXPIRE', KEYS[4], 3600000) end
end
local age = tonumber(ARGV[6])
if age >= 0 then
  report('requests', now - age, tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9]))
  report('tokens', now - age, tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12]))
end
return {1}
"""
)

_ADMIT: Final = (
    _NOW
    + """
-- KEYS: the breaker; ARGV: now, lease, 1 to force a permit, when to ask again while a probe is running
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
-- ARGV: now, kind, epoch, outcome (1 failed, 0 succeeded, -1 unknown), milliseconds of a cell,
--       cells, least tries, rate, how long to stay open; returns how long it is open, or 0
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
"""The scripts by name."""
