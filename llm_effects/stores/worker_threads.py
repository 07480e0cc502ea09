"""From event loops to what blocks: a store's own threads, awaited from any loop, asyncio or trio, several at once.

What such a thread holds, a file or a connection, belongs to no event loop, so it can outlive one and meet the next.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar, final

import anyio
from returns.result import Failure, Result, Success

from llm_effects.effects.tasks import Mailbox
from llm_effects.providers.wire import CLOSING_S
from llm_effects.values.errors import LLMError, StorageFailed, cause_of

_Made = TypeVar("_Made")

_CLOSED: Final = "it is closed, or no thread can be started: open it again"


@final
class Worker:
    """At most ``threads`` threads with a name; none is started before there is work."""

    def __init__(self, name: str, threads: int = 1) -> None:
        self._threads = ThreadPoolExecutor(threads, name)
        self._jobs: set[Future[Any]] = set()
        self._closed = False
        self._answered = time.monotonic()

    async def run(
        self, operation: str, work: Callable[[], Result[_Made, LLMError]], seconds: float
    ) -> Result[_Made, LLMError]:
        """Do the work in a thread, and give up once nothing at all has come to a good end for so long.

        So a store that hangs fails everybody in time, and a long queue in front of one that works fails nobody. Who is
        cancelled or gives up leaves at once; work that has begun goes on to its end.
        """
        try:
            job = self._threads.submit(self._noted, work)
        except RuntimeError as problem:
            return Failure(StorageFailed(operation=operation, message=_CLOSED, cause=cause_of(problem)))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        try:
            if await self._ended(job, seconds):
                return job.result()
        finally:
            job.cancel()
        message = f"no answer within {seconds * 1000:g} ms"
        return Failure(StorageFailed(operation=operation, message=message, transient=True))

    def post(self, work: Callable[[], object]) -> bool:
        """Do the work in a thread, with nobody waiting for it; says whether it will be done."""
        try:
            job = self._threads.submit(work)
        except RuntimeError:
            return False
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return True

    def _noted(self, work: Callable[[], Result[_Made, LLMError]]) -> Result[_Made, LLMError]:
        result = work()
        if isinstance(result, Success):
            self._answered = time.monotonic()
        return result

    async def _ended(self, job: "Future[Any]", seconds: float) -> bool:
        mailbox = _mailbox(job)
        patience = seconds
        while patience > 0:
            with anyio.move_on_after(patience):
                await mailbox.receive()
                return True
            patience = self._answered + seconds - time.monotonic()
        return False

    async def aclose(self, last: Callable[[], object]) -> None:
        """Do ``last`` after all that has begun, in bounded time, and end the threads; a second time does nothing."""
        if self._closed:
            return
        self._closed = True
        jobs = self._jobs.copy()
        await _all_ended(*jobs)
        jobs.add(self._threads.submit(last))
        await _all_ended(*jobs)
        self._threads.shutdown(wait=all(job.done() for job in jobs))


async def _all_ended(*jobs: "Future[Any]") -> None:
    with anyio.move_on_after(CLOSING_S, shield=True):
        for job in jobs:
            await _mailbox(job).receive()


def _mailbox(job: "Future[Any]") -> Mailbox:
    """Tell this event loop when a job has ended."""
    mailbox = Mailbox()
    job.add_done_callback(partial(_tell, mailbox))
    return mailbox


def _tell(mailbox: Mailbox, _: "Future[Any]") -> None:
    mailbox.put(None)
