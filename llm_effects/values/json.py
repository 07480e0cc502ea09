"""JSON on the way out: what a caller gives is checked and copied once; what is sent is written in one place."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Final, NoReturn, TypeAlias, TypeGuard, cast, final

import msgspec
from attrs import frozen

from llm_effects.values.validation import inside, invalid

MAX_DEPTH: Final = 100
"""Levels of lists and tables that a JSON value may have."""

_LARGEST_BITS: Final = 1023
"""What fits here has a nearest float, which is what most readers of JSON know."""

_FINITE: Final = "must be a finite number"

_Path: TypeAlias = tuple[str | int, ...]
_Above: TypeAlias = tuple[object, ...]


def to_json_object(name: str, given: Mapping[str, object]) -> dict[str, object]:
    """Copy the JSON object of a field into plain dicts and lists; what is no JSON is an ``InvalidValue`` with its path.

    >>> to_json_object("schema", {"type": "object", "required": ("a",)})
    {'type': 'object', 'required': ['a']}
    >>> to_json_object("schema", {"properties": {"a": {"maximum": object()}}})
    Traceback (most recent call last):
        ...
    llm_effects.values.validation.InvalidValue: schema.properties.a.maximum: must be JSON, not object
    """
    if not _is_table(given):
        invalid(name, f"must be a JSON object, not {type(given).__name__}")
    return _table(given, (name,), ())


def _plain(value: object, path: _Path, above: _Above) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # of an enumeration's member too, whose own ``str`` may be its name
    if isinstance(value, int | float):
        return _number(value, path)
    if _is_table(value):
        return _table(value, path, above)
    if _is_list(value):
        below = _below(value, path, above)
        return [_plain(item, (*path, index), below) for index, item in enumerate(value)]
    return _refuse(path, f"must be JSON, not {type(value).__name__}")


def _table(table: Mapping[object, object], path: _Path, above: _Above) -> dict[str, object]:
    below = _below(table, path, above)
    return {(name := _key(key, path)): _plain(value, (*path, name), below) for key, value in table.items()}


def _key(key: object, path: _Path) -> str:
    if not isinstance(key, str):
        _refuse(path, f"each key must be a text, not {type(key).__name__}")
    return str.__str__(key)


def _number(value: float, path: _Path) -> float:
    if isinstance(value, int):
        return int(value) if value.bit_length() <= _LARGEST_BITS else _refuse(path, _FINITE)
    return float(value) if math.isfinite(value) else _refuse(path, _FINITE)


def _below(holder: object, path: _Path, above: _Above) -> _Above:
    if any(holder is each for each in above):
        _refuse(path, "must not hold itself")
    if len(above) >= MAX_DEPTH:
        _refuse(path, f"must not be nested deeper than {MAX_DEPTH} levels")
    return (*above, holder)


def _refuse(path: _Path, remedy: str) -> NoReturn:
    invalid(reduce(inside, path, ""), remedy)


def _is_table(value: object) -> TypeGuard[Mapping[object, object]]:
    return isinstance(value, Mapping)


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


def mended(text: str) -> str:
    r"""Make a text Unicode: halves of a surrogate pair are joined, and one that is alone becomes U+FFFD.

    >>> mended("\ud83d\ude00 \ud83d") == "\U0001f600 \ufffd"
    True
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def dump(value: object) -> bytes:
    r"""Write plain values as JSON in UTF-8, with every text mended; ``msgspec.Raw`` stays as it is.

    >>> dump({"a": [1, None, "\ud83d"]}).decode() == '{"a":[1,null,"\ufffd"]}'
    True
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_mended(value))


def _mended(value: object) -> object:
    if isinstance(value, str):
        return mended(value)
    if _is_table(value):
        return {_mended(key): _mended(each) for key, each in value.items()}
    return [_mended(each) for each in value] if _is_list(value) else value


# Reading JSON from outside: whatever comes, a value comes back, never an exception.


_SURROGATES: Final = re.compile(
    r"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\[^u])|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)


@final
@frozen
class Unreadable:
    """Why a text is not JSON."""

    reason: str


def parse(data: str | bytes) -> object:
    r"""Read JSON in UTF-8, with or without a byte order mark; anything else is ``Unreadable``.

    Half a surrogate pair, which some servers send, becomes U+FFFD.

    >>> parse('{"a": 1}'), parse("oops"), parse('"\\ud83d!"')
    ({'a': 1}, Unreadable(reason='JSON is malformed: invalid character (byte 0)'), '�!')
    """
    try:
        return msgspec.json.decode(data)
    except RecursionError:
        return Unreadable("JSON is nested too deep")
    except (msgspec.DecodeError, UnicodeError) as problem:
        mended = _mended_value(data)
        return Unreadable(str(problem)) if mended == data else parse(mended)


def _mended_value(data: str | bytes) -> str | bytes:
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data.removeprefix("\ufeff")
    except UnicodeDecodeError:
        return data
    mended = _SURROGATES.sub(lambda found: found[1] or r"\ufffd", text)
    return data if isinstance(data, bytes) and mended.encode() == data else mended


def record(value: object) -> dict[str, object]:
    """Give a JSON object as it is, and an empty one for anything else.

    >>> record({"a": 1}), record(None)
    ({'a': 1}, {})
    """
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def items(value: object) -> list[object]:
    """Give a JSON array as it is, and an empty one for anything else."""
    return cast("list[object]", value) if isinstance(value, list) else []


def string(value: object) -> str:
    """Give a JSON string as it is, and an empty one for anything else."""
    return value if isinstance(value, str) else ""


def whole(value: object) -> int | None:
    """Give a count, or ``None`` for whatever is none.

    >>> whole(3), whole(3.0), whole(-1), whole(True), whole("3")
    (3, 3, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return None
    return int(value) if value == value // 1 else None


def json_text(value: object) -> str:
    """Write a value that came from JSON as JSON again; a string stays what it is and ``None`` is empty.

    >>> json_text({"city": "Oslo"}), json_text('{"city"'), json_text(None)
    ('{"city":"Oslo"}', '{"city"', '')
    """
    if value is None or isinstance(value, str):
        return value or ""
    return msgspec.json.encode(value).decode()
