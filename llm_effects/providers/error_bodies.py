"""What an error answer says, read out of every shape that servers give it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Final, final

from attrs import evolve, frozen

from llm_effects.providers.masking import masked, masked_name
from llm_effects.providers.reading import Unreadable, items, parse, record, string
from llm_effects.providers.retry_hints import retry_after, should_retry
from llm_effects.providers.targets import Target
from llm_effects.wire import WireResponse

HTML: Final = "(html)"
"""Among the words of a fault: it is a web page, so it comes from something in between."""

MOVED: Final = "(moved)"
"""Among the words of a fault: it says where to go instead."""

FOREIGN: Final = "(foreign)"
"""Among the words of a fault: on this machine, something else than a model server answered."""

NAMES_MODEL: Final = "(model)"
"""Among the words of a fault: the message speaks of the very model that was asked."""

_LONGEST: Final = 4096
_MARKUP: Final = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.IGNORECASE | re.DOTALL)
_WORD_KEYS: Final = ("error_code", "code", "type", "status", "reason")
_STATUS_KEYS: Final = ("status_code", "status", "code", "raw_status_code")
_FAILURES: Final = {str(status): status for status in range(400, 600)}
_STANDS_FOR: Final = {
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "conflict_error": 409,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "slow_down": 429,
    "timeout_error": 504,
    "overloaded_error": 529,
    "invalid_request_error": 400,
}


@final
@frozen(kw_only=True)
class Fault:
    """An error answer, read: ``words`` are its codes and types in lower case, ``detail`` the error object itself.

    ``message`` is what the server says, at most 4 kB of it; ``text`` is fit to be shown.
    """

    target: Target
    status: int
    words: frozenset[str]
    code: str | None
    message: str
    text: str
    request_id: str | None
    retry_after: float | None
    should_retry: bool | None
    detail: Mapping[str, object]


def read_fault(target: Target, response: WireResponse) -> Fault:
    """Read an error answer whatever its body is: JSON of any shape, a web page, a plain text, nothing."""
    fault = _read(target, response)
    return evolve(fault, words=fault.words | {MOVED}) if "location" in response.headers else fault


def _read(target: Target, response: WireResponse) -> Fault:
    body = parse(response.body[: 64 * _LONGEST])
    if isinstance(body, Unreadable):
        return _of_text(target, response)
    fault = read_error(target, body, response.status, response.headers, response.received)
    return fault if _tells_error(body) else evolve(fault, words=fault.words | _foreign(target))


def read_error(
    target: Target, body: object, status: int | None, headers: Mapping[str, str], received: datetime | None = None
) -> Fault:
    """Read an error from JSON. Without a status of failure it has the one that its own code stands for."""
    error = _error_object(body)
    message = _said(error)[:_LONGEST]
    words = frozenset(_words(error))
    named = target.wire_model is not None and target.wire_model in message
    return Fault(
        target=target,
        status=_status(error, words, status),
        words=words | {NAMES_MODEL} if named else words,
        code=_code(target, error, words),
        message=message,
        text=masked(target, message),
        request_id=masked_name(target, request_id(headers) or string(record(body).get("request_id"))),
        retry_after=retry_after(headers, message, received),
        should_retry=should_retry(headers),
        detail=error,
    )


def request_id(headers: Mapping[str, str]) -> str | None:
    """The provider's own number for the exchange.

    >>> request_id({"x-request-id": "req_1"}), request_id({})
    ('req_1', None)
    """
    return headers.get("x-request-id") or headers.get("request-id") or None


def filtered(verdicts: object) -> str:
    """The categories in which a content filter struck.

    >>> filtered({"hate": {"filtered": True}, "violence": {"filtered": False}})
    'hate'
    """
    return ", ".join(name for name, verdict in record(verdicts).items() if record(verdict).get("filtered") is True)


def _of_text(target: Target, response: WireResponse) -> Fault:
    raw = response.body[: 2 * _LONGEST].decode("utf-8", "replace").strip()
    page = raw.startswith("<") or "html" in response.headers.get("content-type", "")
    message = (" ".join(_MARKUP.sub(" ", raw).split()) if page else raw)[:_LONGEST]
    return Fault(
        target=target,
        status=response.status,
        words=_foreign(target) | frozenset({HTML} if page else ()),
        code=None,
        message=message,
        text=masked(target, message),
        request_id=masked_name(target, request_id(response.headers)),
        retry_after=retry_after(response.headers, message, response.received),
        should_retry=should_retry(response.headers),
        detail={},
    )


def _foreign(target: Target) -> frozenset[str]:
    return frozenset({FOREIGN}) if target.preset.family == "local" else frozenset()


def _tells_error(body: object) -> bool:
    told = record(body)
    return bool(told.get("error")) or "error" in {told.get("object"), told.get("type")}


def _error_object(body: object) -> dict[str, object]:
    if isinstance(body, str):
        return {"message": body}
    whole = next((record(each) for each in (body, *items(body)) if record(each)), dict[str, object]())
    inner = whole.get("error")
    if isinstance(inner, str) and inner:
        return {**whole, "message": inner}
    return record(inner) or whole


def _said(value: object, depth: int = 4) -> str:
    if isinstance(value, str):
        return value
    if not depth:
        return ""
    if listed := items(value):
        return "; ".join(filter(None, (_said(each, depth - 1) for each in listed[:20])))
    said = record(value)
    keys = ("message", "msg", "detail", "errors", "title")
    main = next(filter(None, (_said(said.get(key), depth - 1) for key in keys)), "")
    where = ".".join(str(each) for each in items(said.get("loc")))
    raw = string(record(said.get("metadata")).get("raw"))
    return ": ".join(filter(None, (where, main, raw)))


def _words(error: dict[str, object]) -> Iterator[str]:
    details = error.get("details")
    for place in (*map(record, items(details)), record(details), record(error.get("innererror")), error):
        for key in _WORD_KEYS:
            word = string(place.get(key)).lower()
            if word and word != "error" and not word.isdigit():
                yield word


def _code(target: Target, error: dict[str, object], words: Iterable[str]) -> str | None:
    places = (record(error.get("details")), error)
    named = (string(place.get(key)) for place in places for key in ("error_code", "code", "type"))
    number = error.get("code")
    plain = str(number) if isinstance(number, int | str) else ""
    return masked_name(target, next((word for word in named if word.lower() in words), plain))


def _status(error: dict[str, object], words: frozenset[str], status: int | None) -> int:
    if status is not None and not 200 <= status < 300:
        return status
    told = (error.get(key) for key in _STATUS_KEYS)
    own = next((_FAILURES[str(each)] for each in told if str(each) in _FAILURES), None)
    stands_for = next((number for word, number in _STANDS_FOR.items() if word in words), None)
    return own or stands_for or (500 if error else status or 500)
