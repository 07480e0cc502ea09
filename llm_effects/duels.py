"""Two attempts at one thing: the second begins when the first is slow, and only one of them goes on."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeAlias, TypeVar, final

import anyio
from attrs import define, field
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects.errors import LLMError
from llm_effects.tasks import together

_Value = TypeVar("_Value")

Claim: TypeAlias = Callable[[], Awaitable[None]]
"""Called by an attempt that has something to show. It returns to one of the two only; the other is cancelled in it."""

Attempt: TypeAlias = Callable[[Claim], Awaitable[Result[_Value, LLMError]]]
"""One of the two; a success claims by itself."""


async def duel(
    attempt: Attempt[_Value], after: float, may_begin: Callable[[], bool] = lambda: True
) -> Result[_Value, LLMError]:
    """Make an attempt, and after so many seconds a second one, if it ``may_begin`` then.

    The first to claim is waited for, whatever becomes of it; the other is cancelled and awaited. Without a claim both
    failed, and the first one's error is given. One that fails before the second begins is alone.
    """
    duellists = _Duellists(attempt)
    async with together() as group:
        group.start_soon(duellists.second, after, may_begin)
        await duellists.first()  # in the caller's own task, as if there were no second
    return duellists.results[duellists.winner or 0]


@final
@define(eq=False)
class _Duellists(Generic[_Value]):
    """Number 0 begins at once, number 1 waits first."""

    attempt: Attempt[_Value]
    scopes: tuple[anyio.CancelScope, anyio.CancelScope] = field(
        factory=lambda: (anyio.CancelScope(), anyio.CancelScope())
    )
    results: dict[int, Result[_Value, LLMError]] = field(factory=dict[int, Result[_Value, LLMError]])
    waiting: bool = True
    winner: int | None = None

    async def first(self) -> None:
        with self.scopes[0]:
            await self._fight(0)
        if self.waiting:
            self.scopes[1].cancel()

    async def second(self, after: float, may_begin: Callable[[], bool]) -> None:
        with self.scopes[1]:
            await anyio.sleep(after)
            self.waiting = False
            if may_begin():
                await self._fight(1)

    async def _fight(self, mine: int) -> None:
        self.results[mine] = await self.attempt(partial(self._claim, mine))
        if is_successful(self.results[mine]):
            await self._claim(mine)

    async def _claim(self, mine: int) -> None:
        if self.winner is None:
            self.winner = mine
            self.scopes[1 - mine].cancel()
        if self.winner != mine:
            await anyio.sleep_forever()  # its scope is cancelled: this ends here
