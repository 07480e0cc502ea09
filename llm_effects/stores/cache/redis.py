"""A cache on a Redis server, shared by many machines.

The client blocks, in our own threads: its connections belong to no event loop, outlive each of them, serve asyncio and
trio alike, and need no background task.
"""

import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from secrets import token_hex
from typing import Final, Protocol, TypeAlias, TypeVar, cast, final

from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects.effects.env import Lease
from llm_effects.stores.cache.memory import CacheCounters
from llm_effects.stores.redis import as_result, passwords_of, redis_client
from llm_effects.stores.worker_threads import Worker
from llm_effects.values.errors import ConfigurationError, LLMError
from llm_effects.values.records import CacheStats
from llm_effects.values.secrets import Secret

PREFIX: Final = "llm_effects:cache:"
"""The prefix of all our keys."""

TIMEOUT_S: Final = 0.1
"""How long the server may not answer, in seconds, before waiting operations fail."""

LONG_S: Final = 60.0
"""How long clearing may take, in seconds."""

THREADS: Final = 8
"""How many operations run at once."""

_BATCH: Final = 1000

_Value = TypeVar("_Value")


LEASES: Final = """
local entry, lease, operation, holder, ms = KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3]
if operation == 'take' then
  if redis.call('EXISTS', entry) == 1 then return 'stored' end
  if redis.call('SET', lease, holder, 'NX', 'PX', ms) then return 'ours' end
  local other = redis.call('GET', lease)
  if other == holder then return 'ours' elseif other == '' then return 'unshared' else return 'theirs' end
end
if redis.call('GET', lease) ~= holder then return 0 end
if operation == 'renew' then return redis.call('PEXPIRE', lease, ms) end
if ms == '0' or redis.call('EXISTS', entry) == 1 then return redis.call('DEL', lease) end
redis.call('SET', lease, '', 'PX', ms)
return 1
"""
"""Take a lease, unless the entry or another lease is there; renew or end one's own.

The holder of one that shares nothing is empty: once it has ended without an entry, those that wait see that for some
milliseconds. It is one script, so that a server that has run it to take a lease knows it to end that one.
"""

UNSHARED_S: Final = 1.0
"""How long those that wait can see that an answer was not stored, in seconds: longer than they pause."""


_Reply: TypeAlias = Result[bytes | int, LLMError]
_Ask: TypeAlias = Callable[[], _Reply]


class _Script(Protocol):
    def __call__(self, keys: Sequence[str], args: Sequence[str | int]) -> bytes | int: ...


class Client(Protocol):
    """The part of the client that the cache uses; each method may raise ``RedisError`` or ``OSError``."""

    def get(self, name: str, /) -> bytes | None:
        """Return the value of a key."""
        ...

    def set(self, name: str, value: bytes, /, *, px: int | None) -> object:
        """Store a value for ``px`` milliseconds, or for ever."""
        ...

    def unlink(self, *names: str | bytes) -> int:
        """Delete keys; return how many there were."""
        ...

    def scan(self, cursor: int, /, *, match: str, count: int) -> tuple[int, list[bytes]]:
        """Return the next cursor (0 at the end) and some keys."""
        ...

    def register_script(self, script: str, /) -> _Script:
        """Return a function that runs a Lua script."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


def open_redis(
    url: str, *, prefix: str = PREFIX, timeout_seconds: float = TIMEOUT_S
) -> Result["RedisCache", ConfigurationError]:
    """Open the cache of a URL, without connecting.

    >>> open_redis("redis://:hunter2@localhost:port").failure().message[:44]
    'cache.url: is not the URL of a Redis server:'
    """
    secrets = passwords_of(url)
    return redis_client(url, timeout_seconds, "cache.url").map(
        lambda client: RedisCache(
            cast("Client", client), prefix=prefix, timeout_seconds=timeout_seconds, secrets=secrets
        )
    )


@final
class RedisCache:
    """A cache whose entries the server expires, and evicts when it is full (``maxmemory``).

    An operation that is not answered in time fails, and its request goes on in the thread: the next one may find a
    connection. ``secrets`` are masked in messages of the server.
    """

    def __init__(
        self,
        client: Client,
        *,
        prefix: str = PREFIX,
        timeout_seconds: float = TIMEOUT_S,
        secrets: tuple[Secret, ...] = (),
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._timeout = timeout_seconds
        self._secrets = secrets
        self._counters = CacheCounters()
        self._worker = Worker("llm-effects-redis", THREADS)
        self.leases: Final = RedisLeases(client, prefix, self._worker, timeout_seconds, secrets)

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:
        """Return the entry, or ``None`` if there is none or it has expired."""
        return self._run("get", lambda: self._counters.count_lookup(self._client.get(self._prefix + key)))

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:
        """Store an entry for ``ttl_seconds``; ``None`` is for ever, 0 stores nothing."""
        return self._run("put", lambda: self._put(self._prefix + key, entry, ttl_seconds))

    def delete(self, key: str) -> FutureResult[bool, LLMError]:
        """Delete an entry; return whether there was one."""
        return self._run("delete", lambda: self._client.unlink(self._prefix + key) > 0)

    def clear(self) -> FutureResult[int | None, LLMError]:
        """Delete all entries with our prefix, and no other keys; return how many there were."""
        return self._run("clear", self._delete_all, LONG_S)

    def delete_all(self, prefix: str) -> FutureResult[int, LLMError]:
        """Delete the entries whose keys begin with a prefix, by a scan of all keys; return how many there were."""
        return self._run("delete_all", partial(self._delete_all, prefix), LONG_S)

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        """Return this process's counts; the server could count entries only by reading every key."""
        return FutureResult.from_value(self._counters.stats(entries=None, size=None))

    async def aclose(self) -> None:
        """Close all connections and end the threads."""
        await self._worker.aclose(self._client.close)

    def _run(
        self, operation: str, work: Callable[[], _Value], seconds: float | None = None
    ) -> FutureResult[_Value, LLMError]:
        job = partial(as_result, operation, work, self._secrets)
        run = partial(self._worker.run, operation, job, seconds or self._timeout)
        return FutureResult(self._counters.run(operation, run))

    # The rest runs in a thread.

    def _put(self, name: str, entry: bytes, ttl_seconds: float | None) -> None:
        if ttl_seconds is None or ttl_seconds == math.inf:
            self._client.set(name, entry, px=None)
        elif ttl_seconds > 0:
            self._client.set(name, entry, px=math.ceil(ttl_seconds * 1000))
        else:
            self._client.unlink(name)

    def _delete_all(self, prefix: str = "") -> int:
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", self._prefix + prefix) + "*"
        cursor, names = self._client.scan(0, match=pattern, count=_BATCH)
        deleted = self._client.unlink(*names) if names else 0
        while cursor:
            cursor, names = self._client.scan(cursor, match=pattern, count=_BATCH)
            deleted += self._client.unlink(*names) if names else 0
        return deleted


@final
class RedisLeases:
    """Leases beside the entries, which the server expires."""

    def __init__(
        self, client: Client, prefix: str, worker: Worker, timeout_seconds: float, secrets: tuple[Secret, ...]
    ) -> None:
        self._script = client.register_script(LEASES)
        self._prefix, self._worker, self._timeout, self._secrets = prefix, worker, timeout_seconds, secrets
        self._process = token_hex(8)  # the ids of calls may repeat in another process

    async def take(self, key: str, holder: str, seconds: float) -> Result[Lease, LLMError]:
        """Acquire the lease of an entry for some seconds; the value is what there was.

        If its reply is lost, or its caller leaves before, a lease that the server may have given is ended.
        """
        work = partial(self._taken, key, holder, self._job("take", key, holder, seconds))
        give_back = partial(self._give_back, key, holder)
        reply = await self._worker.run("take", work, self._timeout, give_back, late=give_back)
        return reply.map(lambda each: Lease(cast("bytes", each).decode()))

    async def renew(self, key: str, holder: str, seconds: float) -> Result[bool, LLMError]:
        """Prolong a lease to ``seconds`` from now; the value is whether it is still there."""
        reply = await self._worker.run("renew", self._job("renew", key, holder, seconds), self._timeout)
        return reply.map(lambda each: each == 1)

    def end(self, key: str, holder: str, *, answered: bool) -> None:
        """End a lease, in a thread: without an entry all that wait ask at once if ``answered``, else one does."""
        self._worker.post(self._job("end", key, holder, UNSHARED_S if answered else 0))

    def _job(self, operation: str, key: str, holder: str, seconds: float) -> _Ask:
        entry = self._prefix + key
        keys = [entry, f"lease:{{{entry}}}"]  # in the same slot of a cluster
        arguments: list[str | int] = [operation, f"{self._process}:{holder}", math.ceil(seconds * 1000)]
        return partial(as_result, operation, partial(self._script, keys, arguments), self._secrets)

    def _taken(self, key: str, holder: str, take: _Ask) -> _Reply:
        reply = take()
        if not is_successful(reply):
            self.end(key, holder, answered=False)
        return reply

    def _give_back(self, key: str, holder: str, job: "Future[_Reply]") -> None:
        """End the lease of a caller that has left, once its job is done."""
        if not job.cancel():
            job.add_done_callback(lambda _: self.end(key, holder, answered=False))
