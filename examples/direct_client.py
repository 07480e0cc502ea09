"""Call one local model directly: no routing, a future to compose, and nothing leaves the machine."""

import sys

import anyio
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import (
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    Preferences,
    create_default_local_client,
    describe,
    effect,
    generate,
    run,
)

GREETING = LLMRequest(prompt="Say hello in five words.", preferences=Preferences(max_tokens=20, temperature=0.0))


def words(response: LLMResponse) -> str:
    """Quote the text and count its words."""
    return f"{response.content.strip()!r} has {len(response.content.split())} words"


def greet(env: LLMEnv) -> FutureResult[str, LLMError]:
    """Supply an effect with its environment: the result is a future that has not started."""
    return generate(GREETING)(env).map(words)


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Run the same effect for a plain result."""
    return await run(generate(GREETING).map(words), env)


async def live() -> Result[str, LLMError]:
    """Run with the local models of this machine."""
    async with create_default_local_client() as client:
        print(await client.generate(GREETING).map(words))
        return await client.run(effect(main))


if __name__ == "__main__":
    answer = anyio.run(live)
    print(answer.unwrap()) if is_successful(answer) else sys.exit(describe(answer.failure()))
