"""Recorded and standard event streams: the expected events, however the bytes are cut into chunks."""

import json
from base64 import b64decode
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_effects.providers.sse import EventParser, ServerEvent

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"

Row = dict[str, Any]

# Above this many bytes, two-way splits are tried near the ends and sparsely between.
EVERY_SPLIT = 5000

STREAMED = ("openai_chat_stream", "openai_responses_stream", "anthropic_messages_stream", "local_openai_compatible")


def rows(name: str) -> list[Row]:
    path = CORPUS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def cases() -> list[Any]:
    if not CORPUS.is_dir():
        return [pytest.param({}, marks=pytest.mark.skip(reason=f"no recorded traffic at {CORPUS}"))]
    return [pytest.param(row, id=row["name"]) for row in rows("sse_cases")]


def run(chunks: Iterable[bytes]) -> tuple[list[ServerEvent], list[ServerEvent]]:
    """Return the events of the chunks, and those of their end."""
    parser = EventParser()
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    last = parser.finish()
    assert parser.fault is None
    return events, last


def in_pieces(stream: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    """Cut a stream into chunks of these sizes, over and over."""
    start = 0
    for size in cycle(sizes):
        if start >= len(stream):
            return
        yield stream[start : start + size]
        start += size


def split_places(stream: bytes) -> Iterable[int]:
    length = len(stream)
    if length <= EVERY_SPLIT:
        return range(length + 1)
    return [*range(100), *range(100, length - 100, 997), *range(length - 100, length + 1)]


def expected(case: Row) -> list[ServerEvent]:
    """Return the events by the standard; some rows also have those of another parser."""
    rows_of_case = case["whatwg_events"] if "whatwg_events" in case else case["expected_events"]
    return [ServerEvent(each["event"], each["data"]) for each in rows_of_case]


@pytest.mark.parametrize("case", cases())
def test_a_case_has_its_events_in_one_chunk_byte_by_byte_and_as_recorded(case: Row) -> None:
    stream = b64decode(case["bytes_b64"])
    whole = run([stream])
    assert whole[0] == expected(case)
    assert run(in_pieces(stream, [1])) == whole
    if "chunks_b64" in case:
        assert run(b64decode(chunk) for chunk in case["chunks_b64"]) == whole


@pytest.mark.parametrize("case", cases())
def test_a_case_has_its_events_cut_in_two_anywhere(case: Row) -> None:
    stream = b64decode(case["bytes_b64"])
    whole = run([stream])
    for place in split_places(stream):
        assert run([stream[:place], stream[place:]]) == whole


@pytest.mark.parametrize("case", cases())
@settings(max_examples=20)
@given(sizes=st.lists(st.integers(0, 40), min_size=1).filter(any))
def test_a_case_has_its_events_cut_at_random(case: Row, sizes: list[int]) -> None:
    stream = b64decode(case["bytes_b64"])
    assert run(in_pieces(stream, sizes)) == run([stream])


UNFINISHED = {
    "whatwg_example3_empty_data_and_eof": "",
    "wpt_data_before_final_empty_line": "test2",
    "openai_mixed_endings_utf8_eof_1byte": "unfinished",
    "openai_unterminated_data": "\n".join(["x"] * 2000),
    "esp_mixed_comments": "5",
    "llm_done_without_blank_line": "[DONE]",
}


@pytest.mark.parametrize("case", cases())
def test_finish_returns_the_event_that_the_standard_drops(case: Row) -> None:
    last = run([b64decode(case["bytes_b64"])])[1]
    assert [event.data for event in last] == [UNFINISHED[name] for name in UNFINISHED if name == case["name"]]


@cache
def bodies(name: str) -> list[bytes]:
    """Return the streamed bodies of a file, in their original framing."""
    if not CORPUS.is_dir():
        pytest.skip(f"no recorded traffic at {CORPUS}")
    return [row["response"]["body"].encode() for row in rows(name) if row["stream"]]


def data_lines(stream: bytes) -> list[str]:
    """Return the contents of the data lines of a stream, regardless of its events."""
    lines = stream.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [line.partition(":")[2].removeprefix(" ") for line in lines if line.partition(":")[0] == "data"]


@pytest.mark.parametrize("name", STREAMED)
def test_recorded_streams_keep_all_their_data(name: str) -> None:
    for body in bodies(name):
        events, last = run([body])
        assert [line for event in events + last for line in event.data.split("\n")] == data_lines(body)


@pytest.mark.parametrize("name", STREAMED)
def test_recorded_streams_have_the_same_events_in_chunks_of_any_one_size(name: str) -> None:
    for body in bodies(name):
        whole = run([body])
        for size in (1, 2, 3, 7, 1448, 4096):
            assert run(in_pieces(body, [size])) == whole


@pytest.mark.parametrize("name", STREAMED)
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=50)
@given(sizes=st.lists(st.integers(0, 2000), min_size=1).filter(any), which=st.integers(0, 1_000_000))
def test_recorded_streams_have_the_same_events_cut_at_random(name: str, sizes: list[int], which: int) -> None:
    found = bodies(name)
    body = found[which % len(found)]
    assert run(in_pieces(body, sizes)) == run([body])
