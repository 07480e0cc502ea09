"""One typed, composable, testable ``generate`` over GPT, Claude and local models.

An operation, such as ``generate(request)``, is an effect: a value that does nothing until it runs in an environment.

>>> import anyio
>>> from llm_effects import LLMRequest, generate, run, scripted_env
>>> anyio.run(run, generate(LLMRequest(prompt="Why?")), scripted_env("Because.")).unwrap().content
'Because.'

======================= =================================================
ask                     generate, stream, open_stream, generate_as
converse                start_conversation, converse, load_conversation
use tools, batches      run_tools with toolkit, generate_many
know before and after   explain, check_health, usage_report
compose                 then, rescue, retry, timeout, fallback, gather
run                     run, run_sync, LLMManager, open_env
======================= =================================================

``help(llm_effects.generate)`` shows one of them. Every name is loaded when it is first used: importing the package does
no I/O and loads no other library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_effects.batches.runs import generate_many as generate_many
    from llm_effects.clients.health_checks import check_health as check_health
    from llm_effects.clients.health_checks import check_local_model_health as check_local_model_health
    from llm_effects.config import LLMConfig as LLMConfig
    from llm_effects.config.loading import load_config as load_config
    from llm_effects.config.models import ModelConfig as ModelConfig
    from llm_effects.conversations.converse import converse as converse
    from llm_effects.conversations.converse import open_converse as open_converse
    from llm_effects.conversations.operations import list_conversations as list_conversations
    from llm_effects.conversations.operations import load_conversation as load_conversation
    from llm_effects.conversations.operations import start_conversation as start_conversation
    from llm_effects.effects.combinators import fallback as fallback
    from llm_effects.effects.combinators import gather as gather
    from llm_effects.effects.combinators import hedge as hedge
    from llm_effects.effects.combinators import race as race
    from llm_effects.effects.combinators import retry as retry
    from llm_effects.effects.combinators import timeout as timeout
    from llm_effects.effects.combinators import using as using
    from llm_effects.effects.effect import Effect as Effect
    from llm_effects.effects.effect import effect as effect
    from llm_effects.effects.effect import fail as fail
    from llm_effects.effects.effect import from_env as from_env
    from llm_effects.effects.effect import from_result as from_result
    from llm_effects.effects.effect import rescue as rescue
    from llm_effects.effects.effect import run as run
    from llm_effects.effects.effect import run_sync as run_sync
    from llm_effects.effects.effect import succeed as succeed
    from llm_effects.effects.effect import then as then
    from llm_effects.effects.env import LLMEnv as LLMEnv
    from llm_effects.effects.schedules import exponential as exponential
    from llm_effects.effects.schedules import jittered as jittered
    from llm_effects.effects.schedules import up_to as up_to
    from llm_effects.effects.schedules import within as within
    from llm_effects.embeddings import embed as embed
    from llm_effects.manager import LLMManager as LLMManager
    from llm_effects.manager import create_default_llm_manager as create_default_llm_manager
    from llm_effects.manager import create_default_local_client as create_default_local_client
    from llm_effects.manager import make_llm_manager as make_llm_manager
    from llm_effects.manager import make_model_router as make_model_router
    from llm_effects.manager import open_env as open_env
    from llm_effects.pipeline import explain as explain
    from llm_effects.pipeline import generate as generate
    from llm_effects.pipeline import open_stream as open_stream
    from llm_effects.pipeline import stream as stream
    from llm_effects.plain import LLM as LLM
    from llm_effects.plain import AsyncLLM as AsyncLLM
    from llm_effects.plain import LLMFailure as LLMFailure
    from llm_effects.reports.usage import usage_report as usage_report
    from llm_effects.structured.typed_answers import generate_as as generate_as
    from llm_effects.testing.scripted import scripted_env as scripted_env
    from llm_effects.tools.run import run_tools as run_tools
    from llm_effects.tools.tool import Toolkit as Toolkit
    from llm_effects.tools.tool import tool as tool
    from llm_effects.tools.tool import toolkit as toolkit
    from llm_effects.values.errors import AuthenticationFailed as AuthenticationFailed
    from llm_effects.values.errors import BudgetExceeded as BudgetExceeded
    from llm_effects.values.errors import ConfigurationError as ConfigurationError
    from llm_effects.values.errors import ContentRefused as ContentRefused
    from llm_effects.values.errors import ContextTooLarge as ContextTooLarge
    from llm_effects.values.errors import ConversationConflict as ConversationConflict
    from llm_effects.values.errors import InvalidRequest as InvalidRequest
    from llm_effects.values.errors import LLMError as LLMError
    from llm_effects.values.errors import MalformedResponse as MalformedResponse
    from llm_effects.values.errors import ModelUnavailable as ModelUnavailable
    from llm_effects.values.errors import NetworkError as NetworkError
    from llm_effects.values.errors import RateLimitExceeded as RateLimitExceeded
    from llm_effects.values.errors import RequestFailed as RequestFailed
    from llm_effects.values.errors import RequestTimeout as RequestTimeout
    from llm_effects.values.errors import SchemaMismatch as SchemaMismatch
    from llm_effects.values.errors import StorageFailed as StorageFailed
    from llm_effects.values.errors import describe as describe
    from llm_effects.values.errors import is_retryable as is_retryable
    from llm_effects.values.events import Completed as Completed
    from llm_effects.values.events import Failed as Failed
    from llm_effects.values.events import ReasoningDelta as ReasoningDelta
    from llm_effects.values.events import Restarted as Restarted
    from llm_effects.values.events import Started as Started
    from llm_effects.values.events import StreamEvent as StreamEvent
    from llm_effects.values.events import TextDelta as TextDelta
    from llm_effects.values.events import ToolCallDelta as ToolCallDelta
    from llm_effects.values.messages import Document as Document
    from llm_effects.values.messages import Image as Image
    from llm_effects.values.messages import Message as Message
    from llm_effects.values.messages import Reasoning as Reasoning
    from llm_effects.values.messages import Text as Text
    from llm_effects.values.messages import ToolCall as ToolCall
    from llm_effects.values.messages import ToolResult as ToolResult
    from llm_effects.values.requests import Allow as Allow
    from llm_effects.values.requests import CachePolicy as CachePolicy
    from llm_effects.values.requests import LLMRequest as LLMRequest
    from llm_effects.values.requests import Preferences as Preferences
    from llm_effects.values.requests import Recovery as Recovery
    from llm_effects.values.requests import TaskType as TaskType
    from llm_effects.values.responses import Attempt as Attempt
    from llm_effects.values.responses import Cost as Cost
    from llm_effects.values.responses import FinishReason as FinishReason
    from llm_effects.values.responses import LLMResponse as LLMResponse
    from llm_effects.values.responses import Usage as Usage

__all__ = [
    "LLM",
    "Allow",
    "AsyncLLM",
    "Attempt",
    "AuthenticationFailed",
    "BudgetExceeded",
    "CachePolicy",
    "Completed",
    "ConfigurationError",
    "ContentRefused",
    "ContextTooLarge",
    "ConversationConflict",
    "Cost",
    "Document",
    "Effect",
    "Failed",
    "FinishReason",
    "Image",
    "InvalidRequest",
    "LLMConfig",
    "LLMEnv",
    "LLMError",
    "LLMFailure",
    "LLMManager",
    "LLMRequest",
    "LLMResponse",
    "MalformedResponse",
    "Message",
    "ModelConfig",
    "ModelUnavailable",
    "NetworkError",
    "Preferences",
    "RateLimitExceeded",
    "Reasoning",
    "ReasoningDelta",
    "Recovery",
    "RequestFailed",
    "RequestTimeout",
    "Restarted",
    "SchemaMismatch",
    "Started",
    "StorageFailed",
    "StreamEvent",
    "TaskType",
    "Text",
    "TextDelta",
    "ToolCall",
    "ToolCallDelta",
    "ToolResult",
    "Toolkit",
    "Usage",
    "check_health",
    "check_local_model_health",
    "converse",
    "create_default_llm_manager",
    "create_default_local_client",
    "describe",
    "effect",
    "embed",
    "explain",
    "exponential",
    "fail",
    "fallback",
    "from_env",
    "from_result",
    "gather",
    "generate",
    "generate_as",
    "generate_many",
    "hedge",
    "is_retryable",
    "jittered",
    "list_conversations",
    "load_config",
    "load_conversation",
    "make_llm_manager",
    "make_model_router",
    "open_converse",
    "open_env",
    "open_stream",
    "race",
    "rescue",
    "retry",
    "run",
    "run_sync",
    "run_tools",
    "scripted_env",
    "start_conversation",
    "stream",
    "succeed",
    "then",
    "timeout",
    "tool",
    "toolkit",
    "up_to",
    "usage_report",
    "using",
    "within",
]

_HOMES = {
    "batches.runs": "generate_many",
    "clients.health_checks": "check_health check_local_model_health",
    "config": "LLMConfig",
    "config.loading": "load_config",
    "config.models": "ModelConfig",
    "conversations.converse": "converse open_converse",
    "conversations.operations": "list_conversations load_conversation start_conversation",
    "effects.combinators": "fallback gather hedge race retry timeout using",
    "effects.effect": "Effect effect fail from_env from_result rescue run run_sync succeed then",
    "effects.env": "LLMEnv",
    "effects.schedules": "exponential jittered up_to within",
    "embeddings": "embed",
    "manager": "LLMManager create_default_llm_manager create_default_local_client make_llm_manager make_model_router open_env",
    "pipeline": "explain generate open_stream stream",
    "plain": "LLM AsyncLLM LLMFailure",
    "reports.usage": "usage_report",
    "structured.typed_answers": "generate_as",
    "testing.scripted": "scripted_env",
    "tools.run": "run_tools",
    "tools.tool": "Toolkit tool toolkit",
    "values.errors": "AuthenticationFailed BudgetExceeded ConfigurationError ContentRefused ContextTooLarge ConversationConflict InvalidRequest LLMError MalformedResponse ModelUnavailable NetworkError RateLimitExceeded RequestFailed RequestTimeout SchemaMismatch StorageFailed describe is_retryable",
    "values.events": "Completed Failed ReasoningDelta Restarted Started StreamEvent TextDelta ToolCallDelta",
    "values.messages": "Document Image Message Reasoning Text ToolCall ToolResult",
    "values.requests": "Allow CachePolicy LLMRequest Preferences Recovery TaskType",
    "values.responses": "Attempt Cost FinishReason LLMResponse Usage",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
