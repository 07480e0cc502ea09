"""A terminal chat that loses nothing: Ctrl-C stops an answer, what was shown is stored, and the chat continues.

Ctrl-D, or an empty line, ends it. Without a terminal it plays a script, in which the second answer is stopped.
Conversations are stored at LLM_STORAGE_URL: with ``sqlite:///chat.db`` the next start continues this conversation.
"""

import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import TypeAlias

import anyio
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects import (
    ConversationConflict,
    LLMEnv,
    LLMError,
    LLMRequest,
    Preferences,
    StreamEvent,
    TextDelta,
    converse,
    create_default_llm_manager,
    describe,
    effect,
    load_conversation,
    run,
    start_conversation,
)

NAME = "chat"
LENGTH = 400 if sys.stdin.isatty() else 24
"""The token limit of an answer."""

SCRIPT = ("Name a planet.", "Tell me a long story about it.", "What did you tell me?")
STOPPED = 1
"""The index of the question whose answer is stopped."""

Ask: TypeAlias = Callable[[int], Awaitable[str]]
"""Returns the next question; an empty one ends the chat."""


async def typed(_: int) -> str:
    """Read a question from the terminal."""
    try:
        return await anyio.to_thread.run_sync(input, "\nyou> ")
    except EOFError:
        return ""


async def scripted(turn: int) -> str:
    """Return the next question of the script."""
    question = SCRIPT[turn] if turn < len(SCRIPT) else ""
    print(f"\nyou> {question}")
    return question


async def show(event: StreamEvent) -> None:
    if isinstance(event, TextDelta):
        print(event.text, end="", flush=True)


async def show_and_stop(event: StreamEvent) -> None:
    """Simulate Ctrl-C after the first words."""
    await show(event)
    if isinstance(event, TextDelta) and event.text.strip():
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep(0.05)


@asynccontextmanager
async def ctrl_c() -> AsyncGenerator[list[anyio.CancelScope]]:
    """Return a list of scopes that Ctrl-C cancels instead of ending the program."""
    scopes: list[anyio.CancelScope] = []
    with anyio.open_signal_receiver(signal.SIGINT) as signals:
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                async for _ in signals:
                    for scope in scopes:
                        scope.cancel()
                    if not scopes:
                        print("\n(Ctrl-D, or an empty line, ends the chat)\nyou> ", end="", flush=True)

            group.start_soon(watch)
            yield scopes
            group.cancel_scope.cancel()


async def answer(question: str, env: LLMEnv, scopes: list[anyio.CancelScope], *, stop: bool) -> Result[str, LLMError]:
    """Stream one answer; after Ctrl-C the chat continues, and the model knows which part was shown."""
    request = LLMRequest(prompt=question, preferences=Preferences(max_tokens=LENGTH, temperature=0.7, seed=7))
    ending: Result[str, LLMError] = Success("\n(stopped: what you saw is stored)")
    with anyio.CancelScope() as scope:
        scopes.append(scope)
        response = await run(converse(NAME, request, sink=show_and_stop if stop else show), env)
        ending = response.map(lambda answer: "".join(f"\n({warning})" for warning in answer.warnings))
    scopes.remove(scope)
    return ending


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Chat until an empty question, then list how the turns ended."""
    started = await run(start_conversation(NAME, system="You are a friendly guide. Be brief."), env)
    if not is_successful(started) and not isinstance(started.failure(), ConversationConflict):
        return Failure(started.failure())
    async with ctrl_c() as scopes:
        chatted = await chat(env, scopes)
    if not is_successful(chatted):
        return chatted
    return (await run(load_conversation(NAME), env)).map(
        lambda history: "turns: " + ", ".join(turn.state.value for turn in history.turns)
    )


async def chat(env: LLMEnv, scopes: list[anyio.CancelScope]) -> Result[str, LLMError]:
    """Ask and answer in turn; only a script ends at the first error."""
    playing = not sys.stdin.isatty()
    ask: Ask = scripted if playing else typed
    for turn in count():
        question = (await ask(turn)).strip()
        if not question:
            break
        ending = await answer(question, env, scopes, stop=playing and turn == STOPPED)
        if not is_successful(ending) and playing:
            return ending
        print(ending.unwrap() if is_successful(ending) else f"\n({describe(ending.failure())})")
    return Success("")


async def live() -> Result[str, LLMError]:
    """Run with the models of the environment variables."""
    async with create_default_llm_manager() as manager:
        return await manager.run(effect(main))


if __name__ == "__main__":
    result = anyio.run(live)
    print(result.unwrap()) if is_successful(result) else sys.exit(describe(result.failure()))
