"""Strict decoding of the JSON in an answer into a value of a type, with every problem and its place.

``"3"`` is not a number, and both unknown and missing keys are problems. The class itself has the last word: what its
own validators reject is a problem too.

The time grows with the length of the answer: each object is decoded at most once for each class, whatever unions it
stands in, and at most ``caps.PROBLEMS`` problems are listed. An answer that fits is read by ``readers``, which is
several times faster; only one that does not is decoded here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, reduce
from itertools import chain, islice, repeat
from typing import Any, Final, TypeAlias, assert_never, cast, final, get_origin

import msgspec
from attrs import frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.structured.readers import Misfit, reader_of, table_of, tag_matches
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
    names_of,
)
from llm_effects.values import caps
from llm_effects.values.json import Unreadable, dump, parse
from llm_effects.values.validation import join_path, short_repr, suggestion

Problems: TypeAlias = tuple[str, ...]
"""What is wrong, each with its place: ``$.items[2].price: is missing``."""

Decoded: TypeAlias = Result[object, Problems]
"""A value, or everything that is wrong with its JSON."""

ROOT: Final = "$"


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
    excerpts = chain(_fenced(text), _among_words(_FENCED.sub("", text)))
    parsed = map(_parse, islice(excerpts, caps.EXCERPTS))
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
    value = parse(text)
    if not isinstance(value, Unreadable):
        return Success(value)
    if value.reason.startswith(("JSON has", "JSON is nested")):
        return Failure(value.reason.removeprefix("JSON "))
    return Failure(f"is not JSON: {value.reason.removeprefix('JSON is malformed: ')}")


# From JSON to a value, by the shape of its type.


_Path: TypeAlias = "tuple[_Path, str | int, int] | None"
"""The place of a value: that of its container, its key or index, and its level; ``None`` is the root."""


def _inside(path: _Path, key: str | int) -> _Path:
    return path, key, _level(path) + 1


def _level(path: _Path) -> int:
    return 0 if path is None else path[2]


@final
@frozen
class _Problem:
    """A problem that is only written once it is known to be shown: most options of a union have some."""

    path: _Path
    message: str | Callable[[], str]
    below: str = ""

    def write(self) -> str:
        keys: list[str | int] = []
        path = self.path
        while path is not None:
            path, key, _ = path
            keys.append(key if isinstance(key, int) else key[: caps.NAME_CHARACTERS])
        message = self.message if isinstance(self.message, str) else self.message()
        return f"{reduce(join_path, reversed(keys), ROOT)}{self.below}: {message}"


_Problems: TypeAlias = tuple[_Problem, ...]
_Value: TypeAlias = Result[object, _Problems]

_Known: TypeAlias = dict[tuple[object, int], _Value]
"""What each object of the answer is as each class."""


def _decode_root(target: TypeSchema, value: object) -> Decoded:
    table = table_of(value)
    inner = table[WRAPPER] if target.wrapped and table is not None and set(table) == {WRAPPER} else value
    try:
        return Success(reader_of(target.shape)(inner))
    except (Misfit, RecursionError):
        return _decode_with_problems(target.shape, inner)


def _decode_with_problems(shape: Shape, value: object) -> Decoded:
    try:
        return _decode(shape, value, None, {}).alt(_write)
    except RecursionError:
        return Failure((f"{ROOT}: is nested too deeply",))


def _write(problems: _Problems) -> Problems:
    return tuple(problem.write() for problem in problems[: caps.PROBLEMS])


def _decode(shape: Shape, value: object, path: _Path, known: _Known) -> _Value:
    match shape:
        case Leaf():
            return _leaf(shape, value, path)
        case Record():
            return _record(shape, value, path, known)
        case Array() | FixedArray():
            return _list(shape, value, path, known)
        case Table():
            return _table(shape, value, path, known)
        case OneOf():
            return _one_of(shape, value, path, known)
        case Custom():
            return _custom(shape, value, path)
        case Constrained():
            outline = _convert(shape.outline, value, path)
            return _decode(shape.shape, value, path, known) if is_successful(outline) else outline
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


def _reject(path: _Path, message: str | Callable[[], str]) -> _Value:
    return Failure((_Problem(path, message),))


def _mismatch(expected: str, value: object, path: _Path) -> _Value:
    return _reject(path, f"expected {expected}, got {_KINDS[type(value)]}")


def _leaf(shape: Leaf, value: object, path: _Path) -> _Value:
    converted = _convert(shape.kind, value, path)
    if is_successful(converted):
        return converted
    choices = choices_of(shape)
    return _reject(path, partial(_not_a_choice, choices, value)) if choices else converted


def _not_a_choice(choices: tuple[object, ...], value: object) -> str:
    more = f" or {len(choices) - caps.CHOICES} others" if len(choices) > caps.CHOICES else ""
    return f"must be one of {', '.join(map(repr, choices[: caps.CHOICES]))}{more}, not {short_repr(value)}"


def _convert(kind: object, value: object, path: _Path) -> _Value:
    try:
        return Success(msgspec.convert(value, cast("type[object]", kind)))
    except msgspec.ValidationError as problem:
        message, _, below = str(problem).partition(" - at `$")
        return Failure((_Problem(path, f"{message[:1].lower()}{message[1:]}", below.rstrip("`")),))
    except (OverflowError, ValueError, TypeError) as problem:
        return _reject(path, str(problem))


def _custom(shape: Custom, value: object, path: _Path) -> _Value:
    try:
        return Success(shape.kind.model_validate_json(dump(value)))
    except REJECTIONS as problem:
        return Failure(_problems_of(problem, path))


def _problems_of(problem: Exception, path: _Path) -> _Problems:
    """List the problems in an error of pydantic, or in any error with the same ``errors`` method."""
    errors = getattr(problem, "errors", None)
    if not callable(errors):
        return (_Problem(path, message_of(problem)),)
    return tuple(
        _Problem(
            reduce(_inside, cast("tuple[str | int, ...]", each.get("loc", ())), path),
            str(each.get("msg", "is wrong")),
        )
        for each in islice(cast("list[dict[str, object]]", errors()), caps.PROBLEMS)
    )


def _list(shape: Array | FixedArray, value: object, path: _Path, known: _Known) -> _Value:
    if not isinstance(value, list):
        return _mismatch("a list", value, path)
    items = cast("list[object]", value)
    if isinstance(shape, FixedArray) and len(items) != len(shape.items):
        return _reject(path, f"must have {len(shape.items)} items, not {len(items)}")
    decoded = _plain_items(shape, items) or _items(shape, items, path, known)
    container = tuple if isinstance(shape, FixedArray) else shape.make
    return _construct(container, (decoded.unwrap(),), {}, path) if is_successful(decoded) else decoded


def _plain_items(shape: Array | FixedArray, items: list[object]) -> _Value | None:
    """Decode a list of numbers, texts and the like at once, if all of them are right."""
    if not isinstance(shape, Array) or not isinstance(shape.item, Leaf):
        return None
    decoded = _convert(cast("Any", list)[shape.item.kind], items, None)
    return decoded if is_successful(decoded) else None


def _items(shape: Array | FixedArray, items: list[object], path: _Path, known: _Known) -> _Value:
    shapes = shape.items if isinstance(shape, FixedArray) else repeat(shape.item, len(items))
    pairs = enumerate(zip(shapes, items, strict=True))
    return _together(_decode(each, item, _inside(path, at), known) for at, (each, item) in pairs)


def _together(each_decoded: Iterable[_Value]) -> _Value:
    """Return all values, or else all problems: no more are looked for once there are enough."""
    values: list[object] = []
    problems: list[_Problem] = []
    for each in each_decoded:
        if is_successful(each):
            values.append(each.unwrap())
        else:
            problems.extend(each.failure())
        if len(problems) >= caps.PROBLEMS:
            break
    return Failure(tuple(problems[: caps.PROBLEMS])) if problems else Success(values)


def _table(shape: Table, value: object, path: _Path, known: _Known) -> _Value:
    table = table_of(value)
    if table is None:
        return _mismatch("an object", value, path)
    keys = _together(_key(shape.key, key, path) for key in table)
    values = _together(_decode(shape.value, each, _inside(path, key), known) for key, each in table.items())
    if is_successful(keys) and is_successful(values):
        pairs = zip(cast("list[object]", keys.unwrap()), cast("list[object]", values.unwrap()), strict=True)
        return Success(dict(pairs))
    return Failure(_all_problems((keys, values))[: caps.PROBLEMS])


def _key(kind: object, key: str, path: _Path) -> _Value:
    try:
        return Success(msgspec.convert(key, cast("type[object]", kind), strict=False))
    except (msgspec.ValidationError, ValueError, TypeError) as problem:
        return _reject(_inside(path, key), f"the key is wrong: {problem}")


def _record(shape: Record, value: object, path: _Path, known: _Known) -> _Value:
    table = table_of(value)
    if table is None:
        return _mismatch("an object", value, path)
    as_class = (shape.kind, id(table))
    if as_class not in known:
        known[as_class] = _new_record(shape, table, path, known)
    return known[as_class]


def _new_record(shape: Record, table: dict[str, object], path: _Path, known: _Known) -> _Value:
    fields = fields_of(shape)
    decoded = {each.name: _field(each, table[each.name], path, known) for each in fields if each.name in table}
    problems = (*islice(_wrong_keys(shape, table, path), caps.PROBLEMS), *_all_problems(decoded.values()))
    kind = cast("type", get_origin(shape.kind) or shape.kind)
    values = {name: each.unwrap() for name, each in decoded.items() if is_successful(each) and each is not _LEFT_OUT}
    record: _Value = Failure(problems) if problems else _construct(kind, (), values, path)
    if is_successful(record):
        return record
    rejected = [_Problem(_inside(path, name), message) for name, message in field_problems(kind, values)]
    return Failure((*problems, *rejected)[: caps.PROBLEMS]) if problems or rejected else record


_LEFT_OUT: Final[_Value] = Success(None)


def _field(each: Field, value: object, path: _Path, known: _Known) -> _Value:
    """Decode a field; null counts as left out if the field may be left out and is not null itself."""
    decoded = _decode(each.shape, value, _inside(path, each.name), known)
    return _LEFT_OUT if value is None and not (each.required or is_successful(decoded)) else decoded


def _wrong_keys(shape: Record, table: Mapping[str, object], path: _Path) -> Iterator[_Problem]:
    fields, names = fields_of(shape), names_of(shape)
    if names.required <= table.keys() <= names.all:
        return
    yield from (
        _Problem(_inside(path, each.name), "is missing") for each in fields if each.required and each.name not in table
    )
    yield from (_Problem(_inside(path, key), partial(_unknown, key, fields)) for key in table if key not in names.all)


def _unknown(key: str, fields: tuple[Field, ...]) -> str:
    return f"is unknown: {suggestion(key[: caps.NAME_CHARACTERS], (each.name for each in fields))}"


def _construct(kind: type, arguments: tuple[object, ...], named: Mapping[str, object], path: _Path) -> _Value:
    """Construct a value; its class rejects arguments by raising."""
    try:
        return Success(kind(*arguments, **named))
    except REJECTIONS as problem:
        return Failure(_problems_of(problem, path))


def _one_of(shape: OneOf, value: object, path: _Path, known: _Known) -> _Value:
    """Return the first option that fits, or else the problems with the option that was probably meant.

    The keys of an object, and its tags, the fields with fixed choices, show which options are worth decoding.
    """
    likely = [option for option in shape.options if _may_fit(option, value)]
    failed: list[_Problems] = []
    for option in likely:
        decoded = _decode(option, value, path, known)
        if is_successful(decoded):
            return decoded
        failed.append(decoded.failure())
    if failed and not all(_is_another_kind(each, path) for each in failed):
        return Failure(min(failed, key=partial(_distance, path)))
    return _nearest(shape, value, path, known)


def _nearest(shape: OneOf, value: object, path: _Path, known: _Known) -> _Value:
    """Return the problems with the option that was probably meant, where none has these keys and tags."""
    failed = [(not _tags_match(option, value), _decode(option, value, path, known)) for option in shape.options]
    distances = [
        ((_is_another_kind(each.failure(), path), mistagged, len(each.failure())), each)
        for mistagged, each in failed
        if not is_successful(each)
    ]
    return min(distances, key=lambda each: each[0])[1]


def _distance(path: _Path, problems: _Problems) -> tuple[bool, int]:
    return _is_another_kind(problems, path), len(problems)


def _is_another_kind(problems: _Problems, path: _Path) -> bool:
    level = _level(path)
    return any(_level(problem.path) == level and not problem.below for problem in problems)


def _may_fit(option: Shape, value: object) -> bool:
    """Return whether an option is worth decoding: for an object, whether it has the keys and tags of the class."""
    table = table_of(value)
    if not isinstance(option, Record) or table is None:
        return True
    names = names_of(option)
    return names.required <= table.keys() <= names.all and _tags_match(option, value)


def _tags_match(option: Shape, value: object) -> bool:
    """Return whether an object may be of this class, by its tags; one that may be left out may be null too."""
    table = table_of(value)
    if not isinstance(option, Record) or table is None:
        return True
    return all(tag_matches(table.get(each.name), each, choices) for each, choices in names_of(option).tags)


def _all_problems(decoded: Iterable[_Value]) -> _Problems:
    return tuple(problem for each in decoded if not is_successful(each) for problem in each.failure())
