"""Log records: standard logging, silent until the application sets up a handler, without any prompt or key.

Each record bears its facts as fields (``extra``), for a formatter that writes JSON: ``call_id``, ``model`` and so on.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Final, ParamSpec, TypeAlias, TypeVar

from returns.pipeline import is_successful
from returns.result import safe

from llm_effects.effects.call import Call
from llm_effects.values.responses import CANCELLED, SUCCESS, Attempt, Cost, total_cost

LOGGER: Final = logging.getLogger("llm_effects")
"""The logger of the library: attempts at DEBUG (those that failed at INFO), what went wrong with a call at WARNING."""

LOGGER.addHandler(logging.NullHandler())

_Fields: TypeAlias = dict[str, str | int | float]
_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")


@safe
def _run(hook: Callable[[], _Made]) -> _Made:
    return hook()


def unharmed(hook: Callable[_Given, _Made], *args: _Given.args, **kwargs: _Given.kwargs) -> _Made | None:
    """Run what is not ours and only watches: whatever it raises is logged, and costs nobody an answer.

    >>> unharmed(int, "3"), unharmed(int, "three")
    (3, None)
    """
    done = _run(partial(hook, *args, **kwargs))
    if is_successful(done):
        return done.unwrap()
    _run(partial(LOGGER.warning, "a hook failed: %s", type(done.failure()).__name__, extra={"outcome": "hook failed"}))
    return None


def log_attempt(call: Call, attempt: Attempt) -> None:
    """Note an attempt that was sent."""
    level = logging.DEBUG if attempt.outcome in {SUCCESS, CANCELLED} else logging.INFO
    if LOGGER.isEnabledFor(level):
        unharmed(LOGGER.log, level, "attempt: %s", attempt.outcome, extra=_of_call(call) | _of_attempt(attempt))


def log_failure(call: Call, tag: str) -> None:
    """Warn of a call that failed."""
    attempts = call.history.attempts
    cost = total_cost(attempt.cost for attempt in attempts)
    fields = _of_call(call) | {"outcome": tag, "attempts": len(attempts)} | _of_cost(cost)
    unharmed(LOGGER.warning, "call failed: %s", tag, extra=fields)


def log_fallback(call: Call, model: str) -> None:
    """Warn that another model answered than the first one asked."""
    first, attempts = call.history.attempts[0].model, len(call.history.attempts)
    fields = {"outcome": "fallback", "model": model, "instead_of": first, "attempts": attempts}
    unharmed(LOGGER.warning, "answered by %s instead of %s", model, first, extra=_of_call(call) | fields)


def log_cache_trouble(call: Call, operation: str) -> None:
    """Warn of a cache that could not be read or written; what was wrong, the answer's ``warnings`` say."""
    fields = _of_call(call) | {"outcome": "cache failed", "operation": operation}
    unharmed(LOGGER.warning, "cache failed: %s", operation, extra=fields)


def _of_call(call: Call) -> _Fields:
    return {"call_id": call.id, "task_type": str(call.request.task_type)}


def _of_attempt(attempt: Attempt) -> _Fields:
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
        **_of_cost(attempt.cost),
    }


def _of_cost(cost: Cost) -> _Fields:
    return {} if cost.usd is None else {"cost_usd": float(cost.usd)}
