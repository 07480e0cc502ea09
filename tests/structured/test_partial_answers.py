"""Typed answers as they grow: what is sure of them, in any cut of their text, in linear time."""

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal, cast

import pytest
from attrs import frozen

from llm_effects import (
    LLM,
    AsyncLLM,
    Failed,
    LLMEnv,
    LLMFailure,
    NetworkError,
    make_llm_manager,
    run,
    scripted_env,
)
from llm_effects.config import LLMConfig
from llm_effects.structured import Partial, Structured, open_stream_as, stream_as
from llm_effects.structured.partial_answers import Grown, JsonReader
from llm_effects.structured.schema import type_schema
from llm_effects.testing import Chunks
from llm_effects.values import caps

pytestmark = pytest.mark.anyio


@frozen
class Row:
    name: str
    count: int


@frozen
class Board:
    heading: str
    level: Literal["low", "high"]
    rows: list[Row]
    best: Row | None = None
    scores: dict[str, float] = {}  # noqa: RUF008


TEXT = (
    'Sure:\n```json\n{"heading": "a\\n\\ud83d\\ude00 \\\\u12 \\"b\\u00e9", "level": "high", '
    '"rows": [{"name": "x", "count": 12}, {"name": "y", "count": 2}], '
    '"best": {"name": "z", "count": -3}, "scores": {"a": 1.5e1}}\n``` Good?'
)
HEADING = 'a\n\U0001f600 \\u12 "bé'
WHOLE = Board(HEADING, "high", [Row("x", 12), Row("y", 2)], Row("z", -3), {"a": 15.0})


def grown(kind: object, pieces: Iterator[str], *, growing: bool = False) -> list[Partial[object]]:
    reader = JsonReader.of(type_schema(kind).unwrap(), growing=growing)
    return [reader.partial() for piece in pieces if reader.feed(piece)]


def cut(text: str, size: int | Callable[[], int]) -> Iterator[str]:
    at = 0
    while at < len(text):
        end = at + (size if isinstance(size, int) else size())
        yield text[at:end]
        at = end


def is_beginning(small: object, great: object) -> bool:
    """Return whether a value shows a part of what another one shows."""
    if isinstance(small, Partial):
        table = great.fields if isinstance(great, Partial) else {name: getattr(great, name) for name in small.fields}
        return all(is_beginning(value, table[name]) for name, value in small.fields.items())
    if isinstance(small, str):
        return isinstance(great, str) and great.startswith(small)
    if isinstance(small, list | Grown):
        fewer, more = cast("Sequence[object]", small), cast("Sequence[object]", great)
        return len(fewer) <= len(more) and all(map(is_beginning, fewer, more))
    return small == great


@pytest.mark.parametrize("growing", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_fault_206_in_any_cut_what_is_shown_is_never_taken_back(seed: int, growing: bool) -> None:
    draw = random.Random(seed)
    seen = grown(Board, cut(TEXT, lambda: draw.randint(1, 14)), growing=growing)
    assert all(is_beginning(each, WHOLE) for each in seen)
    assert all(is_beginning(*pair) for pair in pairwise(seen))
    last = seen[-1].fields
    assert Board(**last) == WHOLE  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


def test_fault_204_a_field_is_shown_once_it_is_finished() -> None:
    pieces = ('{"heading": "Di', 'sks", "level": "hi', 'gh", "rows": [{"name": "x", "count": 1', '2}, {"na')
    seen = [dict(each.fields) for each in grown(Board, iter(pieces))]
    assert seen[0] == {"heading": "Disks"}
    assert seen[1] == {"heading": "Disks", "level": "high", "rows": [Partial({"name": "x"})]}
    assert seen[2] == {"heading": "Disks", "level": "high", "rows": [Row("x", 12)]}


def test_fault_204_texts_grow_on_request() -> None:
    pieces = ('{"heading": "Di', "sk", 's"')
    assert [each.get("heading", str) for each in grown(Board, iter(pieces), growing=True)] == ["Di", "Disk", "Disks"]
    assert [each.get("heading", str) for each in grown(Board, iter(pieces))] == ["Disks"]


def test_fault_204_lists_and_wrapped_values_are_shown_too() -> None:
    for text in ("[1, 2, 3]", '{"value": [1, 2, 3]}'):
        seen = grown(list[int], cut(text, 1))
        assert [[*each.items] for each in seen] == [[1], [1, 2], [1, 2, 3]]


def test_the_items_of_a_list_field_are_those_that_are_finished_open_or_whole() -> None:
    pieces = (
        '{"heading": "D", "level": "low", "rows": [{"name": "x", "count": 12}, {"na',
        'me": "y", "count": 2}]',
        "}",
    )
    seen = grown(Board, iter(pieces))
    assert [each.items_of("rows", Row) for each in seen] == [(Row("x", 12),), (Row("x", 12), Row("y", 2))]
    assert [seen[-1].items_of(name, str, Row) for name in ("heading", "best")] == [(), ()]
    assert Partial({"tags": frozenset({"a"})}).items_of("tags", str) == ("a",)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no JSON at all",
        '{"heading": 12, "level"',
        '{"heading": "a\\x"',
        '{"heading" "a"}',
        '{"heading": tru}',
        "{]",
    ],
)
def test_fault_206_what_is_broken_or_does_not_fit_is_not_shown(text: str) -> None:
    assert [each for each in grown(Board, cut(text, 1)) if each.fields] == []


def test_fault_206_nesting_and_long_numbers_end_the_reading() -> None:
    assert grown(list[list[int]], iter(["[" * (caps.NESTING + 5), "1"])) == []
    assert grown(list[int], cut("[" + "1" * 100_000, 1000)) == []


def test_fault_205_the_time_grows_with_the_length() -> None:
    def seconds(count: int) -> float:
        rows = [{"name": f"row {number}", "count": number} for number in range(count)]
        text = json.dumps({"heading": "h" * count * 10, "level": "low", "rows": rows})
        began = time.process_time()
        grown(Board, cut(text, 7), growing=True)
        return time.process_time() - began

    seconds(500)
    small = min(seconds(1_000) for _ in range(3))
    assert seconds(8_000) < 8 * small * 3


def test_fault_205_a_long_text_is_shown_a_limited_number_of_times() -> None:
    seen = grown(Board, cut('{"heading": "' + "h" * 100_000, 1), growing=True)
    shown = sum(len(each.get("heading", str) or "") for each in seen)
    assert shown < 40 * 100_000


PIECES = ('{"heading": "Disks", "lev', 'el": "low", "rows": [', "]}")


async def test_fault_204_the_effect_shows_and_returns_the_whole() -> None:
    seen = list[tuple[str, ...]]()

    async def show(so_far: Partial[Board]) -> None:
        seen.append(tuple(so_far.fields))

    ask = stream_as("Which board?", Board, show)
    for _ in range(2):  # an effect may be run again
        seen.clear()
        whole = (await run(ask, scripted_env(Chunks(PIECES)))).unwrap()
        assert whole.value == Board("Disks", "low", [])
        assert seen == [("heading",), ("heading", "level", "rows"), ("heading", "level", "rows")]
    manager = make_llm_manager(LLMConfig(models={}), lambda _: scripted_env(Chunks(PIECES)))
    assert (await manager.run(ask)).unwrap().value == Board("Disks", "low", [])


async def test_fault_206_a_repair_begins_with_nothing() -> None:
    seen = list[str | None]()

    async def show(so_far: Partial[Board]) -> None:
        seen.append(so_far.get("heading", str))

    env = scripted_env(
        '{"heading": "Wrong", "level": "none"}', Chunks(('{"heading": "Ri', 'ght", "level": "low", "rows": []}'))
    )
    whole = (await run(stream_as("Which board?", Board, show, growing=True), env)).unwrap()
    assert whole.value.heading == "Right"
    assert seen == ["Wrong", None, "Ri", "Right"]


async def test_fault_204_the_pull_form_and_the_plain_face_end_with_the_whole() -> None:
    async with open_stream_as("Which board?", Board)(scripted_env(Chunks(PIECES))) as answers:
        kinds = [type(each).__name__ async for each in answers]
    async with AsyncLLM(scripted_env(Chunks(PIECES))) as llm:
        items = [each async for each in llm.stream_as("Which board?", Board)]
    assert kinds == [type(each).__name__ for each in items] == ["Partial", "Partial", "Partial", "Structured"]
    assert isinstance(items[-1], Structured)
    assert items[-1].value == Board("Disks", "low", [])


async def test_fault_206_a_failure_is_the_last_item_or_an_exception() -> None:
    def env() -> LLMEnv:
        return scripted_env(NetworkError(phase="reset"))

    async with open_stream_as("Which board?", Board)(env()) as answers:
        assert [type(each) async for each in answers] == [Failed]
    async with AsyncLLM(env()) as llm:
        with pytest.raises(LLMFailure, match="NetworkError"):
            await anext(llm.stream_as("Which board?", Board))


def test_fault_204_blocking_code_iterates_and_may_leave_early() -> None:
    with LLM(scripted_env(Chunks(PIECES))) as llm:
        items = list(llm.stream_as("Which board?", Board, max_tokens=50))
        assert isinstance(items[-1], Structured)
        with llm.stream_as("Which board?", Board) as answers:
            assert isinstance(next(answers), Partial)


async def test_fault_204_a_type_without_a_schema_is_an_invalid_request() -> None:
    async def show(_: Partial[complex]) -> None:
        raise AssertionError

    assert (await run(stream_as("?", complex, show), scripted_env("1"))).failure().tag == "InvalidRequest"


def test_a_grown_list_is_a_sequence() -> None:
    items: list[object] = [1, 2]
    view = Grown(items, 2, (3,))
    items.append(9)
    assert (len(view), view[0], view[-1], view[1:], [*view], view == [1, 2, 3]) == (3, 1, 3, [2, 3], [1, 2, 3], True)
    assert repr(view) == "[1, 2, 3]"
