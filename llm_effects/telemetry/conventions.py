"""The names of attributes and metrics: OpenTelemetry's GenAI conventions, and our own below ``llm_effects.``.

Source: opentelemetry-semantic-conventions 0.66b2, ``_incubating/attributes/gen_ai_attributes.py`` and
``_incubating/metrics/gen_ai_metrics.py``. They are still in development, so they are written here once; a test compares
them with that package.
"""

from collections.abc import Mapping
from typing import Final

CHAT: Final = "chat"
EXECUTE_TOOL: Final = "execute_tool"
EMBEDDINGS: Final = "embeddings"
OPERATION: Final = "gen_ai.operation.name"
PROVIDER: Final = "gen_ai.provider.name"
CONVERSATION_ID: Final = "gen_ai.conversation.id"
OUTPUT_TYPE: Final = "gen_ai.output.type"
TOKEN_TYPE: Final = "gen_ai.token.type"  # noqa: S105 - no password

REQUEST_MODEL: Final = "gen_ai.request.model"
REQUEST_MAX_TOKENS: Final = "gen_ai.request.max_tokens"
REQUEST_TEMPERATURE: Final = "gen_ai.request.temperature"
REQUEST_TOP_P: Final = "gen_ai.request.top_p"
REQUEST_STOP: Final = "gen_ai.request.stop_sequences"
REQUEST_SEED: Final = "gen_ai.request.seed"
REQUEST_STREAM: Final = "gen_ai.request.stream"

RESPONSE_ID: Final = "gen_ai.response.id"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
RESPONSE_FIRST_CHUNK: Final = "gen_ai.response.time_to_first_chunk"

INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
CACHE_READ_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
CACHE_WRITE_TOKENS: Final = "gen_ai.usage.cache_creation.input_tokens"
REASONING_TOKENS: Final = "gen_ai.usage.reasoning.output_tokens"

INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
SYSTEM_INSTRUCTIONS: Final = "gen_ai.system_instructions"
TOOL_DEFINITIONS: Final = "gen_ai.tool.definitions"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_CALL_ID: Final = "gen_ai.tool.call.id"

SERVER_ADDRESS: Final = "server.address"
SERVER_PORT: Final = "server.port"
ERROR_TYPE: Final = "error.type"
HTTP_STATUS: Final = "http.response.status_code"

DURATION: Final = "gen_ai.client.operation.duration"
TOKEN_USAGE: Final = "gen_ai.client.token.usage"  # noqa: S105 - no password
FIRST_CHUNK: Final = "gen_ai.client.operation.time_to_first_chunk"

GENERATE: Final = "generate"
"""The span of a whole call; each attempt has an inference span below it."""

CALL_ID: Final = "llm_effects.call_id"
TASK_TYPE: Final = "llm_effects.task_type"
MODEL: Final = "llm_effects.model"
OUTCOME: Final = "llm_effects.outcome"
ATTEMPTS: Final = "llm_effects.attempts"
CACHED: Final = "llm_effects.cached"
SENT: Final = "llm_effects.sent"
WAIT_MS: Final = "llm_effects.wait_ms"
COST_USD: Final = "llm_effects.cost_usd"

PROVIDERS: Final[Mapping[str, str]] = {
    "openai-chat": "openai",
    "openai-responses": "openai",
    "azure": "azure.ai.openai",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
}
"""Well-known values of ``gen_ai.provider.name``, by preset; other presets use their own names."""
