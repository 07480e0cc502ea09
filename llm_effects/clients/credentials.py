"""The checks of an attempt before it is sent: its key of the moment, and that its data stays where it must.

The function behind a key that rotates is called by one caller at a time, for all event loops and threads.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from inspect import isawaitable, iscoroutinefunction
from math import isfinite
from os import environ
from typing import Final, TypeAlias, TypeVar, cast, final
from urllib.parse import urlsplit

import anyio
from attrs import define, evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.clients.transport.transport import StreamedResponse, Transport
from llm_effects.effects.call import Call
from llm_effects.effects.env import Now
from llm_effects.effects.tasks import OnSent, Signal, in_daemon_thread, no_listener
from llm_effects.providers.registry import must_stay, why_it_leaves
from llm_effects.providers.target import Target, is_loopback, rotating_key, token_header
from llm_effects.providers.wire import Timeouts, WireRequest, WireResponse
from llm_effects.values.errors import AuthenticationFailed, ConfigurationError, LLMError, RequestTimeout, cause_of
from llm_effects.values.secrets import FreshKey, KeySource, RotatingKey, Secret, key_problem, secrets_of_environment
from llm_effects.values.validation import is_a

_T = TypeVar("_T")

_Fresh: TypeAlias = Result[tuple[Secret, float | None], LLMError]


@final
@define(eq=False, repr=False)
class _Flight:
    """A call of the function that is under way; ``outcome`` stays ``None`` if its caller was cancelled."""

    outcome: _Fresh | None = None
    wakers: list[Callable[[], object]] = field(factory=list[Callable[[], object]])


async def current_key(key: RotatingKey, now: Now) -> Result[Secret, LLMError]:
    """Return the kept key, or a fresh one: concurrent callers wait for one call of the function and share its end.

    >>> from llm_effects.effects.env import wall_clock
    >>> anyio.run(current_key, RotatingKey(lambda: ("token-1", 3600)), wall_clock)
    <Success: ***>
    """
    while True:
        flight, landed = _Flight(), Signal()
        with key.lock:
            kept = key.usable(now())
            if kept is not None:
                return Success(kept)
            if key.flight is None:
                key.flight, leads = flight, True
            else:
                flight, leads = cast("_Flight", key.flight), False
                flight.wakers.append(landed.set)
        if leads:
            return await _lead(key, flight, now)
        await landed.wait()
        if flight.outcome is not None:
            return flight.outcome.map(_first)


def _first(fresh: tuple[Secret, float | None]) -> Secret:
    return fresh[0]


async def _lead(key: RotatingKey, flight: _Flight, now: Now) -> Result[Secret, LLMError]:
    asked = now()
    try:
        outcome = flight.outcome = await _fresh_key(key)
    finally:
        with key.lock:
            if flight.outcome is not None and is_successful(flight.outcome):
                secret, seconds = flight.outcome.unwrap()
                key.keep(secret, asked, seconds)
            key.flight = None
        for wake in flight.wakers:
            wake()
    return outcome.map(_first)


async def _fresh_key(key: RotatingKey) -> _Fresh:
    try:
        fresh = await _call(key.source)
    except Exception as problem:  # noqa: BLE001 - the function is the user's: any exception is a failure of its service
        cause = cause_of(problem, *key.masks, *secrets_of_environment(environ))
        message = f"api_key: the function raised {cause.type}: {cause.message}".removesuffix(": ")
        return Failure(AuthenticationFailed(message=message, cause=cause))
    return _read(fresh)


async def _call(source: KeySource) -> object:
    """Call the function: in a thread if it is not async, since it may wait for a network."""
    returned = source() if iscoroutinefunction(source) else await in_daemon_thread(source)
    return await cast("Awaitable[FreshKey]", returned) if isawaitable(returned) else returned


def _read(fresh: object) -> _Fresh:
    """Check what the function returned, without showing it."""
    key, seconds = cast("tuple[object, object]", fresh) if _is_pair(fresh) else (fresh, None)
    if not isinstance(key, str | Secret):
        return _misused(f"returned {_kind(fresh)}: return a text, or a pair of a text and its lifetime in seconds")
    secret = Secret(key) if isinstance(key, str) else key
    if problem := key_problem(secret.reveal()):
        return _misused(f"returned a key that {problem}")
    if seconds is None:
        return Success((secret, None))
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not isfinite(seconds) or seconds <= 0:
        return _misused("returned a lifetime that is no number above 0: give the seconds from now on")
    return Success((secret, float(seconds)))


def _is_pair(fresh: object) -> bool:
    return is_a(fresh, tuple) and len(cast("tuple[object, ...]", fresh)) == 2


def _kind(fresh: object) -> str:
    return "nothing" if fresh is None else f"a value of type {type(fresh).__name__}"


def _misused(problem: str) -> _Fresh:
    return Failure(ConfigurationError(message=f"api_key: the function {problem}"))


@final
@frozen
class KeyedTransport:
    """A transport whose requests carry ``key``, a header with the key of the moment."""

    transport: Transport
    key: tuple[str, Secret]

    async def exchange(self, request: WireRequest, limits: Timeouts, admitted: OnSent = no_listener) -> WireResponse:
        """Send a POST request and return its whole response, whatever its status."""
        return await self.transport.exchange(evolve(request, key=self.key), limits, admitted)

    def stream(
        self, request: WireRequest, limits: Timeouts, admitted: OnSent = no_listener
    ) -> AbstractAsyncContextManager[StreamedResponse]:
        """Send a POST request and stream its response; leaving early closes the connection."""
        return self.transport.stream(evolve(request, key=self.key), limits, admitted)

    async def fetch(self, url: str, headers: tuple[tuple[str, str | Secret], ...], limits: Timeouts) -> WireResponse:
        """Send a GET request and return its whole response."""
        return await self.transport.fetch(url, headers, limits, self.key)


Sender: TypeAlias = Transport | KeyedTransport
"""Sends the requests of one attempt."""

Send: TypeAlias = Callable[[Sender], Awaitable[Result[_T, LLMError]]]
"""Makes one attempt with what sends its requests."""


Header: TypeAlias = tuple[str, Secret]


async def send_keyed(
    target: Target, now: Now, send: Callable[[Header | None], Awaitable[_T]], rejected: Callable[[_T], bool]
) -> Result[_T, LLMError]:
    """Send something that is no attempt: what a server rejects is sent once more with a fresh key, if that rotates."""
    key = rotating_key(target)
    if key is None:
        return Success(await send(None))
    answer = await _send_once(target, key, now, send, rejected)
    is_rejected = is_successful(answer) and rejected(answer.unwrap())
    return await _send_once(target, key, now, send, rejected) if is_rejected else answer


async def _send_once(
    target: Target, key: RotatingKey, now: Now, send: Callable[[Header], Awaitable[_T]], rejected: Callable[[_T], bool]
) -> Result[_T, LLMError]:
    secret = await current_key(key, now)
    if not is_successful(secret):
        return Failure(_at_model(target, secret.failure()))
    answer = await send(token_header(target, secret.unwrap()))
    if rejected(answer):
        key.reject(secret.unwrap(), now())
    return Success(answer)


async def send_checked(
    transport: Transport, target: Target, call: Call, now: Now, send: Send[_T]
) -> Result[_T, LLMError]:
    """Send an attempt with the key of the moment, unless its data would leave the machine on which it must stay.

    A key that the server rejects is not used again. Until both are settled, the attempt counts as queued: an error of
    the function is no attempt at the model, and nothing was sent of data that stays.
    """
    key = rotating_key(target)
    if key is None and call.request.stays is None:
        return await send(transport)
    settled = await _settled(transport, target, call, key, now)
    if not is_successful(settled):
        return Failure(settled.failure())
    secret = settled.unwrap()
    if key is None or secret is None:
        return await send(transport)
    answer = await send(KeyedTransport(transport, token_header(target, secret)))
    if not is_successful(answer) and _is_rejected(answer.failure()):
        key.reject(secret, now())
    return answer


async def _settled(
    transport: Transport, target: Target, call: Call, key: RotatingKey | None, now: Now
) -> Result[Secret | None, LLMError]:
    """Return the key of the moment, if there is one, within the candidate's share of the time."""
    began = call.attempt.record.queued_since = anyio.current_time()
    with anyio.CancelScope(deadline=call.attempt.first_content_by):
        if call.request.stays is not None:
            problem = await check_stays(transport, target)
            if problem is not None:
                return Failure(problem)
        if key is None:
            return Success(None)
        secret = await current_key(key, now)
        return secret if is_successful(secret) else Failure(_at_model(target, secret.failure()))
    share_ms = (call.attempt.first_content_by - began) * 1000
    return Failure(_at_model(target, RequestTimeout(timeout_ms=share_ms, phase="attempt")))


async def check_stays(transport: Transport, target: Target) -> LLMError | None:
    """Return the error of data that must stay on this machine, if it would leave that for a target."""
    why = why_it_leaves(target, proxied=transport.proxied) or await _where_localhost_is(target)
    return evolve(must_stay({target.name: why}), provider=target.preset.name) if why else None


async def _where_localhost_is(target: Target) -> str:
    """Return the problem if ``localhost``, a name that files and servers of names may point anywhere, is not here."""
    host = urlsplit(target.endpoint).hostname or ""
    if not host.isalpha():
        return ""
    try:
        found = await anyio.getaddrinfo(host, None)
    except OSError:
        return f"{host} has no address"
    elsewhere = next((str(each[4][0]) for each in found if not is_loopback(str(each[4][0]))), None)
    return "" if elsewhere is None else f"{host} is at {elsewhere}, which is not a loopback address"


def _is_rejected(error: LLMError) -> bool:
    return isinstance(error, AuthenticationFailed) and error.status == UNAUTHORIZED


UNAUTHORIZED: Final = 401
"""The status of a server that rejects a key; others reject what the key may do."""


def _at_model(target: Target, error: LLMError) -> LLMError:
    named = evolve(error, model=target.name, provider=target.preset.name)
    if isinstance(named, ConfigurationError):
        return evolve(named, message=f"models.{target.name}.{named.message}")
    return named
