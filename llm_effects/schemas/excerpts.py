"""The JSON in an answer: alone, in a code fence, or among some words."""

import json
import re
from collections.abc import Iterator
from itertools import islice
from typing import Final

import msgspec
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

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
