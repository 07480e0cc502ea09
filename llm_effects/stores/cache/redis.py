"""A cache on a Redis server, for many machines at once.

The client blocks, in threads of our own: its connections belong to no event loop, outlive each of them, serve asyncio
and trio alike, and need no task in the background.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, TypeVar, cast, final

from returns.future import FutureResult
from returns.result import Result

from llm_effects.stores.cache.stats import CacheCounters
from llm_effects.stores.redis import passwords_of, redis_client, tried
from llm_effects.stores.worker_threads import Worker
from llm_effects.values.errors import ConfigurationError, LLMError
from llm_effects.values.records import CacheStats

PREFIX: Final = "llm_effects:cache:"
"""What our keys begin with."""

TIMEOUT_S: Final = 0.1
"""How long the server may answer nothing, in seconds, before those who wait give up."""

LONG_S: Final = 60.0
"""How long clearing may take."""

THREADS: Final = 8
"""How many operations are under way at once."""

_BATCH: Final = 1000

_Made = TypeVar("_Made")


class Client(Protocol):
    """All that is used of the client; each may raise ``RedisError`` or ``OSError``."""

    def get(self, name: str, /) -> bytes | None:
        """Give what is stored."""
        ...

    def set(self, name: str, value: bytes, /, *, px: int | None) -> object:
        """Store, for ``px`` milliseconds."""
        ...

    def unlink(self, *names: str | bytes) -> int:
        """Drop, and tell how many were there."""
        ...

    def scan(self, cursor: int, /, *, match: str, count: int) -> tuple[int, list[bytes]]:
        """Give some names, and where to go on: 0 is the end."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


def open_redis(
    url: str, *, prefix: str = PREFIX, patience_seconds: float = TIMEOUT_S
) -> Result["RedisCache", ConfigurationError]:
    """Make the cache of a URL, without connecting.

    >>> open_redis("redis://:hunter2@localhost:port").failure().message[:40]
    'cache.url: is no URL of a Redis server: '
    """
    secrets = passwords_of(url)
    return redis_client(url, patience_seconds, "cache.url").map(
        lambda client: RedisCache(
            cast("Client", client), prefix=prefix, patience_seconds=patience_seconds, secrets=secrets
        )
    )


@final
class RedisCache:
    """Entries on a server, which drops each when its time is over, and others when it has no room (``maxmemory``).

    A server that does not answer in time is given up, and what was begun goes on: so the next operation may find a
    connection. ``secrets`` are masked in whatever the server says.
    """

    def __init__(
        self,
        client: Client,
        *,
        prefix: str = PREFIX,
        patience_seconds: float = TIMEOUT_S,
        secrets: tuple[str, ...] = (),
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._patience = patience_seconds
        self._secrets = secrets
        self._tally = CacheCounters()
        self._worker = Worker("llm-effects-redis", THREADS)

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:
        """Give the entry, or ``None`` where there is none or it is too old."""
        return self._done("get", lambda: self._tally.asked(self._client.get(self._prefix + key)))

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:
        """Keep an entry for ``ttl_seconds``; ``None`` is for ever, 0 keeps nothing."""
        return self._done("put", lambda: self._put(self._prefix + key, entry, ttl_seconds))

    def delete(self, key: str) -> FutureResult[bool, LLMError]:
        """Drop an entry; says whether there was one."""
        return self._done("delete", lambda: self._client.unlink(self._prefix + key) > 0)

    def clear(self) -> FutureResult[int | None, LLMError]:
        """Drop all entries with our prefix and give how many they were; others on the server are left alone."""
        return self._done("clear", self._clear, LONG_S)

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        """Tell what was asked for here; what is there the server could tell only by looking at every key."""
        return FutureResult.from_value(self._tally.stats(entries=None, size=None))

    async def aclose(self) -> None:
        """Close all connections and end the threads."""
        await self._worker.aclose(self._client.close)

    def _done(
        self, operation: str, work: Callable[[], _Made], seconds: float | None = None
    ) -> FutureResult[_Made, LLMError]:
        done = partial(tried, operation, work, self._secrets)
        run = partial(self._worker.run, operation, done, seconds or self._patience)
        return FutureResult(self._tally.watched(operation, run))

    # From here on in a thread.

    def _put(self, name: str, entry: bytes, ttl_seconds: float | None) -> None:
        if ttl_seconds is None or ttl_seconds == math.inf:
            self._client.set(name, entry, px=None)
        elif ttl_seconds > 0:
            self._client.set(name, entry, px=math.ceil(ttl_seconds * 1000))
        else:
            self._client.unlink(name)

    def _clear(self) -> int:
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", self._prefix) + "*"
        cursor, names = self._client.scan(0, match=pattern, count=_BATCH)
        dropped = self._client.unlink(*names) if names else 0
        while cursor:
            cursor, names = self._client.scan(cursor, match=pattern, count=_BATCH)
            dropped += self._client.unlink(*names) if names else 0
        return dropped
