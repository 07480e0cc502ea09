"""Response headers: the request id, retry hints and rate limits.

``x-ratelimit-{limit,remaining,reset}-{requests,tokens}`` comes from OpenAI and many compatible servers;
``anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}`` from Anthropic, whose
resets are dates. Anthropic counts prompts and answers separately, where this library has one sum: of these only "none
left" counts.

A header of more than ``caps.HINT_CHARACTERS`` is ignored, and no pause is longer than ``caps.PAUSE_S``.
"""

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from attrs import evolve

from llm_effects.limits.quotas import Allowance, RateLimits
from llm_effects.values import caps

# --- Retry hints

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PIECE: Final = (
    r"(\d{1,9}(?:\.\d{1,9})?)\s*(milliseconds?|ms|days?|d|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)(?![a-z])"
)
_HINT: Final = rf"(?:try again|retry)\s+(?:in|after)\s+((?:{_PIECE}\s*)+)"  # compiled by its first use, as all here
_LIMITS: Final = (
    *((f"x-ratelimit-remaining-{what}", f"x-ratelimit-reset-{what}") for what in ("requests", "tokens")),
    *(
        (f"anthropic-ratelimit-{what}-remaining", f"anthropic-ratelimit-{what}-reset")
        for what in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
)


def request_id(headers: Mapping[str, str]) -> str | None:
    """Return the provider's id of the exchange.

    >>> request_id({"x-request-id": "req_1"}), request_id({})
    ('req_1', None)
    """
    return headers.get("x-request-id") or headers.get("request-id") or None


def retry_after(headers: Mapping[str, str], message: str = "", now_date: datetime | None = None) -> float | None:
    """Return the seconds to wait before the next attempt, or ``None`` if there is no usable hint.

    The first usable hint wins: ``retry-after-ms``, ``retry-after`` (seconds or an HTTP date), the reset of an
    exhausted rate limit, the ``message``. A date counts from the answer's own ``date`` header, or from ``now_date``;
    without either it is ignored, as is a time that is past, zero, negative, infinite or malformed.

    >>> retry_after({"retry-after": "2"}), retry_after({"retry-after": "2", "retry-after-ms": "150"})
    (2.0, 0.15)
    >>> retry_after({}, "Please try again in 1m30s."), retry_after({"retry-after": "soon"})
    (90.0, None)
    """
    now = http_date(_value(headers, "date")) or now_date
    return next((min(hint, caps.PAUSE_S) for hint in _hints(headers, message, now) if _usable(hint)), None)


def should_retry(headers: Mapping[str, str]) -> bool | None:
    """Return the value of ``x-should-retry`` (OpenAI and Anthropic), or ``None`` without one.

    >>> should_retry({"x-should-retry": "false"}), should_retry({})
    (False, None)
    """
    return {"true": True, "false": False}.get(_value(headers, "x-should-retry").strip().lower())


def _value(headers: Mapping[str, str], name: str) -> str:
    """Return the value of a header; one that is missing or too long counts as empty."""
    value = headers.get(name, "")
    return value if len(value) <= caps.HINT_CHARACTERS else ""


def _hints(headers: Mapping[str, str], message: str, now: datetime | None) -> Iterator[float]:
    yield number(_value(headers, "retry-after-ms")) / 1000
    yield number(_value(headers, "retry-after"))
    yield _until(http_date(_value(headers, "retry-after")), now)
    yield _resets(headers, now)
    match = re.search(_HINT, message, re.IGNORECASE)
    yield _duration(match[1]) if match else math.nan


def _usable(hint: float) -> bool:
    return math.isfinite(hint) and hint > 0


def _resets(headers: Mapping[str, str], now: datetime | None) -> float:
    exhausted = (reset for remaining, reset in _LIMITS if number(_value(headers, remaining)) == 0)
    waits = (reset_in(_value(headers, reset), now) for reset in exhausted)
    return max(filter(_usable, waits), default=math.nan)


def reset_in(text: str, now: datetime | None) -> float:
    """Parse a date or a duration as the seconds until a limit is reset; return NaN if it is malformed."""
    return _until(_iso_date(text), now) if "T" in text else _duration(text)


def number(text: str) -> float:
    """Parse a number; return NaN for anything else."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _duration(text: str) -> float:
    pieces: list[tuple[str, str]] = re.findall(_PIECE, text, re.IGNORECASE)
    if not pieces:
        return math.nan
    return sum(float(amount) * _unit(name.lower()) for amount, name in pieces)


def _unit(name: str) -> float:
    return _UNITS["ms" if name.startswith(("ms", "milli")) else name[0]]


def _until(date: datetime | None, now: datetime | None) -> float:
    return math.nan if date is None or now is None else (date - now).total_seconds()


def http_date(text: str) -> datetime | None:
    """Parse an HTTP date."""
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _iso_date(text: str) -> datetime | None:
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


# --- Rate limits

_OPENAI: Final = {
    what: tuple(f"x-ratelimit-{of}-{what}" for of in ("limit", "remaining", "reset")) for what in ("requests", "tokens")
}
_ANTHROPIC: Final = tuple(
    tuple(f"anthropic-ratelimit-{what}-{of}" for of in ("limit", "remaining", "reset"))
    for what in ("requests", "tokens", "input-tokens", "output-tokens")
)
_UNKNOWN: Final = Allowance()


def rate_limits(headers: Mapping[str, str], received: datetime | None, at: float) -> RateLimits | None:
    """Parse the rate limits of an answer, ``at`` a time on the clock of ``anyio.current_time()``; ``None`` without any.

    Dates count from the answer's own ``date`` header, or from when it was ``received``. Malformed, negative and past
    values are ignored.

    >>> limits = rate_limits({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, None, 1.0)
    >>> limits.requests
    Allowance(remaining=0, reset=360.0)
    >>> rate_limits({"content-type": "application/json"}, None, 1.0) is None
    True
    """
    if _LIMIT_HEADERS.isdisjoint(headers):
        return None
    now = http_date(_value(headers, "date")) or received
    requests, *tokens = (_allowance(headers, names, now) for names in _ANTHROPIC)
    requests = requests if requests != _UNKNOWN else _allowance(headers, _OPENAI["requests"], now)
    exhausted = [evolve(each, limit=None) for each in tokens if each.remaining == 0 and each.reset is not None]
    longest = max(exhausted, key=lambda each: each.reset or 0.0, default=None)
    return RateLimits(requests=requests, tokens=longest or _allowance(headers, _OPENAI["tokens"], now), at=at)


_LIMIT_HEADERS: Final = frozenset(name for names in (*_OPENAI.values(), *_ANTHROPIC) for name in names[:2])


def _allowance(headers: Mapping[str, str], names: tuple[str, ...], now: datetime | None) -> Allowance:
    limit, remaining = (number(_value(headers, name)) for name in names[:2])
    reset = reset_in(_value(headers, names[2]), now)
    return Allowance(
        limit=int(limit) if 1 <= limit <= caps.COUNT else None,
        remaining=int(remaining) if 0 <= remaining <= caps.COUNT else None,
        reset=min(reset, caps.PAUSE_S) if _usable(reset) else None,
    )
