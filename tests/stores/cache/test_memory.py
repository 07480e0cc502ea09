"""The cache in memory, compared with the simplest model of it."""

import math
import sys
from collections import OrderedDict
from typing import final

import anyio
import pytest
from attrs import define, evolve
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.testing.scripted import answer, calling
from llm_effects.values.events import ContentEvent, ReasoningDelta, TextDelta, ToolCallDelta
from llm_effects.values.messages import Image, ToolCall
from llm_effects.values.serialization import Entry, dump_entry, entry_size, load_entry
from tests.fixtures.futures import given_by


@final
@define
class Clock:
    """A clock that a test moves."""

    seconds: float = 1_000.0

    def monotonic(self) -> float:
        return self.seconds


PUTS = st.tuples(
    st.just("put"), st.sampled_from("abcdef"), st.integers(0, 12), st.sampled_from([None, 0, 0.5, 1, 2.5, 7])
)
STEPS = st.lists(
    st.one_of(
        PUTS,
        PUTS,
        st.tuples(st.just("get"), st.sampled_from("abcdef")),
        st.tuples(st.just("delete"), st.sampled_from("abcdef")),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 1.0, 3.25])),
    ),
    max_size=60,
)


@final
class Model:
    """A model of the cache: a list of entries in the order of their use."""

    def __init__(self, entries: int, size: int) -> None:
        self.entries, self.size, self.time = entries, size, 0.0
        self.kept: OrderedDict[str, tuple[bytes, float]] = OrderedDict()

    def expire(self) -> None:
        self.kept = OrderedDict(each for each in self.kept.items() if self.time < each[1][1])

    def get(self, key: str) -> bytes | None:
        self.expire()
        if key not in self.kept:
            return None
        self.kept.move_to_end(key)
        return self.kept[key][0]

    def put(self, key: str, entry: bytes, ttl: float | None) -> None:
        self.expire()
        self.kept.pop(key, None)
        if ttl == 0 or len(entry) > self.size:
            return
        while len(self.kept) >= self.entries or self.weight() + len(entry) > self.size:
            self.kept.popitem(last=False)
        self.kept[key] = (entry, self.time + (math.inf if ttl is None else ttl))

    def weight(self) -> int:
        return sum(len(entry) for entry, _ in self.kept.values())


@given(entries=st.integers(1, 4), size=st.integers(1, 20), steps=STEPS)
def test_the_cache_agrees_with_the_model_on_time_order_and_bounds(
    entries: int, size: int, steps: list[tuple[object, ...]]
) -> None:
    clock, model = Clock(0.0), Model(entries, size)
    cache = MemoryCache(entries, size, clock.monotonic)

    async def run() -> None:
        for step in steps:
            match step:
                case ("put", str(key), int(length), int() | float() | None as ttl):
                    entry = key.encode() * length
                    model.put(key, entry, ttl)
                    await given_by(cache.put(key, entry, ttl))
                case ("get", str(key)):
                    assert await given_by(cache.get(key)) == model.get(key)
                case ("delete", str(key)):
                    model.expire()
                    assert await given_by(cache.delete(key)) is (model.kept.pop(key, None) is not None)
                case (_, float(seconds)):
                    model.time += seconds
                    clock.seconds += seconds
                case _:
                    pytest.fail(f"unknown step {step}")
            model.expire()
            stats = await given_by(cache.stats())
            assert (stats.entries, stats.bytes) == (len(model.kept), model.weight())

    anyio.run(run)


@pytest.mark.anyio
async def test_expired_entries_do_not_count_as_evictions() -> None:
    clock = Clock()
    cache = MemoryCache(2, clock=clock.monotonic)
    await given_by(cache.put("old", b"1", 1))
    await given_by(cache.put("kept", b"2", 60))
    clock.seconds += 1
    await given_by(cache.put("new", b"3", 60))
    assert (await given_by(cache.stats())).evictions == 0
    await given_by(cache.put("newer", b"4", 60))
    assert (await given_by(cache.stats())).evictions == 1
    assert await given_by(cache.get("kept")) is None


# Entries that are kept as they are.


@pytest.mark.anyio
async def test_a_kept_entry_is_the_same_value_and_can_be_read_as_bytes() -> None:
    cache, entry = MemoryCache(), Entry(response=answer("because"), events=(TextDelta("because"),))
    cache.keep("key", entry, 60)
    assert cache.hit("key") is cache.find("key") is entry
    assert load_entry(await given_by(cache.get("key")) or b"") == entry
    assert (cache.hit("other"), cache.find("other")) == (None, None)
    stats = await given_by(cache.stats())
    assert (stats.entries, stats.hits, stats.misses) == (1, 3, 1)


@pytest.mark.anyio
async def test_kept_entries_end_with_their_time_and_count_against_the_size() -> None:
    clock = Clock()
    cache = MemoryCache(max_bytes=20_000, clock=clock.monotonic)
    cache.keep("short", Entry(response=answer("x" * 5_000)), 1)
    clock.seconds += 1
    assert cache.find("short") is None
    for number in range(4):
        cache.keep(f"long {number}", Entry(response=answer("x" * 5_000)), None)
    cache.keep("too long", Entry(response=answer("x" * 20_000)), None)
    cache.keep("at once", Entry(response=answer("x")), 0)
    assert [cache.find(f"long {number}") is not None for number in range(4)] == [False, False, False, True]
    assert cache.find("too long") is cache.find("at once") is None
    assert (await given_by(cache.stats())).bytes == entry_size(Entry(response=answer("x" * 5_000)))


@pytest.mark.parametrize(
    "events",
    [
        tuple(TextDelta(f"{number} ") for number in range(1000)),
        tuple(ReasoningDelta(f"{number} {number}") for number in range(1000)),
        tuple(ToolCallDelta(0, "id", "look", f"{number}") for number in range(1000)),
    ],
)
def test_the_events_of_a_stream_count_with_the_memory_that_they_take(events: tuple[ContentEvent, ...]) -> None:
    def texts(event: ContentEvent) -> str:
        return event.arguments if isinstance(event, ToolCallDelta) else event.text

    taken = sum(sys.getsizeof(event) + sys.getsizeof(texts(event)) for event in events) + sys.getsizeof(events)
    assert 0.75 < entry_size(Entry(response=answer("0"), events=events)) / taken < 1.25


@pytest.mark.parametrize(
    "entry",
    [
        Entry(response=answer("why? " * 1000)),
        Entry(response=answer("w\u00e4rum? " * 1000)),
        Entry(response=answer("\u4e2d" * 1000), events=(TextDelta("\u4e2d"),) * 1000),
        Entry(response=calling(ToolCall("id", "look", '{"a":1}' * 1000))),
        Entry(response=evolve(answer("seen"), parts=(Image(b"GIF89a" * 1000),))),
    ],
)
def test_the_estimated_size_of_an_entry_is_near_that_of_its_bytes(entry: Entry) -> None:
    assert 0.4 < entry_size(entry) / len(dump_entry(entry)) < 3
