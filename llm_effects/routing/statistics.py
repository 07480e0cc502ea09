"""What attempts teach about a model: moving averages that fade with every attempt and with time."""

import math
from datetime import datetime
from typing import Final

from llm_effects.values.errors import (
    AuthenticationFailed,
    MalformedResponse,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestTimeout,
    SchemaMismatch,
)
from llm_effects.values.records import Statistics
from llm_effects.values.responses import SUCCESS, Attempt

NEWEST: Final = 0.2
"""Weight of the newest attempt in the moving averages: about the last nine count."""

HALF_LIFE_S: Final = 1800.0
"""Seconds in which what is known loses half of its weight: after an hour without an attempt a quarter is left."""

PRIOR: Final = 0.1
"""Weight of the belief that a model answers, against what was seen: half an attempt's."""

BLAMED: Final = frozenset(
    error.tag for error in (ModelUnavailable, RateLimitExceeded, AuthenticationFailed, RequestTimeout, NetworkError)
) | {MalformedResponse.tag, SchemaMismatch.tag, SUCCESS}
"""Outcomes that say something of the model; others are the request's, the caller's, or a defect."""


def learn(known: Statistics, attempt: Attempt, at: datetime, calls: int = 0) -> Statistics:
    """Take an attempt into what is known: it ended ``at`` a time, when so many calls had been routed.

    Averages begin with the first attempt as it is, and after a long pause the newest one outweighs all before it.

    >>> from datetime import UTC
    >>> ended = datetime(2026, 1, 1, tzinfo=UTC)
    >>> known = learn(Statistics(), Attempt(model="m", provider="p", outcome=SUCCESS, latency_ms=40.0), ended)
    >>> known.latency_ms, known.confidence, known.error_rate
    (40.0, 0.2, 0.0)
    """
    if attempt.outcome not in BLAMED:
        return known
    before = kept(known, at)
    confidence = before + NEWEST * (1 - before)
    share = NEWEST / confidence
    took, begun = attempt.latency_ms, attempt.first_content_ms
    whole = attempt.succeeded and begun is None  # the time of a whole stream is its consumer's too
    return Statistics(
        attempts=known.attempts + 1,
        error_rate=known.error_rate + share * (float(not attempt.succeeded) - known.error_rate),
        latency_ms=_moved(known.latency_ms, took if whole else None, share),
        first_content_ms=_moved(known.first_content_ms, begun if attempt.succeeded else None, share),
        failure_ms=_moved(known.failure_ms, None if attempt.succeeded else took, share),
        confidence=confidence,
        at=at,
        calls=calls,
        cooldown_until=known.cooldown_until,
    )


def _moved(average: float | None, newest: float | None, share: float) -> float | None:
    if average is None or newest is None:
        return average if newest is None else newest
    return average + share * (newest - average)


def kept(known: Statistics, now: datetime) -> float:
    """How much of its weight (0 to 1) what is known has ``now``.

    >>> from datetime import UTC, timedelta
    >>> noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    >>> kept(Statistics(confidence=0.8, at=noon), noon + timedelta(seconds=HALF_LIFE_S))
    0.4
    """
    if known.at is None:
        return known.confidence if known.attempts else 0.0
    return known.confidence * math.exp2(-max(0.0, (now - known.at).total_seconds()) / HALF_LIFE_S)


def faded(error_rate: float, confidence: float) -> float:
    """The error rate to expect: old failures fade, since nobody knows that they would happen again.

    >>> [round(faded(0.9, confidence), 2) for confidence in (1.0, 0.25, 0.0)]
    [0.82, 0.64, 0.0]
    """
    return error_rate * confidence / (confidence + PRIOR)
