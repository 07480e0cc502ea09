"""Answers as JSON and back: readable, versioned, and guarded by a checksum. Never pickle."""

import hashlib
from decimal import Decimal
from functools import cache, lru_cache
from typing import Final, final

import msgspec
from attrs import field, frozen
from cattrs import BaseValidationError, Converter
from cattrs.preconf.json import make_converter
from cattrs.strategies import configure_tagged_union

from llm_effects.events import ContentEvent
from llm_effects.jsons import dump
from llm_effects.messages import Part
from llm_effects.requests import TaskType
from llm_effects.responses import LLMResponse

VERSION: Final = 1
"""Of the entries written here; one of another version is not read."""


@final
@frozen(kw_only=True)
class Entry:
    """A stored answer, and the events in which it came where it was streamed."""

    response: LLMResponse
    events: tuple[ContentEvent, ...] = field(default=())


class _Envelope(msgspec.Struct):
    version: int
    sha256: str
    body: msgspec.Raw


def dump_entry(entry: Entry) -> bytes:
    """Write an entry as JSON.

    >>> from llm_effects.testing import answer
    >>> load_entry(dump_entry(Entry(response=answer("because")))).response.content
    'because'
    """
    body = dump(_converter().unstructure(entry))
    return msgspec.json.encode(_Envelope(VERSION, hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))


_SMALL: Final = 16 * 2**10  # bytes: what is remembered apart from the store stays below 2 MB of them


def load_entry(data: bytes) -> Entry | None:
    """Read an entry; one that is corrupt, or of another version, is none. The newest ones are read only once.

    >>> load_entry(b"{}") is None
    True
    """
    return _load_small(data) if len(data) <= _SMALL else _load(data)


def _load(data: bytes) -> Entry | None:
    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        body = bytes(envelope.body)
        if envelope.version != VERSION or hashlib.sha256(body).hexdigest() != envelope.sha256:
            return None
        return _converter().structure(msgspec.json.decode(body), Entry)
    except (msgspec.DecodeError, BaseValidationError, ValueError, TypeError, KeyError, RecursionError):
        return None


_load_small: Final = lru_cache(maxsize=128)(_load)


@cache
def _converter() -> Converter:
    converter = make_converter(forbid_extra_keys=True)
    converter.register_structure_hook(Decimal, lambda text, _: Decimal(text))
    converter.register_unstructure_hook(TaskType, str)
    converter.register_structure_hook(TaskType, lambda text, _: TaskType(text))
    configure_tagged_union(Part, converter, tag_name="type")
    configure_tagged_union(ContentEvent, converter, tag_name="type")
    return converter
