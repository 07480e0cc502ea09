"""Typed answers as they grow: ``stream_as`` reads the JSON of a stream piece by piece, each character once.

Only what is sure is shown: a field appears once its value is finished and fits its type, an item of a list likewise.
Objects and lists that are still open appear with what they have. The whole answer is validated at the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Final, Generic, TypeAlias, TypeVar, cast, final, get_args, get_origin, overload

from anyio.lowlevel import checkpoint
from attrs import define, field, frozen
from returns.context import RequiresContext
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.effects.call import Sink
from llm_effects.effects.effect import Effect, effect, run
from llm_effects.effects.env import LLMEnv
from llm_effects.pipeline import ReceivedAnswer, check_request, pulled
from llm_effects.structured.readers import Misfit, Reader, reader_of
from llm_effects.structured.schema import WRAPPER, TypeSchema, type_schema
from llm_effects.structured.shapes import Array, Constrained, Leaf, OneOf, Record, Shape, fields_of
from llm_effects.structured.typed_answers import Structured, generate_as
from llm_effects.values import caps
from llm_effects.values.display import shown
from llm_effects.values.errors import LLMError
from llm_effects.values.events import Completed, Failed, Restarted, Started, StreamEvent, TextDelta
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import LLMResponse

_Value = TypeVar("_Value")
_Value_co = TypeVar("_Value_co", covariant=True)
_Wanted = TypeVar("_Wanted")


@final
class Grown(Sequence[object]):  # noqa: PLW1641 - like a list, it has no hash
    """The first items of a list that grows behind it, without a copy of them, and perhaps one that is still open."""

    __slots__ = ("_count", "_items", "_open")

    def __init__(self, items: Sequence[object], count: int, still_open: tuple[object, ...] = ()) -> None:
        self._items, self._count, self._open = items, count, still_open

    def __len__(self) -> int:
        return self._count + len(self._open)

    @overload
    def __getitem__(self, index: int) -> object: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[object]: ...
    def __getitem__(self, index: int | slice) -> object:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return self._items[at] if at < self._count else self._open[0]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence) and not isinstance(other, str) and [*self] == [*cast("Sequence[object]", other)]
        )

    def __repr__(self) -> str:
        return repr([*self])


@final
@frozen
class Partial(Generic[_Value_co]):
    """The part of a value that is sure while the rest of it is still to come.

    ``fields`` are the finished fields of a class, of their types; a field that is an open object is a ``Partial``, an
    open list a sequence of its finished items. ``items`` are those of a list. Texts that are still open are among them
    only if they were asked for. What the class itself checks, such as the validators of attrs, it checks at the end.
    """

    __repr__ = shown

    fields: Mapping[str, object] = field(factory=dict[str, object])
    items: Sequence[object] = ()

    def get(self, name: str, kind: type[_Wanted]) -> _Wanted | None:
        """Return a field if it is known and of this class; ``items_of`` is for lists.

        >>> Partial({"heading": "Disks"}).get("heading", str), Partial().get("heading", str)
        ('Disks', None)
        """
        value = self.fields.get(name)
        return value if isinstance(value, kind) else None

    def items_of(self, name: str, *kinds: type[_Wanted]) -> tuple[_Wanted, ...]:
        """Return the finished items of these classes in a list field, open or finished; an unknown field has none.

        Several classes are a union: mypy infers it where the result has an annotation.

        >>> so_far = Partial({"primes": [2, 3, Partial()], "heading": "Primes"})
        >>> so_far.items_of("primes", int), so_far.items_of("heading", str), so_far.items_of("more", int)
        ((2, 3), (), ())
        """
        value = self.fields.get(name)
        if isinstance(value, str | bytes) or not isinstance(value, Sequence | AbstractSet):
            return ()
        return tuple(each for each in cast("Sequence[object]", value) if isinstance(each, kinds))


PartialSink: TypeAlias = Callable[[Partial[_Value]], Awaitable[None]]
"""Receives each partial value. It is awaited, so a slow one slows the model."""


@overload
def stream_as(  # pyright: ignore[reportOverlappingOverload]
    request: str | LLMRequest,
    kind: type[Structured[_Value]],
    sink: PartialSink[_Value],
    *,
    growing: bool = ...,
    max_repairs: int = ...,
) -> Effect[Structured[_Value]]: ...
@overload
def stream_as(
    request: str | LLMRequest,
    kind: type[_Value],
    sink: PartialSink[_Value],
    *,
    growing: bool = ...,
    max_repairs: int = ...,
) -> Effect[Structured[_Value]]: ...
def stream_as(
    request: str | LLMRequest,
    kind: object,
    sink: PartialSink[Any],
    *,
    growing: bool = False,
    max_repairs: int = 2,
) -> Effect[Structured[object]]:
    """Answer a request with a value of a type, as ``generate_as`` does, and await what is sure of it in ``sink``.

    With ``growing``, texts are shown while they are written: each longer by a 32nd at least. An answer that is begun
    again, by a repair or another model, begins with an empty ``Partial``. Errors are those of ``generate_as``.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> async def show(so_far: Partial[dict[str, list[int]]]) -> None:
    ...     print(so_far.items)
    >>> anyio.run(run, stream_as("Two primes?", list[int], show), scripted_env("[2, 3]")).unwrap().value
    [2, 3]
    [2, 3]
    """
    check_request(request)

    async def perform(env: LLMEnv) -> Result[Structured[object], LLMError]:
        growth = Growth.of(kind, growing=growing)

        async def receive(event: StreamEvent) -> None:
            async for each in growth.after(event):
                await sink(each)

        return await run(generate_as(request, kind, max_repairs=max_repairs, sink=receive), env)

    return effect(perform)


Answers: TypeAlias = AsyncIterator[Partial[_Value] | Structured[_Value] | Failed]
"""Partial values, then the whole one, or the error that ended the answer."""


@overload
def open_stream_as(  # pyright: ignore[reportOverlappingOverload]
    request: str | LLMRequest, kind: type[Structured[_Value]], *, growing: bool = ..., max_repairs: int = ...
) -> RequiresContext[AbstractAsyncContextManager[Answers[_Value]], LLMEnv]: ...
@overload
def open_stream_as(
    request: str | LLMRequest, kind: type[_Value], *, growing: bool = ..., max_repairs: int = ...
) -> RequiresContext[AbstractAsyncContextManager[Answers[_Value]], LLMEnv]: ...
def open_stream_as(
    request: str | LLMRequest, kind: object, *, growing: bool = False, max_repairs: int = 2
) -> RequiresContext[AbstractAsyncContextManager[Answers[object]], LLMEnv]:
    """Answer a request as ``stream_as`` does, as an async iterator: the last item is ``Structured`` or ``Failed``.

    Leaving early ends the call and closes its connection.

    >>> import anyio
    >>> from llm_effects import scripted_env
    >>> async def main() -> list[str]:
    ...     async with open_stream_as("Two primes?", list[int])(scripted_env("[2, 3]")) as answers:
    ...         return [type(each).__name__ async for each in answers]
    >>> anyio.run(main)
    ['Partial', 'Structured']
    """
    check_request(request)
    return RequiresContext(lambda env: _opened(request, kind, env, growing, max_repairs))


@asynccontextmanager
async def _opened(
    request: str | LLMRequest, kind: object, env: LLMEnv, growing: bool, max_repairs: int
) -> AsyncGenerator[Answers[object]]:
    whole = list[Structured[object]]()

    def keep(structured: Structured[object]) -> LLMResponse:
        whole.append(structured)
        return structured.response

    def answer(sink: Sink, _: ReceivedAnswer) -> Effect[LLMResponse]:
        return generate_as(request, kind, max_repairs=max_repairs, sink=_without_ending(sink)).map(keep)

    async with pulled(answer)(env) as events:
        yield _PartialEvents(events, Growth.of(kind, growing=growing), whole)


def _without_ending(sink: Sink) -> Sink:
    """Return a sink that drops the last event, which the pull form adds itself."""

    async def deliver(event: StreamEvent) -> None:
        if not isinstance(event, Completed | Failed):
            await sink(event)

    return deliver


@final
@define(eq=False, repr=False)
class _PartialEvents(AsyncIterator[Partial[_Value] | Structured[_Value] | Failed]):
    """The partial values of a stream of events, and what it ends with."""

    _events: AsyncIterator[StreamEvent]
    _growth: Growth
    _whole: list[Structured[_Value]]
    _ready: list[Partial[_Value]] = field(factory=list[Partial[_Value]])

    async def __anext__(self) -> Partial[_Value] | Structured[_Value] | Failed:
        while not self._ready:
            event = await anext(self._events)
            if isinstance(event, Failed):
                return event
            if isinstance(event, Completed):
                return self._whole[0]
            self._ready = [cast("Partial[_Value]", each) async for each in self._growth.after(event)]
        return self._ready.pop(0)


# From the events of a stream to partial values.


@final
@define(eq=False, repr=False)
class Growth:
    """The partial values of one answer: a reader of its JSON, which each new answer replaces."""

    _target: TypeSchema | None
    _growing: bool
    _reader: JsonReader | None = None
    _shown: bool = False

    @classmethod
    def of(cls, kind: object, *, growing: bool) -> Growth:
        """Return the growth of a value of a type; a type without a schema has none, and is rejected elsewhere."""
        target = type_schema(get_args(kind)[0] if get_origin(kind) is Structured else kind)
        return cls(target.unwrap() if is_successful(target) else None, growing)

    async def after(self, event: StreamEvent) -> AsyncIterator[Partial[object]]:
        """Yield the partial value after an event, if it shows more than the one before, or nothing of it any more."""
        if isinstance(event, Started | Restarted) or self._reader is None:
            self._reader = None if self._target is None else JsonReader.of(self._target, growing=self._growing)
            if self._shown:
                self._shown = False
                yield Partial()
        if not isinstance(event, TextDelta) or self._reader is None:
            return
        changed = False
        for at in range(0, len(event.text), caps.STEP_EVENT_BYTES):
            if at:
                await checkpoint()
            changed = self._reader.feed(event.text[at : at + caps.STEP_EVENT_BYTES]) or changed
        if changed:
            self._shown = True
            yield self._reader.partial()


# The reader: a machine that goes through the text once.


_BLANK: Final = re.compile(r"[ \t\r\n]*")
_SCALAR: Final = re.compile(r"[^\s,\]}]*")
_ATOMS: Final = re.compile(
    r'(?:[^"\\]+|\\["\\/bfnrt]|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}'
    r"|\\u(?![dD][89abAB])[0-9a-fA-F]{4})+"
)
_LONGEST_ESCAPE: Final = 12
_LONGEST_SCALAR: Final = 400
_FINER: Final = 32


@final
@define(eq=False)
class _Frame:
    """An object or a list that is open: its JSON, its shape if that is known, and what is sure of it."""

    raw: dict[str, object] | list[object]
    fields: Mapping[str, tuple[Shape, Reader]] | None = None
    item: tuple[Shape, Reader] | None = None
    key: str = ""
    sure: dict[str, object] = field(factory=dict[str, object])
    items: list[object] = field(factory=list[object])

    def child(self) -> tuple[Shape, Reader] | None:
        """Return the shape and the reader of the value that comes next."""
        return self.item if self.fields is None else self.fields.get(self.key)

    def add(self, value: object) -> bool:
        """Add a finished value; return whether it is shown: one that does not fit is not."""
        if isinstance(self.raw, dict):
            self.raw[self.key] = value
        else:
            self.raw.append(value)
        child = self.child()
        if child is None:
            return False
        try:
            decoded = child[1](value)
        except (Misfit, RecursionError):
            return False
        if self.fields is None:
            self.items.append(decoded)
        else:
            self.sure[self.key] = decoded
        return True


@final
@define(eq=False, repr=False)
class JsonReader:
    """A reader of JSON in pieces. It stops at the first error: what is wrong is found when the answer is whole."""

    _shape: Shape
    _wrapped: bool
    _growing: bool
    _state: Callable[[str, int], int | None] | None = field(init=False)
    _frames: list[_Frame] = field(factory=list[_Frame])
    _pieces: list[str] = field(factory=list[str])
    _is_key: bool = False
    _held: str = ""
    _length: int = 0
    _seen: int = 0
    _values: int = 0
    _changed: bool = False

    def __attrs_post_init__(self) -> None:
        self._state = self._find_start

    @classmethod
    def of(cls, target: TypeSchema, *, growing: bool) -> JsonReader:
        """Return a reader of values of a type."""
        return cls(target.shape, target.wrapped, growing)

    def feed(self, text: str) -> bool:
        """Read some more text; return whether more is sure than before."""
        text, at, self._held, self._changed = self._held + text, 0, "", False
        while self._state is not None and at < len(text):
            after = self._state(text, at)
            if after is None:
                self._state = None
                break
            if after == at and self._held:
                break
            at = after
        self._look_at_growth()
        return self._changed

    def partial(self) -> Partial[object]:
        """Return what is sure so far."""
        value: object = self._view(0)
        if self._wrapped and self._frames and self._frames[0].fields is not None and isinstance(value, Partial):
            value = cast("Partial[object]", value).fields.get(WRAPPER)
        if isinstance(value, Partial):
            return cast("Partial[object]", value)
        is_list = isinstance(value, Grown | list | tuple)
        return Partial(items=cast("Sequence[object]", value)) if is_list else Partial()

    def _view(self, depth: int) -> object:
        """Return a frame as a value, with the open one below it."""
        if depth >= len(self._frames):
            return self._open_text()
        frame = self._frames[depth]
        below = self._view(depth + 1)
        if frame.fields is None:
            return (
                None if frame.item is None else Grown(frame.items, len(frame.items), () if below is None else (below,))
            )
        shown_fields = dict(frame.sure)
        if below is not None and frame.child() is not None:
            shown_fields[frame.key] = below
        if depth and not shown_fields:
            return None
        known: Partial[object] = Partial(MappingProxyType(shown_fields))
        return known

    def _open_text(self) -> str | None:
        return "".join(self._pieces) if self._length and self._shows_growth() else None

    def _shows_growth(self) -> bool:
        if not self._growing or self._is_key or self._state != self._in_text or not self._frames:
            return False
        child = self._frames[-1].child()
        return child is not None and _is_text(_plain(child[0]))

    def _look_at_growth(self) -> None:
        """Show an open text again once it is longer by a 32nd: each character is copied a limited number of times."""
        if self._length > self._seen + self._seen // _FINER and self._shows_growth():
            self._seen, self._changed = self._length, True

    # States: each returns where it stopped, or None for an error.

    def _find_start(self, text: str, at: int) -> int | None:
        found = [place for mark in ("{[" if self._wants_list() else "{") if (place := text.find(mark, at)) >= 0]
        if not found:
            return len(text)
        self._state = self._before_value
        return min(found)

    def _wants_list(self) -> bool:
        return self._wrapped or isinstance(_plain(self._shape), Array)

    def _before_value(self, text: str, at: int) -> int | None:
        at = _skip(text, at)
        if at == len(text):
            return at
        mark = text[at]
        if mark in "{[":
            return at + 1 if self._push(mark) else None
        if mark == "]" and self._frames and self._frames[-1].raw == []:
            return at + 1 if self._pop(mark) else None
        self._begin()
        if mark == '"':
            self._is_key, self._state = False, self._in_text
            return at + 1
        self._state = self._in_scalar
        return at

    def _begin(self) -> None:
        self._pieces, self._length, self._seen = [], 0, 0

    def _push(self, mark: str) -> bool:
        known = self._frames[-1].child() if self._frames else None
        shape = known[0] if known is not None else None if self._frames else self._shape
        if not self._frames and self._wrapped and mark == "{":
            frame = _Frame({}, {WRAPPER: (self._shape, reader_of(self._shape))})
        else:
            frame = _frame_of(shape, mark)
        self._frames.append(frame)
        self._state = self._before_key if mark == "{" else self._before_value
        return len(self._frames) <= caps.NESTING

    def _pop(self, mark: str) -> bool:
        frame = self._frames[-1]
        if (mark == "}") is not isinstance(frame.raw, dict):
            return False
        if len(self._frames) == 1:  # the answer is whole: what is left of the text is words
            self._state = None
            return True
        self._frames.pop()
        return self._finish(frame.raw)

    def _finish(self, value: object) -> bool:
        self._values += 1
        self._changed = self._frames[-1].add(value) or self._changed
        self._state = self._after_value
        return self._values <= caps.JSON_VALUES

    def _before_key(self, text: str, at: int) -> int | None:
        at = _skip(text, at)
        if at == len(text):
            return at
        if text[at] == "}" and not self._frames[-1].raw:
            return at + 1 if self._pop("}") else None
        self._begin()
        self._is_key, self._state = True, self._in_text
        return at + 1 if text[at] == '"' else None

    def _before_colon(self, text: str, at: int) -> int | None:
        at = _skip(text, at)
        if at < len(text):
            self._state = self._before_value
            return at + 1 if text[at] == ":" else None
        return at

    def _after_value(self, text: str, at: int) -> int | None:
        at = _skip(text, at)
        if at == len(text):
            return at
        if text[at] in "}]":
            return at + 1 if self._pop(text[at]) else None
        self._state = self._before_key if isinstance(self._frames[-1].raw, dict) else self._before_value
        return at + 1 if text[at] == "," else None

    def _in_scalar(self, text: str, at: int) -> int | None:
        end = _end_of(_SCALAR, text, at)
        self._pieces.append(text[at:end])
        self._length += end - at
        if self._length > _LONGEST_SCALAR:
            return None
        if end == len(text):
            return end
        value = _parsed("".join(self._pieces))
        return end if isinstance(value, Success) and self._frames and self._finish(value.unwrap()) else None

    def _in_text(self, text: str, at: int) -> int | None:
        end = _end_of(_ATOMS, text, at)
        if end > at:
            return end if self._add_text(text[at:end]) else None
        if text[at] == '"':
            return at + 1 if self._end_text() else None
        if len(text) - at < _LONGEST_ESCAPE and '"' not in text[at + 2 :]:
            self._held = text[at:]  # an escape that is not whole yet
            return at
        lone = text[at : at + 6]  # half of a pair
        return at + 6 if re.fullmatch(r"\\u[0-9a-fA-F]{4}", lone) and self._add_text(lone) else None

    def _add_text(self, raw: str) -> bool:
        value = Success(raw) if "\\" not in raw else _parsed(f'"{raw}"')
        if not isinstance(value, Success):
            return False
        piece = cast("str", value.unwrap())
        self._pieces.append(piece)
        self._length += len(piece)
        return True

    def _end_text(self) -> bool:
        text = "".join(self._pieces)
        if self._is_key:
            self._frames[-1].key, self._state = text, self._before_colon
            return True
        return bool(self._frames) and self._finish(text)


def _skip(text: str, at: int) -> int:
    return _end_of(_BLANK, text, at)


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return at if found is None else found.end()


def _parsed(token: str) -> Result[object, str]:

    try:
        return Success(json.loads(token, strict=False))
    except ValueError:
        return Failure(token)


def _is_text(shape: Shape) -> bool:
    kind = shape.kind if isinstance(shape, Leaf) else None
    return kind is str or (get_origin(kind) is Annotated and get_args(kind)[0] is str)


def _plain(shape: Shape) -> Shape:
    return _plain(shape.shape) if isinstance(shape, Constrained) else shape


def _frame_of(shape: Shape | None, mark: str) -> _Frame:
    """Return a frame of a new object or list; a union counts only if one of its options can be meant."""
    plain = None if shape is None else _plain(shape)
    options = tuple(map(_plain, plain.options)) if isinstance(plain, OneOf) else () if plain is None else (plain,)
    if mark == "{":
        meant = [each for each in options if not isinstance(each, Leaf | Array)]
        only = meant[0] if len(meant) == 1 else None
        return _Frame({}, _readers(only) if isinstance(only, Record) else None)
    lists = [each for each in options if isinstance(each, Array)]
    return _Frame([], item=(lists[0].item, reader_of(lists[0].item)) if len(lists) == 1 else None)


@lru_cache(maxsize=1024)
def _readers(record: Record) -> Mapping[str, tuple[Shape, Reader]]:
    return {each.name: (each.shape, reader_of(each.shape)) for each in fields_of(record)}
