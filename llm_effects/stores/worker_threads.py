"""Threads for blocking stores, awaited from any event loop, asyncio or trio, several at once.

The file or connection that such a thread holds belongs to no event loop, so it can outlive one and serve the next.
"""

import math
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Protocol, TypeVar, final
from weakref import WeakSet

import anyio
from returns.result import Failure, Result, Success

from llm_effects.effects.tasks import Signal
from llm_effects.providers.wire import CLOSING_S
from llm_effects.values.errors import LLMError, StorageFailed, cause_of

_Value = TypeVar("_Value")

_CLOSED: Final = "it is closed, or no thread can be started: open it again"

TOO_LATE: Final[Failure[LLMError]] = Failure(StorageFailed(operation="get", message="it took too long", transient=True))
"""The failure of a caller that could not wait any longer, which says nothing about the store."""


class Forked(Protocol):
    """A store that a child process must open anew: it has neither the threads nor the connections of its parent."""

    def after_fork(self) -> None:
        """Forget what the parent holds, without closing it."""
        ...


_OPEN: Final[WeakSet[Forked]] = WeakSet()
_INHERITED: Final[list[object]] = []
"""Belongings of the parent: collecting them here could close them there."""


def renew_after_fork(store: Forked) -> None:
    """Call ``store.after_fork`` in every process that is forked from now on, before anything else runs there."""
    _OPEN.add(store)


def leave_to_parent(*held: object) -> None:
    """Keep what only the parent may close, such as its connections."""
    _INHERITED.extend(held)


def _renew_all() -> None:
    for store in tuple(_OPEN):
        store.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_renew_all)


@final
class Worker:
    """A pool of up to ``threads`` threads with a name; each starts when there is work for it."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._name, self._size = name, threads
        self._threads = ThreadPoolExecutor(threads, name)
        self._jobs: set[Future[Any]] = set()
        self._closed = False
        self._last_success = time.monotonic()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """Begin with new threads."""
        leave_to_parent(self._threads, self._jobs)
        self._threads = ThreadPoolExecutor(self._size, self._name)
        self._jobs = set()
        if self._closed:
            self._threads.shutdown()

    async def run(
        self,
        operation: str,
        work: Callable[[], Result[_Value, LLMError]],
        seconds: float,
        abandon: "Callable[[Future[Any]], object]" = Future[Any].cancel,
        patience: float = math.inf,
        *,
        late: "Callable[[Future[Any]], object]" = Future[Any].cancel,
    ) -> Result[_Value, LLMError]:
        """Run some work in a thread; fail once no job of the pool has succeeded for ``seconds``.

        So a store that hangs fails all its callers in time, and a long queue before a store that works fails none. A
        caller that is cancelled or times out returns at once; work that has started runs to its end. ``abandon``
        receives the job of a cancelled caller, and ``late`` that of one that times out. A caller that has waited for
        ``patience`` seconds receives ``TOO_LATE``.
        """
        try:
            job = self._threads.submit(self._timed, work)
        except RuntimeError as problem:
            return Failure(StorageFailed(operation=operation, message=_CLOSED, cause=cause_of(problem)))
        signal, cancelled = Signal(), True
        self._jobs.add(job)
        job.add_done_callback(partial(self._end, signal))
        try:
            ended = await self._ended(signal, seconds, patience)
            cancelled = False
        finally:
            if cancelled:
                abandon(job)
        if ended:
            return job.result()
        late(job)
        if ended is None:
            return TOO_LATE
        message = f"no answer within {seconds * 1000:g} ms"
        return Failure(StorageFailed(operation=operation, message=message, transient=True))

    def post(self, work: Callable[[], object]) -> bool:
        """Run some work in a thread without waiting for it; return whether the pool still takes jobs."""
        try:
            job = self._threads.submit(work)
        except RuntimeError:
            return False
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return True

    def _timed(self, work: Callable[[], Result[_Value, LLMError]]) -> Result[_Value, LLMError]:
        result = work()
        if isinstance(result, Success):
            self._last_success = time.monotonic()
        return result

    def _end(self, signal: Signal, job: "Future[Any]") -> None:
        self._jobs.discard(job)
        signal.set()

    async def _ended(self, signal: Signal, seconds: float, patience: float) -> bool | None:
        """Wait for a job; return ``False`` if the pool hangs, ``None`` if only the caller's patience has ended."""
        since, timeout = time.monotonic(), min(seconds, patience)
        while timeout > 0:
            if await signal.wait(timeout):
                return True
            now = time.monotonic()
            if now - since >= patience:
                return None
            timeout = min(self._last_success + seconds - now, since + patience - now)
        return None if patience <= 0 else False

    async def aclose(self, last: Callable[[], object]) -> None:
        """Run ``last`` after all started jobs, in bounded time, and end the threads; a second time is a no-op."""
        if self._closed:
            return
        self._closed = True
        await _all_ended(*self._jobs.copy())
        jobs = self._jobs.copy()  # those that the first ones have posted
        await _all_ended(*jobs)
        jobs.add(self._threads.submit(last))
        await _all_ended(*jobs)
        self._threads.shutdown(wait=all(job.done() for job in jobs))


async def _all_ended(*jobs: "Future[Any]") -> None:
    with anyio.move_on_after(CLOSING_S, shield=True):
        for job in jobs:
            await _signal(job).wait()


async def ended(job: "Future[_Value]") -> _Value:
    """Wait in any event loop for what a thread does, and return its result."""
    await _signal(job).wait()
    return job.result()


def _signal(job: "Future[Any]") -> Signal:
    """Return a signal that is set when a job has ended."""
    signal = Signal()
    job.add_done_callback(signal.set)
    return signal
