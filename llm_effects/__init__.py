"""One typed, composable, testable ``generate`` over GPT, Claude and local models.

Every name is loaded when it is first used: importing the package does no I/O and loads no other library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_effects.batches.journals import Journal as Journal
    from llm_effects.batches.journals import file_journal as file_journal
    from llm_effects.batches.journals import store_journal as store_journal
    from llm_effects.batches.runs import Progress as Progress
    from llm_effects.batches.runs import generate_each as generate_each
    from llm_effects.batches.runs import generate_many as generate_many
    from llm_effects.clients.health_checks import check_health as check_health
    from llm_effects.clients.health_checks import check_local_model_health as check_local_model_health
    from llm_effects.config import LLMConfig as LLMConfig
    from llm_effects.config.loading import embedded_model as embedded_model
    from llm_effects.config.loading import load_config as load_config
    from llm_effects.config.models import Capabilities as Capabilities
    from llm_effects.config.models import ModelConfig as ModelConfig
    from llm_effects.config.models import Price as Price
    from llm_effects.config.models import PriceChange as PriceChange
    from llm_effects.config.models import PriceTier as PriceTier
    from llm_effects.config.routing import BreakerConfig as BreakerConfig
    from llm_effects.config.routing import HedgingConfig as HedgingConfig
    from llm_effects.config.routing import RetryBudgetConfig as RetryBudgetConfig
    from llm_effects.config.routing import RoutingConfig as RoutingConfig
    from llm_effects.config.services import BudgetConfig as BudgetConfig
    from llm_effects.config.services import CacheConfig as CacheConfig
    from llm_effects.config.services import LimitsConfig as LimitsConfig
    from llm_effects.config.services import StorageConfig as StorageConfig
    from llm_effects.config.services import TelemetryConfig as TelemetryConfig
    from llm_effects.conversations.converse import converse as converse
    from llm_effects.conversations.operations import append_messages as append_messages
    from llm_effects.conversations.operations import delete_conversation as delete_conversation
    from llm_effects.conversations.operations import export_conversation as export_conversation
    from llm_effects.conversations.operations import fork_conversation as fork_conversation
    from llm_effects.conversations.operations import import_conversation as import_conversation
    from llm_effects.conversations.operations import list_conversations as list_conversations
    from llm_effects.conversations.operations import load_conversation as load_conversation
    from llm_effects.conversations.operations import start_conversation as start_conversation
    from llm_effects.effects.call import Call as Call
    from llm_effects.effects.call import Sink as Sink
    from llm_effects.effects.call import Trail as Trail
    from llm_effects.effects.combinators import fallback as fallback
    from llm_effects.effects.combinators import gather as gather
    from llm_effects.effects.combinators import hedge as hedge
    from llm_effects.effects.combinators import race as race
    from llm_effects.effects.combinators import retry as retry
    from llm_effects.effects.combinators import timeout as timeout
    from llm_effects.effects.combinators import using as using
    from llm_effects.effects.effect import Effect as Effect
    from llm_effects.effects.effect import Generate as Generate
    from llm_effects.effects.effect import Policy as Policy
    from llm_effects.effects.effect import ask as ask
    from llm_effects.effects.effect import effect as effect
    from llm_effects.effects.effect import fail as fail
    from llm_effects.effects.effect import from_result as from_result
    from llm_effects.effects.effect import rescue as rescue
    from llm_effects.effects.effect import settle as settle
    from llm_effects.effects.effect import succeed as succeed
    from llm_effects.effects.effect import then as then
    from llm_effects.effects.env import Cache as Cache
    from llm_effects.effects.env import Clients as Clients
    from llm_effects.effects.env import Conversations as Conversations
    from llm_effects.effects.env import Embedder as Embedder
    from llm_effects.effects.env import Health as Health
    from llm_effects.effects.env import Hedges as Hedges
    from llm_effects.effects.env import Ledger as Ledger
    from llm_effects.effects.env import Limits as Limits
    from llm_effects.effects.env import LLMEnv as LLMEnv
    from llm_effects.effects.env import Prices as Prices
    from llm_effects.effects.env import Retries as Retries
    from llm_effects.effects.env import Telemetry as Telemetry
    from llm_effects.effects.env import Tokens as Tokens
    from llm_effects.effects.files import read_document as read_document
    from llm_effects.effects.files import read_image as read_image
    from llm_effects.effects.schedules import Schedule as Schedule
    from llm_effects.effects.schedules import Step as Step
    from llm_effects.effects.schedules import exponential as exponential
    from llm_effects.effects.schedules import jittered as jittered
    from llm_effects.effects.schedules import up_to as up_to
    from llm_effects.effects.schedules import within as within
    from llm_effects.embeddings import Embeddings as Embeddings
    from llm_effects.embeddings import embed as embed
    from llm_effects.limits.budgets import Account as Account
    from llm_effects.limits.budgets import Hold as Hold
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
    from llm_effects.policies import layered as layered
    from llm_effects.policies.cache import cache_key as cache_key
    from llm_effects.policies.cache import cache_stats as cache_stats
    from llm_effects.policies.cache import clear as clear
    from llm_effects.policies.cache import invalidate as invalidate
    from llm_effects.reports.exports import to_csv as to_csv
    from llm_effects.reports.exports import to_json_lines as to_json_lines
    from llm_effects.reports.usage import Dimension as Dimension
    from llm_effects.reports.usage import Percentiles as Percentiles
    from llm_effects.reports.usage import UsageReport as UsageReport
    from llm_effects.reports.usage import UsageRow as UsageRow
    from llm_effects.reports.usage import usage_report as usage_report
    from llm_effects.routing.candidates import Candidate as Candidate
    from llm_effects.routing.candidates import LeftOut as LeftOut
    from llm_effects.routing.candidates import RoutingDecision as RoutingDecision
    from llm_effects.structured.typed_answers import Structured as Structured
    from llm_effects.structured.typed_answers import generate_as as generate_as
    from llm_effects.testing.scripted import Late as Late
    from llm_effects.testing.scripted import Pieces as Pieces
    from llm_effects.testing.scripted import Reply as Reply
    from llm_effects.testing.scripted import Scripted as Scripted
    from llm_effects.testing.scripted import answer as answer
    from llm_effects.testing.scripted import failing as failing
    from llm_effects.testing.scripted import scripted as scripted
    from llm_effects.testing.scripted import scripted_env as scripted_env
    from llm_effects.testing.virtual_time import run_in_virtual_time as run_in_virtual_time
    from llm_effects.tools.by_schema import tools_by_schema as tools_by_schema
    from llm_effects.tools.journal import resolve_tool_call as resolve_tool_call
    from llm_effects.tools.run import run_tools as run_tools
    from llm_effects.tools.steps import Approve as Approve
    from llm_effects.tools.steps import Approved as Approved
    from llm_effects.tools.steps import Refused as Refused
    from llm_effects.tools.steps import ToolAnswer as ToolAnswer
    from llm_effects.tools.steps import ToolEnd as ToolEnd
    from llm_effects.tools.steps import ToolEvent as ToolEvent
    from llm_effects.tools.steps import ToolFinished as ToolFinished
    from llm_effects.tools.steps import ToolLimits as ToolLimits
    from llm_effects.tools.steps import ToolOutcome as ToolOutcome
    from llm_effects.tools.steps import ToolRun as ToolRun
    from llm_effects.tools.steps import ToolSink as ToolSink
    from llm_effects.tools.steps import ToolStarted as ToolStarted
    from llm_effects.tools.steps import ToolStep as ToolStep
    from llm_effects.tools.steps import Verdict as Verdict
    from llm_effects.tools.tool import ToolFunction as ToolFunction
    from llm_effects.tools.tool import Toolkit as Toolkit
    from llm_effects.tools.tool import tool as tool
    from llm_effects.tools.tool import tool_with_schema as tool_with_schema
    from llm_effects.tools.tool import toolkit as toolkit
    from llm_effects.values.conversations import Conversation as Conversation
    from llm_effects.values.conversations import History as History
    from llm_effects.values.conversations import JournalEntry as JournalEntry
    from llm_effects.values.conversations import Provenance as Provenance
    from llm_effects.values.conversations import StoredMessage as StoredMessage
    from llm_effects.values.conversations import Summary as Summary
    from llm_effects.values.conversations import Turn as Turn
    from llm_effects.values.conversations import TurnState as TurnState
    from llm_effects.values.errors import AuthenticationFailed as AuthenticationFailed
    from llm_effects.values.errors import BudgetExceeded as BudgetExceeded
    from llm_effects.values.errors import Cause as Cause
    from llm_effects.values.errors import ConfigurationError as ConfigurationError
    from llm_effects.values.errors import ContentRefused as ContentRefused
    from llm_effects.values.errors import ContextTooLarge as ContextTooLarge
    from llm_effects.values.errors import ConversationConflict as ConversationConflict
    from llm_effects.values.errors import Fallback as Fallback
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
    from llm_effects.values.errors import checked as checked
    from llm_effects.values.errors import describe as describe
    from llm_effects.values.errors import fallback_for as fallback_for
    from llm_effects.values.errors import is_retryable as is_retryable
    from llm_effects.values.events import Completed as Completed
    from llm_effects.values.events import ContentEvent as ContentEvent
    from llm_effects.values.events import Failed as Failed
    from llm_effects.values.events import ReasoningDelta as ReasoningDelta
    from llm_effects.values.events import Restarted as Restarted
    from llm_effects.values.events import Started as Started
    from llm_effects.values.events import StreamEvent as StreamEvent
    from llm_effects.values.events import TextDelta as TextDelta
    from llm_effects.values.events import ToolCallDelta as ToolCallDelta
    from llm_effects.values.messages import Citation as Citation
    from llm_effects.values.messages import Document as Document
    from llm_effects.values.messages import Image as Image
    from llm_effects.values.messages import Message as Message
    from llm_effects.values.messages import Origin as Origin
    from llm_effects.values.messages import Part as Part
    from llm_effects.values.messages import Reasoning as Reasoning
    from llm_effects.values.messages import Text as Text
    from llm_effects.values.messages import ToolCall as ToolCall
    from llm_effects.values.messages import ToolResult as ToolResult
    from llm_effects.values.records import CacheStats as CacheStats
    from llm_effects.values.records import LedgerRow as LedgerRow
    from llm_effects.values.records import ModelHealth as ModelHealth
    from llm_effects.values.records import Statistics as Statistics
    from llm_effects.values.requests import Allow as Allow
    from llm_effects.values.requests import CachePolicy as CachePolicy
    from llm_effects.values.requests import LLMRequest as LLMRequest
    from llm_effects.values.requests import Preferences as Preferences
    from llm_effects.values.requests import Recovery as Recovery
    from llm_effects.values.requests import TaskType as TaskType
    from llm_effects.values.requests import Tool as Tool
    from llm_effects.values.responses import Attempt as Attempt
    from llm_effects.values.responses import Cost as Cost
    from llm_effects.values.responses import FinishReason as FinishReason
    from llm_effects.values.responses import LLMResponse as LLMResponse
    from llm_effects.values.responses import Usage as Usage
    from llm_effects.values.responses import Vector as Vector
    from llm_effects.values.responses import Vectors as Vectors
    from llm_effects.values.secrets import Secret as Secret
    from llm_effects.values.validation import InvalidValue as InvalidValue

__all__ = [
    "Account",
    "Allow",
    "Approve",
    "Approved",
    "Attempt",
    "AuthenticationFailed",
    "BreakerConfig",
    "BudgetConfig",
    "BudgetExceeded",
    "Cache",
    "CacheConfig",
    "CachePolicy",
    "CacheStats",
    "Call",
    "Candidate",
    "Capabilities",
    "Cause",
    "Citation",
    "Clients",
    "Completed",
    "ConfigurationError",
    "ContentEvent",
    "ContentRefused",
    "ContextTooLarge",
    "Conversation",
    "ConversationConflict",
    "Conversations",
    "Cost",
    "Dimension",
    "Document",
    "Effect",
    "Embedder",
    "Embeddings",
    "Failed",
    "Fallback",
    "FinishReason",
    "Generate",
    "Health",
    "Hedges",
    "HedgingConfig",
    "History",
    "Hold",
    "Image",
    "InvalidRequest",
    "InvalidValue",
    "Journal",
    "JournalEntry",
    "LLMConfig",
    "LLMEnv",
    "LLMError",
    "LLMManager",
    "LLMRequest",
    "LLMResponse",
    "Late",
    "Ledger",
    "LedgerRow",
    "LeftOut",
    "Limits",
    "LimitsConfig",
    "MalformedResponse",
    "Message",
    "ModelConfig",
    "ModelHealth",
    "ModelUnavailable",
    "NetworkError",
    "Origin",
    "Part",
    "Percentiles",
    "Pieces",
    "Policy",
    "Preferences",
    "Price",
    "PriceChange",
    "PriceTier",
    "Prices",
    "Progress",
    "Provenance",
    "RateLimitExceeded",
    "Reasoning",
    "ReasoningDelta",
    "Recovery",
    "Refused",
    "Reply",
    "RequestFailed",
    "RequestTimeout",
    "Restarted",
    "Retries",
    "RetryBudgetConfig",
    "RoutingConfig",
    "RoutingDecision",
    "Schedule",
    "SchemaMismatch",
    "Scripted",
    "Secret",
    "Sink",
    "Started",
    "Statistics",
    "Step",
    "StorageConfig",
    "StorageFailed",
    "StoredMessage",
    "StreamEvent",
    "Structured",
    "Summary",
    "TaskType",
    "Telemetry",
    "TelemetryConfig",
    "Text",
    "TextDelta",
    "Tokens",
    "Tool",
    "ToolAnswer",
    "ToolCall",
    "ToolCallDelta",
    "ToolEnd",
    "ToolEvent",
    "ToolFinished",
    "ToolFunction",
    "ToolLimits",
    "ToolOutcome",
    "ToolResult",
    "ToolRun",
    "ToolSink",
    "ToolStarted",
    "ToolStep",
    "Toolkit",
    "Trail",
    "Turn",
    "TurnState",
    "Usage",
    "UsageReport",
    "UsageRow",
    "Vector",
    "Vectors",
    "Verdict",
    "answer",
    "append_messages",
    "ask",
    "cache_key",
    "cache_stats",
    "check_health",
    "check_local_model_health",
    "checked",
    "clear",
    "converse",
    "create_default_llm_manager",
    "create_default_local_client",
    "delete_conversation",
    "describe",
    "effect",
    "embed",
    "embedded_model",
    "explain",
    "exponential",
    "export_conversation",
    "fail",
    "failing",
    "fallback",
    "fallback_for",
    "file_journal",
    "fork_conversation",
    "from_result",
    "gather",
    "generate",
    "generate_as",
    "generate_each",
    "generate_many",
    "hedge",
    "import_conversation",
    "invalidate",
    "is_retryable",
    "jittered",
    "layered",
    "list_conversations",
    "load_config",
    "load_conversation",
    "make_llm_manager",
    "make_model_router",
    "open_env",
    "open_stream",
    "race",
    "read_document",
    "read_image",
    "rescue",
    "resolve_tool_call",
    "retry",
    "run_in_virtual_time",
    "run_tools",
    "scripted",
    "scripted_env",
    "settle",
    "start_conversation",
    "store_journal",
    "stream",
    "succeed",
    "then",
    "timeout",
    "to_csv",
    "to_json_lines",
    "tool",
    "tool_with_schema",
    "toolkit",
    "tools_by_schema",
    "up_to",
    "usage_report",
    "using",
    "within",
]

_HOMES = {
    "batches.journals": "Journal file_journal store_journal",
    "batches.runs": "Progress generate_each generate_many",
    "clients.health_checks": "check_health check_local_model_health",
    "config": "LLMConfig",
    "config.loading": "embedded_model load_config",
    "config.models": "Capabilities ModelConfig Price PriceChange PriceTier",
    "config.routing": "BreakerConfig HedgingConfig RetryBudgetConfig RoutingConfig",
    "config.services": "BudgetConfig CacheConfig LimitsConfig StorageConfig TelemetryConfig",
    "conversations.converse": "converse",
    "conversations.operations": "append_messages delete_conversation export_conversation fork_conversation import_conversation list_conversations load_conversation start_conversation",
    "effects.call": "Call Sink Trail",
    "effects.combinators": "fallback gather hedge race retry timeout using",
    "effects.effect": "Effect Generate Policy ask effect fail from_result rescue settle succeed then",
    "effects.env": "Cache Clients Conversations Embedder Health Hedges LLMEnv Ledger Limits Prices Retries Telemetry Tokens",
    "effects.files": "read_document read_image",
    "effects.schedules": "Schedule Step exponential jittered up_to within",
    "embeddings": "Embeddings embed",
    "limits.budgets": "Account Hold",
    "manager": "LLMManager create_default_llm_manager create_default_local_client make_llm_manager make_model_router open_env",
    "pipeline": "explain generate open_stream stream",
    "policies": "layered",
    "policies.cache": "cache_key cache_stats clear invalidate",
    "reports.exports": "to_csv to_json_lines",
    "reports.usage": "Dimension Percentiles UsageReport UsageRow usage_report",
    "routing.candidates": "Candidate LeftOut RoutingDecision",
    "structured.typed_answers": "Structured generate_as",
    "testing.scripted": "Late Pieces Reply Scripted answer failing scripted scripted_env",
    "testing.virtual_time": "run_in_virtual_time",
    "tools.by_schema": "tools_by_schema",
    "tools.journal": "resolve_tool_call",
    "tools.run": "run_tools",
    "tools.steps": "Approve Approved Refused ToolAnswer ToolEnd ToolEvent ToolFinished ToolLimits ToolOutcome ToolRun ToolSink ToolStarted ToolStep Verdict",
    "tools.tool": "ToolFunction Toolkit tool tool_with_schema toolkit",
    "values.conversations": "Conversation History JournalEntry Provenance StoredMessage Summary Turn TurnState",
    "values.errors": "AuthenticationFailed BudgetExceeded Cause ConfigurationError ContentRefused ContextTooLarge ConversationConflict Fallback InvalidRequest LLMError MalformedResponse ModelUnavailable NetworkError RateLimitExceeded RequestFailed RequestTimeout SchemaMismatch StorageFailed checked describe fallback_for is_retryable",
    "values.events": "Completed ContentEvent Failed ReasoningDelta Restarted Started StreamEvent TextDelta ToolCallDelta",
    "values.messages": "Citation Document Image Message Origin Part Reasoning Text ToolCall ToolResult",
    "values.records": "CacheStats LedgerRow ModelHealth Statistics",
    "values.requests": "Allow CachePolicy LLMRequest Preferences Recovery TaskType Tool",
    "values.responses": "Attempt Cost FinishReason LLMResponse Usage Vector Vectors",
    "values.secrets": "Secret",
    "values.validation": "InvalidValue",
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
