"""From what goes wrong on the wire to an error: what httpx raises, told as a value."""

import errno
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Final, TypeAlias, cast, final

import httpx

from llm_effects.providers.wire import Timeouts, WireRequest
from llm_effects.values.errors import (
    Cause,
    ConfigurationError,
    LLMError,
    NetworkError,
    NetworkPhase,
    RequestTimeout,
    TimeoutPhase,
    cause_of,
)
from llm_effects.values.secrets import secret_values

WireProblem: TypeAlias = httpx.HTTPError | httpx.InvalidURL | OSError | UnicodeError
"""What a pool may raise for a reason outside of this program; anything else is a bug or a cancellation."""

WIRE_PROBLEMS: Final = (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError)
"""The same classes, for ``except``."""


@final
class TransportFault(Exception):  # noqa: N818 - it carries an error, it is none
    """The one exception of the transport: ``error`` is what its caller makes a ``Failure`` of."""

    def __init__(self, error: LLMError) -> None:
        super().__init__(error)
        self.error = error


# The root of a broken connection, most telling first.
_PHASES: Final[tuple[tuple[type[BaseException], NetworkPhase], ...]] = (
    (socket.gaierror, "dns"),
    (ConnectionRefusedError, "refused"),
    (ConnectionResetError, "reset"),
    (BrokenPipeError, "reset"),
)

_LOCAL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})

_WORDS: Final[dict[NetworkPhase, str]] = {
    "dns": "{origin} has no address: check the host's name",
    "connect": "{origin} cannot be reached",
    "refused": "{origin} refused the connection: is the server running?",
    "reset": "the connection to {origin} broke before the answer was whole",
    "protocol": "{origin} did not answer in proper HTTP",
    "intermediary": "the proxy on the way to {origin} did not let it through",
    "local": "this machine has no descriptor or port left: make fewer calls at once or raise its limits",
}

# OpenSSL's words for bytes that are no TLS at all, over its versions.
_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL")

# What httpcore and h11 say of an answer that ends before it is whole.
_ASKS_WHO: Final = ("407", "auth", "password")
_CUT: Final = ("disconnected", "peer closed", "incomplete")


def fault_of(problem: WireProblem, request: WireRequest, limits: Timeouts, *, begun: bool = False) -> LLMError:
    """Tell what an exception means; ``begun`` says that some of the answer's body had come.

    >>> request = WireRequest(url="http://localhost:1/v1", headers=(), body=b"")
    >>> fault = fault_of(httpx.ConnectTimeout(""), request, Timeouts(connect_s=2))
    >>> fault.tag, fault.phase, fault.timeout_ms
    ('TimeoutError', 'connect', 2000)
    """
    cause = cause_of(problem, *secret_values(request.headers))
    match problem:
        case httpx.TimeoutException():
            return _timeout(problem, limits, begun, cause)
        case httpx.InvalidURL() | httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | UnicodeError():
            return ConfigurationError(message=f"this request cannot be sent: {cause.message}", cause=cause)
        case httpx.ProxyError():
            return _turned_back(request, cause)
        case httpx.RemoteProtocolError():
            return network_error(_garbled(cause), request, cause)
        case _:
            return _broken(problem, request, cause)


def network_error(phase: NetworkPhase, request: WireRequest, cause: Cause | None = None) -> NetworkError:
    """Say in plain words what broke, naming the server but not the path or the query."""
    origin = re.split(r"(?<=[^:/])[/?#]", request.url, maxsplit=1)[0]
    return NetworkError(message=_WORDS[phase].format(origin=origin), phase=phase, cause=cause)


def _turned_back(request: WireRequest, cause: Cause) -> LLMError:
    if any(word in cause.message.lower() for word in _ASKS_WHO):
        message = "a proxy on the way requires a user name and a password: configure them, or bypass the proxy"
        return ConfigurationError(message=message, cause=cause)
    return network_error("intermediary", request, cause)


def _garbled(cause: Cause) -> NetworkPhase:
    return "reset" if any(words in cause.message for words in _CUT) else "protocol"


def _timeout(problem: httpx.TimeoutException, limits: Timeouts, begun: bool, cause: Cause) -> LLMError:
    read: TimeoutPhase = "between_content" if begun else "first_content"
    known: dict[type[httpx.TimeoutException], tuple[TimeoutPhase, float | None]] = {
        httpx.ConnectTimeout: ("connect", limits.connect_s),
        httpx.WriteTimeout: ("send", limits.send_s),
        httpx.PoolTimeout: ("queue", None),
    }
    phase, seconds = known.get(type(problem), (read, limits.read_s))
    return RequestTimeout(phase=phase, timeout_ms=None if seconds is None else seconds * 1000, cause=cause)


def _broken(problem: WireProblem, request: WireRequest, cause: Cause) -> LLMError:
    roots = tuple(_roots(problem))
    connecting = isinstance(problem, httpx.ConnectError)
    tls = next((root for root in roots if isinstance(root, ssl.SSLError) and not _cut_off(root)), None)
    if tls is not None:
        return _tls_refused(tls, cause) if connecting else network_error("protocol", request, cause)
    if any(isinstance(root, OSError) and root.errno in _LOCAL for root in roots):
        return network_error("local", request, cause)
    return network_error(_told(roots) or ("connect" if connecting else "reset"), request, cause)


def _told(roots: tuple[BaseException, ...]) -> NetworkPhase | None:
    for kind, phase in _PHASES:
        if any(isinstance(root, kind) for root in roots):
            return phase
    return None


def _tls_refused(problem: ssl.SSLError, cause: Cause) -> ConfigurationError:
    """TLS that cannot work is a matter of set-up: trying again would not help, and it is never weakened."""
    if any(word in str(problem) for word in _NOT_TLS):
        remedy = "the server does not speak TLS there: use its TLS port, or http:// if it is on this machine"
    else:
        remedy = "check the endpoint's name and certificate, and SSL_CERT_FILE for an authority of your own"
    return ConfigurationError(message=f"no secure connection: {remedy}", cause=cause)


def _cut_off(problem: ssl.SSLError) -> bool:
    return isinstance(problem, ssl.SSLEOFError | ssl.SSLZeroReturnError) or "EOF" in str(problem)


def _roots(problem: BaseException) -> Iterator[BaseException]:
    """Give an exception and all that it came from, also out of groups."""
    yield problem
    if isinstance(problem, ExceptionGroup):
        for each in cast("ExceptionGroup[Exception]", problem).exceptions:
            yield from _roots(each)
    below = problem.__cause__ or problem.__context__
    if below is not None:
        yield from _roots(below)
