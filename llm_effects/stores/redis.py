"""How a Redis server is reached: from a URL to a client that blocks, gives up in time and never shows a password."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, TypeAlias, TypeVar, cast, final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import anyio
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError, RedisError, TimeoutError  # noqa: A004
from redis.retry import Retry
from returns.result import Failure, Result, Success

from llm_effects.stores.cache.stats import CacheCounters
from llm_effects.stores.worker_threads import Worker
from llm_effects.values.errors import ConfigurationError, LLMError, StorageFailed, cause_of

_OPTIONS: Final = frozenset(
    {"db", "client_name", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
)

_NO_URL: Final = (
    "is no URL of a Redis server: write redis://user:password@host:6379/0, or rediss:// for TLS, "
    "and a special letter of the password by its code, such as %23"
)

_Made = TypeVar("_Made")


def redis_client(url: str, seconds: float, path: str) -> Result[Redis, ConfigurationError]:
    """Make a client without connecting; ``path`` is where in the configuration the URL stands.

    It blocks, so it belongs into a thread. Its connections belong to no event loop. It tries everything once, and waits
    for ``seconds`` at the most.

    >>> redis_client("redis://:hunter2@localhost:port", 1.0, "cache.url").failure().message[:40]
    'cache.url: is no URL of a Redis server: '
    """
    parts = _parts(url)
    if parts is None:
        return Failure(ConfigurationError(message=f"{path}: {_NO_URL}"))
    unknown = sorted(parse_qs(parts.query, keep_blank_values=True).keys() - _OPTIONS)
    if unknown:
        message = f"{path}: unknown options {', '.join(unknown)}: there are {', '.join(sorted(_OPTIONS))}"
        return Failure(ConfigurationError(message=message))
    return _client(url, seconds, path)


def passwords_of(url: str) -> tuple[str, ...]:
    """Give what must be masked in whatever the server says.

    >>> passwords_of("redis://:a%23b@localhost"), passwords_of("redis://localhost")
    (('a%23b', 'a#b'), ('', ''))
    """
    parts = _parts(url)
    password = (parts.password if parts else None) or ""
    return (password, unquote(password))


def _parts(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        fits = parts.port != 0 and re.fullmatch(r"/?\d*", parts.path) and not parts.fragment
    except ValueError:  # of a port or an address; its text may show a part of a password
        return None
    return parts if fits else None


def _client(url: str, seconds: float, path: str) -> Result[Redis, ConfigurationError]:
    try:
        client = Redis.from_url(  # pyright: ignore[reportUnknownMemberType] - its options have no types
            url,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # spares a round trip for each connection
        )
    except (ValueError, RedisError):
        return Failure(ConfigurationError(message=f"{path}: {_NO_URL}"))
    return Success(client)


def tried(operation: str, work: Callable[[], _Made], secrets: tuple[str, ...]) -> Result[_Made, LLMError]:
    """Turn what the client and the system say into a ``StorageFailed``."""
    try:
        return Success(work())
    except (RedisError, OSError, UnicodeError) as problem:  # the last: of a host's name
        cause = cause_of(problem, *secrets)
        transient = isinstance(problem, ConnectionError | TimeoutError) and not isinstance(problem, AuthenticationError)
        failed = StorageFailed(operation=operation, message=cause.message, transient=transient, cause=cause)
        return Failure(failed)


# Lua scripts on a Redis server, each of which does its work all at once.


THREADS: Final = 8
"""How many scripts are under way at once."""

Reply: TypeAlias = Sequence[bytes | int]
"""What our scripts give: always a list."""

Argument: TypeAlias = str | int | float


class _Script(Protocol):
    def __call__(self, keys: Sequence[str], args: Sequence[Argument]) -> Reply: ...


@final
class RedisScripts:
    """Runs scripts in threads. A server that fails too often in a row is left alone for a moment.

    ``secrets`` are masked in whatever the server says.
    """

    def __init__(
        self, client: Redis, scripts: Mapping[str, str], *, patience_seconds: float, secrets: tuple[str, ...] = ()
    ) -> None:
        self._client = client
        self._scripts = {name: cast("_Script", client.register_script(text)) for name, text in scripts.items()}
        self._patience = patience_seconds
        self._secrets = secrets
        self._tally = CacheCounters()
        self._worker = Worker("llm-effects-limits", THREADS)

    async def run(self, name: str, keys: Sequence[str], arguments: Sequence[Argument]) -> Result[Reply, LLMError]:
        """Run a script to its end, through any cancellation: for as long as the server may answer nothing."""
        done = partial(tried, name, partial(self._scripts[name], keys, arguments), self._secrets)
        told: Result[Reply, LLMError] = Failure(StorageFailed(operation=name))
        with anyio.CancelScope(shield=True):
            told = await self._tally.watched(name, partial(self._worker.run, name, done, self._patience))
        return told  # noqa: RET504 - type checkers take the scope for one that swallows cancellation

    async def aclose(self) -> None:
        """Close all connections and end the threads."""
        await self._worker.aclose(self._client.close)
