"""A parser of event streams: bytes go in as they arrive, events come out; no I/O.

It follows the HTML standard (https://html.spec.whatwg.org/multipage/server-sent-events.html), with one exception: an
event cut off by the end of the stream is returned too, because some servers omit the last blank line.
"""

from typing import Final, final

import msgspec
from attrs import define, field, setters

from llm_effects.values import caps
from llm_effects.values.errors import MalformedResponse
from llm_effects.values.validation import number

_BOM: Final = b"\xef\xbb\xbf"
_CR: Final = ord("\r")
_END: Final = b"\n\n"
_NOT_UTF8: Final = "the event stream is not UTF-8"


@final
class ServerEvent(msgspec.Struct, frozen=True, gc=False):
    """One event of an event stream: its name (``message`` by default) and its data.

    A struct takes 0.06 microseconds, where a frozen class of attrs takes 0.3.
    """

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
        events: list[ServerEvent] = []
        if self.fault is not None or not chunk:
            return events
        if _CR in chunk or self._after_cr:
            chunk = self._normalize_line_ends(chunk)
        # What begins and ends inside of the chunk is parsed event by event, the rest line by line.
        fits = len(chunk) <= self.limit
        start = chunk.find(_END) + 2 if fits and (self._is_inside() or not self._begun) else 0
        end = chunk.rfind(_END, start) if fits else -1
        if start == 1 or end < 0:
            self._parse(chunk, events)
        elif (start == 0 or self._parse(chunk[:start], events)) and self._parse_whole(chunk[start:end], events):
            self._parse(chunk[end + 2 :], events)
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

    def _is_inside(self) -> bool:
        """Return whether a part of an event is stored."""
        return bool(self._line or self._data or self._name)

    def _parse_whole(self, text: bytes, events: list[ServerEvent]) -> bool:
        """Parse whole events: nearly all are one line of data, or a name and one; others are parsed line by line.

        That takes less than half of the time. Half of the gain is from decoding the bytes of all events at once.
        """
        try:
            blocks = text.decode().split("\n\n")
        except UnicodeDecodeError:  # which event it is shows line by line
            return self._parse(text + _END, events)
        for block in blocks:
            name, data = block[7:].split("\n", 1) if block[:7] == "event: " and "\n" in block else ("", block)
            if data[:6] == "data: " and "\n" not in data:
                events.append(ServerEvent(name or "message", data[6:]))
            elif not self._parse(block.encode() + _END, events):
                return False
        return True

    def _parse(self, chunk: bytes, events: list[ServerEvent]) -> bool:
        """Parse some bytes line by line, up to the first fault, and store the line that they do not complete."""
        lines = chunk.split(b"\n")
        if self._line or not self._begun:
            self._prepend_stored(lines)
        if rest := lines.pop():
            self._store(rest)
        for line in lines:
            if line[:6] == b"data: ":  # the case of nearly all lines
                self._data.append(line[6:])
                self._size += len(line)
            elif not (self._field(line) if line else self._end(events)):
                return False
        return self._too_large() if len(self._line) > self.limit or self._size > self.limit else True

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
            return self._fail(_NOT_UTF8)
        self._name, self._data, self._size = b"", [], 0
        return True

    def _too_large(self) -> bool:
        return self._fail(f"an event of the stream is larger than {self.limit} bytes")

    def _fail(self, reason: str) -> bool:
        self.fault = MalformedResponse(message=reason)
        self._line, self._data, self._size = bytearray(), [], 0
        return False
