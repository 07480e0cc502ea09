"""The event-stream parser: awkward cases by name, and laws for any bytes cut anywhere."""

import time
import tracemalloc
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.providers.sse import EventParser, ServerEvent
from llm_effects.values.errors import MalformedResponse
from llm_effects.values.validation import InvalidValue

MIB = 1024 * 1024

NOT_UTF8 = "the event stream is not UTF-8"
TOO_LARGE = "an event of the stream is larger than {} bytes"


def run(chunks: Iterable[bytes], limit: int = MIB) -> tuple[list[ServerEvent], str | None]:
    """Return all events of a stream, and its fault."""
    parser = EventParser(limit)
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    events += parser.finish()
    return events, parser.fault.message if parser.fault else None


def each_byte(stream: bytes) -> list[bytes]:
    return [stream[index : index + 1] for index in range(len(stream))]


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut a stream at some places, which may lie beyond its end, into chunks that may be empty."""
    return [stream[start:end] for start, end in pairwise([0, *sorted(places), len(stream)])]


def every_way(stream: bytes, limit: int = MIB) -> tuple[list[ServerEvent], str | None]:
    """Parse a stream whole, byte by byte, and cut in two at each place; assert equal results."""
    whole = run([stream], limit)
    assert run(each_byte(stream), limit) == whole
    for place in range(len(stream) + 1):
        assert run(cut(stream, [place]), limit) == whole
    return whole


def messages(*data: str) -> list[ServerEvent]:
    return [ServerEvent("message", each) for each in data]


WHOLE = {
    "LF": (b"data: a\ndata: b\n\ndata: c\n\n", messages("a\nb", "c")),
    "CR": (b"data: a\rdata: b\r\rdata: c\r\r", messages("a\nb", "c")),
    "CRLF": (b"data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", messages("a\nb", "c")),
    "all line ends mixed": (b"data: a\rdata: b\ndata: c\r\n\n\r\rdata: d\n\r\n", messages("a\nb\nc", "d")),
    "a CR before a CRLF is a blank line": (b"data: a\r\r\ndata: b\n\n", messages("a", "b")),
    "multi-byte characters": ("data: é漢字🎉\n\n".encode(), messages("é漢字🎉")),
    "one BOM is dropped": (b"\xef\xbb\xbfdata: a\n\n", messages("a")),
    "a second BOM is part of the name": (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", messages("b")),
    "a BOM later on is part of the name": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", messages("a")),
    "a BOM in data stays": (b"data: \xef\xbb\xbfa\n\n", messages("\ufeffa")),
    "comments": (b": hi\n\n:\ndata: a\n:data: no\ndata: b\n\n: bye\n\n", messages("a\nb")),
    "U+2028 inside JSON": ('data: {"a":"\u2028\u2029"}\n\n'.encode(), messages('{"a":"\u2028\u2029"}')),
    "other separators end no line": (
        "data: a\x85b\vc\fd\x1ce\x1df\x1eg\n\n".encode(),
        messages("a\x85b\vc\fd\x1ce\x1df\x1eg"),
    ),
    "NULs": (b"data: a\0b\n\ndata: \0\n\n", messages("a\0b", "\0")),
    "one space is dropped": (b"data:a \n\ndata: a\n\ndata:  a\n\ndata:\ta\n\n", messages("a ", "a", " a", "\ta")),
    "a field without a colon": (b"data\n\ndata\ndata\n\n", messages("", "\n")),
    "empty data is data": (b"data:\n\ndata: \n\n", messages("", "")),
    "no data is no event": (b"event: ping\n\nid: 1\nretry: 5\n\n\n\n", messages()),
    "a name holds for one event": (b"event: a\ndata: 1\n\ndata: 2\n\n", [ServerEvent("a", "1"), *messages("2")]),
    "a name without data is forgotten": (b"event: a\n\ndata: 1\n\n", messages("1")),
    "the last name holds": (b"event: a\ndata: 1\nevent:b\n\n", [ServerEvent("b", "1")]),
    "an empty name is the default": (b"event: a\nevent\ndata: 1\n\n", messages("1")),
    "unknown and misspelt fields": (b"dat: 1\nData: 2\n data: 3\ndata : 4\nfoo\nEvent: b\ndata: a\n\n", messages("a")),
    "colons in data": (b"data: a:b: c\n\n", messages("a:b: c")),
    "nothing": (b"", messages()),
}  # fmt: skip


@pytest.mark.parametrize(("stream", "events"), WHOLE.values(), ids=WHOLE)
def test_a_stream_has_the_same_events_wherever_it_is_cut(stream: bytes, events: list[ServerEvent]) -> None:
    assert every_way(stream) == (events, None)


UNFINISHED = {
    "without a blank line": (b"data: a\n\ndata: b\n", messages("b")),
    "without any line end": (b"data: a\n\ndata: b", messages("b")),
    "after a CR": (b"data: a\n\ndata: b\r", messages("b")),
    "after a CRLF": (b"data: a\r\n\r\nevent: end\r\ndata: b\r\n", [ServerEvent("end", "b")]),
    "only a name": (b"data: a\n\nevent: end\n", messages()),
    "half a field": (b"data: a\n\ndat", messages()),
    "half a comment": (b"data: a\n\n: bye", messages()),
}


@pytest.mark.parametrize(("stream", "last"), UNFINISHED.values(), ids=UNFINISHED)
def test_a_last_event_without_a_blank_line_is_returned_by_finish(stream: bytes, last: list[ServerEvent]) -> None:
    parser = EventParser()
    assert parser.feed(stream) == messages("a")
    assert parser.finish() == last
    assert parser.finish() == []
    assert parser.fault is None
    assert every_way(stream) == (messages("a") + last, None)


def test_an_event_is_returned_as_soon_as_its_blank_line_arrives() -> None:
    for stream in (b"data: a\n\n", b"data: a\r\r", b"data: a\n\r"):
        assert EventParser().feed(stream) == messages("a")


def test_an_empty_chunk_is_ignored_even_between_cr_and_lf() -> None:
    assert run([b"", b"data: a\r", b"", b"\ndata: b\r", b"", b"", b"\n\r", b"", b"\n"]) == (messages("a\nb"), None)


BROKEN = {
    "a stray byte": b"data: \xff\n\n",
    "Latin-1": "data: é\n\n".encode("latin-1"),
    "a surrogate": b"data: \xed\xa0\x80\n\n",
    "an overlong form": b"data: \xc0\xaf\n\n",
    "a character cut by the line end": b"data: \xe6\xbc\ndata: \xa2\n\n",
    "a character cut by the end": b"data: \xe6\xbc",
    "the second line of an event": b"data: a\ndata: \xff\n\n",
    "the name": b"event: \xff\ndata: a\n\n",
}


@pytest.mark.parametrize("stream", BROKEN.values(), ids=BROKEN)
def test_invalid_utf8_is_a_fault_and_earlier_events_are_returned(stream: bytes) -> None:
    assert every_way(b"data: fine\n\n" + stream + b"\n\ndata: never\n\n") == (messages("fine"), NOT_UTF8)


def test_ignored_fields_may_hold_any_bytes() -> None:
    assert every_way(b": \xff\nid: \xff\n\xff: 1\ndata: a\n\n") == (messages("a"), None)


def test_utf16_has_no_events() -> None:
    assert run(["data: a\n\n".encode("utf-16")]) == ([], None)


def test_no_events_are_returned_after_a_fault() -> None:
    parser = EventParser()
    assert parser.feed(b"data: a\n\ndata: \xff\n\ndata: b\n\n") == messages("a")
    assert parser.fault == MalformedResponse(message=NOT_UTF8)
    assert parser.feed(b"data: c\n\n") == []
    assert parser.finish() == []


OVER_TEN = {
    "a line": b"data: 67890X",
    "a line without a space": b"data:67890X",
    "an event": b"data: 6\ndata: 6",
    "a comment": b":234567890X",
    "a name": b"event: 890X\ndata: 1",
    "an unknown field": b"unknown: 10",
    "a line with a BOM": b"\xef\xbb\xbfdata: 0X",
}


@pytest.mark.parametrize("block", OVER_TEN.values(), ids=OVER_TEN)
def test_only_a_size_over_the_limit_is_a_fault(block: bytes) -> None:
    for end in (b"", b"\n", b"\n\n", b"\r\r", b"\n\ndata: b\n\n"):
        assert every_way(block + end, 10) == ([], TOO_LARGE.format(10))
        assert every_way(block + end, 14 if block.startswith(b"data: 6\n") else 12)[1] is None


def test_events_before_one_that_is_too_large_are_returned() -> None:
    stream = b"data: a\n\n" + b"data: %b\n\n" % (b"x" * 20) + b"data: b\n\n"
    assert every_way(stream, 10) == (messages("a"), TOO_LARGE.format(10))


def test_endless_comments_are_accepted() -> None:
    assert run([b"data: a\n", *[b": still here\n"] * 1000, b"\n"], 20) == (messages("a"), None)


def test_the_default_limit_is_one_mebibyte() -> None:
    fits = b"data: " + b"x" * (MIB - 6)
    parser, other = EventParser(), EventParser()
    assert [len(event.data) for event in parser.feed(fits + b"\n\n")] == [MIB - 6]
    assert other.feed(fits + b"x\n\n") == []
    assert (parser.fault, other.fault) == (None, MalformedResponse(message=TOO_LARGE.format(MIB)))


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
def test_a_limit_must_be_a_positive_integer(limit: int) -> None:
    with pytest.raises(InvalidValue, match="limit"):
        EventParser(limit)


@given(st.integers(1, 5000), st.integers(1, 3000), st.sampled_from([b"x", b"data: ", b"data\n", b":", b"data: x\r\n"]))
def test_an_endless_event_is_a_fault_soon_after_the_limit(limit: int, size: int, pattern: bytes) -> None:
    endless = pattern * (2 * (limit + size) // len(pattern) + 2)
    parser, consumed = EventParser(limit), 0
    while parser.fault is None:
        assert consumed < 2 * (limit + size)
        assert parser.feed(endless[consumed : consumed + size]) == []
        consumed += size
    assert consumed >= min(limit, len(endless))
    assert parser.fault.message == TOO_LARGE.format(limit)


ENDLESS = {
    "a line": b"x" * 5000,
    "a line in one chunk": b"x" * (20 * MIB),
    "lines of one letter": b"data: x\n" * 500,
    "lines of two letters": b"data:xy\n" * 500,
    "empty lines": b"data\r" * 500,
    "long lines": b"data: " + b"y" * 5000 + b"\n",
}


@pytest.mark.parametrize("pattern", ENDLESS.values(), ids=ENDLESS)
def test_memory_is_bounded(pattern: bytes) -> None:
    parser = EventParser()
    tracemalloc.start()
    try:
        for _ in range(20 * MIB // len(pattern)):
            parser.feed(pattern)
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert parser.fault is not None
    assert peak < 10 * MIB
    assert left < MIB / 4


def best_of_five(chunks: Sequence[bytes]) -> float:
    """Return the least seconds of five runs over a whole stream."""

    def once() -> float:
        begun = time.perf_counter()
        run(chunks)
        return time.perf_counter() - begun

    return min(once() for _ in range(5))


@pytest.mark.parametrize("size", [25 * MIB, 64 * 1024])
def test_an_endless_line_fails_quickly(size: int) -> None:
    endless = b"data: " + b"x" * (20 * 1000 * 1000)
    chunks = [endless[start : start + size] for start in range(0, len(endless), size)]
    assert run(chunks) == ([], TOO_LARGE.format(MIB))
    assert best_of_five(chunks) < 0.05


def test_a_long_line_in_small_pieces_takes_linear_time() -> None:
    short = best_of_five([b"x" * 7] * 10_000)
    assert best_of_five([b"x" * 7] * 140_000) < 14 * short * 4


# Laws


SPICE = [b"data", b"event", b"id", b"data: ", b"data:", b"event: ", b":", b": ", b" ", b"x", b"\0"]
ENDS = [b"\n", b"\r", b"\r\n", b"\n\n"]
WIDE = [text.encode() for text in ("\ufeff", "\u2028", "\x85", "é", "漢", "🎉")]
STRAY = [b"\xff", b"\xe6", b"\xbc"]

spiced = st.lists(st.sampled_from(SPICE + ENDS + WIDE)).map(b"".join)
spoilt = st.lists(st.sampled_from(SPICE + ENDS + WIDE + STRAY)).map(b"".join)
places = st.lists(st.integers(0, 100))


@given(spoilt, places, st.integers(1, 30) | st.just(MIB))
def test_chunk_boundaries_make_no_difference(stream: bytes, where: list[int], limit: int) -> None:
    chunks = cut(stream, [min(place, len(stream)) for place in where])
    assert b"".join(chunks) == stream
    assert run(chunks, limit) == run([stream], limit) == run(each_byte(stream), limit)


def parse_by_the_standard(text: str) -> list[ServerEvent]:
    """Parse a complete text by the steps of the standard; the end of the text counts as a blank line."""
    events, name, buffer = list[ServerEvent](), "", ""
    for line in [*text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""]:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if line == "" and buffer != "":
            events.append(ServerEvent(name or "message", buffer.removesuffix("\n")))
        if line == "":
            name, buffer = "", ""
        elif field == "event":
            name = value
        elif field == "data":
            buffer += value + "\n"
    return events


@given(spiced)
def test_any_text_is_parsed_as_the_standard_says(stream: bytes) -> None:
    assert run([stream]) == (parse_by_the_standard(stream.decode()), None)


no_line_end = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))
names = no_line_end.map(lambda name: name or "message")
server_events = st.builds(ServerEvent, names, st.lists(no_line_end, min_size=1).map("\n".join))


def encode_event(event: ServerEvent, end: str, space: str) -> str:
    """Encode an event as a server does; omit the space only where no line starts with one."""
    lines = [f"event: {event.name}", *(f"data:{space}{line}" for line in event.data.split("\n")), "", ""]
    return end.join(lines)


@given(st.lists(server_events), st.sampled_from(["\n", "\r", "\r\n"]), places, st.booleans())
def test_encoded_events_are_parsed_back(events: list[ServerEvent], end: str, sizes: list[int], tight: bool) -> None:
    space = "" if tight and not any(line[:1] == " " for event in events for line in event.data.split("\n")) else " "
    stream = "".join(encode_event(event, end, space) for event in events).encode()
    chunks = cut(stream, [min(place, len(stream)) for place in accumulate(sizes)])
    assert run(chunks) == (events, None)
