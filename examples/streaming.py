"""Stream an answer: every token is printed when it is generated."""

import sys

import anyio
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import (
    Completed,
    Failed,
    LLMEnv,
    LLMError,
    LLMRequest,
    Preferences,
    Started,
    StreamEvent,
    TextDelta,
    create_default_llm_manager,
    describe,
    effect,
    run,
    stream,
)

STORY = LLMRequest(
    prompt="Tell a story of three sentences about a server that never slept.",
    preferences=Preferences(max_tokens=120, temperature=0.7, seed=7),
)


async def show(event: StreamEvent) -> None:
    """Print an event; a slow sink slows the model down."""
    match event:
        case Started(model):
            print(f"[{model}] ", end="", flush=True)
        case TextDelta(text):
            print(text, end="", flush=True)
        case Completed(response):
            print(f"\n[{response.usage.output_tokens} tokens in {response.latency_ms:.0f} ms]")
        case Failed(error):
            print(f"\n[{describe(error)}; so far: {error.partial!r}]")
        case _:
            return


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Stream the story to the terminal; the effect also returns the whole answer."""
    return (await run(stream(STORY, show), env)).map(lambda response: f"finished: {response.finish_reason.value}")


async def live() -> Result[str, LLMError]:
    """Run with the models of the environment variables."""
    async with create_default_llm_manager() as manager:
        return await manager.run(effect(main))


if __name__ == "__main__":
    answer = anyio.run(live)
    print(answer.unwrap()) if is_successful(answer) else sys.exit(describe(answer.failure()))
