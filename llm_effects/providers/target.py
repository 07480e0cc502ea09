"""The target of a call: a configured model with the preset of its server, and what every request to it carries."""

import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, ip_address
from itertools import chain
from typing import Final, Literal, TypeAlias, final

from attrs import frozen

from llm_effects.config.models import Capabilities, Family, ModelConfig
from llm_effects.providers.wire import WireRequest
from llm_effects.values import caps
from llm_effects.values.display import shown
from llm_effects.values.json import dump
from llm_effects.values.secrets import MASK, RotatingKey, Secret, key_forms, mask_all, secret_values
from llm_effects.values.validation import Printable, printable

Wire: TypeAlias = Literal["openai-chat", "openai-responses", "anthropic", "llama"]
"""The names of the protocols."""


@final
@frozen(kw_only=True)
class Preset:
    """A row of data about a kind of server.

    - ``endpoint`` is the default URL; where there is none, ``sample_endpoint`` shows what one looks like.
    - ``responses``: the server speaks OpenAI's Responses too, for the requests that need it.
    - ``key_header`` carries the key (``authorization`` as a bearer token).
    - ``limit_field`` and ``seed_field`` are the names that chat completions use there for the cap on output tokens
      and for the seed; ``None`` where no seed is accepted.
    - ``stream_usage``: a stream reports its token counts only on request.
    - ``named_tool_choice``: one tool can be required by name.
    - ``short_call_ids``: the id of a tool call must be nine letters and digits.
    - ``embedded_texts`` and ``embedded_tokens`` bound one request for embeddings; ``packed_embeddings``: it may ask
      for base64.
    - ``prompt_cache_key``: a key may say which requests share a prompt cache.
    - ``batches``: the protocol by which the server takes batches.
    """

    __repr__ = shown

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
    prompt_cache_key: bool = False
    batches: Literal["openai", "anthropic"] | None = None


@final
@frozen(kw_only=True, cache_hash=True)
class Target:
    """A configured model, ready to be called: its name, preset, address and capabilities.

    ``endpoint`` has no trailing slash; for the in-process model it is the path of the GGUF file.
    """

    __repr__ = shown

    name: str
    config: ModelConfig
    preset: Preset
    endpoint: str
    capabilities: Capabilities

    @property
    def entry(self) -> str:
        """The entry of the configuration that the model comes from: one with several keys makes several models."""
        return self.name.partition("#")[0]

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which a request may pin the model: its own, its entry's and the provider's."""
        return tuple(filter(None, (self.name, self.entry, self.wire_model)))

    @property
    def wire_model(self) -> str | None:
        """The provider's own name for the model, if one is configured."""
        return self.config.model


_LOCALHOST: Final = "localhost"
_LOOPBACK_V4: Final = IPv4Network("127.0.0.0/8")
_LOOPBACK_V6: Final = IPv6Address("::1")


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine: literally ``localhost``, an address in ``127.0.0.0/8``, or ``::1``.

    Other names and spellings, such as ``a.localhost`` or ``127.1``, may be resolved to another machine.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost."), is_loopback("a.localhost")
    (True, False, False)
    """
    if host.lower() == _LOCALHOST:
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address in _LOOPBACK_V4 if address.version == 4 else address == _LOOPBACK_V6


# --- Headers and requests


def key_headers(target: Target) -> tuple[tuple[str, Secret], ...]:
    """Return the key in the header that the preset names, and the configured headers, which take precedence.

    A key that rotates is not among them: see ``rotating_key`` and ``token_header``.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> key_headers(target_of("gpt", ModelConfig(provider="openai-chat", model="m", api_key="sk-x")).unwrap())
    (('authorization', Secret('***')),)
    """
    configured = tuple((name.lower(), value) for name, value in target.config.headers)
    taken = {name for name, _ in configured}
    return (*(header for header in _key_header(target) if header[0] not in taken), *configured)


def _key_header(target: Target) -> tuple[tuple[str, Secret], ...]:
    key = target.config.api_key
    return (_header_of(target.preset.key_header, key),) if isinstance(key, Secret) else ()


def _header_of(name: str, key: Secret) -> tuple[str, Secret]:
    return name, Secret(f"Bearer {key.reveal()}") if name == "authorization" else key


def token_header(target: Target, key: Secret) -> tuple[str, Secret]:
    """Return the header that carries a key that rotates: servers that want keys in ``api-key`` take tokens as bearer.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> azure = ModelConfig(provider="azure", model="m", endpoint="https://x.openai.azure.com", api_key=lambda: "k")
    >>> token_header(target_of("gpt", azure).unwrap(), Secret("k"))[0]
    'authorization'
    """
    return _header_of(_token_header_name(target), key)


def _token_header_name(target: Target) -> str:
    name = target.preset.key_header
    return "authorization" if name == "api-key" else name


def rotating_key(target: Target) -> RotatingKey | None:
    """Return the key of the target if it rotates and is sent: a configured header of that name takes precedence."""
    key = target.config.api_key
    if not isinstance(key, RotatingKey):
        return None
    return None if any(name == _token_header_name(target) for name, _ in key_headers(target)) else key


def fixed_headers(target: Target) -> tuple[tuple[str, str], ...]:
    """Return the headers that the protocol requires; prefer those of ``key_headers`` with the same name.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> claude = target_of("claude", ModelConfig(provider="anthropic", model="m", api_key="sk-x")).unwrap()
    >>> [name for name, _ in fixed_headers(claude)]
    ['anthropic-version']
    """
    return (("anthropic-version", target.config.wire_version),) if target.preset.wire == "anthropic" else ()


def wire_request(
    target: Target, path: str, body: Mapping[str, object], warnings: tuple[str, ...] = (), accept: str | None = None
) -> WireRequest:
    """Build the request for the operation at ``path``; configured headers replace those of the protocol.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> studio = target_of("m", ModelConfig(provider="lm-studio", headers={"accept": "*/*"})).unwrap()
    >>> wire_request(studio, "/x", {"a": 1}, accept="text/html").headers
    (('content-type', 'application/json'), ('accept', Secret('***')))
    """
    headers = _headers(target, accept)
    return WireRequest(url=target.endpoint + path, headers=headers, body=dump(body), warnings=warnings)


@lru_cache(maxsize=1024)
def _headers(target: Target, accept: str | None) -> tuple[tuple[str, str | Secret], ...]:
    own = key_headers(target)
    taken = {name for name, _ in own}
    usual = (("content-type", "application/json"), *fixed_headers(target), *((("accept", accept),) if accept else ()))
    return (*(header for header in usual if header[0] not in taken), *own)


def openai_request(target: Target, path: str, body: Mapping[str, object], warnings: tuple[str, ...]) -> WireRequest:
    """Build a request of one of OpenAI's protocols, which name the format of the answer in ``accept``."""
    accept = "text/event-stream" if body.get("stream") else "application/json"
    return wire_request(target, path, body, warnings, accept)


# --- Texts from servers, fit to be shown: without the secrets that were sent to them, and not too long


_SEARCHED: Final = 16  # times as many characters are searched: a mask is shorter than the secret that it replaces


@lru_cache(maxsize=1024)
def _secrets(target: Target) -> tuple[str, ...]:
    """Return the secrets that are sent to the target, the longest first."""
    return tuple(sorted(secret_values(key_headers(target)), key=len, reverse=True))


@lru_cache(maxsize=1024)
def _keys(target: Target) -> tuple[str, ...]:
    return key_forms(key_headers(target))


def redact(target: Target, text: str, length: int = caps.MESSAGE_CHARACTERS, *, cut: bool = False) -> Printable:
    """Mask the target's key and headers in a text from outside, and return at most ``length`` printable characters.

    ``cut`` is whether the text was cut off before: what is left of a secret at its end is masked too.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> gpt = target_of("gpt", ModelConfig(provider="openai-chat", model="m", api_key="my-secret")).unwrap()
    >>> redact(gpt, "no such key: my-secret"), redact(gpt, "too long", 3), redact(gpt, "key my-secre", cut=True)
    ('no such key: ***', 'too', 'key ***')
    """
    secrets, searched = _masks(target), length * _SEARCHED
    masked = mask_all(printable(text[:searched]), secrets)
    whole = _mask_end(masked, secrets) if cut or len(text) > searched else masked
    return Printable(whole[:length])


def _masks(target: Target) -> tuple[str, ...]:
    """Return the target's secrets; those of a key that rotates are not kept with the others."""
    key, forms = target.config.api_key, _secrets(target)
    return _merged(forms, key.masks) if isinstance(key, RotatingKey) else forms


def _sure_masks(target: Target) -> tuple[str, ...]:
    key, forms = target.config.api_key, _keys(target)
    return _merged(forms, key.sure_masks) if isinstance(key, RotatingKey) else forms


def _merged(*forms: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(chain(*forms), key=len, reverse=True))


def _mask_end(text: str, secrets: tuple[str, ...]) -> str:
    """Mask the longest beginning of a secret that a text ends with."""
    begun = (
        size
        for secret in secrets
        for size in range(min(len(secret) - 1, len(text)), _BEGUN - 1, -1)
        if text.endswith(secret[:size])
    )
    size = max(begun, default=0)
    return text[: len(text) - size] + MASK if size else text


_BEGUN: Final = 6  # characters: fewer reveal nothing, and match by accident


def redact_name(target: Target, name: str | None) -> Printable | None:
    """Mask and shorten a name or an id from a server; return ``None`` where there is none."""
    return redact(target, name, caps.NAME_CHARACTERS) if name else None


def hide_keys(target: Target, text: str) -> str:
    """Cover the target's keys in an answer: each by as many asterisks, so that positions in the text stay.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> gpt = target_of("gpt", ModelConfig(provider="openai-chat", model="m", api_key="key-1234")).unwrap()
    >>> hide_keys(gpt, "yours is key-1234")
    'yours is ********'
    """
    for key in _sure_masks(target):
        if key in text:
            text = text.replace(key, "*" * len(key))
    return text


# --- Names of models: servers add dates, paths and hosts to them

_DATED: Final = r"[-@:]?(\d{4}-?\d{2}-?\d{2}|\d{4}|latest)?"


def same_model(requested: str, served: str) -> bool:
    """Return whether the names differ at most by a path, a date, the host or the word for the latest version.

    >>> same_model("gpt-4.1", "gpt-4.1-2025-04-14"), same_model("gpt-4.1", "gpt-4.1-mini")
    (True, False)
    """
    ours, theirs = (name.lower().rsplit("/", 1)[-1].removesuffix(".gguf") for name in (requested, served))
    ours = (ours if ":" in theirs else ours.partition(":")[0]).removesuffix("-latest")
    return theirs.startswith(ours) and re.fullmatch(_DATED, theirs[len(ours) :]) is not None
