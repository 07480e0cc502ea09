"""A small chat for the terminal that loses nothing: Ctrl-C stops an answer, what was seen is kept, the chat goes on.

Ctrl-D, or an empty line, ends it. Where nobody types it plays a script, in which the second answer is stopped.
Conversations are kept where LLM_STORAGE_URL says: with ``sqlite:///chat.db`` the next start goes on where this ended.
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
"""Tokens of an answer, at most."""

SCRIPT = ("Name a planet.", "Tell me a long story about it.", "What did you tell me?")
STOPPED = 1
"""The question of the script whose answer is stopped."""

Ask: TypeAlias = Callable[[int], Awaitable[str]]
"""Gives what is asked next; nothing ends the chat."""


async def typed(_: int) -> str:
    """Ask whoever sits at the terminal."""
    try:
        return await anyio.to_thread.run_sync(input, "\nyou> ")
    except EOFError:
        return ""


async def scripted(turn: int) -> str:
    """Play the script where nobody types."""
    question = SCRIPT[turn] if turn < len(SCRIPT) else ""
    print(f"\nyou> {question}")
    return question


async def show(event: StreamEvent) -> None:
    if isinstance(event, TextDelta):
        print(event.text, end="", flush=True)


async def show_and_stop(event: StreamEvent) -> None:
    """Press Ctrl-C after the first words."""
    await show(event)
    if isinstance(event, TextDelta) and event.text.strip():
        signal.raise_signal(signal.SIGINT)
        await anyio.sleep(0.05)


@asynccontextmanager
async def ctrl_c() -> AsyncGenerator[list[anyio.CancelScope]]:
    """Give a place for scopes: Ctrl-C cancels those that are there, instead of ending the program."""
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
    """Stream one answer; when it is stopped the chat goes on, and the model knows how far it came."""
    request = LLMRequest(prompt=question, preferences=Preferences(max_tokens=LENGTH, temperature=0.7, seed=7))
    said: Result[str, LLMError] = Success("\n(stopped: what you saw is kept)")
    with anyio.CancelScope() as scope:
        scopes.append(scope)
        told = await run(converse(NAME, request, sink=show_and_stop if stop else show), env)
        said = told.map(lambda response: "".join(f"\n({each})" for each in response.warnings))
    scopes.remove(scope)
    return said


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Chat until there is nothing more to say."""
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
    """Ask and answer in turn; only a script ends with the first failure."""
    playing = not sys.stdin.isatty()
    ask: Ask = scripted if playing else typed
    for turn in count():
        question = (await ask(turn)).strip()
        if not question:
            break
        said = await answer(question, env, scopes, stop=playing and turn == STOPPED)
        if not is_successful(said) and playing:
            return said
        print(said.unwrap() if is_successful(said) else f"\n({describe(said.failure())})")
    return Success("")


async def live() -> Result[str, LLMError]:
    """Run with the models of the environment variables."""
    async with create_default_llm_manager() as manager:
        return await manager.run(effect(main))


if __name__ == "__main__":
    ended = anyio.run(live)
    print(ended.unwrap()) if is_successful(ended) else sys.exit(describe(ended.failure()))
