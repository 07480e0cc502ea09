"""From an error answer to an ``LLMError``: one table for all providers, read from top to bottom."""

import re
from collections.abc import Container, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Final, final

from attrs import frozen

from llm_effects.errors import LLMError
from llm_effects.providers import error_kinds as kinds
from llm_effects.providers.error_bodies import FOREIGN, HTML, MOVED, NAMES_MODEL, Fault, read_error, read_fault
from llm_effects.providers.targets import Target
from llm_effects.wire import WireResponse

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

    build: kinds.Build
    statuses: Container[int] = _ANY
    words: frozenset[str] = frozenset()
    pattern: re.Pattern[str] | None = None


def _words(build: kinds.Build, words: str, statuses: Container[int] = _ANY) -> _Row:
    return _Row(build=build, statuses=statuses, words=frozenset(words.lower().split()))


def _says(build: kinds.Build, statuses: Container[int], *patterns: str) -> tuple[_Row, ...]:
    flags = re.IGNORECASE | re.DOTALL
    return tuple(_Row(build=build, statuses=statuses, pattern=re.compile(each, flags)) for each in patterns)


# What a code or a type says, whatever the status: these words have one meaning.
_CODES: Final = (
    _words(
        kinds.spent,
        "insufficient_quota credit_balance_exhausted organization_spend_limit_exceeded project_spend_limit_exceeded"
        " organization_usage_limit_exceeded billing_hard_limit_reached billing_not_active billing_error"
        " enforced_spend_limit_reached",
    ),
    _words(kinds.refused, "content_filter content_policy_violation responsibleaipolicyviolation invalid_prompt"),
    _words(kinds.refused, "bio_policy misalignment_policy_violation"),
    _words(kinds.unknown_model, "model_not_found invalid_model unknown_model deploymentnotfound"),
    _words(kinds.unauthorised, "invalid_api_key api_key_invalid invalid_authentication authentication_error", _KEY),
    _words(kinds.unauthorised, "unsupported_country_region_territory permission_error", _KEY),
)

# The numbers come in fields, or as: count (and more, to be added to it) where limit is the window.
_TOO_LONG: Final = (
    *_says(
        kinds.too_long,
        _TOO_LARGE,
        r"request too large.{0,400}limit:? (?P<limit>\d[\d,]*),? requested:? (?P<count>\d[\d,]*)",
    ),
    *_says(
        kinds.too_long,
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
    _words(kinds.too_long, "context_length_exceeded exceed_context_size_error string_above_max_length"),
)

_WORDS: Final = (
    *_says(
        kinds.spent,
        frozenset({400, 402, 403, 429}),
        r"credit balance is too low|insufficient (?:balance|credits?|funds)|spend(?:ing)? limit",
        r"(?:reached|exceeded) your.{0,40}usage limit|extra usage is required",
        r"exceeded your current quota(?!.*retry in)",
    ),
    *_says(kinds.refused, _REQUEST, r"content management policy|flagged as potentially violating"),
    *_says(
        kinds.unauthorised, _KEY, r"(?:incorrect|invalid|missing) api[ _-]?key|api key (?:is )?(?:not valid|invalid)"
    ),
    *_says(kinds.wrong_endpoint, _ANY, r"unexpected endpoint or method"),
    *_says(
        kinds.wants_tls,
        frozenset({400, 497}),
        r"plain http request was sent to https|http request to an https server|speaking plain http to an ssl",
    ),
    *_says(kinds.loading, _SERVER, r"loading model|model is (?:(?:still |currently )?loading|unloaded|not loaded)"),
    *_says(
        kinds.unknown_model,
        _ABSENT,
        r"\bmodel\b.{0,200}(?:does not exist|not found|is not available|not have access)|no models? loaded",
        r"(?:unknown|invalid|no such) model\b|not a valid model|model identifier is invalid|^models?[:/]",
    ),
    _words(kinds.unknown_model, NAMES_MODEL, frozenset({404})),
    *_says(
        kinds.wrong_request,
        frozenset({500}),
        r"failed to (?:parse|format)|image input is not supported|does not support (?:images?|tools?|vision)",
        r"cannot make GET request|(?:failed|unable) to (?:load|decode|process|download) image|chat template",
    ),
)

_STATUSES: Final = (
    _words(kinds.intermediary, HTML, frozenset({403})),
    _words(kinds.no_model_server, FOREIGN, frozenset({404, 405, 501, *range(300, 400)})),
    _words(kinds.redirected, MOVED, range(300, 400)),
    _Row(build=kinds.unauthorised, statuses=frozenset({401, 403})),
    _Row(build=kinds.spent, statuses=frozenset({402})),
    _Row(build=kinds.wrong_endpoint, statuses=frozenset({404, 405})),
    _Row(build=kinds.barred, statuses=frozenset({407})),
    _Row(build=kinds.late, statuses=frozenset({408, 504, 524})),
    _Row(build=kinds.overloaded, statuses=frozenset({409, 425})),
    _Row(build=kinds.limited, statuses=frozenset({429})),
    _Row(build=kinds.wrong_request, statuses=range(400, 500)),
    _words(kinds.unsupported, "not_supported_error", frozenset({501})),
    _Row(build=kinds.unknown_model, statuses=frozenset({501})),
    _Row(build=kinds.overloaded, statuses=range(500, 600)),
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
    return kinds.unreadable(fault)


def _fits(row: _Row, fault: Fault, found: kinds.Found) -> bool:
    return (
        fault.status in row.statuses
        and (not row.words or not row.words.isdisjoint(fault.words))
        and (row.pattern is None or found is not None)
    )
