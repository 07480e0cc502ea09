"""JSON: check and copy a caller's values, write them, and read any text from outside without an exception."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import islice
from typing import Final, NoReturn, TypeAlias, TypeGuard, cast, final

import msgspec
from attrs import frozen

from llm_effects.values import caps
from llm_effects.values.validation import invalid, is_table, join_path
from llm_effects.values.value import Value

# A caller's JSON, checked and copied once.


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
        return int(value) if value.bit_length() <= caps.INTEGER_BITS else _reject(path, _FINITE)
    return float(value) if math.isfinite(value) else _reject(path, _FINITE)


def _nest(container: object, path: _Path, parents: _Parents) -> _Parents:
    if any(container is parent for parent in parents):
        _reject(path, "must not contain itself")
    if len(parents) >= caps.NESTING:
        _reject(path, f"must not be nested deeper than {caps.NESTING} levels")
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


_SURROGATES: Final = (  # compiled by its first use, as all patterns here
    r"((?:[^\\]++|\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})++)"
    r"|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)  # the first group is all that is right, in as few matches as possible


@final
@frozen(eq=False, repr=False)
class Unreadable(Value):
    """The reason why a text is not JSON."""

    reason: str


def parse(data: str | bytes, values: int = caps.JSON_VALUES) -> object:
    r"""Parse JSON in UTF-8, with or without a byte order mark; anything else is ``Unreadable``.

    So is JSON with more than so many ``values``, or nested deeper than ``caps.NESTING``. Half a surrogate pair, which
    some servers send, becomes U+FFFD.

    >>> parse('{"a": 1}'), parse("oops"), parse('"\\ud83d!"')
    ({'a': 1}, Unreadable(reason='JSON is malformed: invalid character (byte 0)'), '�!')
    """
    excess = _excess_of_values(data, values)
    if excess is not None:
        return excess
    try:
        value = msgspec.json.decode(data)
    except RecursionError:
        return _TOO_DEEP
    except (msgspec.DecodeError, UnicodeError) as problem:
        repaired = _repair_document(data)
        return Unreadable(str(problem)) if repaired == data else parse(repaired, values)
    return (
        _TOO_DEEP if len(data) > caps.NESTING and _count(data, "[{") > caps.NESTING and _is_too_deep(value) else value
    )


_TOO_DEEP: Final = Unreadable(f"JSON is nested deeper than {caps.NESTING} levels")
_MARKS: Final = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{,]'


def _count(data: str | bytes, marks: str) -> int:
    if isinstance(data, str):
        return sum(map(data.count, marks))
    return sum(map(data.count, marks.encode()))


def _excess_of_values(data: str | bytes, values: int) -> Unreadable | None:
    """Return a problem if a text has too many values, before any of them takes memory."""
    if len(data) < values or _count(data, "[{,") < values:
        return None  # the case of nearly all texts
    outside = (mark for mark in _marks_of(data) if mark.end() - mark.start() == 1)
    return Unreadable(f"JSON has more than {values} values") if any(islice(outside, values, None)) else None


def _marks_of(data: str | bytes) -> Iterator[re.Match[str] | re.Match[bytes]]:
    """Find the texts of a document, and the marks outside of them that begin a value."""
    if isinstance(data, str):
        return re.finditer(_MARKS, data, re.DOTALL)
    return re.finditer(_MARKS.encode(), data, re.DOTALL)


def _is_too_deep(value: object) -> bool:
    """Return whether a value is nested too deeply, level by level; a long list of plain values is passed over."""
    level = [value]
    for _ in range(caps.NESTING):
        lists = [cast("list[object]", each) for each in level if isinstance(each, list)]
        lists += [list(cast("dict[str, object]", each).values()) for each in level if isinstance(each, dict)]
        level = [inner for each in lists if not _CONTAINERS.isdisjoint(map(type, each)) for inner in each]
        if not level:
            return False
    return True


_CONTAINERS: Final = frozenset((dict, list))


def _repair_document(data: str | bytes) -> str | bytes:
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data.removeprefix("\ufeff")
    except UnicodeDecodeError:
        return data
    repaired = re.sub(_SURROGATES, lambda match: match[1] or r"\ufffd", text)
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

    >>> as_count(3), as_count(3.0), as_count(-1), as_count(True), as_count("3"), as_count(2**63)
    (3, 3, None, None, None, None)
    """
    if type(value) is int:
        return value if 0 <= value <= caps.COUNT else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= caps.COUNT:
        return None
    return int(value) if value == value // 1 else None


def as_tokens(value: object) -> int | None:
    """Return a number of tokens, at most ``caps.COUNT``, or ``None`` for anything else.

    >>> as_tokens(3), as_tokens(10**400) == caps.COUNT, as_tokens("3")
    (3, True, None)
    """
    if type(value) is int and value <= caps.COUNT:
        return value if value >= 0 else None
    excessive = isinstance(value, int | float) and value > caps.COUNT
    return caps.COUNT if excessive else as_count(value)


def has_error(body: object) -> bool:
    """Return whether a JSON body or event reports an error, in any of the shapes that servers use."""
    fields = as_object(body)
    return bool(fields.get("error")) or fields.get("object") == "error" or fields.get("type") == "error"
