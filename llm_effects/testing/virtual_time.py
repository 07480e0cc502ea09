"""Virtual time: an hour of waiting takes milliseconds, and is reproducible."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import anyio

_Value = TypeVar("_Value")
_Args = TypeVarTuple("_Args")


def run_in_virtual_time(main: Callable[[*_Args], Awaitable[_Value]], *args: *_Args) -> _Value:
    """Run a function like ``anyio.run``, on trio's mock clock: it jumps ahead whenever every task waits.

    Requires trio. Threads and real sockets ignore this clock: use scripted models.

    >>> from llm_effects import LLMRequest, RateLimitExceeded, generate, run
    >>> from llm_effects.testing.scripted import scripted_env
    >>> env = scripted_env(RateLimitExceeded(retry_after=60.0), "after a minute")
    >>> answer = run_in_virtual_time(run, generate(LLMRequest(prompt="why?")), env).unwrap()
    >>> answer.content, answer.attempts[1].wait_ms
    ('after a minute', 60000.0)
    """
    from trio.testing import MockClock

    clock = MockClock(autojump_threshold=0)
    return anyio.run(main, *args, backend="trio", backend_options={"clock": clock})
