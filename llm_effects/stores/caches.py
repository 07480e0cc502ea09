"""Which cache a configuration names."""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import CacheConfig
from llm_effects.env import Now
from llm_effects.errors import ConfigurationError
from llm_effects.services import Cache
from llm_effects.stores.absent import NoCache
from llm_effects.stores.urls import sqlite_file

_Opened: TypeAlias = Result[Cache, ConfigurationError]


def open_cache(config: CacheConfig, now: Now) -> _Opened:
    """Make the cache of ``config.url``; no file is opened and nothing is connected before its first use.

    ``now`` is wall time, for what outlives this process. A cache that is switched off, or whose entries would be too
    old at once, is a ``NoCache``. A URL that names no cache is a ``ConfigurationError``.

    >>> from datetime import UTC, datetime
    >>> def now() -> datetime:
    ...     return datetime.now(UTC)
    >>> type(open_cache(CacheConfig(url="sqlite:///answers.db"), now).unwrap()).__name__
    'SqliteCache'
    >>> open_cache(CacheConfig(url="ftp://host"), now).failure().message
    "cache.url: unknown scheme 'ftp': use memory://, sqlite:///file, redis://host or rediss://host"
    """
    if not config.enabled or config.ttl_seconds == 0:
        return Success(NoCache())
    scheme, separator, _ = config.url.partition("://")
    make = _STORES.get(scheme.lower()) if separator or scheme == "memory" else None
    return make(config, now) if make else _wrong(f"unknown scheme {scheme!r}: {_KNOWN}" if separator else _KNOWN)


_KNOWN: Final = "use memory://, sqlite:///file, redis://host or rediss://host"


def _wrong(message: str) -> _Opened:
    return Failure(ConfigurationError(message=f"cache.url: {message}"))


def _memory(config: CacheConfig, _: Now) -> _Opened:
    from llm_effects.stores.cache_memory import MemoryCache

    return Success(MemoryCache(config.max_size))


def _sqlite(config: CacheConfig, now: Now) -> _Opened:
    from llm_effects.stores.cache_sqlite import SqliteCache
    from llm_effects.stores.sqlite_entries import Bounds

    file = sqlite_file(config.url)
    if not is_successful(file):
        return _wrong(file.failure())
    return Success(SqliteCache(file.unwrap(), now, Bounds(entries=config.max_size)))


def _redis(config: CacheConfig, _: Now) -> _Opened:
    try:
        from llm_effects.stores.cache_redis import open_redis
    except ModuleNotFoundError:
        return _wrong("the Redis client is not installed: pip install 'llm-effects[redis]'")
    return open_redis(config.url)


_STORES: Final[Mapping[str, Callable[[CacheConfig, Now], _Opened]]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "redis": _redis,
    "rediss": _redis,
}
