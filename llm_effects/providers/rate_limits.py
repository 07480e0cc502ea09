"""What a provider says of its limits beside its answers, from its headers.

``x-ratelimit-{limit,remaining,reset}-{requests,tokens}`` is OpenAI's and of many that speak as it does;
``anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{limit,remaining,reset}`` is Anthropic's, whose
resets are dates. Anthropic counts prompts and answers apart, where we have one sum: there only "none left" is heeded.
"""

from collections.abc import Mapping
from datetime import datetime
from math import isfinite
from typing import Final

from attrs import evolve

from llm_effects.limits import Allowance, RateLimits
from llm_effects.providers.retry_hints import http_date, number, reset_in

_OPENAI: Final = {
    what: tuple(f"x-ratelimit-{of}-{what}" for of in ("limit", "remaining", "reset")) for what in ("requests", "tokens")
}
_ANTHROPIC: Final = tuple(
    tuple(f"anthropic-ratelimit-{what}-{of}" for of in ("limit", "remaining", "reset"))
    for what in ("requests", "tokens", "input-tokens", "output-tokens")
)
_SILENCE: Final = Allowance()


def rate_limits(headers: Mapping[str, str], received: datetime | None, at: float) -> RateLimits | None:
    """Read what was said, ``at`` a time on the clock of ``anyio.current_time()``; ``None`` if nothing was.

    Dates count from the answer's own ``date`` header, or from when it was ``received``. What is unreadable, negative
    or past says nothing.

    >>> said = rate_limits({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, None, 1.0)
    >>> said.requests
    Allowance(limit=None, remaining=0, reset=360.0)
    >>> rate_limits({"content-type": "application/json"}, None, 1.0) is None
    True
    """
    if not any(name in headers for name in _FIRST):
        return None
    now = http_date(headers.get("date", "")) or received
    requests, *tokens = (_allowance(headers, names, now) for names in _ANTHROPIC)
    requests = requests if requests != _SILENCE else _allowance(headers, _OPENAI["requests"], now)
    walls = [evolve(each, limit=None) for each in tokens if each.remaining == 0 and each.reset is not None]
    wall = max(walls, key=lambda each: each.reset or 0.0, default=None)
    return RateLimits(requests=requests, tokens=wall or _allowance(headers, _OPENAI["tokens"], now), at=at)


_FIRST: Final = tuple(name for names in (*_OPENAI.values(), *_ANTHROPIC) for name in names[:2])


def _allowance(headers: Mapping[str, str], names: tuple[str, ...], now: datetime | None) -> Allowance:
    limit, remaining = (number(headers.get(name, "")) for name in names[:2])
    reset = reset_in(headers.get(names[2], ""), now)
    return Allowance(
        limit=int(limit) if isfinite(limit) and limit >= 1 else None,
        remaining=int(remaining) if isfinite(remaining) and remaining >= 0 else None,
        reset=reset if isfinite(reset) and reset > 0 else None,
    )
