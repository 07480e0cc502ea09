"""Which storage a configuration names."""

from typing import Final, final

from attrs import frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import StorageConfig
from llm_effects.errors import ConfigurationError
from llm_effects.ledgers import Ledger
from llm_effects.services import Conversations
from llm_effects.stores.absent import UnusableLedger, unusable_conversations

_KNOWN: Final = "use memory://, sqlite:///file or postgresql://host/name"
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

    >>> from llm_effects.live import new_memory
    >>> memory = new_memory()
    >>> open_storage(StorageConfig(url="redis://host"), memory).failure().message
    "storage.url: unknown scheme 'redis': use memory://, sqlite:///file or postgresql://host/name"
    """
    scheme, separator, _ = config.url.partition("://")
    if scheme.lower() == "memory":
        return Success(memory)
    if not separator:
        return _wrong(_KNOWN)
    return _sql(config.url) if scheme.lower() in _SQL else _wrong(f"unknown scheme {scheme!r}: {_KNOWN}")


def _wrong(message: str) -> Result[Storage, ConfigurationError]:
    return Failure(ConfigurationError(message=f"storage.url: {message}"))


def _sql(url: str) -> Result[Storage, ConfigurationError]:
    try:
        from llm_effects.stores.conversations_sql import SqlConversations
        from llm_effects.stores.database_urls import open_database
        from llm_effects.stores.ledger_sql import SqlLedger
    except ModuleNotFoundError:
        return _wrong(_NO_SQL)
    database = open_database(url)
    if not is_successful(database):
        return Failure(database.failure())
    return Success(Storage(SqlConversations(database.unwrap()), SqlLedger(database.unwrap())))
