"""What the transport asks of an HTTP library: to carry checked requests over the connections of an event loop.

The library is imported when its first connections open: each takes some tenths of a second.
"""

import os
import re
import ssl
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib import import_module
from typing import Any, Final, Protocol, final

import certifi
from attrs import define, frozen
from returns.result import Failure, Result, Success

from llm_effects.effects.tasks import OnSent
from llm_effects.providers.wire import Timeouts, WireRequest
from llm_effects.values.errors import ConfigurationError, LLMError, cause_of

IDLE_S: Final = 30.0
"""Seconds that an unused connection is kept."""


@final
@frozen
class Address:
    """A checked URL in its normal form: the origin is what connections are shared by, the target what is asked for.

    >>> address_of("http://localhost:1234/v1/models").unwrap()
    Address(scheme='http', netloc='localhost:1234', target=b'/v1/models')
    >>> address_of("http://LOCALHOST:80/some path").unwrap()
    Address(scheme='http', netloc='localhost', target=b'/some%20path')
    """

    scheme: str
    netloc: str
    target: bytes

    @property
    def origin(self) -> str:
        """The scheme, host and port."""
        return f"{self.scheme}://{self.netloc}"


_NORMAL: Final = re.compile(
    r"(https?)://"
    r"((?:[a-z][a-z0-9.-]*|127\.0\.0\.1)(?::(?!80/|443/)(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}))?)"
    r"((?:/(?!\.)[\w~:@$*+,;=.-]*)+(?:\?[\w~&=.-]+)?)",
    re.ASCII,
)
"""URLs that any parser leaves as they are: only others need the one of httpx, whose import takes 25 ms."""


@lru_cache(maxsize=256)
def address_of(url: str) -> Result[Address, LLMError]:
    """Parse and check a URL; parsing is slow, so results are cached."""
    normal = _NORMAL.fullmatch(url)
    if normal is not None:
        return Success(Address(normal[1], normal[2], normal[3].encode()))
    return _parse(url)


def _parse(text: str) -> Result[Address, LLMError]:
    import_httpx()
    import httpx

    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as problem:
        return Failure(ConfigurationError(message="the endpoint is not a URL: copy it again", cause=cause_of(problem)))
    if url.scheme not in {"http", "https"} or not url.host:
        return Failure(ConfigurationError(message="the endpoint must be like https://host/v1"))
    if url.userinfo:
        return Failure(ConfigurationError(message="the endpoint must not hold a password: use api_key or headers"))
    return Success(Address(url.scheme, url.netloc.decode("ascii"), url.raw_path))


@final
@define(eq=False, repr=False)
class Outgoing:
    """A request that has been checked, with its secrets revealed."""

    method: str
    address: Address
    headers: list[tuple[bytes, bytes]]
    wire: WireRequest
    limits: Timeouts


class Incoming(Protocol):
    """A response whose head has arrived."""

    @property
    def status(self) -> int:
        """The status code."""
        ...

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """The header lines as they came."""
        ...

    async def read(self) -> bytes | LLMError | None:
        """Wait for more of the body, and return it, ``None`` at its end, or the error that broke it."""
        ...

    async def aclose(self) -> None:
        """Keep the connection if the body was read to its end; otherwise close it, even when cancelled."""
        ...


class Limiter(Protocol):
    """A queue for a limited number of calls, which have numbered slots."""

    async def acquire(self) -> int:
        """Wait for a slot and return its number; release it once."""
        ...

    def release(self, slot: int) -> None:
        """Pass a slot on."""
        ...


class Connections(Protocol):
    """The connections of one event loop; ``users`` counts the calls and scopes that hold them."""

    users: int

    async def send(self, request: Outgoing, admitted: OnSent) -> Incoming:
        """Wait for a turn, call ``admitted``, send, and wait for the head of the response, or raise its fault."""
        ...

    async def aclose(self) -> None:
        """Close the idle connections now; the others close after their use."""
        ...


@cache
def trusted() -> ssl.SSLContext:
    """Load the trusted certificates once, at the first https: loading takes as long as many calls."""
    file, folder = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    if file:
        return ssl.create_default_context(cafile=file)
    if folder:
        return ssl.create_default_context(capath=folder)
    return ssl.create_default_context(cafile=certifi.where())


def import_httpx() -> None:
    """Import httpx without its command line, whose click, rich and pygments take 38 of 104 ms."""
    modules: dict[str, Any] = sys.modules
    if "httpx" not in modules:
        modules["httpx._main"] = None  # as if they were not installed, which httpx allows for
        import_module("httpx")
        del modules["httpx._main"]
