"""The mapping from exceptions of httpx to error values."""

from collections.abc import Callable
from typing import Final, TypeAlias

import httpx

from llm_effects.clients.transport.connections import connection_error, network_error, proxy_error
from llm_effects.providers.wire import Timeouts, WireRequest
from llm_effects.values.errors import (
    Cause,
    ConfigurationError,
    LLMError,
    NetworkPhase,
    RequestTimeout,
    TimeoutPhase,
    cause_of,
)
from llm_effects.values.secrets import secret_values

WireProblem: TypeAlias = httpx.HTTPError | httpx.InvalidURL | OSError | UnicodeError
"""Exceptions that a pool raises for reasons outside of this program; any other is a bug or a cancellation."""

WIRE_PROBLEMS: Final = (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError)
"""The same classes, for ``except`` clauses."""


ToError: TypeAlias = Callable[[WireProblem, bool], LLMError]
"""A mapping from an exception, and whether part of the response body has arrived, to an error."""


_PROXY_AUTH: Final = ("407", "auth", "password")

# How httpcore and h11 describe a response that ends too early.
_TRUNCATED: Final = ("disconnected", "peer closed", "incomplete")


def map_exception(problem: WireProblem, started: bool, *, request: WireRequest, limits: Timeouts) -> LLMError:
    """Map an exception to an error; ``started`` means that part of the response body has arrived.

    >>> request = WireRequest(url="http://localhost:1/v1", headers=(), body=b"")
    >>> error = map_exception(httpx.ConnectTimeout(""), False, request=request, limits=Timeouts(connect_s=2))
    >>> error.tag, error.phase, error.timeout_ms
    ('TimeoutError', 'connect', 2000)
    """
    cause = cause_of(problem, *secret_values(request.headers))
    match problem:
        case httpx.TimeoutException():
            return _timeout(problem, limits, started, cause)
        case httpx.InvalidURL() | httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | UnicodeError():
            return ConfigurationError(message=f"this request cannot be sent: {cause.message}", cause=cause)
        case httpx.ProxyError():
            needs_password = any(word in cause.message.lower() for word in _PROXY_AUTH)
            return proxy_error(request, cause, needs_password=needs_password)
        case httpx.RemoteProtocolError():
            return network_error(_protocol_phase(cause), request, cause)
        case _:
            return connection_error(problem, request, cause, connecting=isinstance(problem, httpx.ConnectError))


def _protocol_phase(cause: Cause) -> NetworkPhase:
    return "reset" if any(words in cause.message for words in _TRUNCATED) else "protocol"


def _timeout(problem: httpx.TimeoutException, limits: Timeouts, started: bool, cause: Cause) -> LLMError:
    read: TimeoutPhase = "between_content" if started else "first_content"
    phases: dict[type[httpx.TimeoutException], tuple[TimeoutPhase, float | None]] = {
        httpx.ConnectTimeout: ("connect", limits.connect_s),
        httpx.WriteTimeout: ("send", limits.send_s),
        httpx.PoolTimeout: ("queue", None),
    }
    phase, seconds = phases.get(type(problem), (read, limits.read_s))
    return RequestTimeout(phase=phase, timeout_ms=None if seconds is None else seconds * 1000, cause=cause)
