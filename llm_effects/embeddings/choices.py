"""Which model embeds: one, and never another in its place."""

from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.errors import ConfigurationError, InvalidRequest, LLMError
from llm_effects.fleet import targets_of
from llm_effects.providers.targets import Target


def chosen(config: LLMConfig, model: str | None) -> Result[Target, LLMError]:
    """Give the model of a name, or the first that embeds; what is not known to embed is not asked.

    >>> from llm_effects import ModelConfig
    >>> config = LLMConfig(
    ...     models={
    ...         "chat": ModelConfig(provider="lm-studio"),
    ...         "small": ModelConfig(provider="ollama", model="nomic-embed-text"),
    ...     }
    ... )
    >>> chosen(config, None).unwrap().name
    'small'
    >>> chosen(config, "chat").failure().message
    "model: 'chat' is not known to embed; set models.chat.capabilities.embeddings to true if it does"
    """
    targets = targets_of(config)
    if not is_successful(targets):
        return Failure(targets.failure())
    for target in targets.unwrap():
        if target.capabilities.embeddings and model in {None, target.name, target.wire_model}:
            return Success(target)
    return Failure(_nobody(config, model))


def _nobody(config: LLMConfig, model: str | None) -> LLMError:
    if model is None:
        remedy = "configure a model that embeds, or set capabilities.embeddings to true for one"
        return ConfigurationError(message=f"models: none is known to embed: {remedy}")
    if model not in config.models:
        configured = ", ".join(config.models)
        return InvalidRequest(message=f"model: {model!r} is not configured; configured are {configured}")
    remedy = f"set models.{model}.capabilities.embeddings to true if it does"
    return InvalidRequest(model=model, message=f"model: {model!r} is not known to embed; {remedy}")
