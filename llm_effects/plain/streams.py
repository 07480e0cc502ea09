"""The streams of the plain faces, which may be left in any way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from typing import Protocol, Self, TypeAlias, TypeVar, final

from llm_effects.effects.tasks import HeldItems
from llm_effects.plain.fields import LLMFailure
from llm_effects.structured.partial_answers import Answers, Partial
from llm_effects.structured.typed_answers import Structured
from llm_effects.values.events import Completed, StreamEvent

_Value = TypeVar("_Value")

Events: TypeAlias = AbstractAsyncContextManager[AsyncIterator[StreamEvent]]


@final
class AsyncEventStream(HeldItems[StreamEvent]):
    """The events of a stream, for ``async for``; a stream that fails raises ``LLMFailure``.

    It begins with the first event that is asked for. Leaving it early, in any way, closes its connection; ``aclose()``,
    or the end of ``async with``, waits for that.
    """

    def __init__(self, open_events: Callable[[], Events]) -> None:
        super().__init__(open_events, (Completed,), LLMFailure)


@final
class AsyncPartialStream(HeldItems[Partial[_Value] | Structured[_Value]]):
    """The partial values of an answer, then the whole one as ``Structured``; it is left as an ``AsyncEventStream``."""

    def __init__(self, open_values: Callable[[], AbstractAsyncContextManager[Answers[_Value]]]) -> None:
        super().__init__(open_values, (Structured,), LLMFailure)


class Wait(Protocol):
    """Waits in the loop of an ``LLM`` for work that is async."""

    def __call__(self, work: Callable[[], Awaitable[_Value]], /) -> _Value:
        """Return what the work returns."""
        ...


class _Blocking(Iterator[_Value]):
    def __init__(self, items: HeldItems[_Value], wait: Wait) -> None:
        self._items, self._wait = items, wait

    def __next__(self) -> _Value:
        try:
            return self._wait(self._items.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        """End the stream and close its connection; closing twice is fine."""
        with suppress(LLMFailure):  # it ended with its LLM
            self._wait(self._items.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@final
class EventStream(_Blocking[StreamEvent]):
    """The events of a stream, for ``for``; a stream that fails raises ``LLMFailure``.

    It begins with the first event that is asked for. Leaving it early, in any way, closes its connection; ``close()``,
    or the end of ``with``, waits for that.
    """


@final
class PartialStream(_Blocking[Partial[_Value] | Structured[_Value]]):
    """The partial values of an answer, then the whole one as ``Structured``; it is left as an ``EventStream``."""
