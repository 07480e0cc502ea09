"""Log records: standard logging, silent until the application adds a handler, without any prompt or key.

Each record has its facts as fields (``extra``), for a formatter that writes JSON: ``call_id``, ``model`` and so on.
"""

import logging
from collections.abc import Callable
from functools import partial, reduce
from typing import Final, ParamSpec, TypeAlias, TypeVar

from returns.pipeline import is_successful
from returns.result import safe

from llm_effects.effects.call import Call
from llm_effects.values.requests import LLMRequest, request_messages
from llm_effects.values.responses import CANCELLED, SUCCESS, Attempt, Cost, total_cost

LOGGER: Final = logging.getLogger("llm_effects")
"""The logger of the library: attempts at DEBUG (failed ones at INFO), problems of a call at WARNING."""

LOGGER.addHandler(logging.NullHandler())

_Fields: TypeAlias = dict[str, str | int | float]
_Params = ParamSpec("_Params")
_Value = TypeVar("_Value")


@safe
def _run(hook: Callable[[], _Value]) -> _Value:
    return hook()


def unharmed(hook: Callable[_Params, _Value], *args: _Params.args, **kwargs: _Params.kwargs) -> _Value | None:
    """Run an observer's hook; log what it raises, so that it never fails a call.

    >>> unharmed(int, "3"), unharmed(int, "three")
    (3, None)
    """
    result = _run(partial(hook, *args, **kwargs))
    if is_successful(result):
        return result.unwrap()
    problem = type(result.failure()).__name__
    _run(partial(LOGGER.warning, "a hook failed: %s", problem, extra={"outcome": "hook failed"}))
    return None


def log_attempt(call: Call, attempt: Attempt) -> None:
    """Log an attempt that was sent."""
    level = logging.DEBUG if attempt.outcome in {SUCCESS, CANCELLED} else logging.INFO
    if LOGGER.isEnabledFor(level):
        unharmed(LOGGER.log, level, "attempt: %s", attempt.outcome, extra=_call_fields(call) | _attempt_fields(attempt))


def log_failure(call: Call, tag: str, sentence: str) -> None:
    """Log a call that failed, with the sentence of its error, in which texts of the request are left out."""
    attempts = call.history.attempts
    cost = total_cost(attempt.cost for attempt in attempts)
    fields = _call_fields(call) | {"outcome": tag, "attempts": len(attempts)} | _cost_fields(cost)
    unharmed(LOGGER.warning, "call failed: %s", _without_texts(call.request, sentence), extra=fields)


_SHORTEST: Final = 8  # characters: a shorter text may well be a part of other words


def _without_texts(request: LLMRequest, sentence: str) -> str:
    texts = (request.system, *(message.text for message in request_messages(request)))
    return reduce(
        lambda rest, text: rest.replace(text, "[…]"),
        (text for text in texts if text and len(text) >= _SHORTEST),
        sentence,
    )


def log_fallback(call: Call, model: str) -> None:
    """Warn that another model answered than the first one asked."""
    first, attempts = call.history.attempts[0].model, len(call.history.attempts)
    fields = {"outcome": "fallback", "model": model, "instead_of": first, "attempts": attempts}
    unharmed(LOGGER.warning, "answered by %s instead of %s", model, first, extra=_call_fields(call) | fields)


def log_cache_trouble(call: Call, operation: str) -> None:
    """Log a cache that could not be read or written; the response's ``warnings`` say why."""
    fields = _call_fields(call) | {"outcome": "cache failed", "operation": operation}
    unharmed(LOGGER.warning, "cache failed: %s", operation, extra=fields)


def log_refresh_defect(defect: Exception) -> None:
    """Log what a refresh of the cache raised, by its class: no caller waits for it."""
    unharmed(LOGGER.warning, "refresh failed: %s", type(defect).__name__, extra={"outcome": "refresh failed"})


def _call_fields(call: Call) -> _Fields:
    return {"call_id": call.id, "task_type": str(call.request.task_type)}


def _attempt_fields(attempt: Attempt) -> _Fields:
    known = {
        "first_content_ms": attempt.first_content_ms,
        "input_tokens": attempt.usage.prompt_tokens,
        "output_tokens": attempt.usage.output_tokens,
    }
    return {
        "model": attempt.model,
        "provider": attempt.provider,
        "outcome": attempt.outcome,
        "latency_ms": attempt.latency_ms,
        "wait_ms": attempt.wait_ms,
        **{name: value for name, value in known.items() if value is not None},
        **_cost_fields(attempt.cost),
    }


def _cost_fields(cost: Cost) -> _Fields:
    return {} if cost.usd is None else {"cost_usd": float(cost.usd)}
