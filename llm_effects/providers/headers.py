"""The headers that every request to a server bears: its key, and those of the configuration."""

from llm_effects.providers.targets import Target
from llm_effects.secrets import Secret


def key_headers(target: Target) -> tuple[tuple[str, Secret], ...]:
    """Give the key in the header where its preset wants it, and the configured headers, which win.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> key_headers(target_of("gpt", ModelConfig(provider="openai-chat", model="m", api_key="sk-x")).unwrap())
    (('authorization', Secret('***')),)
    """
    own = tuple((name.lower(), value) for name, value in target.config.headers)
    taken = {name for name, _ in own}
    return (*(pair for pair in _key(target) if pair[0] not in taken), *own)


def _key(target: Target) -> tuple[tuple[str, Secret], ...]:
    key = target.config.api_key
    if key is None:
        return ()
    header = target.preset.key_header
    return ((header, Secret(f"Bearer {key.reveal()}") if header == "authorization" else key),)


def fixed_headers(target: Target) -> tuple[tuple[str, str], ...]:
    """Give what the protocol demands of every request; leave out what ``key_headers`` gives too.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> claude = target_of("claude", ModelConfig(provider="anthropic", model="m", api_key="sk-x")).unwrap()
    >>> [name for name, _ in fixed_headers(claude)]
    ['anthropic-version']
    """
    return (("anthropic-version", target.config.wire_version),) if target.preset.wire == "anthropic" else ()
