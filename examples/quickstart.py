"""Ask one question, and see which model answered.

LM Studio answers if it runs; a key in OPENAI_API_KEY or CLAUDE_API_KEY adds GPT or Claude; without either, the small
model installed with the library answers, in this process.
"""

import sys

import anyio
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import (
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    Preferences,
    TaskType,
    create_default_llm_manager,
    describe,
    effect,
    generate,
    run,
)

QUESTION = LLMRequest(
    prompt="The disk of a web server is 97 % full and requests are slow. Name the likely cause in one sentence.",
    task_type=TaskType.ANALYSIS,
    preferences=Preferences(max_tokens=80, temperature=0.2, seed=7),
)


def report(response: LLMResponse) -> str:
    """Format the answer with its model, tokens, latency, cost and attempts."""
    attempts = [f"  {each.model}: {each.outcome}, {each.latency_ms:.0f} ms" for each in response.attempts]
    return "\n".join(
        [
            response.content.strip(),
            "",
            f"model    {response.model} ({response.served_model or response.provider})",
            f"tokens   {response.usage.prompt_tokens} in, {response.usage.output_tokens} out",
            f"latency  {response.latency_ms:.0f} ms",
            f"cost     {response.cost}",
            "attempts",
            *attempts,
        ]
    )


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Answer the question with the models of the environment."""
    return (await run(generate(QUESTION), env)).map(report)


async def live() -> Result[str, LLMError]:
    """Run with the models of the environment variables."""
    async with create_default_llm_manager() as manager:
        return await manager.run(effect(main))


if __name__ == "__main__":
    answer = anyio.run(live)
    print(answer.unwrap()) if is_successful(answer) else sys.exit(describe(answer.failure()))
