"""Response bodies, decompressed in small steps and never beyond a cap."""

import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, Protocol, final

import anyio
import httpx
from attrs import define, field
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.clients.transport.faults import WIRE_PROBLEMS, ToError, TransportFault
from llm_effects.providers.wire import CLOSING_S
from llm_effects.values.errors import LLMError, MalformedResponse, NetworkError, cause_of

STEP: Final = 64 * 1024
"""Bytes decompressed at once: the most memory that a hostile body can cost beyond the cap."""

# More chunks than any connection reads ahead; only a stream that ignores its own close has more.
_BUFFERED: Final = 20_000


class _Decompressor(Protocol):
    """The interface of ``zlib.decompressobj()``, whose class has no public name."""

    @property
    def eof(self) -> bool: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _gzip(_: int) -> _Decompressor:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def _deflate(first: int) -> _Decompressor:
    """Decompress zlib data, or the bare stream that some servers send; the first byte shows which."""
    return zlib.decompressobj(zlib.MAX_WBITS if first & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS)


_DECOMPRESSORS: Final[dict[str, Callable[[int], _Decompressor]]] = {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate}


@final
@define(eq=False)
class Decoder:
    """An incremental decoder of one ``content-encoding``.

    It raises ``TransportFault`` after ``cap`` decoded bytes, and for broken data.

    >>> import gzip
    >>> b"".join(Decoder("gzip", 100).decode(gzip.compress(b"hello")))
    b'hello'
    """

    encoding: str
    cap: int
    _decompressor: _Decompressor | None = field(default=None, init=False)
    _total: int = field(default=0, init=False)

    def decode(self, chunk: bytes) -> Iterator[bytes]:
        """Decode one chunk into non-empty pieces."""
        for piece in (chunk,) if self.encoding in ("", "identity") else self._decompress(chunk):
            self._total += len(piece)
            if self._total > self.cap:
                raise TransportFault(MalformedResponse(message=f"the answer is larger than {self.cap} bytes"))
            if piece:
                yield piece

    def finish(self) -> LLMError | None:
        """Return an error if the compressed data ended too early."""
        if self._decompressor is None or self._decompressor.eof:
            return None
        return NetworkError(message="the compressed answer ends too early", phase="protocol")

    def _decompress(self, data: bytes) -> Iterator[bytes]:
        full = False
        while data or full:
            if self._decompressor is None or self._decompressor.eof:  # a body may hold several streams in a row
                self._decompressor = self._new_decompressor(data[0])
            step = _decompress_step(self._decompressor, data)
            if not is_successful(step):
                raise TransportFault(step.failure())
            yield step.unwrap()
            full = len(step.unwrap()) == STEP and not self._decompressor.eof
            data = self._decompressor.unconsumed_tail or self._decompressor.unused_data

    def _new_decompressor(self, first: int) -> _Decompressor:
        if self.encoding not in _DECOMPRESSORS:
            problem = f"the answer has the content-encoding {self.encoding[:40]!r}, which was not asked for"
            raise TransportFault(MalformedResponse(message=problem))
        return _DECOMPRESSORS[self.encoding](first)


def _decompress_step(decompressor: _Decompressor, data: bytes) -> Result[bytes, LLMError]:
    try:
        return Success(decompressor.decompress(data, STEP))
    except zlib.error as problem:
        broken = NetworkError(message="the compressed answer is broken", phase="protocol", cause=cause_of(problem))
        return Failure(broken)


@final
@define(eq=False, repr=False)
class Body:
    """The decoded pieces of one response body, as they arrive.

    It is not a generator, so a reader can stop anywhere: ``aclose`` closes a half-read body.
    """

    _stream: httpx.AsyncByteStream
    _decoder: Decoder
    _to_error: ToError
    _chunks: AsyncIterator[bytes] = field(init=False)
    _pieces: Iterator[bytes] = field(factory=lambda: iter(()), init=False)
    _started: bool = field(default=False, init=False)
    _suspended: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._chunks = aiter(self._stream)

    def __aiter__(self) -> "Body":
        return self

    async def __anext__(self) -> bytes:
        while (piece := next(self._pieces, None)) is None:
            self._pieces = self._decoder.decode(await self._next_chunk())
        return piece

    async def aclose(self) -> None:
        """Keep the connection if the body was read to its end; otherwise close it, even when cancelled."""
        with anyio.move_on_after(CLOSING_S, shield=True):
            await self._stream.aclose()
        if self._suspended:
            await _exhaust(self._chunks)

    async def _next_chunk(self) -> bytes:
        self._suspended = False
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            fault = self._decoder.finish()
        except WIRE_PROBLEMS as problem:
            fault = self._to_error(problem, self._started)
        else:
            self._suspended = self._started = True
            return chunk
        # Outside of the handlers: the wire's exception holds the request with its key, and must not become the context.
        if fault is not None:
            raise TransportFault(fault)
        raise StopAsyncIteration


async def _exhaust(chunks: AsyncIterator[bytes]) -> None:
    """Run the generators below to their end in a cancelled scope; trio warns about unfinished ones.

    The stream is closed, so they can only yield what was already received.
    """
    with anyio.CancelScope(shield=True) as scope:
        scope.cancel()
        for _ in range(_BUFFERED):
            try:
                await anext(chunks)
            except (StopAsyncIteration, *WIRE_PROBLEMS):
                return
