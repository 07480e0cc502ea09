"""The mapping from error answers to ``LLMError``: one table for all providers, read from top to bottom."""

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final, TypeAlias, TypedDict, final

from attrs import evolve, frozen

from llm_effects.providers.response_headers import request_id, retry_after, should_retry
from llm_effects.providers.target import Target, redact, redact_name
from llm_effects.providers.wire import WireResponse
from llm_effects.values import caps
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
from llm_effects.values.json import Unreadable, as_count, as_list, as_object, as_string, has_error, parse
from llm_effects.values.validation import Printable
from llm_effects.values.value import Value

# --- Reading error answers, in every shape that servers send

HTML: Final = "(html)"
"""A word of a fault whose body is a web page, so it comes from something in between."""

MOVED: Final = "(moved)"
"""A word of a fault that redirects."""

FOREIGN: Final = "(foreign)"
"""A word of a fault on this machine that does not come from a model server."""

NAMES_MODEL: Final = "(model)"
"""A word of a fault whose message names the requested model."""

_MARKUP: Final = r"<(script|style)\b.*?(?:</\1\s*>|\Z)|<!--.*?(?:-->|\Z)|<[^<>]*>"
_WORD_KEYS: Final = ("error_code", "code", "type", "status", "reason")
_STATUS_KEYS: Final = ("status_code", "status", "code", "raw_status_code")
_FAILURES: Final = {str(status): status for status in range(400, 600)}
_STATUS_OF_WORD: Final = {
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
@frozen(kw_only=True, eq=False, repr=False)
class Fault(Value):
    """A parsed error answer: ``words`` are its codes and types in lower case, ``detail`` the error object itself.

    ``message`` is the server's message, at most 4 kB of it; ``text`` is the same, redacted.
    """

    target: Target
    status: int
    words: frozenset[str]
    code: str | None
    message: str
    text: Printable
    request_id: str | None
    retry_after: float | None
    should_retry: bool | None
    detail: Mapping[str, object]


def parse_fault(target: Target, response: WireResponse) -> Fault:
    """Parse an error answer with any body: JSON of any shape, a web page, a plain text, or nothing."""
    fault = _parse_response(target, response)
    return evolve(fault, words=fault.words | {MOVED}) if "location" in response.headers else fault


def _parse_response(target: Target, response: WireResponse) -> Fault:
    body = parse(response.body[: 64 * caps.ERROR_CHARACTERS])
    if isinstance(body, Unreadable):
        return _parse_text(target, response)
    fault = parse_error(target, body, response.status, response.headers, response.received)
    return fault if has_error(body) else evolve(fault, words=fault.words | _foreign(target))


def parse_error(
    target: Target, body: object, status: int | None, headers: Mapping[str, str], received: datetime | None = None
) -> Fault:
    """Parse an error from JSON. Without an error status it gets the one that its own code stands for."""
    error = _error_object(body)
    whole = _message(error)
    message = whole[: caps.ERROR_CHARACTERS]
    words = frozenset(_words(error))
    names_model = target.wire_model is not None and target.wire_model in message
    return Fault(
        target=target,
        status=_status(error, words, status),
        words=words | {NAMES_MODEL} if names_model else words,
        code=_code(target, error, words),
        message=message,
        text=redact(target, whole),
        request_id=redact_name(target, request_id(headers) or as_string(as_object(body).get("request_id"))),
        retry_after=retry_after(headers, message, received),
        should_retry=should_retry(headers),
        detail=error,
    )


def filtered_categories(verdicts: object) -> str:
    """Return the categories in which a content filter struck.

    >>> filtered_categories({"hate": {"filtered": True}, "violence": {"filtered": False}})
    'hate'
    """
    return ", ".join(
        name for name, verdict in as_object(verdicts).items() if as_object(verdict).get("filtered") is True
    )


def _parse_text(target: Target, response: WireResponse) -> Fault:
    raw = response.body[: 2 * caps.ERROR_CHARACTERS].decode("utf-8", "replace").strip()
    page = raw.startswith("<") or "html" in response.headers.get("content-type", "")
    whole = " ".join(re.sub(_MARKUP, " ", raw, flags=re.IGNORECASE | re.DOTALL).split()) if page else raw
    message = whole[: caps.ERROR_CHARACTERS]
    return Fault(
        target=target,
        status=response.status,
        words=_foreign(target) | frozenset({HTML} if page else ()),
        code=None,
        message=message,
        text=redact(target, whole, cut=len(response.body) > 2 * caps.ERROR_CHARACTERS),
        request_id=redact_name(target, request_id(response.headers)),
        retry_after=retry_after(response.headers, message, response.received),
        should_retry=should_retry(response.headers),
        detail={},
    )


def _foreign(target: Target) -> frozenset[str]:
    return frozenset({FOREIGN}) if target.preset.family == "local" else frozenset()


def _error_object(body: object) -> dict[str, object]:
    if isinstance(body, str):
        return {"message": body}
    outer = next((as_object(each) for each in (body, *as_list(body)) if as_object(each)), dict[str, object]())
    inner = outer.get("error")
    if isinstance(inner, str) and inner:
        return {**outer, "message": inner}
    return as_object(inner) or outer


def _message(value: object, depth: int = 4) -> str:
    if isinstance(value, str):
        return value
    if not depth:
        return ""
    if values := as_list(value):
        return "; ".join(filter(None, (_message(each, depth - 1) for each in values[:20])))
    fields = as_object(value)
    keys = ("message", "msg", "detail", "errors", "title")
    text = next(filter(None, (_message(fields.get(key), depth - 1) for key in keys)), "")
    location = ".".join(str(each) for each in as_list(fields.get("loc")))
    raw = as_string(as_object(fields.get("metadata")).get("raw"))
    return ": ".join(filter(None, (location, text, raw)))


def _words(error: dict[str, object]) -> Iterator[str]:
    details = error.get("details")
    for fields in (*map(as_object, as_list(details)), as_object(details), as_object(error.get("innererror")), error):
        for key in _WORD_KEYS:
            word = as_string(fields.get(key)).lower()
            if word and word != "error" and not word.isdigit():
                yield word


def _code(target: Target, error: dict[str, object], words: Iterable[str]) -> str | None:
    sources = (as_object(error.get("details")), error)
    named = (as_string(fields.get(key)) for fields in sources for key in ("error_code", "code", "type"))
    number = error.get("code")
    fallback = str(number) if isinstance(number, int | str) else ""
    return redact_name(target, next((word for word in named if word.lower() in words), fallback))


def _status(error: dict[str, object], words: frozenset[str], status: int | None) -> int:
    if status is not None and not 200 <= status < 300:
        return status
    values = (error.get(key) for key in _STATUS_KEYS)
    own = next((_FAILURES[str(value)] for value in values if str(value) in _FAILURES), None)
    implied = next((number for word, number in _STATUS_OF_WORD.items() if word in words), None)
    return own or implied or (500 if error else status or 500)


# --- Building errors, one function for each kind


Match: TypeAlias = "re.Match[str] | None"
"""The match of a row's pattern, if it has one."""

Build: TypeAlias = Callable[[Fault, Match], LLMError]
"""A function that builds the error of a fault."""


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


def overloaded(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of a server that cannot answer now."""
    return ModelUnavailable(**_common(fault), message=_text(fault), reason="overloaded")


def loading(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of a model that is still loading."""
    return ModelUnavailable(**_common(fault), message=_text(fault), reason="loading")


def unknown_model(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of a model that the server does not have, or not for this key."""
    return ModelUnavailable(**_common(fault), message=_text(fault), reason="unknown_model")


def lacks_feature(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of a model that lacks a feature which this request needs; another model may have it."""
    return ModelUnavailable(**_common(fault), message=_text(fault), reason="unsupported")


def rate_limited(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of too many requests or tokens."""
    return RateLimitExceeded(**_common(fault), message=_text(fault))


def quota_exhausted(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of spent money or a used-up plan: waiting does not help."""
    return RateLimitExceeded(**_common(fault), message=_text(fault), quota=True)


def invalid_request(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of a request that is itself wrong."""
    return InvalidRequest(**_common(fault), message=_text(fault))


def authentication_failed(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of a refused key."""
    return AuthenticationFailed(**_common(fault), message=_text(fault))


def content_refused(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of a content filter that struck."""
    inner = as_object(fault.detail.get("innererror"))
    category = redact_name(fault.target, filtered_categories(inner.get("content_filter_result")))
    return ContentRefused(**_common(fault), message=_text(fault), category=category or fault.code)


def timed_out(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of a server or a gateway that timed out."""
    cause = Cause(f"HTTP {fault.status}", fault.text)
    return RequestTimeout(**_common(fault), phase="server", cause=cause)


def intermediary(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of something on the way that answered in the provider's place."""
    return NetworkError(**_common(fault), message=_text(fault), phase="intermediary")


def not_a_model_server(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of another program on the port of a model server on this machine."""
    remedy = f"what answers at {fault.target.endpoint} is not a model server: check the endpoint"
    return NetworkError(**_common(fault), message=f"{remedy} ({_text(fault)})", phase="intermediary")


def _wrong_endpoint(fault: Fault, remedy: str) -> LLMError:
    return ConfigurationError(**_common(fault), message=f"{fault.target.endpoint}: {remedy}")


def proxy_authentication(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of a proxy that requires authentication."""
    remedy = "a proxy on the way requires a user name and a password: configure them, or bypass the proxy"
    return _wrong_endpoint(fault, f"{remedy} ({_text(fault)})")


def requires_tls(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of a TLS port that got a plain request."""
    return _wrong_endpoint(fault, f"the server requires TLS: start the endpoint with https:// ({_text(fault)})")


def unsupported(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of a server that was started without the requested feature; its message names the option."""
    return _wrong_endpoint(fault, _text(fault))


def wrong_endpoint(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of an endpoint with nothing behind it."""
    remedy = "there is no such path: check the endpoint, which usually ends in /v1"
    return _wrong_endpoint(fault, f"{remedy} ({_text(fault)})")


def redirected(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of an endpoint that redirects; prompts and keys are not sent where the user did not ask."""
    remedy = "redirects are not followed: set the endpoint to the address that it redirects to"
    return _wrong_endpoint(fault, f"{remedy} (HTTP {fault.status})")


def malformed(fault: Fault, _: Match = None) -> LLMError:
    """Build the error of an answer that no provider should send."""
    return MalformedResponse(**_common(fault), message=_text(fault))


def context_too_large(fault: Fault, match: Match = None) -> LLMError:
    """Build the error of a prompt that exceeds the window, with both numbers where fields or words hold them."""
    groups = match.groupdict() if match else {}
    tokens, limit = (as_count(fault.detail.get(key)) for key in ("n_prompt_tokens", "n_ctx"))
    return ContextTooLarge(
        **_common(fault),
        message=_text(fault),
        token_count=tokens if tokens is not None else _sum(groups.get("count"), groups.get("more")),
        limit=limit if limit is not None else _sum(groups.get("limit")),
    )


def _sum(*numbers: str | None) -> int | None:
    values = [int(re.sub(r"\D", "", number)) for number in numbers if number]
    return sum(values) if values else None


def _text(fault: Fault) -> str:
    return fault.text or f"HTTP {fault.status} without a message"


# --- The table

_ANY: Final = range(100, 600)
_REQUEST: Final = frozenset({400, 413, 422, 500})
_TOO_LARGE: Final = frozenset({400, 413, 429})
_KEY: Final = frozenset({400, 401, 403})
_ABSENT: Final = frozenset({400, 404, 422})
_SERVER: Final = frozenset({400, 404, 500, 503})


@final
@frozen(kw_only=True, eq=False, repr=False)
class _Row(Value):
    """A kind of fault: its status is among ``statuses``, it has one of ``words``, ``pattern`` matches its message."""

    build: Build
    statuses: Container[int] = _ANY
    words: frozenset[str] = frozenset()
    pattern: str = ""


def _with_words(build: Build, words: str, statuses: Container[int] = _ANY) -> _Row:
    return _Row(build=build, statuses=statuses, words=frozenset(words.lower().split()))


def _with_patterns(build: Build, statuses: Container[int], *patterns: str) -> tuple[_Row, ...]:
    return tuple(_Row(build=build, statuses=statuses, pattern=each) for each in patterns)


# Codes and types with one meaning, whatever the status.
_CODES: Final = (
    _with_words(
        quota_exhausted,
        "insufficient_quota credit_balance_exhausted organization_spend_limit_exceeded project_spend_limit_exceeded"
        " organization_usage_limit_exceeded billing_hard_limit_reached billing_not_active billing_error"
        " enforced_spend_limit_reached",
    ),
    _with_words(content_refused, "content_filter content_policy_violation responsibleaipolicyviolation invalid_prompt"),
    _with_words(content_refused, "bio_policy misalignment_policy_violation"),
    _with_words(unknown_model, "model_not_found invalid_model unknown_model deploymentnotfound model_decommissioned"),
    _with_words(
        authentication_failed, "invalid_api_key api_key_invalid invalid_authentication authentication_error", _KEY
    ),
    _with_words(authentication_failed, "unsupported_country_region_territory permission_error", _KEY),
)

# The numbers come in fields, or in the message: ``count`` plus ``more`` is the prompt, ``limit`` the window.
_TOO_LONG: Final = (
    *_with_patterns(
        context_too_large,
        _TOO_LARGE,
        r"request too large.{0,400}limit:? (?P<limit>\d[\d,]*),? requested:? (?P<count>\d[\d,]*)",
    ),
    *_with_patterns(
        context_too_large,
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
        r"prompt too long|exceed(?:s|ed) (?:the )?max(?:imum)? context length",
        r"longer than the (?:maximum )?model length|max_tokens must be at least 1, got -|input is too long for",
    ),
    _with_words(context_too_large, "context_length_exceeded exceed_context_size_error string_above_max_length"),
)

_WORDS: Final = (
    *_with_patterns(
        quota_exhausted,
        frozenset({400, 402, 403, 429}),
        r"credit balance is too low|insufficient (?:balance|credits?|funds)|spend(?:ing)? limit",
        r"(?:reached|exceeded) your.{0,40}usage limit|extra usage is required",
        r"exceeded your current quota(?!.*retry in)",
    ),
    *_with_patterns(content_refused, _REQUEST, r"content management policy|flagged as potentially violating"),
    *_with_patterns(
        authentication_failed, _KEY, r"(?:incorrect|invalid|missing) api[ _-]?key|api key (?:is )?(?:not valid|invalid)"
    ),
    *_with_patterns(wrong_endpoint, _ANY, r"unexpected endpoint or method"),
    *_with_patterns(
        requires_tls,
        frozenset({400, 497}),
        r"plain http request was sent to https|http request to an https server|speaking plain http to an ssl",
    ),
    *_with_patterns(
        lacks_feature,
        frozenset({404}),
        r"no endpoints found that support|\btools? (?:is|are) not supported (?:in|by|for|with) th(?:is|e) model",
    ),
    *_with_patterns(loading, _SERVER, r"loading model|model is (?:(?:still |currently )?loading|unloaded|not loaded)"),
    *_with_patterns(
        unknown_model,
        _ABSENT,
        r"\bmodel\b.{0,200}(?:(?:does )?not exist|not found|is not available|not have access)|no models? loaded",
        r"(?:unknown|invalid|no such) model\b|not a valid model|model identifier is invalid|^models?[:/]",
    ),
    _with_words(unknown_model, NAMES_MODEL, frozenset({404})),
    *_with_patterns(
        invalid_request,
        frozenset({500}),
        r"failed to (?:parse|format)|(?:image|audio|video) input is not supported",
        r"does not support (?:images?|tools?|vision)|cannot use tools with stream",
        r"cannot make GET request|(?:failed|unable) to (?:load|decode|process|download) image|chat template",
    ),
)

_STATUSES: Final = (
    _with_words(intermediary, HTML, frozenset({403})),
    _with_words(not_a_model_server, FOREIGN, frozenset({404, 405, 501, *range(300, 400)})),
    _with_words(redirected, MOVED, range(300, 400)),
    _Row(build=authentication_failed, statuses=frozenset({401, 403})),
    _Row(build=quota_exhausted, statuses=frozenset({402})),
    _Row(build=wrong_endpoint, statuses=frozenset({404, 405})),
    _Row(build=proxy_authentication, statuses=frozenset({407})),
    _Row(build=timed_out, statuses=frozenset({408, 504, 524})),
    _Row(build=overloaded, statuses=frozenset({409, 425})),
    _Row(build=rate_limited, statuses=frozenset({429})),
    _Row(build=invalid_request, statuses=range(400, 500)),
    _with_words(unsupported, "not_supported_error", frozenset({501})),
    _Row(build=unknown_model, statuses=frozenset({501})),
    _Row(build=overloaded, statuses=range(500, 600)),
)

_TABLE: Final = (*_CODES, *_TOO_LONG, *_WORDS, *_STATUSES)
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


def classify(target: Target, response: WireResponse) -> LLMError:
    """Return the error that a non-2xx answer stands for: by its codes, then its words, then its status.

    The error holds no part of the key, and at most 500 characters of the message.
    """
    return _error_of(parse_fault(target, response))


def classify_error_object(
    target: Target,
    error: object,
    status: int | None = None,
    headers: Mapping[str, str] = _NO_HEADERS,
    received: datetime | None = None,
) -> LLMError:
    """Return the error that an error object inside a 2xx answer or a stream stands for.

    ``error`` is the error's JSON, the object that holds it, or a text. Without an error ``status`` it gets the status
    that its own code stands for, or else 500. Dates in ``headers`` count from ``received`` if the answer has no date.
    """
    return _error_of(parse_error(target, error, status, headers, received))


def _error_of(fault: Fault) -> LLMError:
    for row in _TABLE:
        # Compiled here and kept by ``re``: compiling all of them takes 4 ms, which most processes never need.
        searched = bool(row.pattern) and fault.status in row.statuses
        match = re.search(row.pattern, fault.message, re.IGNORECASE | re.DOTALL) if searched else None
        if _matches(row, fault, match):
            return row.build(fault, match)
    return malformed(fault)


def _matches(row: _Row, fault: Fault, match: Match) -> bool:
    return (
        fault.status in row.statuses
        and (not row.words or not row.words.isdisjoint(fault.words))
        and (not row.pattern or match is not None)
    )
