"""What a journal is: where a long run notes its answers, so that it can be killed and go on."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol, TypeAlias, final

from attrs import frozen
from returns.result import Result, Success

from llm_effects.codecs import load_entry
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError
from llm_effects.requests import LLMRequest
from llm_effects.responses import LLMResponse


@final
@frozen
class Found:
    """What a journal has of a request: its answer, or that another request was answered in its place."""

    answer: LLMResponse | None = None
    changed: bool = False


class OpenJournal(Protocol):
    """A journal while a run goes on. What goes wrong with it is a ``StorageFailed``."""

    async def recall(self, number: int, request: LLMRequest) -> Result[Found, LLMError]:
        """Look for the answer to the request of this number."""
        ...

    async def keep(self, number: int, request: LLMRequest, answer: LLMResponse) -> Result[None, LLMError]:
        """Note an answer for good."""
        ...


Journal: TypeAlias = Callable[[LLMEnv], AbstractAsyncContextManager[Result[OpenJournal, LLMError]]]
"""A journal that can be opened, for one run at a time."""


def found_in(entry: bytes | None) -> Found:
    """What was killed before its answer came has none, and neither has what another version of ours wrote."""
    read = None if entry is None else load_entry(entry)
    return Found(None if read is None else read.response)


@asynccontextmanager
async def no_journal(_: LLMEnv) -> AsyncGenerator[Result[OpenJournal, LLMError]]:
    """Note nothing."""
    yield Success(_Nothing())


@final
class _Nothing:
    async def recall(self, number: int, request: LLMRequest) -> Result[Found, LLMError]:  # noqa: ARG002 - as all are asked
        return Success(Found())

    async def keep(self, number: int, request: LLMRequest, answer: LLMResponse) -> Result[None, LLMError]:  # noqa: ARG002
        return Success(None)
