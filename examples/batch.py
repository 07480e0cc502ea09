"""Many questions with a progress bar, in a run that may be killed: what was answered is not asked again.

``python examples/batch.py answers.jsonl`` keeps its journal there: stop it with Ctrl-C, or kill it, and start it again.
Without a file it plays that through by itself: the first run is cut off half-way, and the second goes on.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import anyio
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects import (
    LLMEnv,
    LLMError,
    LLMRequest,
    Preferences,
    create_default_llm_manager,
    describe,
    effect,
    generate_many,
    run,
)
from llm_effects.batches import Progress, file_journal

THINGS = ("a disk", "a log file", "a cache", "a queue", "a lock", "a timeout")
QUESTIONS = tuple(
    LLMRequest(
        prompt=f"What is {thing}? One sentence.", preferences=Preferences(max_tokens=16, temperature=0.0, seed=7)
    )
    for thing in THINGS
)
WIDTH = 30


def bar(now: Progress) -> str:
    """Draw how far a run has come."""
    filled = WIDTH * now.done // (now.total or now.done)
    known = f"{now.resumed} from the journal, {now.failed} failed, {now.cost}"
    return f"[{'#' * filled}{'.' * (WIDTH - filled)}] {now.done}/{now.total} ({known})"


def show(now: Progress) -> None:
    """Draw the bar anew in a terminal, and line by line elsewhere."""
    if sys.stdout.isatty():
        print(f"\r{bar(now)}", end="\n" if now.done == now.total else "", flush=True)
    else:
        print(bar(now), flush=True)


async def answers(
    env: LLMEnv, journal: Path, progress: Callable[[Progress], None] = show
) -> Result[list[str], LLMError]:
    """Run, or go on; where nothing at all was answered, the first error tells why."""
    many = generate_many(QUESTIONS, concurrency=2, journal=file_journal(journal), progress=progress)
    finished = await run(many, env)
    if not is_successful(finished):
        return Failure(finished.failure())
    results = finished.unwrap()
    if not any(map(is_successful, results)):
        return Failure(results[0].failure())
    said = [each.unwrap().content.strip() if is_successful(each) else describe(each.failure()) for each in results]
    return Success([f"{thing}: {text}" for thing, text in zip(THINGS, said, strict=True)])


async def cut_off(env: LLMEnv, journal: Path) -> None:
    """Begin the run, and end it when half of the questions are done."""
    with anyio.CancelScope() as scope:

        def stop_half_way(now: Progress) -> None:
            show(now)
            if now.done * 2 == len(QUESTIONS):
                print("\n(cut off; started again)")
                scope.cancel()

        await answers(env, journal, stop_half_way)


async def main(env: LLMEnv, journal: Path | None = None) -> Result[str, LLMError]:
    """Answer all questions."""
    if journal is not None:
        return (await answers(env, journal)).map("\n".join)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answers.jsonl"
        await cut_off(env, file)
        return (await answers(env, file)).map("\n".join)


async def live() -> Result[str, LLMError]:
    """Run with the models of the environment variables."""
    journal = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    async with create_default_llm_manager() as manager:
        return await manager.run(effect(lambda env: main(env, journal)))


if __name__ == "__main__":
    try:
        ended = anyio.run(live)
    except KeyboardInterrupt:
        sys.exit("\nstopped; with a journal, the next start goes on from here")
    print(ended.unwrap()) if is_successful(ended) else sys.exit(describe(ended.failure()))
