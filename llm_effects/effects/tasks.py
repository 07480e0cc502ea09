"""Concurrent tasks: none outlives its group, and a defect is raised as itself."""

import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Final, TypeAlias, TypeVar, final

import anyio
import anyio.to_thread
from anyio import Event
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint, current_token
from attrs import define

from llm_effects.values import caps
from llm_effects.values.errors import LLMError

_Item = TypeVar("_Item")


@asynccontextmanager
async def task_group() -> AsyncGenerator[TaskGroup]:
    """Open a task group that raises the first defect of its tasks as it is, not in an ``ExceptionGroup``.

    >>> async def main() -> None:
    ...     async with task_group():
    ...         raise KeyError("as itself")
    >>> anyio.run(main)
    Traceback (most recent call last):
        ...
    KeyError: 'as itself'
    """
    defect: BaseException | None = None
    try:
        async with anyio.create_task_group() as group:
            yield group
    except BaseExceptionGroup as problems:
        cancelled = anyio.get_cancelled_exc_class()
        defect = next((each for each in problems.exceptions if not isinstance(each, cancelled)), problems)
    if defect is not None:
        raise defect  # outside of the handler, which would put the group into its context


async def in_own_task(work: Callable[[], Awaitable[_Item]]) -> _Item:
    """Run some work in a task of its own, so that a shield in it holds against any cancellation.

    A shield stops cancelled scopes, but not asyncio's ``Task.cancel()``, which ``asyncio.timeout``, ``wait_for`` and
    Ctrl-C use. Here that becomes a cancelled scope around the work, which is awaited to its end.

    >>> async def main() -> int:
    ...     async def work() -> int:
    ...         return 1
    ...     return await in_own_task(work)
    >>> anyio.run(main)
    1
    """
    results: list[_Item] = []

    async def task() -> None:
        results.append(await work())

    async with task_group() as group:
        group.start_soon(task)
    return results[0]


async def in_parallel(items: Iterable[_Item], workers: int, work: Callable[[int, _Item], Awaitable[bool]]) -> None:
    """Do ``work`` on each item and its number, with so many ``workers``, until one returns ``True`` to stop.

    Items are taken in order as workers become free, so there may be more of them than fit in memory.

    >>> seen = []
    >>> async def note(number: int, item: str) -> bool:
    ...     return seen.append((number, item)) or item == "b"
    >>> anyio.run(in_parallel, iter("abc"), 1, note)
    >>> seen
    [(0, 'a'), (1, 'b')]
    """
    queue = enumerate(items)
    async with task_group() as group:

        async def worker() -> None:
            for number, item in queue:
                if group.cancel_scope.cancel_called:
                    return
                if await work(number, item):
                    group.cancel_scope.cancel()
                await checkpoint()  # work that never waits must still yield to other tasks

        for _ in range(workers):
            group.start_soon(worker)


async def in_steps(work: Callable[[], _Item], size: int) -> _Item:
    """Do some work on a text of so many characters; if that takes long, in a thread, so that other tasks go on.

    A cancelled caller does not wait for the thread.

    >>> anyio.run(in_steps, lambda: sum(range(10)), 2**20)
    45
    """
    if size <= caps.STEP_BYTES:
        return work()
    return await anyio.to_thread.run_sync(work, abandon_on_cancel=True)


@final
@define
class Pacer:
    """A counter of steps that never wait, such as events that are already here: other tasks run after every few."""

    _steps: int = 0

    async def step(self, steps: int = 1) -> None:
        """Count some steps; let other tasks run after every ``caps.STEP_ITEMS``."""
        self._steps += steps
        if self._steps >= caps.STEP_ITEMS:
            self._steps = 0
            await checkpoint()


# From a thread to an event loop.


SENT: Final = ""
"""The chunk that marks that the call has left the queue."""

OnSent: TypeAlias = Callable[[], object]
"""Called once a call has left the queue."""

Deliver: TypeAlias = Callable[[str], Awaitable[LLMError | None]]
"""Receives one chunk of an answer, a JSON text; an error ends the answer."""


@final
class ThreadBridge:
    """A queue of chunks from the model's thread to the caller's event loop; ``None`` is the last.

    It is unbounded: the engine continues to the end of the answer, which its slot bounds, whatever its callback does.
    """

    def __init__(self) -> None:
        loop = current_token().native_token
        # asyncio and trio have two names for the same method
        name = "call_soon_threadsafe" if hasattr(loop, "call_soon_threadsafe") else "run_sync_soon"
        self._soon: Callable[[Callable[[], None]], object] = getattr(loop, name)
        self._chunks: deque[str | None] = deque()
        self._news = Event()
        self.left: bool = False

    def put(self, chunk: str | None) -> bool:
        """Add a chunk, in any thread; return whether the receiver has left."""
        if not self.left:
            self._chunks.append(chunk)
            try:
                self._soon(self._notify)
            except RuntimeError:  # the event loop is closed
                self.left = True
        return self.left

    def _notify(self) -> None:
        self._news.set()  # the current event, not the one of when the chunk was added

    async def receive(self) -> str | None:
        """Wait for the next chunk."""
        await checkpoint()
        while not self._chunks:
            self._news = Event()
            await self._news.wait()
        return self._chunks.popleft()


async def in_daemon_thread(work: Callable[[], _Item]) -> _Item:
    """Run blocking work of a user in a thread of its own; a caller that is cancelled does not wait for it.

    Nothing can stop a thread that hangs. As a daemon it does not keep the process alive, as a thread of anyio would.

    >>> anyio.run(in_daemon_thread, lambda: sum(range(10)))
    45
    """
    bridge, ends = ThreadBridge(), Future[_Item]()

    def run() -> None:
        try:
            ends.set_result(work())
        except BaseException as problem:  # noqa: BLE001 - it is raised in the caller's task
            ends.set_exception(problem)
        bridge.put(None)

    threading.Thread(target=copy_context().run, args=(run,), name="llm_effects tool", daemon=True).start()
    await bridge.receive()
    return ends.result()


def no_listener() -> None:
    """Do nothing: the call has no listener."""


async def deliver_chunks(bridge: ThreadBridge, deliver: Deliver, admitted: OnSent) -> LLMError | None:
    """Deliver each chunk as it arrives, to the last; return the error that ended the answer early, if any."""
    while (chunk := await bridge.receive()) is not None:
        if chunk == SENT:
            admitted()
            continue
        broken = await deliver(chunk)
        if broken is not None:
            return broken
    return None
