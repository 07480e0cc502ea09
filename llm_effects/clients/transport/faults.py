"""The fault that the transport raises, and the mapping from exceptions of sockets and TLS to error values."""

import errno
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Final, cast, final

from llm_effects.providers.wire import WireRequest
from llm_effects.values.errors import (
    Cause,
    ConfigurationError,
    LLMError,
    NetworkError,
    NetworkPhase,
)


@final
class TransportFault(Exception):  # noqa: N818 - it carries an error value
    """The only exception that the transport raises; callers turn its ``error`` into a ``Failure``."""

    def __init__(self, error: LLMError) -> None:
        super().__init__(error)
        self.error = error


# Root causes of a broken connection, the most specific first.
_PHASES: Final[tuple[tuple[type[BaseException], NetworkPhase], ...]] = (
    (socket.gaierror, "dns"),
    (ConnectionRefusedError, "refused"),
    (ConnectionResetError, "reset"),
    (BrokenPipeError, "reset"),
)

_LOCAL: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})

_MESSAGES: Final[dict[NetworkPhase, str]] = {
    "dns": "{origin} has no address: check the host name",
    "connect": "{origin} cannot be reached",
    "refused": "{origin} refused the connection: is the server running?",
    "reset": "the connection to {origin} broke before the answer was whole",
    "protocol": "{origin} did not answer in proper HTTP",
    "intermediary": "the proxy on the way to {origin} rejected the request",
    "local": "this machine has no descriptor or port left: make fewer calls at once or raise its limits",
}

# What the versions of OpenSSL call bytes that are not TLS.
_NOT_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNKNOWN_PROTOCOL")


def network_error(phase: NetworkPhase, request: WireRequest, cause: Cause | None = None) -> NetworkError:
    """Build a ``NetworkError`` that names the server, but neither the path nor the query."""
    origin = re.split(r"(?<=[^:/])[/?#]", request.url, maxsplit=1)[0]
    return NetworkError(message=_MESSAGES[phase].format(origin=origin), phase=phase, cause=cause)


def proxy_error(request: WireRequest, cause: Cause, *, needs_password: bool) -> LLMError:
    """Build the error for a proxy that rejects a request: a missing password is a matter of configuration."""
    if needs_password:
        message = "a proxy on the way requires a user name and a password: configure them, or bypass the proxy"
        return ConfigurationError(message=message, cause=cause)
    return network_error("intermediary", request, cause)


def connection_error(problem: BaseException, request: WireRequest, cause: Cause, *, connecting: bool) -> LLMError:
    """Build the error for a connection that cannot be made or breaks, by the causes of an exception."""
    roots = tuple(_roots(problem))
    tls = next((root for root in roots if isinstance(root, ssl.SSLError) and not _is_eof(root)), None)
    if tls is not None:
        return _tls_error(tls, cause) if connecting else network_error("protocol", request, cause)
    if any(isinstance(root, OSError) and root.errno in _LOCAL for root in roots):
        return network_error("local", request, cause)
    return network_error(_phase_of(roots) or ("connect" if connecting else "reset"), request, cause)


def _phase_of(roots: tuple[BaseException, ...]) -> NetworkPhase | None:
    for kind, phase in _PHASES:
        if any(isinstance(root, kind) for root in roots):
            return phase
    return None


def _tls_error(problem: ssl.SSLError, cause: Cause) -> ConfigurationError:
    """Build the error for TLS that cannot work: a matter of configuration, which a retry does not fix."""
    if any(word in str(problem) for word in _NOT_TLS):
        remedy = "the server does not speak TLS there: use its TLS port, or http:// if it is on this machine"
    else:
        remedy = (
            "check the host name and certificate of the endpoint; for your own certificate authority set SSL_CERT_FILE"
        )
    return ConfigurationError(message=f"no secure connection: {remedy}", cause=cause)


def _is_eof(problem: ssl.SSLError) -> bool:
    return isinstance(problem, ssl.SSLEOFError | ssl.SSLZeroReturnError) or "EOF" in str(problem)


def _roots(problem: BaseException) -> Iterator[BaseException]:
    """Yield an exception, its causes and contexts, and the members of groups."""
    yield problem
    if isinstance(problem, ExceptionGroup):
        for each in cast("ExceptionGroup[Exception]", problem).exceptions:
            yield from _roots(each)
    below = problem.__cause__ or problem.__context__
    if below is not None:
        yield from _roots(below)
