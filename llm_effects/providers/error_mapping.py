"""From an error answer to an ``LLMError``: one table for all providers, read from top to bottom."""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final, TypeAlias, TypedDict, final

from attrs import evolve, frozen

from llm_effects.providers.rate_limits import retry_after, should_retry
from llm_effects.providers.target import Target, masked, masked_name
from llm_effects.providers.wire import WireResponse
from llm_effects.values.errors import (
    AuthenticationFailed,
    Cause,
    ConfigurationError,
    ContentRefused,
    ContextTooLarge,
    InvalidRequest,
    LLMError,
    MalformedResponse,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestTimeout,
)
from llm_effects.values.json import Unreadable, items, parse, record, string, whole

# What an error answer says, read out of every shape that servers give it.


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


# From a fault to the error it is: one small builder for each kind.


Found: TypeAlias = "re.Match[str] | None"
"""Where a row's pattern struck, if it has one."""

Build: TypeAlias = Callable[[Fault, Found], LLMError]
"""Makes the error that a fault is."""


class _Common(TypedDict):
    model: str
    provider: str
    status: int
    code: str | None
    request_id: str | None
    retry_after: float | None
    should_retry: bool | None


def _common(fault: Fault) -> _Common:
    return _Common(
        model=fault.target.name,
        provider=fault.target.preset.name,
        status=fault.status,
        code=fault.code,
        request_id=fault.request_id,
        retry_after=fault.retry_after,
        should_retry=fault.should_retry,
    )


def overloaded(fault: Fault, _: Found = None) -> LLMError:
    """The server is there and cannot now."""
    return ModelUnavailable(**_common(fault), message=_text(fault), reason="overloaded")


def loading(fault: Fault, _: Found = None) -> LLMError:
    """The model is being loaded."""
    return ModelUnavailable(**_common(fault), message=_text(fault), reason="loading")


def unknown_model(fault: Fault, _: Found = None) -> LLMError:
    """The server has no such model, or not for this key."""
    return ModelUnavailable(**_common(fault), message=_text(fault), reason="unknown_model")


def limited(fault: Fault, _: Found = None) -> LLMError:
    """Too many requests or tokens: slow down."""
    return RateLimitExceeded(**_common(fault), message=_text(fault))


def spent(fault: Fault, _: Found = None) -> LLMError:
    """The money or the plan is used up: waiting is no use."""
    return RateLimitExceeded(**_common(fault), message=_text(fault), quota=True)


def wrong_request(fault: Fault, _: Found = None) -> LLMError:
    """The request itself is wrong."""
    return InvalidRequest(**_common(fault), message=_text(fault))


def unauthorised(fault: Fault, _: Found = None) -> LLMError:
    """The key is refused."""
    return AuthenticationFailed(**_common(fault), message=_text(fault))


def refused(fault: Fault, _: Found = None) -> LLMError:
    """A content filter struck."""
    inner = record(fault.detail.get("innererror"))
    category = masked_name(fault.target, filtered(inner.get("content_filter_result")))
    return ContentRefused(**_common(fault), message=_text(fault), category=category or fault.code)


def late(fault: Fault, _: Found = None) -> LLMError:
    """The server or a gateway gave up waiting."""
    cause = Cause(f"HTTP {fault.status}", fault.text)
    return RequestTimeout(**_common(fault), phase="server", cause=cause)


def intermediary(fault: Fault, _: Found = None) -> LLMError:
    """Something between here and the provider answered in its place."""
    return NetworkError(**_common(fault), message=_text(fault), phase="intermediary")


def barred(fault: Fault, _: Found = None) -> LLMError:
    """A proxy wants to know who asks."""
    remedy = "a proxy on the way wants a name and a password: set it up, or go round it"
    return ConfigurationError(**_common(fault), message=f"{fault.target.endpoint}: {remedy} ({_text(fault)})")


def wants_tls(fault: Fault, _: Found = None) -> LLMError:
    """The port is for TLS and was asked without."""
    remedy = "the server speaks TLS there: begin the endpoint with https://"
    return ConfigurationError(**_common(fault), message=f"{fault.target.endpoint}: {remedy} ({_text(fault)})")


def no_model_server(fault: Fault, _: Found = None) -> LLMError:
    """Some other program has the port of a model server on this machine."""
    remedy = f"what answers at {fault.target.endpoint} is not a model server: check the endpoint"
    return NetworkError(**_common(fault), message=f"{remedy} ({_text(fault)})", phase="intermediary")


def unsupported(fault: Fault, _: Found = None) -> LLMError:
    """The server was started without what is asked of it; it says how to start it."""
    return ConfigurationError(**_common(fault), message=f"{fault.target.endpoint}: {_text(fault)}")


def wrong_endpoint(fault: Fault, _: Found = None) -> LLMError:
    """There is nothing of the kind at the endpoint."""
    remedy = "nothing answers there; check the endpoint, which usually ends in /v1"
    return ConfigurationError(**_common(fault), message=f"{fault.target.endpoint}: {remedy} ({_text(fault)})")


def redirected(fault: Fault, _: Found = None) -> LLMError:
    """The endpoint points elsewhere; a prompt and a key do not go where nobody sent them."""
    remedy = "redirects are not followed; give the address it points to as the endpoint"
    return ConfigurationError(**_common(fault), message=f"{fault.target.endpoint}: {remedy} (HTTP {fault.status})")


def unreadable(fault: Fault, _: Found = None) -> LLMError:
    """An answer that no provider should give."""
    return MalformedResponse(**_common(fault), message=_text(fault))


def too_long(fault: Fault, found: Found = None) -> LLMError:
    """The prompt outgrows the window: with both numbers, where fields or words tell them."""
    told = found.groupdict() if found else {}
    tokens, limit = (whole(fault.detail.get(key)) for key in ("n_prompt_tokens", "n_ctx"))
    return ContextTooLarge(
        **_common(fault),
        message=_text(fault),
        token_count=tokens if tokens is not None else _sum(told.get("count"), told.get("more")),
        limit=limit if limit is not None else _sum(told.get("limit")),
    )


def _sum(*numbers: str | None) -> int | None:
    given = [int(re.sub(r"\D", "", number)) for number in numbers if number]
    return sum(given) if given else None


def _text(fault: Fault) -> str:
    return fault.text or f"HTTP {fault.status} without a word"


_ANY: Final = range(100, 600)
_REQUEST: Final = frozenset({400, 413, 422, 500})
_TOO_LARGE: Final = frozenset({400, 413, 429})
_KEY: Final = frozenset({400, 401, 403})
_ABSENT: Final = frozenset({400, 404, 422})
_SERVER: Final = frozenset({400, 404, 500, 503})


@final
@frozen(kw_only=True)
class _Row:
    """A fault is of this kind if its status is among ``statuses``, it bears one of ``words``, ``pattern`` is found."""

    build: Build
    statuses: Container[int] = _ANY
    words: frozenset[str] = frozenset()
    pattern: re.Pattern[str] | None = None


def _phrases(build: Build, words: str, statuses: Container[int] = _ANY) -> _Row:
    return _Row(build=build, statuses=statuses, words=frozenset(words.lower().split()))


def _says(build: Build, statuses: Container[int], *patterns: str) -> tuple[_Row, ...]:
    flags = re.IGNORECASE | re.DOTALL
    return tuple(_Row(build=build, statuses=statuses, pattern=re.compile(each, flags)) for each in patterns)


# What a code or a type says, whatever the status: these words have one meaning.
_CODES: Final = (
    _phrases(
        spent,
        "insufficient_quota credit_balance_exhausted organization_spend_limit_exceeded project_spend_limit_exceeded"
        " organization_usage_limit_exceeded billing_hard_limit_reached billing_not_active billing_error"
        " enforced_spend_limit_reached",
    ),
    _phrases(refused, "content_filter content_policy_violation responsibleaipolicyviolation invalid_prompt"),
    _phrases(refused, "bio_policy misalignment_policy_violation"),
    _phrases(unknown_model, "model_not_found invalid_model unknown_model deploymentnotfound"),
    _phrases(unauthorised, "invalid_api_key api_key_invalid invalid_authentication authentication_error", _KEY),
    _phrases(unauthorised, "unsupported_country_region_territory permission_error", _KEY),
)

# The numbers come in fields, or as: count (and more, to be added to it) where limit is the window.
_TOO_LONG: Final = (
    *_says(
        too_long,
        _TOO_LARGE,
        r"request too large.{0,400}limit:? (?P<limit>\d[\d,]*),? requested:? (?P<count>\d[\d,]*)",
    ),
    *_says(
        too_long,
        _REQUEST,
        r"maximum (?:context|prompt) length (?:is|of) (?P<limit>\d[\d,]*).{0,200}?"
        r"(?:resulted in|requested(?: about)?|contains(?: at least)?) (?P<count>\d[\d,]*)",
        r"(?P<count>\d[\d,]*) tokens.{0,80}too large for model with (?P<limit>\d[\d,]*) maximum context length",
        r"maximum (?:context|prompt) length (?:is|of) (?P<limit>\d[\d,]*)",
        r"prompt is too long: (?P<count>\d+) tokens > (?P<limit>\d+) maximum",
        r"exceed context limit: (?P<count>\d+) \+ (?P<more>\d+) > (?P<limit>\d+)",
        r"request \((?P<count>\d+) tokens\) exceeds the available context size \((?P<limit>\d+)",
        r"input token count \(?(?P<count>\d+)\)? exceeds the maximum number of tokens allowed \(?(?P<limit>\d+)",
        r"input \((?P<count>\d+) tokens\) is too large to process.{0,80}batch size: (?P<limit>\d+)",
        r"keep the first (?P<count>\d+) tokens when (?:the )?context.{0,200}context length of only (?P<limit>\d+)",
        r"context (?:size|length|window) has been exceeded|exceeds? (?:the |this )?(?:model(?:'s)? )?context window",
        r"prompt is longer than the context length|input length exceeds the context length|prompt is too long",
        r"longer than the (?:maximum )?model length|max_tokens must be at least 1, got -|input is too long for",
    ),
    _phrases(too_long, "context_length_exceeded exceed_context_size_error string_above_max_length"),
)

_WORDS: Final = (
    *_says(
        spent,
        frozenset({400, 402, 403, 429}),
        r"credit balance is too low|insufficient (?:balance|credits?|funds)|spend(?:ing)? limit",
        r"(?:reached|exceeded) your.{0,40}usage limit|extra usage is required",
        r"exceeded your current quota(?!.*retry in)",
    ),
    *_says(refused, _REQUEST, r"content management policy|flagged as potentially violating"),
    *_says(unauthorised, _KEY, r"(?:incorrect|invalid|missing) api[ _-]?key|api key (?:is )?(?:not valid|invalid)"),
    *_says(wrong_endpoint, _ANY, r"unexpected endpoint or method"),
    *_says(
        wants_tls,
        frozenset({400, 497}),
        r"plain http request was sent to https|http request to an https server|speaking plain http to an ssl",
    ),
    *_says(loading, _SERVER, r"loading model|model is (?:(?:still |currently )?loading|unloaded|not loaded)"),
    *_says(
        unknown_model,
        _ABSENT,
        r"\bmodel\b.{0,200}(?:does not exist|not found|is not available|not have access)|no models? loaded",
        r"(?:unknown|invalid|no such) model\b|not a valid model|model identifier is invalid|^models?[:/]",
    ),
    _phrases(unknown_model, NAMES_MODEL, frozenset({404})),
    *_says(
        wrong_request,
        frozenset({500}),
        r"failed to (?:parse|format)|image input is not supported|does not support (?:images?|tools?|vision)",
        r"cannot make GET request|(?:failed|unable) to (?:load|decode|process|download) image|chat template",
    ),
)

_STATUSES: Final = (
    _phrases(intermediary, HTML, frozenset({403})),
    _phrases(no_model_server, FOREIGN, frozenset({404, 405, 501, *range(300, 400)})),
    _phrases(redirected, MOVED, range(300, 400)),
    _Row(build=unauthorised, statuses=frozenset({401, 403})),
    _Row(build=spent, statuses=frozenset({402})),
    _Row(build=wrong_endpoint, statuses=frozenset({404, 405})),
    _Row(build=barred, statuses=frozenset({407})),
    _Row(build=late, statuses=frozenset({408, 504, 524})),
    _Row(build=overloaded, statuses=frozenset({409, 425})),
    _Row(build=limited, statuses=frozenset({429})),
    _Row(build=wrong_request, statuses=range(400, 500)),
    _phrases(unsupported, "not_supported_error", frozenset({501})),
    _Row(build=unknown_model, statuses=frozenset({501})),
    _Row(build=overloaded, statuses=range(500, 600)),
)

_TABLE: Final = (*_CODES, *_TOO_LONG, *_WORDS, *_STATUSES)
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


def classify(target: Target, response: WireResponse) -> LLMError:
    """Say what an answer that is no success means: by its codes, then its words, then its status.

    Nothing of the key is in the error, and at most 500 letters of the message.
    """
    return _error_of(read_fault(target, response))


def classify_error_object(
    target: Target,
    error: object,
    status: int | None = None,
    headers: Mapping[str, str] = _NO_HEADERS,
    received: datetime | None = None,
) -> LLMError:
    """Say what an error inside a success or a stream means.

    ``error`` is the error's JSON, the object that holds it, or a text. Without a ``status`` of failure it counts as
    the status that its own code stands for, and as 500 where it has none. Dates in ``headers`` count from
    ``received``, where the server did not date its answer.
    """
    return _error_of(read_error(target, error, status, headers, received))


def _error_of(fault: Fault) -> LLMError:
    for row in _TABLE:
        found = row.pattern.search(fault.message) if row.pattern and fault.status in row.statuses else None
        if _fits(row, fault, found):
            return row.build(fault, found)
    return unreadable(fault)


def _fits(row: _Row, fault: Fault, found: Found) -> bool:
    return (
        fault.status in row.statuses
        and (not row.words or not row.words.isdisjoint(fault.words))
        and (row.pattern is None or found is not None)
    )
