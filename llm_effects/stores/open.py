"""Opening the stores that a configuration names by URL: the cache, the storage and the limits.

No file is opened and nothing is connected before the first use of a store.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Never, TypeVar, final

from attrs import evolve, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.config.services import CacheConfig, Encryption, StorageConfig
from llm_effects.effects.env import Cache, Conversations, Ledger, Limits, Now
from llm_effects.stores.disabled import NoCache, unusable_conversations, unusable_ledger
from llm_effects.stores.limits.memory import MemoryLimits
from llm_effects.values.errors import ConfigurationError
from llm_effects.values.extras import install_command
from llm_effects.values.secrets import reveal
from llm_effects.values.value import Value

_NO_REDIS: Final = "the Redis client is not installed"
_NO_SQL: Final = "SQLAlchemy is not installed"

_Store = TypeVar("_Store")


@final
@frozen(eq=False, repr=False)
class Storage(Value):
    """Conversations and the ledger of one storage. In a database they share its connections."""

    conversations: Conversations
    ledger: Ledger


def open_storage(config: StorageConfig, memory: Storage) -> Result[Storage, ConfigurationError]:
    """Open the storage of ``config.url``; ``memory`` is the one that ``memory://`` names.

    A URL that names no store is a ``ConfigurationError``.

    >>> from llm_effects.manager import new_memory
    >>> memory = new_memory()
    >>> open_storage(StorageConfig(url="redis://host"), memory).failure().message
    "storage.url: unknown scheme 'redis': use memory://, sqlite:///file or postgresql://host/name"
    """
    url = reveal(config.url)
    database = partial(_database_storage, url, config)
    opened: Result[Storage, ConfigurationError] = _open(
        "storage.url",
        url,
        {"memory": lambda: Success(memory), "sqlite": database, "postgresql": database, "postgres": database},
        "use memory://, sqlite:///file or postgresql://host/name",
    )
    return opened if config.encryption is None else opened.map(partial(_encrypted, config.encryption))


def _encrypted(encryption: Encryption, storage: Storage) -> Storage:
    from llm_effects.stores.encrypted import EncryptedConversations, Envelopes

    return evolve(storage, conversations=EncryptedConversations(storage.conversations, Envelopes(encryption)))


def usable(opened: Result[Storage, ConfigurationError]) -> Storage:
    """Return the storage, or one whose every operation fails with the problem."""
    if is_successful(opened):
        return opened.unwrap()
    problem = opened.failure()
    return Storage(unusable_conversations(problem), unusable_ledger(problem))


def open_cache(config: CacheConfig, now: Now) -> Result[Cache, ConfigurationError]:
    """Open the cache of ``config.url``; ``now`` is wall time, for entries that outlive this process.

    A cache that is switched off, or whose entries would expire at once, is a ``NoCache``. A URL that names no cache is
    a ``ConfigurationError``.

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
    redis = partial(_redis_cache, config)
    opened: Result[Cache, ConfigurationError] = _open(
        "cache.url",
        reveal(config.url),
        {
            "memory": partial(_memory_cache, config),
            "sqlite": partial(_sqlite_cache, config, now),
            "redis": redis,
            "rediss": redis,
        },
        "use memory://, sqlite:///file, redis://host or rediss://host",
    )
    return opened if config.encryption is None else opened.map(partial(_encrypted_cache, config.encryption))


def _encrypted_cache(encryption: Encryption, cache: Cache) -> Cache:
    from llm_effects.stores.encrypted import EncryptedCache, Envelopes

    return EncryptedCache(cache, Envelopes(encryption))


def open_limits(config: LLMConfig, memory: MemoryLimits) -> Result[Limits, ConfigurationError]:
    """Open the limits of ``config.limits.url``; ``memory`` has the counts of this process.

    >>> from llm_effects.config.services import LimitsConfig
    >>> wrong = LLMConfig(models={}, limits=LimitsConfig(url="ftp://host"))
    >>> open_limits(wrong, MemoryLimits()).failure().message
    "limits.url: unknown scheme 'ftp': use memory://, redis://host or rediss://host"
    """
    redis = partial(_redis_limits, config, memory)
    return _open(
        "limits.url",
        reveal(config.limits.url),
        {"memory": lambda: Success(memory), "redis": redis, "rediss": redis},
        "use memory://, redis://host or rediss://host",
    )


def _open(
    path: str, url: str, openers: Mapping[str, Callable[[], Result[_Store, ConfigurationError]]], remedy: str
) -> Result[_Store, ConfigurationError]:
    """Open the store of a URL by its scheme; ``path`` names the URL in the configuration."""
    scheme, separator, _ = url.partition("://")
    opener = openers.get(scheme.lower()) if separator or scheme.lower() == "memory" else None
    if opener is not None:
        return opener()
    return _wrong(path, f"unknown scheme {scheme!r}: {remedy}" if separator else remedy)


def _wrong(path: str, message: str) -> Result[Never, ConfigurationError]:
    return Failure(ConfigurationError(message=f"{path}: {message}"))


def _database_storage(url: str, config: StorageConfig) -> Result[Storage, ConfigurationError]:
    try:
        from llm_effects.stores.conversations.sql import SqlConversations
        from llm_effects.stores.ledger.sql import SqlLedger
        from llm_effects.stores.sql.database import open_database
    except ModuleNotFoundError:
        return _wrong("storage.url", f"{_NO_SQL}: {install_command('sql')}")
    return open_database(url, config).map(lambda database: Storage(SqlConversations(database), SqlLedger(database)))


def _memory_cache(config: CacheConfig) -> Result[Cache, ConfigurationError]:
    from llm_effects.stores.cache.memory import MemoryCache

    return Success(MemoryCache(config.max_size))


def _sqlite_cache(config: CacheConfig, now: Now) -> Result[Cache, ConfigurationError]:
    from llm_effects.stores.cache.sqlite import Bounds, SqliteCache
    from llm_effects.stores.sqlite_files import sqlite_file

    return (
        sqlite_file(reveal(config.url))
        .map(lambda file: SqliteCache(file, now, Bounds(entries=config.max_size)))
        .alt(lambda problem: ConfigurationError(message=f"cache.url: {problem}"))
    )


def _redis_cache(config: CacheConfig) -> Result[Cache, ConfigurationError]:
    try:
        from llm_effects.stores.cache.redis import open_redis
    except ModuleNotFoundError:
        return _wrong("cache.url", f"{_NO_REDIS}: {install_command('redis')}")
    return open_redis(reveal(config.url))


def _redis_limits(config: LLMConfig, memory: MemoryLimits) -> Result[Limits, ConfigurationError]:
    try:
        from llm_effects.stores.limits.redis import open_redis_limits
    except ModuleNotFoundError:
        return _wrong("limits.url", f"{_NO_REDIS}: {install_command('redis')}")
    return open_redis_limits(config, memory)
