"""How the models are: reachable and ready are different answers."""

import anyio
from returns.pipeline import is_successful
from returns.result import Result, Success

from llm_effects.config import ModelConfig
from llm_effects.decisions import describe
from llm_effects.effects import Effect, effect, result_of
from llm_effects.env import LLMEnv, ModelHealth
from llm_effects.errors import LLMError


def check_health() -> Effect[tuple[ModelHealth, ...]]:
    """Probe every configured model at once, in the order of the configuration. A model that is down is an answer.

    >>> import anyio
    >>> from llm_effects import scripted_env, settle
    >>> [health.ready for health in anyio.run(settle, check_health(), scripted_env()).unwrap()]
    [True]
    """

    async def run(env: LLMEnv) -> Result[tuple[ModelHealth, ...], LLMError]:
        found: dict[str, ModelHealth] = {}

        async def look(name: str, model: ModelConfig) -> None:
            found[name] = await _probe(env, name, model)

        async with anyio.create_task_group() as group:
            for name, model in env.config.models.items():
                group.start_soon(look, name, model)
        return Success(tuple(found[name] for name in env.config.models))

    return effect(run)


def check_local_model_health(endpoint: str) -> Effect[ModelHealth]:
    """Probe the local server at ``endpoint``, such as ``http://localhost:1234/v1``, configured or not.

    >>> import anyio
    >>> from llm_effects import scripted_env, settle
    >>> anyio.run(settle, check_local_model_health("http://localhost:1234/v1"), scripted_env()).unwrap().reachable
    True
    """

    async def run(env: LLMEnv) -> Result[ModelHealth, LLMError]:
        return await result_of(env.clients.probe("local", ModelConfig(provider="lm-studio", endpoint=endpoint)))

    return effect(run)


async def _probe(env: LLMEnv, name: str, model: ModelConfig) -> ModelHealth:
    result = await result_of(env.clients.probe(name, model))
    if is_successful(result):
        return result.unwrap()
    return ModelHealth(model=name, provider=model.provider, endpoint=model.endpoint, message=describe(result.failure()))
