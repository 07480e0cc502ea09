"""Reading JSON from outside: whatever comes, a value comes back, never an exception."""

import re
from typing import Final, cast, final

import msgspec
from attrs import frozen

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
        mended = _mended(data)
        return Unreadable(str(problem)) if mended == data else parse(mended)


def _mended(data: str | bytes) -> str | bytes:
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
