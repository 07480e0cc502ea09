"""A conversation that survives its process: three turns in a SQLite file, killed in the middle, resumed.

A child process begins the conversation and is killed (SIGKILL) during the second answer. Then this process runs the
same program: answered turns come from the file at no cost, the interrupted one is sent again, and nothing is stored
twice.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import anyio
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects import (
    ConversationConflict,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    Preferences,
    StreamEvent,
    TextDelta,
    converse,
    describe,
    effect,
    load_config,
    load_conversation,
    make_llm_manager,
    run,
    start_conversation,
)

NAME = "disk-alert"
QUESTIONS = (
    "A disk is full. Name the first thing to look at.",
    "And the second thing?",
    "Sum up what you told me.",
)


async def show(event: StreamEvent) -> None:
    if isinstance(event, TextDelta):
        print(event.text, end="", flush=True)


async def ask(number: int, env: LLMEnv) -> Result[LLMResponse, LLMError]:
    """Run a turn. Its id identifies it on a second run: if its writer died, we take it over when its lease expires."""
    request = LLMRequest(prompt=QUESTIONS[number], preferences=Preferences(max_tokens=20, temperature=0.2, seed=7))
    print(f"\n[{number + 1}] {QUESTIONS[number]}")
    while True:
        result = await run(converse(NAME, request, turn_id=f"question-{number}", sink=show), env)
        if is_successful(result) or not isinstance(result.failure(), ConversationConflict):
            return result
        print("(its writer is gone: waiting for its lease to expire)", flush=True)
        await anyio.sleep(result.failure().retry_after or 0.1)


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Run the conversation; the program is the same for a new one and a resumed one."""
    started = await run(start_conversation(NAME, system="You help on call. Be brief."), env)
    if not is_successful(started) and not isinstance(started.failure(), ConversationConflict):
        return Failure(started.failure())
    from_storage = 0
    for number in range(len(QUESTIONS)):
        answer = await ask(number, env)
        if not is_successful(answer):
            return Failure(answer.failure())
        from_storage += answer.unwrap().cached
    stored = await run(load_conversation(NAME), env)
    return stored.map(lambda history: f"\n{len(history.turns)} turns stored, {from_storage} answered from storage")


def stored_in(file: Path) -> Result[LLMConfig, LLMError]:
    """Configure the models of the environment variables, with a SQLite file for conversations."""
    return load_config().map(
        lambda config: evolve(config, storage=evolve(config.storage, url=f"sqlite:///{file}", lease_seconds=2))
    )


async def live(file: Path) -> Result[str, LLMError]:
    config = stored_in(file)
    if not is_successful(config):
        return Failure(config.failure())
    async with make_llm_manager(config.unwrap()) as manager:
        return await manager.run(effect(main))


def kill_half_way(file: Path) -> int:
    """Run this program in a child process, kill it during the second answer, and return its exit code."""
    command = [sys.executable, __file__, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as child:  # noqa: S603 - itself
        if child.stdout is None:
            return child.wait()
        for line in child.stdout:
            print(line, end="")
            if line.startswith("[2]"):
                break
        print(child.stdout.read(5), end="")  # the first letters of the second answer
        child.kill()
        return child.wait()


def demonstrate() -> Result[str, LLMError]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "talk.db"
        print(f"\n--- killed, exit code {kill_half_way(file)}; resumed from {file.name} ---")
        return anyio.run(live, file)


if __name__ == "__main__":
    answer = anyio.run(live, Path(sys.argv[1])) if len(sys.argv) > 1 else demonstrate()
    print(answer.unwrap()) if is_successful(answer) else sys.exit(describe(answer.failure()))
