"""Which storage a configuration names."""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias, final

from attrs import frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.config.services import CacheConfig, StorageConfig
from llm_effects.effects.env import Cache, Conversations, Ledger, Limits, Now
from llm_effects.stores.disabled import NoCache, UnusableLedger, unusable_conversations
from llm_effects.stores.limits.memory import MemoryLimits
from llm_effects.stores.sqlite_files import sqlite_file
from llm_effects.values.errors import ConfigurationError

_KNOWN_STORAGES: Final = "use memory://, sqlite:///file or postgresql://host/name"
_NO_SQL: Final = "SQLAlchemy is not installed: pip install 'llm-effects[sql]'"
_SQL: Final = frozenset({"sqlite", "postgresql", "postgres"})


@final
@frozen
class Storage:
    """What one storage keeps: conversations and the ledger. In a database both have the same connections."""

    conversations: Conversations
    ledger: Ledger


def usable(opened: Result[Storage, ConfigurationError]) -> Storage:
    """Give the storage, or one that tells at each use what is wrong with it."""
    if is_successful(opened):
        return opened.unwrap()
    return Storage(unusable_conversations(opened.failure()), UnusableLedger(opened.failure()))


def open_storage(config: StorageConfig, memory: Storage) -> Result[Storage, ConfigurationError]:
    """Make the storage of ``config.url``; no file is opened and nothing is connected before its first use.

    ``memory`` is the one that ``memory://`` names. A URL that names no store is a ``ConfigurationError``.

    >>> from llm_effects.manager import new_memory
    >>> memory = new_memory()
    >>> open_storage(StorageConfig(url="redis://host"), memory).failure().message
    "storage.url: unknown scheme 'redis': use memory://, sqlite:///file or postgresql://host/name"
    """
    scheme, separator, _ = config.url.partition("://")
    if scheme.lower() == "memory":
        return Success(memory)
    if not separator:
        return _wrong_storage(_KNOWN_STORAGES)
    return (
        _sql(config.url) if scheme.lower() in _SQL else _wrong_storage(f"unknown scheme {scheme!r}: {_KNOWN_STORAGES}")
    )


def _wrong_storage(message: str) -> Result[Storage, ConfigurationError]:
    return Failure(ConfigurationError(message=f"storage.url: {message}"))


def _sql(url: str) -> Result[Storage, ConfigurationError]:
    try:
        from llm_effects.stores.conversations.sql import SqlConversations
        from llm_effects.stores.ledger.sql import SqlLedger
        from llm_effects.stores.sql.database import open_database
    except ModuleNotFoundError:
        return _wrong_storage(_NO_SQL)
    database = open_database(url)
    if not is_successful(database):
        return Failure(database.failure())
    return Success(Storage(SqlConversations(database.unwrap()), SqlLedger(database.unwrap())))


# Which cache a configuration names.


_OpenedCache: TypeAlias = Result[Cache, ConfigurationError]


def open_cache(config: CacheConfig, now: Now) -> _OpenedCache:
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
    make = _CACHES.get(scheme.lower()) if separator or scheme == "memory" else None
    return (
        make(config, now)
        if make
        else _wrong_cache(f"unknown scheme {scheme!r}: {_KNOWN_CACHES}" if separator else _KNOWN_CACHES)
    )


_KNOWN_CACHES: Final = "use memory://, sqlite:///file, redis://host or rediss://host"


def _wrong_cache(message: str) -> _OpenedCache:
    return Failure(ConfigurationError(message=f"cache.url: {message}"))


def _memory_cache(config: CacheConfig, _: Now) -> _OpenedCache:
    from llm_effects.stores.cache.memory import MemoryCache

    return Success(MemoryCache(config.max_size))


def _sqlite(config: CacheConfig, now: Now) -> _OpenedCache:
    from llm_effects.stores.cache.sqlite import Bounds, SqliteCache

    file = sqlite_file(config.url)
    if not is_successful(file):
        return _wrong_cache(file.failure())
    return Success(SqliteCache(file.unwrap(), now, Bounds(entries=config.max_size)))


def _redis_cache(config: CacheConfig, _: Now) -> _OpenedCache:
    try:
        from llm_effects.stores.cache.redis import open_redis
    except ModuleNotFoundError:
        return _wrong_cache("the Redis client is not installed: pip install 'llm-effects[redis]'")
    return open_redis(config.url)


_CACHES: Final[Mapping[str, Callable[[CacheConfig, Now], _OpenedCache]]] = {
    "memory": _memory_cache,
    "sqlite": _sqlite,
    "redis": _redis_cache,
    "rediss": _redis_cache,
}


# Where a configuration counts its limits.


_OpenedLimits: TypeAlias = Result[Limits, ConfigurationError]


def open_limits(config: LLMConfig, memory: MemoryLimits) -> _OpenedLimits:
    """Make the limits of ``config.limits.url``; nothing is connected before its first use.

    What this process counts by itself goes on in ``memory``.

    >>> from llm_effects.config.services import LimitsConfig
    >>> wrong = LLMConfig(models={}, limits=LimitsConfig(url="ftp://host"))
    >>> open_limits(wrong, MemoryLimits()).failure().message
    "limits.url: unknown scheme 'ftp': use memory://, redis://host or rediss://host"
    """
    scheme, separator, _ = config.limits.url.partition("://")
    make = _LIMITS.get(scheme.lower()) if separator or scheme == "memory" else None
    return (
        make(config, memory)
        if make
        else _wrong_limits(f"unknown scheme {scheme!r}: {_KNOWN_LIMITS}" if separator else _KNOWN_LIMITS)
    )


_KNOWN_LIMITS: Final = "use memory://, redis://host or rediss://host"


def _wrong_limits(message: str) -> _OpenedLimits:
    return Failure(ConfigurationError(message=f"limits.url: {message}"))


def _memory_limits(_: LLMConfig, memory: MemoryLimits) -> _OpenedLimits:
    return Success(memory)


def _redis_limits(config: LLMConfig, memory: MemoryLimits) -> _OpenedLimits:
    try:
        from llm_effects.stores.limits.redis import open_redis_limits
    except ModuleNotFoundError:
        return _wrong_limits("the Redis client is not installed: pip install 'llm-effects[redis]'")
    return open_redis_limits(config, memory)


_LIMITS: Final[Mapping[str, Callable[[LLMConfig, MemoryLimits], _OpenedLimits]]] = {
    "memory": _memory_limits,
    "redis": _redis_limits,
    "rediss": _redis_limits,
}
