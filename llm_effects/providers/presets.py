"""The known kinds of servers, as rows of data."""

from collections.abc import Mapping
from typing import Final, TypedDict

from llm_effects.providers.target import Preset, Wire


class _Embeddings(TypedDict):
    embedded_texts: int
    embedded_tokens: int
    packed_embeddings: bool


# OpenAI accepts 2,048 texts and 300,000 tokens in one request.
_OPENAI_EMBEDDINGS: Final = _Embeddings(embedded_texts=2048, embedded_tokens=200_000, packed_embeddings=True)


def _gpt(name: str, *, wire: Wire = "openai-chat", responses: bool = False) -> Preset:
    return Preset(
        name=name,
        wire=wire,
        responses=responses,
        family="gpt",
        endpoint="https://api.openai.com/v1",
        needs_key=True,
        needs_model=True,
        limit_field="max_completion_tokens",
        prompt_cache_key=True,
        batches="openai",
        **_OPENAI_EMBEDDINGS,
    )


def _local(name: str, port: int, *, needs_model: bool = False, named_tool_choice: bool = True) -> Preset:
    return Preset(
        name=name,
        wire="openai-chat",
        family="local",
        endpoint=f"http://localhost:{port}/v1",
        needs_model=needs_model,
        named_tool_choice=named_tool_choice,
    )


_CLAUDE: Final = Preset(
    name="anthropic",
    wire="anthropic",
    family="claude",
    endpoint="https://api.anthropic.com",
    needs_key=True,
    needs_model=True,
    key_header="x-api-key",
    batches="anthropic",
)

_AZURE: Final = Preset(
    name="azure",
    wire="openai-chat",
    responses=True,
    family="gpt",
    sample_endpoint="https://RESOURCE.openai.azure.com/openai/v1",
    needs_key=True,
    needs_model=True,
    key_header="api-key",
    limit_field="max_completion_tokens",
    prompt_cache_key=True,
    **_OPENAI_EMBEDDINGS,
)

_GEMINI: Final = Preset(
    name="gemini",
    wire="openai-chat",
    endpoint="https://generativelanguage.googleapis.com/v1beta/openai",
    needs_key=True,
    needs_model=True,
    seed_field=None,  # an unknown field is refused with a 400
    embedded_texts=100,
)

_MISTRAL: Final = Preset(
    name="mistral",
    wire="openai-chat",
    endpoint="https://api.mistral.ai/v1",
    needs_key=True,
    needs_model=True,
    seed_field="random_seed",  # an unknown field is refused with a 422
    stream_usage=False,  # a stream reports its token counts without being asked
    short_call_ids=True,
)

_GROQ: Final = Preset(
    name="groq",
    wire="openai-chat",
    endpoint="https://api.groq.com/openai/v1",
    needs_key=True,
    needs_model=True,
    limit_field="max_completion_tokens",
)

_OPENROUTER: Final = Preset(
    name="openrouter",
    wire="openai-chat",
    endpoint="https://openrouter.ai/api/v1",
    needs_key=True,
    needs_model=True,
)

_DEEPSEEK: Final = Preset(
    name="deepseek",
    wire="openai-chat",
    endpoint="https://api.deepseek.com/v1",
    needs_key=True,
    needs_model=True,
)

_ROWS: Final = (
    _gpt("openai", responses=True),
    _gpt("openai-chat"),
    _gpt("openai-responses", wire="openai-responses"),
    _CLAUDE,
    # In this process there are no round trips to save, and a small batch frees its slot soon.
    Preset(name="llama", wire="llama", family="local", embedded_texts=8, embedded_tokens=1_000),
    _local("lm-studio", 1234, named_tool_choice=False),
    _local("llama-cpp", 8080),
    _local("ollama", 11434, needs_model=True),
    _local("vllm", 8000),
    _AZURE,
    _DEEPSEEK,
    _GEMINI,
    _GROQ,
    _MISTRAL,
    _OPENROUTER,
    Preset(name="openai-compatible", wire="openai-chat"),
)

PRESETS: Final[Mapping[str, Preset]] = {row.name: row for row in _ROWS}
"""Every kind of server by its name in ``ModelConfig.provider``."""
