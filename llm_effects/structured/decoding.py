"""Strict decoding of the JSON in an answer into a value of a type, with every problem and its place.

``"3"`` is not a number, and both unknown and missing keys are problems. The class itself has the last word: what its
own validators reject is a problem too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Final, TypeAlias, assert_never, cast, get_origin

import msgspec
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.structured.schema import WRAPPER, TypeSchema
from llm_effects.structured.shapes import (
    REJECTIONS,
    Array,
    Constrained,
    Custom,
    Field,
    FixedArray,
    Leaf,
    OneOf,
    Record,
    Shape,
    Table,
    choices_of,
    field_problems,
    fields_of,
    message_of,
)
from llm_effects.values.json import dump
from llm_effects.values.validation import join_path, short_repr, suggestion

Problems: TypeAlias = tuple[str, ...]
"""What is wrong, each with its place: ``$.items[2].price: is missing``."""

Decoded: TypeAlias = Result[object, Problems]
"""A value, or everything that is wrong with its JSON."""

ROOT: Final = "$"

MAX_CHOICES: Final = 50
"""Most choices that a problem lists."""


def decode_text(target: TypeSchema, text: str) -> Decoded:
    """Decode an answer; the object that wraps a value may be missing.

    >>> from llm_effects.structured.schema import type_schema
    >>> decode_text(type_schema(list[int]).unwrap(), '{"value": [1, "2"]}').failure()
    ('$[1]: expected `int`, got `str`',)
    """
    found = find_json(text)
    if not is_successful(found):
        return Failure((f"{ROOT}: {found.failure()}",))
    decoded = [_decode_root(target, value) for value in found.unwrap()]
    return next((each for each in decoded if is_successful(each)), decoded[0])


# The JSON in an answer: alone, in a code fence, or among words.


MAX_EXCERPTS: Final = 20
"""Most excerpts of an answer that are tried."""

_FENCED: Final = re.compile(r"```[\w-]*[ \t]*\n(.*?)```", re.DOTALL)
_OPENING: Final = re.compile(r'\{(?=\s*["}])|\[(?=\s*[\[{"\]tfn\d-])')
_SPANS: Final = json.JSONDecoder()


def find_json(text: str) -> Result[tuple[object, ...], str]:
    r"""Return the JSON of an answer: the whole text, or else the possible excerpts, first fenced, then among words.

    >>> find_json('Sure!\n```json\n{"a": 1}\n```'), find_json('As [1] says: {"a": 1}. Good?')
    (<Success: ({'a': 1},)>, <Success: ([1], {'a': 1})>)
    >>> find_json('{"a": 1,}')
    <Failure: is not JSON: trailing comma in object (byte 8)>
    """
    whole = _parse(text.strip())
    if is_successful(whole):
        return Success((whole.unwrap(),))
    parsed = map(_parse, islice((*_fenced(text), *_among_words(_FENCED.sub("", text))), MAX_EXCERPTS))
    values = tuple(each.unwrap() for each in parsed if is_successful(each))
    return Success(values) if values else Failure(whole.failure())


def _fenced(text: str) -> Iterator[str]:
    return (block[1].strip() for block in _FENCED.finditer(text))


def _among_words(text: str) -> Iterator[str]:
    """Yield whole objects and lists; anything inside a broken one is only a part of what was meant."""
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


def _parse(text: str) -> Result[object, str]:
    if not text:
        return Failure("is empty")
    try:
        return Success(msgspec.json.decode(text))
    except (msgspec.DecodeError, UnicodeEncodeError) as problem:
        return Failure(f"is not JSON: {str(problem).removeprefix('JSON is malformed: ')}")
    except RecursionError:
        return Failure("is nested too deeply")


# From JSON to a value, by the shape of its type.


def _decode_root(target: TypeSchema, value: object) -> Decoded:
    table = _table_of(value)
    inner = table[WRAPPER] if target.wrapped and table is not None and set(table) == {WRAPPER} else value
    try:
        return _decode(target.shape, inner, ROOT)
    except RecursionError:
        return Failure((f"{ROOT}: is nested too deeply",))


def _decode(shape: Shape, value: object, path: str) -> Decoded:
    match shape:
        case Leaf():
            return _leaf(shape, value, path)
        case Custom():
            return _custom(shape, value, path)
        case Record():
            return _record(shape, value, path)
        case Array() | FixedArray():
            return _list(shape, value, path)
        case Table():
            return _table(shape, value, path)
        case OneOf():
            return _one_of(shape, value, path)
        case Constrained():
            outline = _convert(shape.outline, value, path)
            return _decode(shape.shape, value, path) if is_successful(outline) else outline
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


def _mismatch(expected: str, value: object, path: str) -> Decoded:
    return Failure((f"{path}: expected {expected}, got {_KINDS[type(value)]}",))


def _leaf(shape: Leaf, value: object, path: str) -> Decoded:
    converted = _convert(shape.kind, value, path)
    choices = choices_of(shape)
    if is_successful(converted) or not choices:
        return converted
    more = f" or {len(choices) - MAX_CHOICES} others" if len(choices) > MAX_CHOICES else ""
    return Failure(
        (f"{path}: must be one of {', '.join(map(repr, choices[:MAX_CHOICES]))}{more}, not {short_repr(value)}",)
    )


def _convert(kind: object, value: object, path: str) -> Decoded:
    try:
        return Success(msgspec.convert(value, cast("type[object]", kind)))
    except msgspec.ValidationError as problem:
        message, _, below = str(problem).partition(" - at `$")
        return Failure((f"{path}{below.rstrip('`')}: {message[:1].lower()}{message[1:]}",))
    except (OverflowError, ValueError, TypeError) as problem:
        return Failure((f"{path}: {problem}",))


def _custom(shape: Custom, value: object, path: str) -> Decoded:
    try:
        return Success(shape.kind.model_validate_json(dump(value)))
    except REJECTIONS as problem:
        return Failure(tuple(_problems_of(problem, path)))


def _problems_of(problem: Exception, path: str) -> Iterable[str]:
    """List the problems in an error of pydantic, or in any error with the same ``errors`` method."""
    errors = getattr(problem, "errors", None)
    if not callable(errors):
        return (f"{path}: {message_of(problem)}",)
    return [
        f"{_below(path, cast('tuple[str | int, ...]', each.get('loc', ())))}: {each.get('msg', 'is wrong')}"
        for each in cast("list[dict[str, object]]", errors())
    ]


def _below(path: str, keys: Iterable[str | int]) -> str:
    for key in keys:
        path = join_path(path, key)
    return path


def _list(shape: Array | FixedArray, value: object, path: str) -> Decoded:
    if not isinstance(value, list):
        return _mismatch("a list", value, path)
    items = cast("list[object]", value)
    if isinstance(shape, FixedArray) and len(items) != len(shape.items):
        return Failure((f"{path}: must have {len(shape.items)} items, not {len(items)}",))
    shapes = shape.items if isinstance(shape, FixedArray) else (shape.item,) * len(items)
    decoded = [
        _decode(each, item, join_path(path, at)) for at, (each, item) in enumerate(zip(shapes, items, strict=True))
    ]
    problems = _all_problems(decoded)
    if problems:
        return Failure(problems)
    container = tuple if isinstance(shape, FixedArray) else shape.make
    return _construct(container, ([each.unwrap() for each in decoded],), {}, path)


def _table(shape: Table, value: object, path: str) -> Decoded:
    table = _table_of(value)
    if table is None:
        return _mismatch("an object", value, path)
    values = {key: _decode(shape.value, each, join_path(path, key)) for key, each in table.items()}
    keys = {key: _key(shape.key, key, path) for key in table}
    problems = (*_all_problems(keys.values()), *_all_problems(values.values()))
    return Failure(problems) if problems else Success({keys[key].unwrap(): values[key].unwrap() for key in table})


def _key(kind: object, key: str, path: str) -> Decoded:
    try:
        return Success(msgspec.convert(key, cast("type[object]", kind), strict=False))
    except (msgspec.ValidationError, ValueError, TypeError) as problem:
        return Failure((f"{join_path(path, key)}: the key is wrong: {problem}",))


def _record(shape: Record, value: object, path: str) -> Decoded:
    table, fields = _table_of(value), fields_of(shape)
    if table is None:
        return _mismatch("an object", value, path)
    decoded = {each.name: _field(each, table[each.name], path) for each in fields if each.name in table}
    problems = (*_wrong_keys(fields, table, path), *_all_problems(decoded.values()))
    kind = cast("type", get_origin(shape.kind) or shape.kind)
    values = {name: each.unwrap() for name, each in decoded.items() if is_successful(each) and each is not _LEFT_OUT}
    record: Decoded = Failure(problems) if problems else _construct(kind, (), values, path)
    if is_successful(record):
        return record
    rejected = tuple(field_problems(kind, values, path))
    return Failure((*problems, *rejected)) if problems or rejected else record


_LEFT_OUT: Final[Decoded] = Success(None)


def _field(each: Field, value: object, path: str) -> Decoded:
    """Decode a field; null counts as left out if the field may be left out and is not null itself."""
    decoded = _decode(each.shape, value, join_path(path, each.name))
    return _LEFT_OUT if value is None and not (each.required or is_successful(decoded)) else decoded


def _wrong_keys(fields: Iterable[Field], table: Mapping[str, object], path: str) -> Iterable[str]:
    names = [each.name for each in fields]
    yield from (
        f"{join_path(path, each.name)}: is missing" for each in fields if each.required and each.name not in table
    )
    yield from (f"{join_path(path, key)}: is unknown: {suggestion(key, names)}" for key in table if key not in names)


def _construct(kind: type, arguments: tuple[object, ...], named: Mapping[str, object], path: str) -> Decoded:
    """Construct a value; its class rejects arguments by raising."""
    try:
        return Success(kind(*arguments, **named))
    except REJECTIONS as problem:
        return Failure(tuple(_problems_of(problem, path)))


def _one_of(shape: OneOf, value: object, path: str) -> Decoded:
    """Return the first option that fits, or else the problems with the option that was probably meant."""
    decoded = [(option, _decode(option, value, path)) for option in shape.options]
    fitting = next((each for _, each in decoded if is_successful(each)), None)
    if fitting is not None:
        return fitting
    return min(decoded, key=lambda each: _distance(each[0], each[1].failure(), value, path))[1]


def _distance(option: Shape, problems: Problems, value: object, path: str) -> tuple[bool, bool, int]:
    is_another_kind = any(problem.startswith(f"{path}: ") for problem in problems)
    return is_another_kind, not _tags_match(option, value), len(problems)


def _tags_match(option: Shape, value: object) -> bool:
    table = _table_of(value)
    if not isinstance(option, Record) or table is None:
        return True
    tags = {field.name: choices_of(field.shape) for field in fields_of(option)}
    return all(table.get(name) in choices for name, choices in tags.items() if choices)


def _all_problems(decoded: Iterable[Decoded]) -> Problems:
    return tuple(problem for each in decoded if not is_successful(each) for problem in each.failure())
