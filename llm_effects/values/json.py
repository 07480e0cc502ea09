"""JSON: check and copy a caller's values, write them, and read any text from outside without an exception."""

import math
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Final, NoReturn, TypeAlias, TypeGuard, cast, final

import msgspec
from attrs import frozen

from llm_effects.values.validation import invalid, is_table, join_path

# A caller's JSON, checked and copied once.


MAX_DEPTH: Final = 100
"""Levels of lists and tables that a JSON value may have."""

_MAX_BITS: Final = 1023
"""Larger integers have no nearest float, which is the only number type of most JSON readers."""

_FINITE: Final = "must be a finite number"

_Path: TypeAlias = tuple[str | int, ...]
_Parents: TypeAlias = tuple[object, ...]


def to_json_object(name: str, value: Mapping[str, object]) -> dict[str, object]:
    """Copy the JSON object of a field into plain dicts and lists; anything else is an ``InvalidValue`` with its path.

    >>> to_json_object("schema", {"type": "object", "required": ("a",)})
    {'type': 'object', 'required': ['a']}
    >>> to_json_object("schema", {"properties": {"a": {"maximum": object()}}})
    Traceback (most recent call last):
        ...
    llm_effects.values.validation.InvalidValue: schema.properties.a.maximum: must be JSON, not object
    """
    if not is_table(value):
        invalid(name, f"must be a JSON object, not {type(value).__name__}")
    return _copy_table(value, (name,), ())


def _copy(value: object, path: _Path, parents: _Parents) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)  # also for members of an enumeration, whose own ``str`` may be their name
    if isinstance(value, int | float):
        return _copy_number(value, path)
    if is_table(value):
        return _copy_table(value, path, parents)
    if _is_list(value):
        inner = _nest(value, path, parents)
        return [_copy(item, (*path, index), inner) for index, item in enumerate(value)]
    return _reject(path, f"must be JSON, not {type(value).__name__}")


def _copy_table(table: Mapping[object, object], path: _Path, parents: _Parents) -> dict[str, object]:
    inner = _nest(table, path, parents)
    return {(name := _copy_key(key, path)): _copy(value, (*path, name), inner) for key, value in table.items()}


def _copy_key(key: object, path: _Path) -> str:
    if not isinstance(key, str):
        _reject(path, f"each key must be a text, not {type(key).__name__}")
    return str.__str__(key)


def _copy_number(value: float, path: _Path) -> float:
    if isinstance(value, int):
        return int(value) if value.bit_length() <= _MAX_BITS else _reject(path, _FINITE)
    return float(value) if math.isfinite(value) else _reject(path, _FINITE)


def _nest(container: object, path: _Path, parents: _Parents) -> _Parents:
    if any(container is parent for parent in parents):
        _reject(path, "must not contain itself")
    if len(parents) >= MAX_DEPTH:
        _reject(path, f"must not be nested deeper than {MAX_DEPTH} levels")
    return (*parents, container)


def _reject(path: _Path, remedy: str) -> NoReturn:
    invalid(reduce(join_path, path, ""), remedy)


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray | memoryview)


# Writing.


def dump(value: object) -> bytes:
    r"""Encode plain values as JSON in UTF-8, with surrogates repaired; ``msgspec.Raw`` is written unchanged.

    >>> dump({"a": [1, None, "\ud83d"]}).decode() == '{"a":[1,null,"\ufffd"]}'
    True
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_repair_all(value))


def repair_surrogates(text: str) -> str:
    r"""Return valid Unicode: join the halves of a surrogate pair, and replace a single half by U+FFFD.

    >>> repair_surrogates("\ud83d\ude00 \ud83d") == "\U0001f600 \ufffd"
    True
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _repair_all(value: object) -> object:
    if isinstance(value, str):
        return repair_surrogates(value)
    if is_table(value):
        return {_repair_all(key): _repair_all(each) for key, each in value.items()}
    return [_repair_all(each) for each in value] if _is_list(value) else value


def json_text(value: object) -> str:
    """Encode a value that was parsed from JSON; a string is returned unchanged, and ``None`` is empty.

    >>> json_text({"city": "Oslo"}), json_text('{"city"'), json_text(None)
    ('{"city":"Oslo"}', '{"city"', '')
    """
    if value is None or isinstance(value, str):
        return value or ""
    return msgspec.json.encode(value).decode()


# Reading text from outside: the result is always a value, never an exception.


_SURROGATES: Final = re.compile(
    r"(\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\[^u])|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)


@final
@frozen
class Unreadable:
    """The reason why a text is not JSON."""

    reason: str


def parse(data: str | bytes) -> object:
    r"""Parse JSON in UTF-8, with or without a byte order mark; anything else is ``Unreadable``.

    Half a surrogate pair, which some servers send, becomes U+FFFD.

    >>> parse('{"a": 1}'), parse("oops"), parse('"\\ud83d!"')
    ({'a': 1}, Unreadable(reason='JSON is malformed: invalid character (byte 0)'), '�!')
    """
    try:
        return msgspec.json.decode(data)
    except RecursionError:
        return Unreadable("JSON is nested too deep")
    except (msgspec.DecodeError, UnicodeError) as problem:
        repaired = _repair_document(data)
        return Unreadable(str(problem)) if repaired == data else parse(repaired)


def _repair_document(data: str | bytes) -> str | bytes:
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data.removeprefix("\ufeff")
    except UnicodeDecodeError:
        return data
    repaired = _SURROGATES.sub(lambda match: match[1] or r"\ufffd", text)
    return data if isinstance(data, bytes) and repaired.encode() == data else repaired


def as_object(value: object) -> dict[str, object]:
    """Return a JSON object as it is, and an empty one for anything else.

    >>> as_object({"a": 1}), as_object(None)
    ({'a': 1}, {})
    """
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def as_list(value: object) -> list[object]:
    """Return a JSON array as it is, and an empty one for anything else."""
    return cast("list[object]", value) if isinstance(value, list) else []


def as_string(value: object) -> str:
    """Return a JSON string as it is, and an empty one for anything else."""
    return value if isinstance(value, str) else ""


def as_count(value: object) -> int | None:
    """Return a count, or ``None`` for anything else.

    >>> as_count(3), as_count(3.0), as_count(-1), as_count(True), as_count("3")
    (3, 3, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return None
    return int(value) if value == value // 1 else None


def has_error(body: object) -> bool:
    """Return whether a JSON body or event reports an error, in any of the shapes that servers use."""
    fields = as_object(body)
    return bool(fields.get("error")) or fields.get("object") == "error" or fields.get("type") == "error"
