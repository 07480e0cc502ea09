"""Tasks that no caller waits for, in a scope that ends with its environment."""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Final, final

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import current_token
from attrs import define, field

from llm_effects.effects.tasks import HeldOpen, task_group

MOST_BACKGROUND_TASKS: Final = 64
"""Most tasks of one scope at once; more are not started."""


@final
@define(eq=False, repr=False)
class BackgroundTasks:
    """Tasks that no caller waits for, in the scope of ``background_tasks``: one at a time for each key."""

    _group: TaskGroup
    _on_defect: Callable[[Exception], object]
    _loop: object = field(factory=lambda: current_token().native_token)
    _keys: set[Hashable] = field(factory=set[Hashable])
    closed: bool = False

    def start(self, key: Hashable, work: Callable[[], Awaitable[object]]) -> bool:
        """Start some work, unless that of the same key is under way; return whether the scope is open here."""
        if self.closed or current_token().native_token is not self._loop:
            return False
        if key not in self._keys and len(self._keys) < MOST_BACKGROUND_TASKS:
            self._keys.add(key)
            self._group.start_soon(self._run, key, work)
        return True

    async def _run(self, key: Hashable, work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        except Exception as defect:  # noqa: BLE001 - it must not end the environment, whose user did not start it
            self._on_defect(defect)
        finally:
            self._keys.discard(key)


@asynccontextmanager
async def background_tasks(on_defect: Callable[[Exception], object]) -> AsyncGenerator[BackgroundTasks]:
    """Open a scope for tasks that no caller waits for; on exit they are cancelled and awaited."""
    async with task_group() as group:
        tasks = BackgroundTasks(group, on_defect)
        try:
            yield tasks
        finally:
            tasks.closed = True
            group.cancel_scope.cancel()


@asynccontextmanager
async def held_tasks(on_defect: Callable[[Exception], object]) -> AsyncGenerator[BackgroundTasks | None]:
    """Open such a scope in a task of its own, so that another task than the one that entered it may leave it."""

    @asynccontextmanager
    async def opened() -> AsyncGenerator[AsyncIterator[BackgroundTasks]]:
        send, receive = anyio.create_memory_object_stream[BackgroundTasks](1)
        async with send, receive, background_tasks(on_defect) as tasks:
            send.send_nowait(tasks)
            yield receive

    held = HeldOpen(opened)
    try:
        yield await held.next_item()
    finally:
        await held.aclose()
