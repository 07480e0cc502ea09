"""Show which models are reachable, which are ready, and what to do about the others."""

import sys

import anyio
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import (
    LLMEnv,
    LLMError,
    check_health,
    check_local_model_health,
    create_default_llm_manager,
    describe,
    effect,
    run,
)
from llm_effects.values import ModelHealth


def line(health: ModelHealth) -> str:
    """Format the health of one model."""
    state = "ready" if health.ready else "reachable" if health.reachable else "down"
    window = f", {health.context_length} tokens" if health.context_length else ""
    return f"{health.model:12} {state:10} {health.latency_ms:6.1f} ms{window}  {health.message}".rstrip()


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Probe all configured models, and the default address of LM Studio."""
    studio = (await run(check_local_model_health("http://localhost:1234/v1"), env)).map(line)
    models = await run(check_health(), env)
    return models.map(lambda each: "\n".join([*map(line, each), "", studio.value_or("LM Studio cannot be probed")]))


async def live() -> Result[str, LLMError]:
    """Run with the models of the environment variables."""
    async with create_default_llm_manager() as manager:
        return await manager.run(effect(main))


if __name__ == "__main__":
    answer = anyio.run(live)
    print(answer.unwrap()) if is_successful(answer) else sys.exit(describe(answer.failure()))
