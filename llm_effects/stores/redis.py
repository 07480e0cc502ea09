"""Redis clients that block, time out and never show a password, and Lua scripts run through them."""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, Protocol, TypeAlias, TypeVar, cast, final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import anyio
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ConnectionError, RedisError, TimeoutError  # noqa: A004
from redis.retry import Retry
from returns.result import Failure, Result, Success

from llm_effects.stores.cache.memory import CacheCounters
from llm_effects.stores.worker_threads import Worker
from llm_effects.values.errors import ConfigurationError, LLMError, StorageFailed, cause_of
from llm_effects.values.secrets import Secret

_OPTIONS: Final = frozenset(
    {"db", "client_name", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname"}
)

_NO_URL: Final = (
    "is not the URL of a Redis server: write redis://user:password@host:6379/0, or rediss:// for TLS, "
    "and percent-encode special characters of the password, such as %23"
)

_Value = TypeVar("_Value")


def redis_client(url: str, seconds: float, path: str) -> Result[Redis, ConfigurationError]:
    """Create a client without connecting; ``path`` names the URL in the configuration.

    It blocks, so use it in a thread. It tries everything once, and waits up to ``seconds``.

    >>> redis_client("redis://:hunter2@localhost:port", 1.0, "cache.url").failure().message[:44]
    'cache.url: is not the URL of a Redis server:'
    """
    parts = _parts(url)
    if parts is None:
        return Failure(ConfigurationError(message=f"{path}: {_NO_URL}"))
    unknown = sorted(parse_qs(parts.query, keep_blank_values=True).keys() - _OPTIONS)
    if unknown:
        message = f"{path}: unknown options {', '.join(unknown)}: use only {', '.join(sorted(_OPTIONS))}"
        return Failure(ConfigurationError(message=message))
    return _client(url, seconds, path)


def passwords_of(url: str) -> tuple[Secret, ...]:
    """Return the texts to mask in messages of the server: the password, as written and decoded.

    >>> [each.reveal() for each in passwords_of("redis://:a%23b@localhost")], passwords_of("redis://localhost")
    (['a%23b', 'a#b'], ())
    """
    parts = _parts(url)
    password = parts.password if parts else None
    return (Secret(password), Secret(unquote(password))) if password else ()


def _parts(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        valid = parts.port != 0 and re.fullmatch(r"/?\d*", parts.path) and not parts.fragment
    except ValueError:  # a bad port or address; the text may show a part of a password
        return None
    return parts if valid else None


def _client(url: str, seconds: float, path: str) -> Result[Redis, ConfigurationError]:
    try:
        client = Redis.from_url(  # pyright: ignore[reportUnknownMemberType] - its options have no types
            url,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            retry=Retry(NoBackoff(), 0),
            protocol=2,  # saves a round trip for each connection
        )
    except (ValueError, RedisError):
        return Failure(ConfigurationError(message=f"{path}: {_NO_URL}"))
    return Success(client)


def as_result(operation: str, work: Callable[[], _Value], secrets: tuple[Secret, ...]) -> Result[_Value, LLMError]:
    """Run some work, and turn exceptions of the client and the system into a ``StorageFailed``."""
    try:
        return Success(work())
    except (RedisError, OSError, UnicodeError) as problem:  # the last: a bad host name
        cause = cause_of(problem, *secrets)
        transient = isinstance(problem, ConnectionError | TimeoutError) and not isinstance(problem, AuthenticationError)
        return Failure(StorageFailed(operation=operation, message=cause.message, transient=transient, cause=cause))


# Lua scripts, each of which runs atomically on the server.


THREADS: Final = 8
"""How many scripts run at once."""

Reply: TypeAlias = Sequence[bytes | int]
"""The reply of our scripts: always a list."""

Argument: TypeAlias = str | int | float


ScriptCall: TypeAlias = tuple[str, Sequence[str], Sequence[Argument]]
"""The name of a script, its keys and its arguments."""

Undo: TypeAlias = Callable[[Reply], ScriptCall | None]
"""From the reply of a script, empty if it failed, to the script that undoes it."""


def _run_on(_: object) -> None:
    """Leave a started or waiting script as it is."""


class _Script(Protocol):
    def __call__(self, keys: Sequence[str], args: Sequence[Argument]) -> Reply: ...


@final
class RedisScripts:
    """Lua scripts, run in threads. A server that keeps failing is paused for a moment.

    ``secrets`` are masked in messages of the server.
    """

    def __init__(
        self, client: Redis, scripts: Mapping[str, str], *, timeout_seconds: float, secrets: tuple[Secret, ...] = ()
    ) -> None:
        self._client = client
        self._scripts = {name: cast("_Script", client.register_script(text)) for name, text in scripts.items()}
        self._timeout = timeout_seconds
        self._secrets = secrets
        self._counters = CacheCounters()
        self._worker = Worker("llm-effects-limits", THREADS)

    async def run(
        self,
        name: str,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        undo: Undo | None = None,
    ) -> Result[Reply, LLMError]:
        """Run a script to its end or to the timeout, also when cancelled.

        A shield does not stop asyncio's own cancellation (``wait_for``, ``Task.cancel()``). Then the script runs all
        the same, in its thread; one with an ``undo`` does not, or is followed by the script that undoes its reply.
        """
        job = self._job((name, keys, arguments))
        abandon = _run_on if undo is None else partial(self._undo, undo)
        result: Result[Reply, LLMError] = Failure(StorageFailed(operation=name))
        with anyio.CancelScope(shield=True):
            result = await self._counters.run(name, partial(self._worker.run, name, job, self._timeout, abandon))
        return result  # noqa: RET504 - type checkers assume that the scope may swallow a cancellation

    def _job(self, call: ScriptCall) -> Callable[[], Result[Reply, LLMError]]:
        name, keys, arguments = call
        return partial(as_result, name, partial(self._scripts[name], keys, arguments), self._secrets)

    def _undo(self, undo: Undo, job: "Future[Result[Reply, LLMError]]") -> None:
        if not job.cancel():
            job.add_done_callback(partial(self._undo_reply, undo))

    def _undo_reply(self, undo: Undo, job: "Future[Result[Reply, LLMError]]") -> None:
        """Run the script that undoes the reply of an abandoned one; called in a thread."""
        call = undo(job.result().value_or(()))
        if call is not None:
            self._worker.post(self._job(call))

    async def aclose(self) -> None:
        """Close all connections and end the threads."""
        await self._worker.aclose(self._client.close)
