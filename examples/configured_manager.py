"""Two configured models: a server first, and the in-process model when the server does not answer."""

import sys

import anyio
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import (
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    ModelConfig,
    Preferences,
    TaskType,
    describe,
    effect,
    explain,
    generate,
    make_llm_manager,
    run,
)
from llm_effects.config import RoutingConfig
from llm_effects.config.loading import embedded_model

CONFIG = LLMConfig(
    models={
        "studio": ModelConfig(provider="lm-studio", endpoint="http://localhost:1234/v1", connect_ms=500),
        "small": ModelConfig(provider="llama", model_path=str(embedded_model() or "model.gguf"), context_length=2048),
    },
    routing=RoutingConfig(strategy="balanced", tasks={"config_management": ("studio", "small")}, max_retries=1),
)

REQUEST = LLMRequest(
    system="You write configuration files. Answer with one line of YAML.",
    prompt="Set the log level to debug.",
    task_type=TaskType.CONFIG_MANAGEMENT,
    preferences=Preferences(max_tokens=40, temperature=0.0, timeout_ms=60_000),
)


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Show the routing decision, then the attempts and the answer."""
    decision = await run(explain(REQUEST), env)
    answer = await run(generate(REQUEST), env)
    order = decision.map(lambda found: " then ".join(each.model for each in found.candidates)).value_or("no model")
    return answer.map(
        lambda response: "\n".join(
            [
                f"order    {order}",
                *(f"         {each.model}: {each.outcome}" for each in response.attempts),
                f"answer   {response.content.strip()}",
            ]
        )
    )


async def live() -> Result[str, LLMError]:
    """Run with the configuration above."""
    async with make_llm_manager(CONFIG) as manager:
        return await manager.run(effect(main))


if __name__ == "__main__":
    answer = anyio.run(live)
    print(answer.unwrap()) if is_successful(answer) else sys.exit(describe(answer.failure()))
