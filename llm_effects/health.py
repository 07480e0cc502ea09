"""How the models are: reachable and ready are different answers."""

import anyio
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Result, Success

from llm_effects.config import ModelConfig
from llm_effects.decisions import describe
from llm_effects.effects import Effect, effect, result_of
from llm_effects.env import LLMEnv
from llm_effects.errors import ConfigurationError, LLMError
from llm_effects.records import ModelHealth


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

    It is taken for an LM Studio, then for any server that lists its models, which does not say what is ready.

    >>> import anyio
    >>> from llm_effects import scripted_env, settle
    >>> anyio.run(settle, check_local_model_health("http://localhost:1234/v1"), scripted_env()).unwrap().reachable
    True
    """

    async def run(env: LLMEnv) -> Result[ModelHealth, LLMError]:
        probed = await result_of(env.clients.probe("local", ModelConfig(provider="lm-studio", endpoint=endpoint)))
        return probed.alt(_of_the_endpoint)

    return effect(run)


def _of_the_endpoint(error: LLMError) -> LLMError:
    """Speak of what the caller gave: the endpoint is in no configuration."""
    if not isinstance(error, ConfigurationError):
        return error
    return evolve(error, model=None, message=error.message.removeprefix("models.local."))


async def _probe(env: LLMEnv, name: str, model: ModelConfig) -> ModelHealth:
    result = await result_of(env.clients.probe(name, model))
    if is_successful(result):
        return result.unwrap()
    # without the endpoint, which may be what is wrong, and hold a password
    return ModelHealth(model=name, provider=model.provider, message=describe(result.failure()))
