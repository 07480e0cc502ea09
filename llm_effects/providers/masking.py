"""What servers say, made fit to be shown: without any secret that they were sent, and not too long."""

from typing import Final

from llm_effects.providers.headers import key_headers
from llm_effects.providers.targets import Target
from llm_effects.secrets import revealed, scrub

SHOWN: Final = 500
"""How many letters of a message are shown."""

NAMED: Final = 200
"""How many letters of a name or a number are shown."""

_READ: Final = 16  # times as many are looked through: a mask is shorter than what it stands for


def masked(target: Target, said: str, limit: int = SHOWN) -> str:
    """Mask the target's key and headers in a text from outside, and give its first letters.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> gpt = target_of("gpt", ModelConfig(provider="openai-chat", model="m", api_key="my-secret")).unwrap()
    >>> masked(gpt, "no such key: my-secret"), masked(gpt, "too long", 3)
    ('no such key: ***', 'too')
    """
    return scrub(said[: limit * _READ], *revealed(key_headers(target)))[:limit]


def masked_name(target: Target, said: str | None) -> str | None:
    """The same for a name or a number that a server gave, where it gave one."""
    return masked(target, said, NAMED) if said else None
