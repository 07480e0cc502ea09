"""Bodies as they come in: read and decompressed a little at a time, and never more than a cap."""

import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Final, Protocol, final

import anyio
import httpx
from attrs import define, field
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.clients.transport.faults import WIRE_PROBLEMS, TransportFault, WireProblem
from llm_effects.providers.wire import CLOSING_S
from llm_effects.values.errors import LLMError, MalformedResponse, NetworkError, cause_of

STEP: Final = 64 * 1024
"""How much is decompressed at once, in bytes: what a hostile body can cost beyond the cap."""

# More pieces than any connection has read ahead; only a stream that ignores its closing has more.
_BUFFERED: Final = 20_000


class _Inflate(Protocol):
    """What ``zlib.decompressobj`` makes: its class has no public name."""

    @property
    def eof(self) -> bool: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _gzip(_: int) -> _Inflate:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def _deflate(first: int) -> _Inflate:
    """Take the wrapper for what it should be; some servers send the bare stream, known by its first byte."""
    return zlib.decompressobj(zlib.MAX_WBITS if first & 0x0F == zlib.DEFLATED else -zlib.MAX_WBITS)


_ENGINES: Final[dict[str, Callable[[int], _Inflate]]] = {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate}


@final
@define(eq=False)
class Decoder:
    """Turns what was transferred into what was meant: ``encoding`` is the ``content-encoding``.

    At most ``cap`` decoded bytes come out; then, and where the bytes are broken, it raises ``TransportFault``.

    >>> import gzip
    >>> b"".join(Decoder("gzip", 100).pieces(gzip.compress(b"hello")))
    b'hello'
    """

    encoding: str
    cap: int
    _inflate: _Inflate | None = field(default=None, init=False)
    _total: int = field(default=0, init=False)

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        """Decode one chunk; nothing empty comes out."""
        for piece in (chunk,) if self.encoding in ("", "identity") else self._steps(chunk):
            self._total += len(piece)
            if self._total > self.cap:
                raise TransportFault(MalformedResponse(message=f"the answer is larger than {self.cap} bytes"))
            if piece:
                yield piece

    def unfinished(self) -> LLMError | None:
        """Tell what is missing when no more chunks come."""
        if self._inflate is None or self._inflate.eof:
            return None
        return NetworkError(message="the compressed answer ends too early", phase="protocol")

    def _steps(self, data: bytes) -> Iterator[bytes]:
        full = False
        while data or full:
            if self._inflate is None or self._inflate.eof:  # several streams may stand one after the other
                self._inflate = self._engine(data[0])
            step = _inflated(self._inflate, data)
            if not is_successful(step):
                raise TransportFault(step.failure())
            yield step.unwrap()
            full = len(step.unwrap()) == STEP and not self._inflate.eof
            data = self._inflate.unconsumed_tail or self._inflate.unused_data

    def _engine(self, first: int) -> _Inflate:
        if self.encoding not in _ENGINES:
            problem = f"the answer has the content-encoding {self.encoding[:40]!r}, which was not asked for"
            raise TransportFault(MalformedResponse(message=problem))
        return _ENGINES[self.encoding](first)


def _inflated(inflate: _Inflate, data: bytes) -> Result[bytes, LLMError]:
    try:
        return Success(inflate.decompress(data, STEP))
    except zlib.error as problem:
        broken = NetworkError(message="the compressed answer is broken", phase="protocol", cause=cause_of(problem))
        return Failure(broken)


@final
@define(eq=False, repr=False)
class Body:
    """The decoded pieces of one answer, each as it comes.

    It is no generator, so that a reader may leave it anywhere: what is half-read is closed by ``aclose``.
    ``explain`` makes the error of an exception and whether anything had come.
    """

    _stream: httpx.AsyncByteStream
    _decoder: Decoder
    _explain: Callable[[WireProblem, bool], LLMError]
    _chunks: AsyncIterator[bytes] = field(init=False)
    _pieces: Iterator[bytes] = field(factory=lambda: iter(()), init=False)
    _begun: bool = field(default=False, init=False)
    _suspended: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._chunks = aiter(self._stream)

    def __aiter__(self) -> "Body":
        return self

    async def __anext__(self) -> bytes:
        while (piece := next(self._pieces, None)) is None:
            self._pieces = self._decoder.pieces(await self._chunk())
        return piece

    async def aclose(self) -> None:
        """Give the connection back if everything was read; otherwise close it at once, whatever is cancelled."""
        with anyio.move_on_after(CLOSING_S, shield=True):
            await self._stream.aclose()
        if self._suspended:
            await _unwound(self._chunks)

    async def _chunk(self) -> bytes:
        self._suspended = False
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            fault = self._decoder.unfinished()
        except WIRE_PROBLEMS as problem:
            fault = self._explain(problem, self._begun)
        else:
            self._suspended = self._begun = True
            return chunk
        # Out here, so that no exception of the wire is the context of this one: they hold the request with its key.
        if fault is not None:
            raise TransportFault(fault)
        raise StopAsyncIteration


async def _unwound(chunks: AsyncIterator[bytes]) -> None:
    """Bring the generators below to their end, by a cancellation of their own: else trio warns of each left over.

    The stream is closed, so that all they can still give is what had been received.
    """
    with anyio.CancelScope(shield=True) as scope:
        scope.cancel()
        for _ in range(_BUFFERED):
            try:
                await anext(chunks)
            except (StopAsyncIteration, *WIRE_PROBLEMS):
                return
