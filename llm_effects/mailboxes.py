"""From a thread to an event loop: chunks that one produces and the other awaits."""

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, final

from anyio import Event
from anyio.lowlevel import checkpoint, current_token

from llm_effects.errors import LLMError

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
