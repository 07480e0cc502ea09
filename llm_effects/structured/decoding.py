"""From the JSON of an answer to a value of the wanted type, with every problem and its place.

Strict: ``"3"`` is no number, a key that the type does not have is a problem, and so is one that is missing. The class
itself has the last word: what its own validators refuse is a problem too.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Final, TypeAlias, assert_never, cast, get_origin

import msgspec
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.structured.schema import WRAPPED, Target
from llm_effects.structured.shapes import (
    REFUSALS,
    Choice,
    Field,
    Fixed,
    Items,
    Leaf,
    Noted,
    Own,
    Record,
    Shape,
    Table,
    choices_of,
    fields_of,
    refusals,
    said,
)
from llm_effects.values.json import dump
from llm_effects.values.validation import join_path, short_repr, suggestion

# The JSON in an answer: alone, in a code fence, or among some words.


_FENCED: Final = re.compile(r"```[\w-]*[ \t]*\n(.*?)```", re.DOTALL)
_OPENING: Final = re.compile(r'\{(?=\s*["}])|\[(?=\s*[\[{"\]tfn\d-])')
_MOST: Final = 20
"""Excerpts that are looked at."""

_SPANS: Final = json.JSONDecoder()


def json_in(text: str) -> Result[tuple[object, ...], str]:
    r"""Read the JSON of an answer: all of it, or else what may be meant, in this order: fenced, then among the words.

    >>> json_in('Sure!\n```json\n{"a": 1}\n```'), json_in('As [1] says: {"a": 1}. Good?')
    (<Success: ({'a': 1},)>, <Success: ([1], {'a': 1})>)
    >>> json_in('{"a": 1,}')
    <Failure: is no JSON: trailing comma in object (byte 8)>
    """
    whole = _read(text.strip())
    if is_successful(whole):
        return Success((whole.unwrap(),))
    read = map(_read, islice((*_fenced(text), *_among_words(_FENCED.sub("", text))), _MOST))
    found = tuple(each.unwrap() for each in read if is_successful(each))
    return Success(found) if found else Failure(whole.failure())


def _fenced(text: str) -> Iterator[str]:
    return (block[1].strip() for block in _FENCED.finditer(text))


def _among_words(text: str) -> Iterator[str]:
    """Whole objects and lists; what is in a broken one is only a part of what was meant."""
    opening = _OPENING.search(text)
    while opening is not None:
        end = _end(text, opening.start())
        if end is None:
            return
        yield text[opening.start() : end]
        opening = _OPENING.search(text, end)


def _end(text: str, start: int) -> int | None:
    try:
        return _SPANS.raw_decode(text, start)[1]
    except (ValueError, RecursionError):
        return None


def _read(text: str) -> Result[object, str]:
    if not text:
        return Failure("is empty")
    try:
        return Success(msgspec.json.decode(text))
    except (msgspec.DecodeError, UnicodeEncodeError) as problem:
        return Failure(f"is no JSON: {str(problem).removeprefix('JSON is malformed: ')}")
    except RecursionError:
        return Failure("is nested too deeply")


Problems: TypeAlias = tuple[str, ...]
"""What is wrong, each with its place: ``$.items[2].price: is missing``."""

Decoded: TypeAlias = Result[object, Problems]

ROOT: Final = "$"

_SHOWN: Final = 50
"""Choices that are told of one place."""


def decode_text(wanted: Target, text: str) -> Decoded:
    """Read an answer; the object around what is no object may be left out.

    >>> from llm_effects.structured.schema import target_type
    >>> decode_text(target_type(list[int]).unwrap(), '{"value": [1, "2"]}').failure()
    ('$[1]: expected `int`, got `str`',)
    """
    read = json_in(text)
    if not is_successful(read):
        return Failure((f"{ROOT}: {read.failure()}",))
    tried = [_unwrapped(wanted, value) for value in read.unwrap()]
    return next((each for each in tried if is_successful(each)), tried[0])


def _unwrapped(wanted: Target, value: object) -> Decoded:
    within = _table_of(value)
    inner = within[WRAPPED] if wanted.wrapped and within is not None and set(within) == {WRAPPED} else value
    try:
        return _decoded(wanted.shape, inner, ROOT)
    except RecursionError:
        return Failure((f"{ROOT}: is nested too deeply",))


def _decoded(shape: Shape, value: object, path: str) -> Decoded:
    match shape:
        case Leaf():
            return _leaf(shape, value, path)
        case Own():
            return _own(shape, value, path)
        case Record():
            return _record(shape, value, path)
        case Items() | Fixed():
            return _list(shape, value, path)
        case Table():
            return _table(shape, value, path)
        case Choice():
            return _choice(shape, value, path)
        case Noted():
            outline = _converted(shape.outline, value, path)
            return _decoded(shape.shape, value, path) if is_successful(outline) else outline
        case _:
            assert_never(shape)


_KINDS: Final[Mapping[type, str]] = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def _table_of(value: object) -> dict[str, object] | None:
    return cast("dict[str, object]", value) if isinstance(value, dict) else None


def _unlike(expected: str, value: object, path: str) -> Decoded:
    return Failure((f"{path}: expected {expected}, got {_KINDS[type(value)]}",))


def _leaf(shape: Leaf, value: object, path: str) -> Decoded:
    converted = _converted(shape.kind, value, path)
    choices = choices_of(shape)
    if is_successful(converted) or not choices:
        return converted
    more = f" or {len(choices) - _SHOWN} others" if len(choices) > _SHOWN else ""
    return Failure((f"{path}: must be one of {', '.join(map(repr, choices[:_SHOWN]))}{more}, not {short_repr(value)}",))


def _converted(kind: object, value: object, path: str) -> Decoded:
    try:
        return Success(msgspec.convert(value, cast("type[object]", kind)))
    except msgspec.ValidationError as problem:
        says, _, below = str(problem).partition(" - at `$")
        return Failure((f"{path}{below.rstrip('`')}: {says[:1].lower()}{says[1:]}",))
    except (OverflowError, ValueError, TypeError) as problem:
        return Failure((f"{path}: {problem}",))


def _own(shape: Own, value: object, path: str) -> Decoded:
    try:
        return Success(shape.kind.model_validate_json(dump(value)))
    except REFUSALS as problem:
        return Failure(tuple(_told(problem, path)))


def _told(problem: Exception, path: str) -> Iterable[str]:
    """List the problems of pydantic's error, or of any that tells them as it does."""
    errors = getattr(problem, "errors", None)
    if not callable(errors):
        return (f"{path}: {said(problem)}",)
    return [
        f"{_below(path, cast('tuple[str | int, ...]', each.get('loc', ())))}: {each.get('msg', 'is wrong')}"
        for each in cast("list[dict[str, object]]", errors())
    ]


def _below(path: str, keys: Iterable[str | int]) -> str:
    for key in keys:
        path = join_path(path, key)
    return path


def _list(shape: Items | Fixed, value: object, path: str) -> Decoded:
    if not isinstance(value, list):
        return _unlike("a list", value, path)
    given = cast("list[object]", value)
    if isinstance(shape, Fixed) and len(given) != len(shape.items):
        return Failure((f"{path}: must have {len(shape.items)} items, not {len(given)}",))
    shapes = shape.items if isinstance(shape, Fixed) else (shape.item,) * len(given)
    items = [
        _decoded(each, item, join_path(path, at)) for at, (each, item) in enumerate(zip(shapes, given, strict=True))
    ]
    problems = _problems(items)
    if problems:
        return Failure(problems)
    return _made(tuple if isinstance(shape, Fixed) else shape.make, ([each.unwrap() for each in items],), {}, path)


def _table(shape: Table, value: object, path: str) -> Decoded:
    given = _table_of(value)
    if given is None:
        return _unlike("an object", value, path)
    values = {key: _decoded(shape.value, each, join_path(path, key)) for key, each in given.items()}
    keys = {key: _key(shape.key, key, path) for key in given}
    problems = (*_problems(keys.values()), *_problems(values.values()))
    return Failure(problems) if problems else Success({keys[key].unwrap(): values[key].unwrap() for key in given})


def _key(kind: object, key: str, path: str) -> Decoded:
    try:
        return Success(msgspec.convert(key, cast("type[object]", kind), strict=False))
    except (msgspec.ValidationError, ValueError, TypeError) as problem:
        return Failure((f"{join_path(path, key)}: the key is wrong: {problem}",))


def _record(shape: Record, value: object, path: str) -> Decoded:
    given, fields = _table_of(value), fields_of(shape)
    if given is None:
        return _unlike("an object", value, path)
    read = {each.name: _field(each, given[each.name], path) for each in fields if each.name in given}
    problems = (*_misnamed(fields, given, path), *_problems(read.values()))
    kind = cast("type", get_origin(shape.kind) or shape.kind)
    named = {name: each.unwrap() for name, each in read.items() if is_successful(each) and each is not _LEFT_OUT}
    made: Decoded = Failure(problems) if problems else _made(kind, (), named, path)
    if is_successful(made):
        return made
    ruled = tuple(refusals(kind, named, path))
    return Failure((*problems, *ruled) or made.failure())


_LEFT_OUT: Final[Decoded] = Success(None)


def _field(each: Field, value: object, path: str) -> Decoded:
    """Read a field; null for one that may be left out, and takes none, is how some protocols leave it out."""
    decoded = _decoded(each.shape, value, join_path(path, each.name))
    return _LEFT_OUT if value is None and not (each.required or is_successful(decoded)) else decoded


def _misnamed(fields: Iterable[Field], given: Mapping[str, object], path: str) -> Iterable[str]:
    names = [each.name for each in fields]
    yield from (
        f"{join_path(path, each.name)}: is missing" for each in fields if each.required and each.name not in given
    )
    yield from (f"{join_path(path, key)}: is unknown: {suggestion(key, names)}" for key in given if key not in names)


def _made(kind: type, given: tuple[object, ...], named: Mapping[str, object], path: str) -> Decoded:
    """Make the value; the rules of its class speak by exceptions."""
    try:
        return Success(kind(*given, **named))
    except REFUSALS as problem:
        return Failure(tuple(_told(problem, path)))


def _choice(shape: Choice, value: object, path: str) -> Decoded:
    """Take the first option that fits; if none does, tell what is wrong with the one that was probably meant."""
    tried = [(option, _decoded(option, value, path)) for option in shape.options]
    fitting = next((decoded for _, decoded in tried if is_successful(decoded)), None)
    if fitting is not None:
        return fitting
    return min(tried, key=lambda each: _distance(each[0], each[1].failure(), value, path))[1]


def _distance(option: Shape, problems: Problems, value: object, path: str) -> tuple[bool, bool, int]:
    of_another_kind = any(problem.startswith(f"{path}: ") for problem in problems)
    return of_another_kind, not _bears_its_tags(option, value), len(problems)


def _bears_its_tags(option: Shape, value: object) -> bool:
    given = _table_of(value)
    if not isinstance(option, Record) or given is None:
        return True
    tags = {field.name: choices_of(field.shape) for field in fields_of(option)}
    return all(given.get(name) in choices for name, choices in tags.items() if choices)


def _problems(results: Iterable[Decoded]) -> Problems:
    return tuple(problem for each in results if not is_successful(each) for problem in each.failure())
