"""Where a call goes: the row of data about a kind of server, and a configured model made ready."""

from ipaddress import ip_address
from typing import Final, Literal, TypeAlias, final

from attrs import frozen

from llm_effects.config import Capabilities, Family, ModelConfig

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
