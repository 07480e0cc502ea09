"""Statistics of models: their speed and errors, their shares of the time, and their cooldowns after errors."""

import math
from datetime import datetime
from typing import Final

from llm_effects.values import caps
from llm_effects.values.errors import (
    AuthenticationFailed,
    Blame,
    LLMError,
    MalformedResponse,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestTimeout,
    SchemaMismatch,
    blame_for,
)
from llm_effects.values.records import Statistics
from llm_effects.values.responses import SUCCESS, Attempt

SMOOTHING: Final = 0.2
"""Weight of the newest attempt in the moving averages: about the last nine attempts count."""

HALF_LIFE_S: Final = 1800.0
"""Seconds in which statistics lose half of their weight: after an hour without attempts a quarter is left."""

PRIOR: Final = 0.1
"""Weight of the prior belief that a model answers, against its statistics: half of an attempt's."""

INFORMATIVE_OUTCOMES: Final = frozenset(
    error.tag for error in (ModelUnavailable, RateLimitExceeded, AuthenticationFailed, RequestTimeout, NetworkError)
) | {MalformedResponse.tag, SchemaMismatch.tag, SUCCESS}
"""Outcomes that are evidence about the model, as ``blame_for`` judges their errors."""


def learn(statistics: Statistics, attempt: Attempt, at: datetime, calls: int = 0) -> Statistics:
    """Return the statistics of a model updated by an attempt that ended ``at`` a time, after ``calls`` routed calls.

    Averages start with the first attempt, and after a long pause the newest attempt outweighs all earlier ones.

    >>> from datetime import UTC
    >>> ended = datetime(2026, 1, 1, tzinfo=UTC)
    >>> attempt = Attempt(model="m", provider="p", outcome=SUCCESS, latency_ms=40.0)
    >>> statistics = learn(Statistics(), attempt, ended)
    >>> statistics.latency_ms, statistics.confidence, statistics.error_rate
    (40.0, 0.2, 0.0)
    """
    if attempt.outcome not in INFORMATIVE_OUTCOMES:
        return statistics
    before = confidence_at(statistics, at)
    confidence = before + SMOOTHING * (1 - before)
    share = SMOOTHING / confidence
    latency, first_content, succeeded = attempt.latency_ms, attempt.first_content_ms, attempt.succeeded
    whole = succeeded and first_content is None  # the time of a whole stream includes its consumer's
    return Statistics(
        attempts=statistics.attempts + 1,
        error_rate=statistics.error_rate + share * (float(not succeeded) - statistics.error_rate),
        latency_ms=_moving_average(statistics.latency_ms, latency if whole else None, share),
        first_content_ms=_moving_average(statistics.first_content_ms, first_content if succeeded else None, share),
        failure_ms=_moving_average(statistics.failure_ms, None if succeeded else latency, share),
        confidence=confidence,
        at=at,
        calls=calls,
        cooldown_until=statistics.cooldown_until,
    )


def _moving_average(average: float | None, newest: float | None, share: float) -> float | None:
    if average is None or newest is None:
        return average if newest is None else newest
    return average + share * (newest - average)


def confidence_at(statistics: Statistics, now: datetime) -> float:
    """Return the confidence (0 to 1) in statistics ``now``; it decays since their last attempt.

    >>> from datetime import UTC, timedelta
    >>> noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    >>> confidence_at(Statistics(confidence=0.8, at=noon), noon + timedelta(seconds=HALF_LIFE_S))
    0.4
    """
    if statistics.at is None:
        return statistics.confidence if statistics.attempts else 0.0
    return statistics.confidence * math.exp2(-max(0.0, (now - statistics.at).total_seconds()) / HALF_LIFE_S)


def expected_error_rate(error_rate: float, confidence: float) -> float:
    """Return the error rate to expect: the measured one, weighted by its confidence, so that old failures decay.

    >>> [round(expected_error_rate(0.9, confidence), 2) for confidence in (1.0, 0.25, 0.0)]
    [0.82, 0.64, 0.0]
    """
    return error_rate * confidence / (confidence + PRIOR)


# Shares of the time: how long a candidate may take while others are left.

PATIENCE: Final = 2.0
"""How many times its usual time a model may need before it counts as stalled."""

STALLED: Final = 10.0
"""How many times its usual time a candidate may need at most while others are left: answers differ in length."""

SHORTEST_STALL_S: Final = 20.0
"""The least time after which a candidate counts as stalled by its usual time, in seconds."""

UNRELIABLE: Final = 0.5
"""Error rate from which a model has no claim to its usual time."""


def usual_time(statistics: Statistics | None, *, streamed: bool) -> float | None:
    """Return the seconds in which a model usually answers (has its first content, for streams), if that is known.

    >>> usual_time(Statistics(latency_ms=900.0, first_content_ms=200.0), streamed=True)
    0.2
    """
    if statistics is None:
        return None
    whole, first = statistics.latency_ms, statistics.first_content_ms
    preferred, other = (first, whole) if streamed else (whole, first)
    usual_ms = other if preferred is None else preferred
    return None if usual_ms is None else usual_ms / 1000


def time_share(
    left: float, share: float, candidate: Statistics | None, following: Statistics | None, *, streamed: bool
) -> float:
    """Return the seconds of those ``left`` in which a candidate must have its first content.

    That is a ``share`` of them, but at most ``STALLED`` times what the candidate usually needs; or what it usually
    needs if that is more, as long as the ``following`` one keeps what it usually needs. All of them where the following
    one could not usually answer in what a share leaves. A candidate that fails more often than it answers has then only
    a share of what the following one leaves.

    >>> quick, slow = Statistics(latency_ms=1000.0), Statistics(latency_ms=4000.0)
    >>> time_share(10.0, 0.5, None, None, streamed=False), time_share(10.0, 0.5, slow, quick, streamed=False)
    (5.0, 8.0)
    >>> time_share(6.0, 0.5, slow, slow, streamed=False)
    6.0
    >>> time_share(6.0, 0.5, Statistics(error_rate=1.0), slow, streamed=False)
    1.0
    """
    usual_s, following_s = usual_time(candidate, streamed=streamed), usual_time(following, streamed=streamed)
    fair = left * share if usual_s is None else min(left * share, max(STALLED * usual_s, SHORTEST_STALL_S))
    unreliable = candidate is not None and candidate.error_rate > UNRELIABLE
    if following_s is not None and following_s > left - fair:
        return left if not unreliable else fair if following_s > left else (left - following_s) * share
    if following_s is None or unreliable:
        return fair
    return fair if usual_s is None else max(fair, min(PATIENCE * usual_s, left - PATIENCE * following_s))


def ended_too_soon(error: LLMError, candidate: Statistics | None, *, streamed: bool) -> bool:
    """Return whether the end of a share came too soon for a model that usually answers: that is not its fault.

    >>> error = RequestTimeout(phase="attempt", timeout_ms=1500.0)
    >>> ended_too_soon(error, Statistics(latency_ms=900.0), streamed=False), ended_too_soon(error, None, streamed=False)
    (True, False)
    """
    usual_s = usual_time(candidate, streamed=streamed)
    if not isinstance(error, RequestTimeout) or error.phase != "attempt" or candidate is None or usual_s is None:
        return False
    return candidate.error_rate <= UNRELIABLE and (error.timeout_ms or 0.0) < PATIENCE * usual_s * 1000


# Cooldowns: how long a model is skipped after an error. Routing asks a model that cools down after all others.

MISCONFIGURED_S: Final = 300.0
"""After a rejected key, an exhausted quota or an unknown model, in seconds: the next call would meet the same."""

REFUSED_S: Final = 30.0
"""After a refused connection, in seconds: no server listens there."""

THROTTLED_S: Final = 5.0
"""After a rate limit whose end the server did not say, in seconds."""

STALLED_S: Final = 30.0
"""After a time-out while the answer was awaited, in seconds: rare calls never open a circuit breaker."""


def cooldown_after(error: LLMError) -> float:
    """Return for how many seconds to skip a model after its last error; 0 for not at all.

    >>> cooldown_after(RateLimitExceeded(retry_after=60.0, status=429)), cooldown_after(AuthenticationFailed())
    (60.0, 300.0)
    >>> cooldown_after(NetworkError(phase="reset")), cooldown_after(NetworkError(phase="refused"))
    (0.0, 30.0)
    """
    requested = 0.0 if blame_for(error) is Blame.OURSELVES else error.retry_after or 0.0
    return min(caps.PAUSE_S, max(requested, _lasting(error)))


def _lasting(error: LLMError) -> float:
    match error:
        case AuthenticationFailed():
            return MISCONFIGURED_S
        case RateLimitExceeded():
            unknown_end = error.retry_after is None and blame_for(error) is Blame.MODEL
            return MISCONFIGURED_S if error.quota else THROTTLED_S if unknown_end else 0.0
        case ModelUnavailable():
            return MISCONFIGURED_S if error.reason == "unknown_model" else 0.0
        case RequestTimeout():
            return STALLED_S if error.phase in {"attempt", "first_content"} else 0.0
        case NetworkError():
            return REFUSED_S if error.phase == "refused" else 0.0
        case _:
            return 0.0
