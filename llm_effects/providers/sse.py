"""Event streams: bytes go in as they come, events come out; nothing here does any I/O.

The rules are those of the HTML standard (https://html.spec.whatwg.org/multipage/server-sent-events.html), but that
an event cut off by the end of the stream is given too: servers leave out the last blank line.
"""

from typing import Final, final

from attrs import define, field, frozen, setters

from llm_effects.values.errors import MalformedResponse
from llm_effects.values.validation import number

_BOM: Final = b"\xef\xbb\xbf"
_CR: Final = ord("\r")


@final
@frozen
class ServerEvent:
    """One event of an event stream: its name (``message`` by default) and its data."""

    name: str
    data: str


@final
@define(eq=False, repr=False, on_setattr=setters.NO_OP)  # else every assignment runs the validators
class EventParser:
    r"""Reads one event stream; how its bytes are cut into chunks makes no difference to what comes out.

    ``limit`` bounds, in bytes, each line and the data lines of each event. ``fault`` is why the stream cannot be read
    any further (too large, or not UTF-8), else ``None``: look at it after each ``feed``. The events before the fault
    are given, nothing after it.

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

    limit: int = field(default=1024 * 1024, validator=number(at_least=1, whole=True))
    fault: MalformedResponse | None = field(default=None, init=False)
    _begun: bool = field(default=False, init=False)
    _after_cr: bool = field(default=False, init=False)
    _line: bytearray = field(factory=bytearray, init=False)
    _name: bytes = field(default=b"", init=False)
    _data: list[bytes] = field(factory=list[bytes], init=False)
    _size: int = field(default=0, init=False)

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """Take the next bytes and give the events that they complete."""
        if self.fault is not None or not chunk:
            return []
        if _CR in chunk or self._after_cr:
            chunk = self._with_lf_only(chunk)
        lines = chunk.split(b"\n")
        if self._line or not self._begun:
            self._complete(lines)
        if rest := lines.pop():
            self._keep(rest)
        events = self._read(lines)
        if len(self._line) > self.limit or self._size > self.limit:
            self._too_large()
        return events

    def finish(self) -> list[ServerEvent]:
        """Tell that no more bytes come, and give the event that was cut off, if any."""
        return self.feed(b"\n\n")

    def _with_lf_only(self, chunk: bytes) -> bytes:
        """Make every line end a LF. A CR ends its line at once, so the LF that may follow it is no second end."""
        rest = chunk[1:] if self._after_cr and chunk.startswith(b"\n") else chunk
        self._after_cr = chunk.endswith(b"\r")
        return rest.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _keep(self, piece: bytes) -> None:
        """Keep a piece of a line, but of an endless one no more than shows that it is too long."""
        self._line += piece[: self.limit + 1]

    def _complete(self, lines: list[bytes]) -> None:
        """Put what was kept before the first of these lines, the last of which is not complete yet."""
        self._keep(lines[0])
        lines[0] = b""
        if len(lines) > 1:
            line = bytes(self._line)
            lines[0] = line if self._begun else self._first(line)
            self._line.clear()

    def _first(self, line: bytes) -> bytes:
        """Drop the mark that may stand before the very first line; a line too long stays too long."""
        self._begun = True
        return line if len(line) > self.limit else line.removeprefix(_BOM)

    def _read(self, lines: list[bytes]) -> list[ServerEvent]:
        """Read complete lines, until one of them is a fault."""
        events: list[ServerEvent] = []
        for line in lines:
            if line[:6] == b"data: ":  # nearly all lines
                self._data.append(line[6:])
                self._size += len(line)
            elif not (self._field(line) if line else self._end(events)):
                break
        return events

    def _field(self, line: bytes) -> bool:
        """Take any line that is not blank; without a colon it is all name, and a comment has no name."""
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
        """Take a blank line, which ends an event if there is data, be it empty."""
        if self._size > self.limit:
            return self._too_large()
        try:
            if self._data:
                events.append(ServerEvent(self._name.decode() or "message", b"\n".join(self._data).decode()))
        except UnicodeDecodeError:
            return self._break("the event stream is not UTF-8")
        self._name, self._data, self._size = b"", [], 0
        return True

    def _too_large(self) -> bool:
        return self._break(f"an event of the stream is larger than {self.limit} bytes")

    def _break(self, why: str) -> bool:
        self.fault = MalformedResponse(message=why)
        self._line, self._data, self._size = bytearray(), [], 0
        return False
