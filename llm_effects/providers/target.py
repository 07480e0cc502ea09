"""Where a call goes: the row of data about a kind of server, and a configured model made ready."""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final, Literal, TypeAlias, final

from attrs import frozen
from returns.result import Result, Success

from llm_effects.config.models import Capabilities, Family, ModelConfig
from llm_effects.providers.wire import WireRequest
from llm_effects.values.errors import LLMError
from llm_effects.values.json import dump
from llm_effects.values.secrets import Secret, scrub, secret_values

Wire: TypeAlias = Literal["openai-chat", "openai-responses", "anthropic", "llama"]
"""The protocols spoken."""


@final
@frozen(kw_only=True)
class Preset:
    """A row of data about a kind of server.

    ``endpoint`` is the default one; where there is none, ``sample_endpoint`` shows what one looks like.
    ``responses`` says that the server speaks OpenAI's Responses too, for the requests that need it. ``key_header``
    carries the key (``authorization`` as a bearer). ``limit_field`` and ``seed_field`` are what chat completions
    call the cap on output tokens and the seed there, ``None`` where no seed is taken; ``stream_usage`` says that a
    stream must be asked for its token counts, ``named_tool_choice`` that one tool can be demanded by name,
    ``short_call_ids`` that the id of a tool's call must be nine letters and digits.
    ``embedded_texts`` and ``embedded_tokens`` are how much one request for embeddings may hold; ``packed_embeddings``
    says that it may ask for base64.
    """

    name: str
    wire: Wire
    family: Family = "other"
    endpoint: str | None = None
    sample_endpoint: str | None = None
    responses: bool = False
    needs_key: bool = False
    needs_model: bool = False
    key_header: Literal["authorization", "x-api-key", "api-key"] = "authorization"
    limit_field: Literal["max_completion_tokens", "max_tokens"] = "max_tokens"
    seed_field: Literal["seed", "random_seed"] | None = "seed"
    stream_usage: bool = True
    named_tool_choice: bool = True
    short_call_ids: bool = False
    embedded_texts: int = 64
    embedded_tokens: int = 8_000
    packed_embeddings: bool = False


@final
@frozen(kw_only=True, cache_hash=True)
class Target:
    """A configured model, made ready: its name, its row of data, where it is and what it can do.

    ``endpoint`` has no slash at its end; for the in-process model it is the path of the GGUF file.
    """

    name: str
    config: ModelConfig
    preset: Preset
    endpoint: str
    capabilities: Capabilities

    @property
    def wire_model(self) -> str | None:
        """The provider's own name for the model, if one was configured."""
        return self.config.model


_LOCALHOST: Final = "localhost"


def is_loopback(host: str) -> bool:
    """Whether a host is this very machine: ``localhost``, ``*.localhost``, ``127.0.0.0/8`` or ``::1``.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost.example.com")
    (True, False)
    """
    name = host.lower().removesuffix(".")
    if name == _LOCALHOST or name.endswith("." + _LOCALHOST):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


# The headers that every request to a server bears: its key, and those of the configuration.


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


# From a body to the request that goes out: its JSON, and its headers merged with the configured ones.


def wire_request(
    target: Target, path: str, body: Mapping[str, object], warnings: tuple[str, ...] = (), accept: str | None = None
) -> WireRequest:
    """Write a body for the operation at ``path``; the headers that a protocol wants give way to configured ones.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> studio = target_of("m", ModelConfig(provider="lm-studio", headers={"accept": "*/*"})).unwrap()
    >>> wire_request(studio, "/x", {"a": 1}, accept="text/html").headers
    (('content-type', 'application/json'), ('accept', Secret('***')))
    """
    own = key_headers(target)
    taken = {name for name, _ in own}
    wanted = (("content-type", "application/json"), *fixed_headers(target), *((("accept", accept),) if accept else ()))
    headers = (*(pair for pair in wanted if pair[0] not in taken), *own)
    return WireRequest(url=target.endpoint + path, headers=headers, body=dump(body), warnings=warnings)


# What OpenAI's protocols have in common on the way out: their headers.


def written(
    target: Target, path: str, body: Mapping[str, object], warnings: tuple[str, ...]
) -> Result[WireRequest, LLMError]:
    """Write a body for the operation at ``path``, with the headers of a stream where it asks for one."""
    accept = "text/event-stream" if body.get("stream") else "application/json"
    return Success(wire_request(target, path, body, warnings, accept))


# What servers say, made fit to be shown: without any secret that they were sent, and not too long.


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
    return scrub(said[: limit * _READ], *secret_values(key_headers(target)))[:limit]


def masked_name(target: Target, said: str | None) -> str | None:
    """The same for a name or a number that a server gave, where it gave one."""
    return masked(target, said, NAMED) if said else None
