"""Where a configuration counts its limits."""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.errors import ConfigurationError
from llm_effects.guards import Limits
from llm_effects.stores.limits_memory import MemoryLimits

_Opened: TypeAlias = Result[Limits, ConfigurationError]


def open_limits(config: LLMConfig, memory: MemoryLimits) -> _Opened:
    """Make the limits of ``config.limits.url``; nothing is connected before its first use.

    What this process counts by itself goes on in ``memory``.

    >>> from llm_effects.config import LimitsConfig
    >>> wrong = LLMConfig(models={}, limits=LimitsConfig(url="ftp://host"))
    >>> open_limits(wrong, MemoryLimits()).failure().message
    "limits.url: unknown scheme 'ftp': use memory://, redis://host or rediss://host"
    """
    scheme, separator, _ = config.limits.url.partition("://")
    make = _STORES.get(scheme.lower()) if separator or scheme == "memory" else None
    return make(config, memory) if make else _wrong(f"unknown scheme {scheme!r}: {_KNOWN}" if separator else _KNOWN)


_KNOWN: Final = "use memory://, redis://host or rediss://host"


def _wrong(message: str) -> _Opened:
    return Failure(ConfigurationError(message=f"limits.url: {message}"))


def _memory(_: LLMConfig, memory: MemoryLimits) -> _Opened:
    return Success(memory)


def _redis(config: LLMConfig, memory: MemoryLimits) -> _Opened:
    try:
        from llm_effects.stores.limits_redis import open_redis_limits
    except ModuleNotFoundError:
        return _wrong("the Redis client is not installed: pip install 'llm-effects[redis]'")
    return open_redis_limits(config, memory)


_STORES: Final[Mapping[str, Callable[[LLMConfig, MemoryLimits], _Opened]]] = {
    "memory": _memory,
    "redis": _redis,
    "rediss": _redis,
}
