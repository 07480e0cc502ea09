"""A parser of event streams: bytes go in as they arrive, events come out; no I/O.

It follows the HTML standard (https://html.spec.whatwg.org/multipage/server-sent-events.html), with one exception: an
event cut off by the end of the stream is returned too, because some servers omit the last blank line.
"""

from typing import Final, final

from attrs import define, field, frozen, setters

from llm_effects.values import caps
from llm_effects.values.display import shown
from llm_effects.values.errors import MalformedResponse
from llm_effects.values.validation import number

_BOM: Final = b"\xef\xbb\xbf"
_CR: Final = ord("\r")


@final
@frozen
class ServerEvent:
    """One event of an event stream: its name (``message`` by default) and its data."""

    __repr__ = shown

    name: str
    data: str


@final
@define(eq=False, repr=False, on_setattr=setters.NO_OP)  # otherwise every assignment runs the validators
class EventParser:
    r"""An incremental parser of one event stream; the boundaries of the chunks do not matter.

    ``limit`` bounds, in bytes, each line and the data lines of each event. ``fault`` is the reason why the stream
    cannot be parsed further (too large, or not UTF-8), else ``None``: check it after each ``feed``. The events before
    a fault are returned, none after it.

    >>> parser = EventParser()
    >>> parser.feed(b'data: {"a"')
    []
    >>> parser.feed(b":1}\n\nevent: end\n")
    [ServerEvent(name='message', data='{"a":1}')]
    >>> parser.feed(b"data: half a li")
    []
    >>> parser.finish()
    [ServerEvent(name='end', data='half a li')]
    >>> parser.feed(b"data: \xff\n\n"), parser.fault.message
    ([], 'the event stream is not UTF-8')
    """

    limit: int = field(default=caps.EVENT_BYTES, validator=number(at_least=1, whole=True))
    fault: MalformedResponse | None = field(default=None, init=False)
    _begun: bool = field(default=False, init=False)
    _after_cr: bool = field(default=False, init=False)
    _line: bytearray = field(factory=bytearray, init=False)
    _name: bytes = field(default=b"", init=False)
    _data: list[bytes] = field(factory=list[bytes], init=False)
    _size: int = field(default=0, init=False)

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """Parse the next bytes and return the events that they complete."""
        if self.fault is not None or not chunk:
            return []
        if _CR in chunk or self._after_cr:
            chunk = self._normalize_line_ends(chunk)
        lines = chunk.split(b"\n")
        if self._line or not self._begun:
            self._prepend_stored(lines)
        if rest := lines.pop():
            self._store(rest)
        events = self._parse(lines)
        if len(self._line) > self.limit or self._size > self.limit:
            self._too_large()
        return events

    def finish(self) -> list[ServerEvent]:
        """End the stream and return the event that was cut off, if any."""
        return self.feed(b"\n\n")

    def _normalize_line_ends(self, chunk: bytes) -> bytes:
        """Replace every line end by LF. A CR ends its line at once, so a LF right after it does not end another."""
        rest = chunk[1:] if self._after_cr and chunk.startswith(b"\n") else chunk
        self._after_cr = chunk.endswith(b"\r")
        return rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _store(self, piece: bytes) -> None:
        """Store a piece of a line, but no more than shows that the line is too long."""
        self._line += piece[: self.limit + 1]

    def _prepend_stored(self, lines: list[bytes]) -> None:
        """Prepend the stored piece to the first of these lines, the last of which is not complete yet."""
        self._store(lines[0])
        lines[0] = b""
        if len(lines) > 1:
            line = bytes(self._line)
            lines[0] = line if self._begun else self._strip_bom(line)
            self._line.clear()

    def _strip_bom(self, line: bytes) -> bytes:
        """Remove a byte order mark from the very first line, unless the line is too long."""
        self._begun = True
        return line if len(line) > self.limit else line.removeprefix(_BOM)

    def _parse(self, lines: list[bytes]) -> list[ServerEvent]:
        """Parse complete lines up to the first fault."""
        events: list[ServerEvent] = []
        for line in lines:
            if line[:6] == b"data: ":  # the case of nearly all lines
                self._data.append(line[6:])
                self._size += len(line)
            elif not (self._field(line) if line else self._end(events)):
                break
        return events

    def _field(self, line: bytes) -> bool:
        """Parse a line that is not blank; without a colon it is all name, and a comment has no name."""
        if len(line) > self.limit:
            return self._too_large()
        name, _, spaced = line.partition(b":")
        value = spaced.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(line)
        elif name == b"event":
            self._name = value
        return True

    def _end(self, events: list[ServerEvent]) -> bool:
        """Handle a blank line, which ends an event if it has data, even empty data."""
        if self._size > self.limit:
            return self._too_large()
        try:
            if self._data:
                events.append(ServerEvent(self._name.decode() or "message", b"\n".join(self._data).decode()))
        except UnicodeDecodeError:
            return self._fail("the event stream is not UTF-8")
        self._name, self._data, self._size = b"", [], 0
        return True

    def _too_large(self) -> bool:
        return self._fail(f"an event of the stream is larger than {self.limit} bytes")

    def _fail(self, reason: str) -> bool:
        self.fault = MalformedResponse(message=reason)
        self._line, self._data, self._size = bytearray(), [], 0
        return False
