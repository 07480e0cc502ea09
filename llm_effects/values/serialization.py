"""Values as JSON: readable, and for stored answers versioned and protected by a checksum. Never pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from decimal import Decimal
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast, final, get_args

import msgspec
from attrs import field, frozen
from returns.result import Failure, Result, Success

from llm_effects.values.conversations import Conversation
from llm_effects.values.errors import InvalidRequest, LLMError
from llm_effects.values.events import ContentEvent, ReasoningDelta, TextDelta, ToolCallDelta
from llm_effects.values.json import dump
from llm_effects.values.messages import Document, Image, Part, Text, ToolCall
from llm_effects.values.requests import TaskType
from llm_effects.values.responses import LLMResponse
from llm_effects.values.validation import InvalidValue
from llm_effects.values.value import Value

if TYPE_CHECKING:
    from cattrs import Converter

_Value = TypeVar("_Value")
_Table: TypeAlias = dict[str, object]

VERSION: Final = 1
"""The version of stored entries; entries of other versions are ignored."""


@final
@frozen(kw_only=True, eq=False, repr=False)
class Entry(Value):
    """A stored answer, with its events if it was streamed.

    It is stale from ``fresh_until`` on, in seconds since 1970; ``None`` is never.
    """

    response: LLMResponse
    events: tuple[ContentEvent, ...] = field(default=())
    fresh_until: float | None = None


class _Envelope(msgspec.Struct):
    version: int
    sha256: str
    body: msgspec.Raw


def dump_entry(entry: Entry) -> bytes:
    """Encode an entry as JSON.

    >>> from llm_effects.testing.scripted import answer
    >>> load_entry(dump_entry(Entry(response=answer("because")))).response.content
    'because'
    """
    body = dump(_plain(entry))
    return msgspec.json.encode(_Envelope(VERSION, hashlib.sha256(body).hexdigest(), msgspec.Raw(body)))


def _plain(entry: Entry) -> object:
    """Return an entry as the converter does, without it: making it takes 50 milliseconds of a process's first call."""
    if any(isinstance(part, Image | Document) for part in entry.response.parts):  # bytes, which the converter encodes
        return _known_before(cast("_Table", _converter().unstructure(entry)))
    response = {**_fields(entry.response), "parts": [*map(_tagged, entry.response.parts)]}
    events = [*map(_tagged, entry.events)]
    return _known_before({"response": response, "events": events, "fresh_until": entry.fresh_until})


def _known_before(entry: _Table) -> _Table:
    """Leave out what earlier versions reject, where it says nothing: they share stores with this one."""
    fields = cast("_Table", entry["response"])
    response = _unlabelled({name: value for name, value in fields.items() if name != "stale"})
    response["parts"] = [*map(_unlabelled, cast("list[_Table]", response["parts"]))]
    return {name: value for name, value in {**entry, "response": response}.items() if value is not None}


def _unlabelled(value: _Table) -> _Table:
    """Leave out the label of what may leave this machine: there is none."""
    if value.get("stays", "") is None:
        del value["stays"]
    return value


def _tagged(value: object) -> dict[str, object]:
    return {**_fields(value), "type": type(value).__name__}


def _fields(value: object) -> dict[str, object]:
    return cast("dict[str, object]", msgspec.to_builtins(value, enc_hook=_task_as_text))


def _task_as_text(value: object) -> str:
    if isinstance(value, TaskType):
        return str(value)
    raise TypeError


@lru_cache(maxsize=1024)
def owner_prefix(owner: str | None) -> str:
    """Return how the keys of an owner's entries begin, by which all of them can be deleted: a digest of the owner.

    >>> owner_prefix("alice"), owner_prefix(None)
    ('2bd806c97f0e00af1a1fc3328fa763a9:', '')
    """
    return "" if owner is None else f"{hashlib.sha256(owner.encode(errors='replace')).hexdigest()[:32]}:"


def entry_size(entry: Entry) -> int:
    """Return about how many bytes an entry takes in memory, where a small event takes twice those of its JSON.

    >>> from llm_effects.testing.scripted import answer
    >>> entry = Entry(response=answer("because"))
    >>> 0.5 < entry_size(entry) / len(dump_entry(entry)) < 2
    True
    """
    response, size = entry.response, _EMPTY
    for value in (*response.parts, *entry.events):
        match value:
            case Text(citations=()) | TextDelta() | ReasoningDelta():
                size += _MEMBER + _text_size(value.text)
            case ToolCall() | ToolCallDelta():
                size += _MEMBER + _text_size(value.name) + _text_size(value.arguments)
            case _:
                return len(dump_entry(entry))
    return size + _text_size(response.content) + sum(map(_text_size, response.warnings))


_EMPTY: Final = 500  # bytes of an entry without parts and events
_MEMBER: Final = 100  # bytes of one of these without the characters of its texts


def _text_size(text: str) -> int:
    return len(text) if text.isascii() else 2 * len(text)


_SMALL: Final = 16 * 2**10  # bytes: 128 decoded entries of this size stay below 2 MB of JSON


def load_entry(data: bytes) -> Entry | None:
    """Decode an entry; ``None`` if it is corrupt or of another version. Small entries are memoised.

    >>> load_entry(b"{}") is None
    True
    """
    return _load_small(data) if len(data) <= _SMALL else _load(data)


def _load(data: bytes) -> Entry | None:
    from cattrs import BaseValidationError

    try:
        envelope = msgspec.json.decode(data, type=_Envelope)
        body = bytes(envelope.body)
        if envelope.version != VERSION or hashlib.sha256(body).hexdigest() != envelope.sha256:
            return None
        return _converter().structure(msgspec.json.decode(body), Entry)
    except (msgspec.DecodeError, BaseValidationError, ValueError, TypeError, KeyError, RecursionError):
        return None


_load_small: Final = lru_cache(maxsize=128)(_load)


def dump_value(value: object) -> str:
    r"""Encode a value as JSON text, without the characters that some databases reject.

    >>> dump_value(["a\x00b\ud800"]) == '["a\\u0000b\ufffd"]'
    True
    """
    return dump(_converter().unstructure(value)).decode()


def load_value(document: str, kind: type[_Value]) -> _Value | None:
    """Decode a value of a class from JSON text; ``None`` if the text is not one. No text can run code.

    Fields that the class does not have are ignored: a newer version wrote them.

    >>> from llm_effects.values.messages import Text
    >>> load_value('{"text":"why?"}', Text), load_value('{"py/object":"os.system"}', Text)
    (Text(text='why?'), None)
    """
    from cattrs import BaseValidationError

    try:
        return _tolerant_converter().structure(msgspec.json.decode(document), kind)
    except (msgspec.DecodeError, BaseValidationError, ValueError, TypeError, KeyError, RecursionError):
        return None


def to_json(value: object) -> str:
    """Return a value as JSON text: a request, a response, a message, a conversation, a decision, a report, an error.

    An error has its ``tag``. A value that holds a ``Secret``, such as a configuration, is a ``TypeError``.

    >>> from llm_effects import LLMRequest
    >>> from_json(to_json(LLMRequest(prompt="why?")), LLMRequest).unwrap()
    LLMRequest(prompt='why?')
    """
    return dump(_json_converter().unstructure(value)).decode()


def from_json(document: str, kind: type[_Value]) -> Result[_Value, LLMError]:
    """Return a value of a class from the text of ``to_json``; any other text is an ``InvalidRequest``.

    Fields that the class does not have are ignored: a newer version wrote them. Errors cannot be read back.

    >>> from llm_effects import LLMResponse
    >>> from_json("{}", LLMResponse).failure().message
    'the text is no LLMResponse as to_json writes it'
    """
    value = load_value(document, kind)
    message = f"the text is no {kind.__name__} as to_json writes it"
    return Failure(InvalidRequest(message=message)) if value is None else Success(value)


def parse_value(value: object, kind: type[_Value]) -> Result[_Value, tuple[str, ...]]:
    """Structure a value of a class from plain JSON values; a failure lists each problem with its place.

    >>> from llm_effects.values.messages import Message
    >>> parse_value({"role": "user", "parts": [{"type": "ToolCall", "id": " "}]}, Message).failure()
    ("parts[0].name: 'name' is missing or unknown",)
    """
    return _parsed(_strict_converter(), value, kind)


def _parsed(converter: Converter, value: object, kind: type[_Value]) -> Result[_Value, tuple[str, ...]]:
    from cattrs import BaseValidationError, transform_error

    try:
        return Success(converter.structure(value, kind))
    except BaseValidationError as problem:
        return Failure(tuple(map(_place_first, transform_error(problem, "", _describe))))
    except (ValueError, TypeError, KeyError, RecursionError) as problem:
        return Failure((_describe(problem, None),))


def _describe(problem: BaseException, _: type[Any] | None) -> str:
    from cattrs import ForbiddenExtraKeysError

    match problem:
        case InvalidValue() | ForbiddenExtraKeysError():
            return str(problem)
        case KeyError():
            return f"{problem.args[0]!r} is missing or unknown"
        case _:
            return "has the wrong type" if isinstance(problem, TypeError) else "is not a valid value"


def _place_first(line: str) -> str:
    message, _, place = line.rpartition(" @ ")
    return f"{place.removeprefix('.')}: {message}" if place else message


def to_plain(value: object) -> object:
    """Return a value as plain JSON values, without the fields that have their defaults.

    >>> from llm_effects import NetworkError
    >>> to_plain(NetworkError(model="gpt"))
    {'model': 'gpt', 'tag': 'NetworkError'}
    """
    return _plain_converter().unstructure(value, LLMError if isinstance(value, get_args(LLMError)) else None)


def from_plain(value: object, kind: type[_Value]) -> Result[_Value, tuple[str, ...]]:
    """Structure a value of a class, or an error, from what ``to_plain`` returned; a failure lists each problem.

    >>> from llm_effects import NetworkError
    >>> from_plain({"model": "gpt", "tag": "NetworkError"}, LLMError)
    <Success: NetworkError(model='gpt')>
    >>> from_plain({"phase": "void", "tag": "NetworkError"}, LLMError).failure()
    ('phase: is not a valid value',)
    """
    return _parsed(_plain_converter(), value, kind)


@cache
def _plain_converter() -> Converter:
    from cattrs.strategies import configure_tagged_union

    converter = _new_converter(str, int, bool, sparse=True)
    configure_tagged_union(LLMError, converter, tag_name="tag", tag_generator=_tag_of)
    return converter


def _tag_of(kind: type[LLMError]) -> str:
    return kind.tag


@cache
def _strict_converter() -> Converter:
    """Return a converter for external data, which never turns numbers into texts or texts into numbers."""
    return _new_converter(str, int, bool)


def _exact(value: object, kind: type[_Value]) -> _Value:
    if type(value) is not kind:
        raise TypeError
    return value


@cache
def _converter() -> Converter:
    return _new_converter()


@cache
def _json_converter() -> Converter:
    from cattrs.gen import make_dict_unstructure_fn

    converter = _new_converter()
    for kind in get_args(LLMError):
        converter.register_unstructure_hook(kind, partial(_with_tag, make_dict_unstructure_fn(kind, converter)))
    return converter


def _with_tag(fields_of: Callable[[LLMError], dict[str, object]], error: LLMError) -> dict[str, object]:
    return {"tag": error.tag, **fields_of(error)}


@cache
def _tolerant_converter() -> Converter:
    return _new_converter(tolerant=True)


def _new_converter(*exact: type, tolerant: bool = False, sparse: bool = False) -> Converter:
    from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override
    from cattrs.preconf.json import make_converter
    from cattrs.strategies import configure_tagged_union

    converter = make_converter(forbid_extra_keys=not tolerant, omit_if_default=sparse)
    for kind in exact:
        converter.register_structure_hook(kind, _exact)
    converter.register_structure_hook(Decimal, lambda text, _: Decimal(text))
    converter.register_unstructure_hook(TaskType, str)
    converter.register_structure_hook(TaskType, lambda text, _: TaskType(text))
    configure_tagged_union(Part, converter, tag_name="type")
    configure_tagged_union(ContentEvent, converter, tag_name="type")
    mark = override(omit=True)  # of a row, and no part of what is stored
    converter.register_unstructure_hook(
        Conversation, make_dict_unstructure_fn(Conversation, converter, unreadable=mark)
    )
    converter.register_structure_hook(Conversation, make_dict_structure_fn(Conversation, converter, unreadable=mark))
    return converter
