"""Many questions with a progress bar, in a run that can be killed: a second start sends only what is left.

``python examples/batch.py answers.jsonl`` keeps its journal there: stop it with Ctrl-C, or kill it, and start it again.
Without a file it demonstrates this: the first run is cancelled half-way, and the second resumes it.
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
    """Draw the progress of a run."""
    filled = WIDTH * now.done // (now.total or now.done)
    details = f"{now.resumed} from the journal, {now.failed} failed, {now.cost}"
    return f"[{'#' * filled}{'.' * (WIDTH - filled)}] {now.done}/{now.total} ({details})"


def show(now: Progress) -> None:
    """Redraw the bar in a terminal; print a line for each step elsewhere."""
    if sys.stdout.isatty():
        print(f"\r{bar(now)}", end="\n" if now.done == now.total else "", flush=True)
    else:
        print(bar(now), flush=True)


async def answers(
    env: LLMEnv, journal: Path, progress: Callable[[Progress], None] = show
) -> Result[list[str], LLMError]:
    """Run or resume; if no question was answered, return the first error."""
    many = generate_many(QUESTIONS, concurrency=2, journal=file_journal(journal), progress=progress)
    finished = await run(many, env)
    if not is_successful(finished):
        return Failure(finished.failure())
    results = finished.unwrap()
    if not any(map(is_successful, results)):
        return Failure(results[0].failure())
    texts = [each.unwrap().content.strip() if is_successful(each) else describe(each.failure()) for each in results]
    return Success([f"{thing}: {text}" for thing, text in zip(THINGS, texts, strict=True)])


async def run_half(env: LLMEnv, journal: Path) -> None:
    """Start the run, and cancel it when half of the questions are answered."""
    with anyio.CancelScope() as scope:

        def stop_half_way(now: Progress) -> None:
            show(now)
            if now.done * 2 == len(QUESTIONS):
                print("\n(cancelled; started again)")
                scope.cancel()

        await answers(env, journal, stop_half_way)


async def main(env: LLMEnv, journal: Path | None = None) -> Result[str, LLMError]:
    """Answer all questions."""
    if journal is not None:
        return (await answers(env, journal)).map("\n".join)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answers.jsonl"
        await run_half(env, file)
        return (await answers(env, file)).map("\n".join)


async def live() -> Result[str, LLMError]:
    """Run with the models of the environment variables."""
    journal = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    async with create_default_llm_manager() as manager:
        return await manager.run(effect(lambda env: main(env, journal)))


if __name__ == "__main__":
    try:
        result = anyio.run(live)
    except KeyboardInterrupt:
        sys.exit("\nstopped; with a journal, the next start resumes here")
    print(result.unwrap()) if is_successful(result) else sys.exit(describe(result.failure()))
