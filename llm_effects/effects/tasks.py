"""Tasks side by side: none outlives its group, and a defect comes out as itself."""

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final, TypeAlias, TypeVar, final

import anyio
from anyio import Event
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint, current_token

from llm_effects.values.errors import LLMError

_Item = TypeVar("_Item")


@asynccontextmanager
async def together() -> AsyncGenerator[TaskGroup]:
    """Open a task group that gives the first defect of its tasks as it was raised, not in an ``ExceptionGroup``.

    >>> async def main() -> None:
    ...     async with together():
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


async def apart(work: Callable[[], Awaitable[_Item]]) -> _Item:
    """Do some work in a task of its own, so that what is shielded in it is shielded from everybody.

    A shield holds off cancelled scopes, not asyncio's ``Task.cancel()``, which ``asyncio.timeout``, ``wait_for`` and
    Ctrl-C use. Here that becomes a cancelled scope around the work, which is awaited to its end.

    >>> async def main() -> int:
    ...     async def work() -> int:
    ...         return 1
    ...     return await apart(work)
    >>> anyio.run(main)
    1
    """
    made: list[_Item] = []

    async def labour() -> None:
        made.append(await work())

    async with together() as group:
        group.start_soon(labour)
    return made[0]


async def in_parallel(items: Iterable[_Item], workers: int, work: Callable[[int, _Item], Awaitable[bool]]) -> None:
    """Do ``work`` on each item and its number, by so many ``workers``, until one says that it is enough (``True``).

    An item is taken when a worker is free, in order: the items may be more than there is memory for.

    >>> seen = []
    >>> async def note(number: int, item: str) -> bool:
    ...     return seen.append((number, item)) or item == "b"
    >>> anyio.run(in_parallel, iter("abc"), 1, note)
    >>> seen
    [(0, 'a'), (1, 'b')]
    """
    queue = enumerate(items)
    async with together() as group:

        async def labour() -> None:
            for number, item in queue:
                if group.cancel_scope.cancel_called:
                    return
                if await work(number, item):
                    group.cancel_scope.cancel()
                await checkpoint()  # work that never waits still lets others have their turn

        for _ in range(workers):
            group.start_soon(labour)


# From a thread to an event loop: chunks that one produces and the other awaits.


BEGUN: Final = ""
"""No chunk of an answer: it says that the call has left the queue."""

Admitted: TypeAlias = Callable[[], object]
"""Called once a call has left the queue."""

Deliver: TypeAlias = Callable[[str], Awaitable[LLMError | None]]
"""Takes one chunk of an answer, a JSON text; an error ends the answer."""


@final
class Mailbox:
    """Chunks on their way from a thread of the model to the caller's event loop; ``None`` is the last.

    It is not bounded: the engine goes on, whatever its callback does, to the end of one answer, which its slot bounds.
    """

    def __init__(self) -> None:
        loop = current_token().native_token
        # asyncio and trio call the same thing by two names
        name = "call_soon_threadsafe" if hasattr(loop, "call_soon_threadsafe") else "run_sync_soon"
        self._soon: Callable[[Callable[[], None]], object] = getattr(loop, name)
        self._chunks: deque[str | None] = deque()
        self._news = Event()
        self.left: bool = False

    def put(self, chunk: str | None) -> bool:
        """Take a chunk, in any thread; ``True`` says that nobody waits for more."""
        if not self.left:
            self._chunks.append(chunk)
            try:
                self._soon(self._tell)
            except RuntimeError:  # the event loop is closed
                self.left = True
        return self.left

    def _tell(self) -> None:
        self._news.set()  # the one of now, not of when the chunk came

    async def receive(self) -> str | None:
        """Wait for the next chunk."""
        await checkpoint()
        while not self._chunks:
            self._news = Event()
            await self._news.wait()
        return self._chunks.popleft()


def unheard() -> None:
    """Tell nobody."""


async def delivered(mailbox: Mailbox, deliver: Deliver, admitted: Admitted) -> LLMError | None:
    """Hand on each chunk as it comes, to the last; gives what ended the answer early, if anything did."""
    while (chunk := await mailbox.receive()) is not None:
        if chunk == BEGUN:
            admitted()
            continue
        broken = await deliver(chunk)
        if broken is not None:
            return broken
    return None
