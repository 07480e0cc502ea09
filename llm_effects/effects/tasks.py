"""Concurrent tasks: none outlives its group, and a defect is raised as itself. Bridges between threads and loops."""

import asyncio
import atexit
import math
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import copy_context
from functools import partial
from importlib import import_module
from typing import Final, Generic, Self, TypeAlias, TypeVar, cast, final

import anyio
import anyio.to_thread
from anyio import Event
from anyio.abc import TaskGroup
from anyio.from_thread import BlockingPortal
from anyio.lowlevel import checkpoint, current_token
from attrs import define, field

from llm_effects.values import caps
from llm_effects.values.errors import LLMError
from llm_effects.values.events import Failed

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


def loop_clock() -> Callable[[], float]:
    """Return the clock of ``anyio.current_time()`` for the event loop that runs this task.

    On asyncio it is the loop's own: 0.1 microseconds, where each look-up of the backend takes 0.7.
    """
    loop = running_loop()
    return anyio.current_time if loop is None else loop.time


def running_loop() -> asyncio.AbstractEventLoop | None:
    """Return the loop of asyncio that runs this task, or ``None`` in a task of trio, or outside of any."""
    loop = asyncio._get_running_loop()  # noqa: SLF001 - of asyncio's documented interface for event loops
    # Without a task this may be trio as a guest of the loop.
    return None if loop is None or asyncio.current_task(loop) is None else loop


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
@define(eq=False, repr=False)
class Pacer:
    """A counter of steps that never wait, such as events that are already here: other tasks run after every few."""

    _steps: int = 0

    async def step(self, steps: int = 1) -> None:
        """Count some steps; let other tasks run after every ``caps.STEP_ITEMS``."""
        self._steps += steps
        if self._steps >= caps.STEP_ITEMS:
            self._steps = 0
            await checkpoint()


@final
@define(eq=False, repr=False)
class Delivery(Awaitable[None], Generic[_Item]):
    """The delivery of some items, one after the other; ``on_wait`` is called before the first wait over each.

    A receiver that is plain code never waits, and costs nothing more than the call.

    >>> async def main() -> list[object]:
    ...     log = []
    ...     async def receive(item: int) -> None:
    ...         log.append(item)
    ...         for _ in range(item):
    ...             await checkpoint()
    ...     await Delivery([0, 1, 2], receive, lambda: log.append("waits"))
    ...     return log
    >>> anyio.run(main)
    [0, 1, 'waits', 2, 'waits']
    """

    _items: Iterable[_Item]
    _receive: Callable[[_Item], Awaitable[None]]
    _on_wait: Callable[[], object]
    _number: int = field(default=0, init=False)

    async def _deliver(self) -> None:
        for item in self._items:
            self._number += 1
            await self._receive(item)

    def __await__(self) -> Generator[object, object, None]:
        work, waited_over = self._deliver(), 0
        step = partial(work.send, None)
        while True:
            try:
                waited_for = step()
            except StopIteration:
                return
            if waited_over != self._number:
                waited_over = self._number
                self._on_wait()
            try:
                step = partial(work.send, (yield waited_for))
            except BaseException as problem:  # noqa: BLE001 - passed on to the work
                step = partial(work.throw, problem)


# From a thread to an event loop.


def call_soon_here() -> Callable[[Callable[[], object]], object]:
    """Return the function that calls another one in the running event loop, from any thread."""
    loop = current_token().native_token
    # asyncio and trio have two names for the same method
    name = "call_soon_threadsafe" if hasattr(loop, "call_soon_threadsafe") else "run_sync_soon"
    soon: Callable[[Callable[[], object]], object] = getattr(loop, name)
    return soon


_LONGEST_S: Final = 1e6  # of a timer of asyncio, in seconds


@final
@define(eq=False, repr=False)
class Signal:
    """Something that a thread does once, and for which the task that makes the signal waits, in any event loop.

    On asyncio it is a future with a timer: an event in a cancel scope of anyio takes 15 microseconds more.
    """

    is_set: bool = False
    _loop: asyncio.AbstractEventLoop | None = field(factory=running_loop)
    _woken: asyncio.Future[None] | Event = field(init=False)
    _soon: Callable[[Callable[[], object]], object] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._woken = Event() if self._loop is None else self._loop.create_future()
        self._soon = call_soon_here() if self._loop is None else self._loop.call_soon_threadsafe

    def set(self, _: object = None, /) -> None:
        """End the wait, from any thread."""
        self.is_set = True
        with suppress(RuntimeError):  # the event loop is closed
            self._soon(self._wake)

    def _wake(self) -> None:
        if isinstance(self._woken, Event):
            self._woken.set()
        elif not self._woken.done():
            self._woken.set_result(None)

    async def wait(self, seconds: float = math.inf) -> bool:
        """Wait at most so many seconds; return whether the signal is set.

        >>> async def main() -> bool:
        ...     return await Signal().wait(0.001)
        >>> anyio.run(main)
        False
        """
        if self._loop is not None and not isinstance(self._woken, Event):
            if self._woken.done() and not self.is_set:
                self._woken = self._loop.create_future()
            timer = self._loop.call_later(min(seconds, _LONGEST_S), self._wake)
            _AWAITED.add(self)
            try:
                await self._woken
            finally:
                _AWAITED.discard(self)
                timer.cancel()
        else:
            with anyio.move_on_after(seconds):
                await cast("Event", self._woken).wait()
        return self.is_set


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
        self._soon = call_soon_here()
        self._chunks: deque[str | None] = deque()
        self._news = Event()
        self.left: bool = False
        self.when_left: Callable[[], object] | None = None

    def put(self, chunk: str | None, /) -> bool:
        """Add a chunk, in any thread; return whether the receiver has left."""
        if not self.left:
            self._chunks.append(chunk)
            try:
                self._soon(self._notify)
            except RuntimeError:  # the event loop is closed
                self.left = True
        return self.left

    def leave(self) -> None:
        """Receive no more, and call ``when_left``."""
        self.left = True
        if self.when_left is not None:
            self.when_left()

    def _notify(self) -> None:
        self._news.set()  # the current event, not the one of when the chunk was added

    async def receive(self) -> str | None:
        """Wait for the next chunk."""
        await checkpoint()
        while not self._chunks:
            self._news = Event()
            _AWAITED.add(self)
            try:
                await self._news.wait()
            finally:
                _AWAITED.discard(self)
        return self._chunks.popleft()


_AWAITED: Final[set[ThreadBridge | Signal]] = set()


def threads_awaited() -> bool:
    """Return whether a task waits for a thread by a bridge or a signal: virtual time must not jump meanwhile.

    >>> threads_awaited()
    False
    """
    return bool(_AWAITED)


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


# An iterator that is held open by a task of its own, for consumers that may leave it in any way.


_TASKS: Final[set[asyncio.Task[None]]] = set()
"""The tasks that hold something open; asyncio itself would lose them."""


@final
class HeldOpen(Generic[_Item]):
    """An async iterator whose context a task holds open until the iterator is left, from any task or thread.

    The task is not a child of the consumer's: on asyncio it ends with the loop at the latest, on trio with the run.
    """

    def __init__(self, enter: Callable[[], AbstractAsyncContextManager[AsyncIterator[_Item]]]) -> None:
        self._soon = call_soon_here()
        self._opened, self._left, self._ended = Event(), Event(), Event()
        self._items: AsyncIterator[_Item] | None = None
        self._defect: Exception | None = None
        loop = current_token().native_token
        if isinstance(loop, asyncio.AbstractEventLoop):
            task = loop.create_task(self._hold(enter))
            _TASKS.add(task)
            task.add_done_callback(_TASKS.discard)
        else:
            from trio.lowlevel import spawn_system_task

            spawn_system_task(self._hold, enter, context=copy_context())

    async def _hold(self, enter: Callable[[], AbstractAsyncContextManager[AsyncIterator[_Item]]]) -> None:
        try:
            async with enter() as self._items:
                self._opened.set()
                await self._left.wait()
        except Exception as problem:  # noqa: BLE001 - raised to the consumer
            self._defect = problem
        finally:
            self._opened.set()
            self._ended.set()

    async def next_item(self) -> _Item | None:
        """Return the next item; ``None`` after the last."""
        await self._opened.wait()
        with suppress(anyio.ClosedResourceError):  # a defect has closed it
            item = None if self._items is None else await anext(self._items, None)
            if item is not None:
                return item
        await self.aclose()
        if self._defect is not None:
            raise self._defect
        return None

    def leave(self) -> None:
        """Leave the context soon; callable from any thread."""
        with suppress(RuntimeError):  # the loop has ended, and the task with it
            self._soon(self._left.set)

    async def aclose(self) -> None:
        """Leave the context and wait until it is left."""
        self._left.set()
        with anyio.CancelScope(shield=True):
            await self._ended.wait()


class HeldItems(AsyncIterator[_Item]):
    """An async iterator that may be left in any way: it begins with the first item, and ``Failed`` raises ``to_raise``.

    After an item of the ``last`` classes the context is left before that item is returned.
    """

    _held: "HeldOpen[_Item | Failed] | None" = None

    def __init__(
        self,
        enter: Callable[[], AbstractAsyncContextManager[AsyncIterator[_Item | Failed]]],
        last: tuple[type, ...],
        to_raise: Callable[[LLMError], Exception],
    ) -> None:
        self._enter, self._last, self._to_raise, self._over = enter, last, to_raise, False

    async def __anext__(self) -> _Item:
        if self._over:
            raise StopAsyncIteration
        self._held = self._held or HeldOpen(self._enter)
        try:
            item = await self._held.next_item()
        except BaseException:
            self._leave()
            raise
        if item is None or isinstance(item, (Failed, *self._last)):
            await self.aclose()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Failed):
            raise self._to_raise(item.error)
        return item

    async def aclose(self) -> None:
        """End the stream and close its connection; closing twice is fine."""
        self._over = True
        if self._held is not None:
            await self._held.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _leave(self) -> None:
        self._over = True
        if self._held is not None:
            self._held.leave()

    def __del__(self) -> None:
        self._leave()


# An event loop in a thread of its own, for code that is not async.

EXIT_S: Final = 10.0
"""How long the interpreter waits at its exit for a loop that is still running, in seconds."""

_RUNNING: Final["set[LoopThread]"] = set()


class LoopStopped(Exception):  # noqa: N818 - stopping is no error
    """A loop in a thread is stopped, so it takes no work."""


@final
class LoopThread:
    """An asyncio event loop in a thread of its own, which holds a scope open until it is stopped.

    >>> @asynccontextmanager
    ... async def scope() -> AsyncGenerator[None]:
    ...     yield
    >>> async def work() -> int:
    ...     return 1
    >>> thread = LoopThread(scope())
    >>> thread.wait(work)
    1
    >>> thread.stop(); thread.join()
    """

    def __init__(self, scope: AbstractAsyncContextManager[object]) -> None:
        self._opened = Future[tuple[asyncio.AbstractEventLoop, BlockingPortal]]()
        self._stop = asyncio.Event()
        self._lock, self._stopping = threading.Lock(), False
        self._thread = threading.Thread(target=self._run, args=(scope,), name="llm-effects", daemon=True)
        self._thread.start()
        self._portal = self._opened.result()[1]

    def _run(self, scope: AbstractAsyncContextManager[object]) -> None:
        _RUNNING.add(self)
        try:
            asyncio.run(self._serve(scope))
        except BaseException as problem:
            if self._opened.done():
                raise
            self._opened.set_exception(problem)
        finally:
            with self._lock:
                self._stopping = True
            _RUNNING.discard(self)

    async def _serve(self, scope: AbstractAsyncContextManager[object]) -> None:
        async with scope:
            async with BlockingPortal() as portal:
                with self._lock:
                    self._opened.set_result((asyncio.get_running_loop(), portal))
                    if self._stopping:
                        self._stop.set()
                await self._stop.wait()
                await portal.stop(cancel_remaining=True)
            await _end_held()

    @property
    def alive(self) -> bool:
        """Whether its thread runs, in this process."""
        return self._thread.is_alive()

    def wait(self, work: Callable[[], Awaitable[_Item]]) -> _Item:
        """Run some work in the loop and wait for it; an exception in this thread, such as Ctrl-C, cancels the work."""
        if threading.current_thread() is self._thread:
            msg = "this would wait for itself: inside an event loop use AsyncLLM, and await it"
            raise RuntimeError(msg)
        with self._lock:
            if self._stopping:
                raise LoopStopped
            future = self._portal.start_task_soon(work)
        try:
            return future.result()
        except CancelledError:
            raise LoopStopped from None
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Cancel all work and leave the scope soon; stopping twice is fine."""
        with self._lock:
            if not self._stopping and self._opened.done() and self._opened.exception() is None:
                self._opened.result()[0].call_soon_threadsafe(self._stop.set)
            self._stopping = True

    def join(self, seconds: float | None = None) -> None:
        """Wait until the loop has ended, at most ``seconds``."""
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)


async def _end_held() -> None:
    """Cancel the tasks of this loop that hold something open, and wait for them."""
    held = [task for task in _TASKS if task.get_loop() is asyncio.get_running_loop()]
    for task in held:
        task.cancel()
    await asyncio.gather(*held, return_exceptions=True)


def _end_all() -> None:
    running = [each for each in _RUNNING if each.alive]  # a forked process has no thread of its parent
    for each in running:
        each.stop()
    for each in running:
        each.join(EXIT_S)


# The interpreter runs these functions, the newest first, before it waits for threads. This module registers one
# that ends the threads of stores, which a loop needs to close them. Functions of ``atexit`` run too late for both.
import_module("concurrent.futures.thread")
getattr(threading, "_register_atexit", atexit.register)(_end_all)
