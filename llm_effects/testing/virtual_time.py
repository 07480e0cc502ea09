"""Virtual time: an hour of waiting takes milliseconds, and is reproducible, on trio and on asyncio."""

from __future__ import annotations

import asyncio
import math
import selectors
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from importlib import import_module
from typing import Any, Final, Literal, TypeAlias, TypeVar, TypeVarTuple, final

import anyio
from anyio import CapacityLimiter
from anyio.to_thread import current_default_thread_limiter

from llm_effects.effects.tasks import threads_awaited

_Value = TypeVar("_Value")
_Args = TypeVarTuple("_Args")

Backend: TypeAlias = Literal["asyncio", "trio"]
"""The event loop to run in."""


def run_in_virtual_time(
    main: Callable[[*_Args], Awaitable[_Value]], *args: *_Args, backend: Backend = "trio"
) -> _Value:
    """Run a function like ``anyio.run``, on a clock that jumps ahead whenever every task waits.

    On ``trio`` it is trio's mock clock, which ignores threads and real sockets: use stores in memory. On ``asyncio``
    the clock runs in real time while a task waits for a thread: of ``to_thread`` (with its default limiter), an
    executor, a tool, a SQL store or the in-process model. It ignores other threads, and real sockets. So use scripted
    or recorded models.

    >>> from llm_effects import LLMRequest, RateLimitExceeded, generate, run
    >>> from llm_effects.testing.scripted import scripted_env
    >>> env = scripted_env(RateLimitExceeded(retry_after=60.0), "after a minute")
    >>> answer = run_in_virtual_time(run, generate(LLMRequest(prompt="why?")), env, backend="asyncio").unwrap()
    >>> answer.content, answer.attempts[1].wait_ms
    ('after a minute', 60000.0)
    """
    if backend == "asyncio":
        return anyio.run(main, *args, backend=backend, backend_options={"loop_factory": VirtualTimeLoop})
    from trio.testing import MockClock

    clock = MockClock(autojump_threshold=0)
    return anyio.run(main, *args, backend=backend, backend_options={"clock": clock})


@final
class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop of asyncio whose clock begins at 0 and jumps to the next timer whenever every task waits."""

    def __init__(self) -> None:
        self._selecting = _Selector(self._threads_work)
        self._jobs = set[asyncio.Future[Any]]()
        self._limiter: CapacityLimiter | None = None
        super().__init__(self._selecting)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._selecting.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*_Args], _Value], *args: *_Args
    ) -> asyncio.Future[_Value]:
        """Run a function in a thread; the clock runs in real time until it has ended."""
        job = super().run_in_executor(executor, func, *args)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job

    def _threads_work(self) -> bool:
        if self._limiter is None:
            self._limiter = current_default_thread_limiter()
        return bool(self._jobs or self._limiter.borrowed_tokens or threads_awaited())


@final
class _Selector(selectors.DefaultSelector):
    """A selector that waits in virtual time, unless threads work."""

    def __init__(self, threads_work: Callable[[], bool]) -> None:
        super().__init__()
        self.now = 0.0
        self._threads_work = threads_work

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready, or jump ahead by ``timeout`` seconds; without any timer, wait for real."""
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is not None and not self._threads_work():
            self.now = _after(self.now, timeout)
            return []
        began = time.monotonic()
        ready = super().select(timeout)
        elapsed = time.monotonic() - began
        self.now += elapsed if timeout is None else min(elapsed, timeout)
        return ready


def _after(now: float, seconds: float) -> float:
    """Return a later time. A timer is due a nanosecond early, which is nothing to the clock after a hundred days."""
    later = now + seconds
    return later if later + 1e-9 > later else math.nextafter(later, math.inf)


# With every choice of trio's scheduler drawn from a seed.


def run_seeded(seed: int, main: Callable[[], Awaitable[_Value]]) -> _Value:
    """Run a function in virtual time, with an order of tasks that a seed decides. Requires trio.

    Without a seed trio orders the tasks that may run next by chance.
    """
    scheduler = vars(import_module("trio._core._run"))  # no public name: hypothesis sets the same two for its tests
    before = scheduler[_DETERMINISTIC]
    scheduler[_DETERMINISTIC] = True
    scheduler["_r"].seed(seed)
    try:
        return run_in_virtual_time(main)
    finally:
        scheduler[_DETERMINISTIC] = before


_DETERMINISTIC: Final = "_ALLOW_DETERMINISTIC_SCHEDULING"


def living_tasks() -> int:
    """Return the number of tasks of this trio run."""
    import trio

    return trio.lowlevel.current_statistics().tasks_living
