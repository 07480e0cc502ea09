"""From a ``WireRequest`` to httpx's request: the one place where secrets are revealed."""

import functools
import re
from collections.abc import AsyncIterator
from typing import Final, Literal, TypeAlias, final

import httpx
from attrs import define
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.errors import ConfigurationError, LLMError
from llm_effects.exceptions import cause_of
from llm_effects.secrets import Secret
from llm_effects.wire import Timeouts, WireRequest

Method: TypeAlias = Literal["GET", "POST"]
"""What is done at a URL."""

Headers: TypeAlias = list[tuple[bytes, bytes]]
"""Header lines as they are sent."""

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"(?:[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)?")


def outgoing(method: Method, wire: WireRequest, limits: Timeouts) -> Result[httpx.Request, LLMError]:
    """Make the request that a pool takes; a URL or a header that cannot be sent is a ``ConfigurationError``.

    >>> wire = WireRequest(url="https://api.openai.com/v1", headers=(("authorization", Secret("Bearer sk")),), body=b"")
    >>> outgoing("GET", wire, Timeouts()).unwrap().headers["host"]
    'api.openai.com'
    """
    url = _url(wire.url)
    if not is_successful(url):
        return Failure(url.failure())
    waits = {"connect": limits.connect_s, "read": limits.read_s, "write": limits.send_s, "pool": None}
    return _headers(method, wire, url.unwrap()).map(
        lambda headers: httpx.Request(
            method, url.unwrap(), headers=headers, stream=_Whole(wire.body), extensions={"timeout": waits}
        )
    )


@functools.lru_cache(maxsize=256)
def _url(text: str) -> Result[httpx.URL, LLMError]:
    """Parse a URL, which takes long, once."""
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, UnicodeError) as problem:
        return Failure(ConfigurationError(message="the endpoint is no URL: copy it again", cause=cause_of(problem)))
    if url.scheme not in {"http", "https"} or not url.host:
        return Failure(ConfigurationError(message="the endpoint must be like https://host/v1"))
    if url.userinfo:
        return Failure(ConfigurationError(message="the endpoint must not hold a password: use api_key or headers"))
    return Success(url)


def _headers(method: Method, wire: WireRequest, url: httpx.URL) -> Result[Headers, LLMError]:
    """Reveal the caller's headers and add those that are missing."""
    given = [(name, value.reveal() if isinstance(value, Secret) else value) for name, value in wire.headers]
    for name, value in given:
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            problem = f"the header {name[:40]!r} holds a character that no header may hold, such as the end of a line"
            return Failure(ConfigurationError(message=problem))
    names = {name.lower() for name, _ in given}
    own = [header for header in _own(method, wire, url) if header[0] not in names]
    return Success([(name.encode("ascii"), value.encode("ascii")) for name, value in (*own, *given)])


def _own(method: Method, wire: WireRequest, url: httpx.URL) -> tuple[tuple[str, str], ...]:
    length = () if method == "GET" else (("content-length", str(len(wire.body))),)
    return (
        ("host", url.netloc.decode("ascii")),
        ("accept", "*/*"),
        ("accept-encoding", "gzip"),
        ("user-agent", "llm-effects"),
        *length,
    )


@final
class _Whole(httpx.ByteStream):
    """A body in one piece; httpx's own is read by a generator, which a cancelled call leaves for the collector."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._body)


@final
@define(eq=False, repr=False)
class _Once(AsyncIterator[bytes]):
    _body: bytes | None

    async def __anext__(self) -> bytes:
        if self._body is None:
            raise StopAsyncIteration
        body, self._body = self._body, None
        return body
