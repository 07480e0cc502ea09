"""The figures of an attempt: how long it took, when its first content came, and its tokens."""

from collections.abc import Iterable
from typing import Final

from returns.pipeline import is_successful

from llm_effects.config import LLMConfig
from llm_effects.records import Attributes, Measure
from llm_effects.responses import Attempt, Usage
from llm_effects.telemetry import conventions as names
from llm_effects.telemetry.spans import Outcome, error_of, places_of

_METERED: Final = (
    names.OPERATION,
    names.PROVIDER,
    names.REQUEST_MODEL,
    names.SERVER_ADDRESS,
    names.SERVER_PORT,
)
"""What of a place tells figures apart: few values each, for every one makes a series of its own."""


def measures_of(attempt: Attempt, outcome: Outcome, config: LLMConfig) -> tuple[Measure, ...]:
    """Give the figures of an attempt, in seconds and tokens, each where it is known.

    Tokens that the provider did not tell are left out, as the conventions ask.

    >>> from llm_effects.testing.environments import ONE_MODEL
    >>> attempt = Attempt(model="scripted", provider="lm-studio", outcome="NetworkError", latency_ms=1500.0)
    >>> [(each.metric, each.value, each.attributes["error.type"]) for each in measures_of(attempt, None, ONE_MODEL)]
    [('gen_ai.client.operation.duration', 1.5, 'NetworkError')]
    """
    place = places_of(config).get(attempt.model, {})
    common = {**{name: place[name] for name in _METERED if name in place}, **_served(outcome)}
    return (*_times(attempt, common), *_tokens(attempt.usage, common))


def _served(outcome: Outcome) -> Attributes:
    served = outcome.unwrap().served_model if outcome is not None and is_successful(outcome) else None
    return {names.RESPONSE_MODEL: served} if served else {}


def _times(attempt: Attempt, common: Attributes) -> Iterable[Measure]:
    error = error_of(attempt.outcome)
    ended = {**common, names.OUTCOME: attempt.outcome, **({} if error is None else {names.ERROR_TYPE: error})}
    yield Measure(names.DURATION, attempt.latency_ms / 1000, ended)
    if attempt.first_content_ms is not None:
        yield Measure(names.FIRST_CHUNK, attempt.first_content_ms / 1000, common)


def _tokens(usage: Usage, common: Attributes) -> Iterable[Measure]:
    for kind, count in (("input", usage.prompt_tokens), ("output", usage.output_tokens)):
        if count is not None and not usage.estimated:
            yield Measure(names.TOKEN_USAGE, count, {**common, names.TOKEN_TYPE: kind})
