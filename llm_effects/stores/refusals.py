"""What those are told who are not let in. Nothing was sent, and asking the same model again is no use."""

from math import isfinite

from llm_effects.errors import ModelUnavailable, RateLimitExceeded
from llm_effects.limits import Need, Quota
from llm_effects.limits.breakers import Refusal


def turned_away(model: str, quota: Quota, need: Need, wait: float) -> RateLimitExceeded:
    """Say that one's turn does not come in time; ``wait`` is in how many seconds it would, infinite if unknown.

    >>> turned_away("gpt", Quota(requests=1), Need(), 40.0).message
    'our own limits (1 request a minute) have room for 1 request in 40 s'
    """
    size = f" of about {_many(need.tokens, 'token')}" if need.tokens else ""
    asked = _many(need.requests, "request") + size
    when = f"in {wait:.3g} s" if isfinite(wait) else "in the time that there is"
    no = "" if isfinite(wait) else "no "
    return RateLimitExceeded(
        model=model,
        message=f"our own limits ({_told(quota)}) have {no}room for {asked} {when}",
        retry_after=wait if isfinite(wait) else None,
        should_retry=False,
    )


def left_alone(model: str, refusal: Refusal) -> ModelUnavailable:
    """Say that a model is left alone, and for how long.

    >>> left_alone("gpt", Refusal(12.0)).message
    'it failed too often of late and is left alone for 12 s'
    """
    message = f"it failed too often of late and is left alone for {refusal.seconds:.3g} s"
    return ModelUnavailable(model=model, message=message, reason="breaker_open", retry_after=refusal.seconds)


def _told(quota: Quota) -> str:
    told = (
        (quota.concurrency, "call", "at once"),
        (quota.requests, "request", "a minute"),
        (quota.tokens, "token", "a minute"),
    )
    limits = ", ".join(f"{_many(number, what)} {how}" for number, what, how in told if number is not None)
    return limits or "as the server told them"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
