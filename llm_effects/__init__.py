"""One typed, composable, testable ``generate`` over GPT, Claude and local models.

Every name is loaded when it is first used: importing the package does no I/O and loads no other library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_effects.batches import generate_each as generate_each
    from llm_effects.batches import generate_many as generate_many
    from llm_effects.batches.file_journals import file_journal as file_journal
    from llm_effects.batches.journals import Journal as Journal
    from llm_effects.batches.runs import Progress as Progress
    from llm_effects.batches.store_journals import store_journal as store_journal
    from llm_effects.budgets import Account as Account
    from llm_effects.budgets import Hold as Hold
    from llm_effects.caching import cache_key as cache_key
    from llm_effects.caching import cache_stats as cache_stats
    from llm_effects.caching import clear as clear
    from llm_effects.caching import invalidate as invalidate
    from llm_effects.calls import Call as Call
    from llm_effects.calls import Sink as Sink
    from llm_effects.calls import Trail as Trail
    from llm_effects.combinators import fallback as fallback
    from llm_effects.combinators import retry as retry
    from llm_effects.combinators import timeout as timeout
    from llm_effects.combinators import using as using
    from llm_effects.concurrency import gather as gather
    from llm_effects.concurrency import hedge as hedge
    from llm_effects.concurrency import race as race
    from llm_effects.config import BreakerConfig as BreakerConfig
    from llm_effects.config import BudgetConfig as BudgetConfig
    from llm_effects.config import CacheConfig as CacheConfig
    from llm_effects.config import Capabilities as Capabilities
    from llm_effects.config import HedgingConfig as HedgingConfig
    from llm_effects.config import LimitsConfig as LimitsConfig
    from llm_effects.config import LLMConfig as LLMConfig
    from llm_effects.config import ModelConfig as ModelConfig
    from llm_effects.config import Price as Price
    from llm_effects.config import PriceChange as PriceChange
    from llm_effects.config import PriceTier as PriceTier
    from llm_effects.config import RetryBudgetConfig as RetryBudgetConfig
    from llm_effects.config import RoutingConfig as RoutingConfig
    from llm_effects.config import StorageConfig as StorageConfig
    from llm_effects.config import TelemetryConfig as TelemetryConfig
    from llm_effects.config.sources import load_config as load_config
    from llm_effects.config.variables import embedded_model as embedded_model
    from llm_effects.conversations import append_messages as append_messages
    from llm_effects.conversations import delete_conversation as delete_conversation
    from llm_effects.conversations import fork_conversation as fork_conversation
    from llm_effects.conversations import list_conversations as list_conversations
    from llm_effects.conversations import load_conversation as load_conversation
    from llm_effects.conversations import start_conversation as start_conversation
    from llm_effects.conversations.archives import export_conversation as export_conversation
    from llm_effects.conversations.archives import import_conversation as import_conversation
    from llm_effects.conversations.dialogues import converse as converse
    from llm_effects.decisions import Fallback as Fallback
    from llm_effects.decisions import describe as describe
    from llm_effects.decisions import fallback_for as fallback_for
    from llm_effects.decisions import is_retryable as is_retryable
    from llm_effects.effects import Effect as Effect
    from llm_effects.effects import Generate as Generate
    from llm_effects.effects import Policy as Policy
    from llm_effects.effects import ask as ask
    from llm_effects.effects import effect as effect
    from llm_effects.effects import fail as fail
    from llm_effects.effects import from_result as from_result
    from llm_effects.effects import rescue as rescue
    from llm_effects.effects import settle as settle
    from llm_effects.effects import succeed as succeed
    from llm_effects.effects import then as then
    from llm_effects.embeddings import Embeddings as Embeddings
    from llm_effects.embeddings import embed as embed
    from llm_effects.env import LLMEnv as LLMEnv
    from llm_effects.errors import AuthenticationFailed as AuthenticationFailed
    from llm_effects.errors import BudgetExceeded as BudgetExceeded
    from llm_effects.errors import Cause as Cause
    from llm_effects.errors import ConfigurationError as ConfigurationError
    from llm_effects.errors import ContentRefused as ContentRefused
    from llm_effects.errors import ContextTooLarge as ContextTooLarge
    from llm_effects.errors import ConversationConflict as ConversationConflict
    from llm_effects.errors import InvalidRequest as InvalidRequest
    from llm_effects.errors import LLMError as LLMError
    from llm_effects.errors import MalformedResponse as MalformedResponse
    from llm_effects.errors import ModelUnavailable as ModelUnavailable
    from llm_effects.errors import NetworkError as NetworkError
    from llm_effects.errors import RateLimitExceeded as RateLimitExceeded
    from llm_effects.errors import RequestFailed as RequestFailed
    from llm_effects.errors import RequestTimeout as RequestTimeout
    from llm_effects.errors import SchemaMismatch as SchemaMismatch
    from llm_effects.errors import StorageFailed as StorageFailed
    from llm_effects.events import Completed as Completed
    from llm_effects.events import ContentEvent as ContentEvent
    from llm_effects.events import Failed as Failed
    from llm_effects.events import ReasoningDelta as ReasoningDelta
    from llm_effects.events import Restarted as Restarted
    from llm_effects.events import Started as Started
    from llm_effects.events import StreamEvent as StreamEvent
    from llm_effects.events import TextDelta as TextDelta
    from llm_effects.events import ToolCallDelta as ToolCallDelta
    from llm_effects.exceptions import checked as checked
    from llm_effects.exports import to_csv as to_csv
    from llm_effects.exports import to_json_lines as to_json_lines
    from llm_effects.files import read_document as read_document
    from llm_effects.files import read_image as read_image
    from llm_effects.guards import Hedges as Hedges
    from llm_effects.guards import Limits as Limits
    from llm_effects.guards import Retries as Retries
    from llm_effects.health import check_health as check_health
    from llm_effects.health import check_local_model_health as check_local_model_health
    from llm_effects.ledgers import Ledger as Ledger
    from llm_effects.live import open_env as open_env
    from llm_effects.managers import LLMManager as LLMManager
    from llm_effects.managers import create_default_llm_manager as create_default_llm_manager
    from llm_effects.managers import create_default_local_client as create_default_local_client
    from llm_effects.managers import make_llm_manager as make_llm_manager
    from llm_effects.managers import make_model_router as make_model_router
    from llm_effects.messages import Citation as Citation
    from llm_effects.messages import Document as Document
    from llm_effects.messages import Image as Image
    from llm_effects.messages import Message as Message
    from llm_effects.messages import Origin as Origin
    from llm_effects.messages import Part as Part
    from llm_effects.messages import Reasoning as Reasoning
    from llm_effects.messages import Text as Text
    from llm_effects.messages import ToolCall as ToolCall
    from llm_effects.messages import ToolResult as ToolResult
    from llm_effects.pipeline import explain as explain
    from llm_effects.pipeline import generate as generate
    from llm_effects.pipeline import stream as stream
    from llm_effects.policies import layered as layered
    from llm_effects.records import CacheStats as CacheStats
    from llm_effects.records import LedgerRow as LedgerRow
    from llm_effects.records import ModelHealth as ModelHealth
    from llm_effects.records import Statistics as Statistics
    from llm_effects.reports import usage_report as usage_report
    from llm_effects.requests import Allow as Allow
    from llm_effects.requests import CachePolicy as CachePolicy
    from llm_effects.requests import LLMRequest as LLMRequest
    from llm_effects.requests import Preferences as Preferences
    from llm_effects.requests import Recovery as Recovery
    from llm_effects.requests import TaskType as TaskType
    from llm_effects.requests import Tool as Tool
    from llm_effects.responses import Attempt as Attempt
    from llm_effects.responses import Cost as Cost
    from llm_effects.responses import FinishReason as FinishReason
    from llm_effects.responses import LLMResponse as LLMResponse
    from llm_effects.responses import Usage as Usage
    from llm_effects.routing.candidates import Candidate as Candidate
    from llm_effects.routing.candidates import RoutingDecision as RoutingDecision
    from llm_effects.routing.suitability import LeftOut as LeftOut
    from llm_effects.schedules import Schedule as Schedule
    from llm_effects.schedules import Step as Step
    from llm_effects.schedules import exponential as exponential
    from llm_effects.schedules import jittered as jittered
    from llm_effects.schedules import up_to as up_to
    from llm_effects.schedules import within as within
    from llm_effects.secrets import Secret as Secret
    from llm_effects.services import Cache as Cache
    from llm_effects.services import Clients as Clients
    from llm_effects.services import Conversations as Conversations
    from llm_effects.services import Embedder as Embedder
    from llm_effects.services import Health as Health
    from llm_effects.services import Prices as Prices
    from llm_effects.services import Telemetry as Telemetry
    from llm_effects.services import Tokens as Tokens
    from llm_effects.streams import open_stream as open_stream
    from llm_effects.structured import Structured as Structured
    from llm_effects.structured import generate_as as generate_as
    from llm_effects.testing import Late as Late
    from llm_effects.testing import Pieces as Pieces
    from llm_effects.testing import Reply as Reply
    from llm_effects.testing import Scripted as Scripted
    from llm_effects.testing import answer as answer
    from llm_effects.testing import failing as failing
    from llm_effects.testing import run_in_virtual_time as run_in_virtual_time
    from llm_effects.testing import scripted as scripted
    from llm_effects.testing import scripted_env as scripted_env
    from llm_effects.toolkits import ToolFunction as ToolFunction
    from llm_effects.toolkits import Toolkit as Toolkit
    from llm_effects.toolkits import tool as tool
    from llm_effects.toolkits import tool_with_schema as tool_with_schema
    from llm_effects.toolkits import toolkit as toolkit
    from llm_effects.toolkits.by_schema import tools_by_schema as tools_by_schema
    from llm_effects.toolkits.runs import run_tools as run_tools
    from llm_effects.toolkits.steps import Approve as Approve
    from llm_effects.toolkits.steps import Approved as Approved
    from llm_effects.toolkits.steps import Refused as Refused
    from llm_effects.toolkits.steps import ToolAnswer as ToolAnswer
    from llm_effects.toolkits.steps import ToolEnd as ToolEnd
    from llm_effects.toolkits.steps import ToolEvent as ToolEvent
    from llm_effects.toolkits.steps import ToolFinished as ToolFinished
    from llm_effects.toolkits.steps import ToolLimits as ToolLimits
    from llm_effects.toolkits.steps import ToolOutcome as ToolOutcome
    from llm_effects.toolkits.steps import ToolRun as ToolRun
    from llm_effects.toolkits.steps import ToolSink as ToolSink
    from llm_effects.toolkits.steps import ToolStarted as ToolStarted
    from llm_effects.toolkits.steps import ToolStep as ToolStep
    from llm_effects.toolkits.steps import Verdict as Verdict
    from llm_effects.toolkits.unknowns import resolve_tool_call as resolve_tool_call
    from llm_effects.turns import Conversation as Conversation
    from llm_effects.turns import History as History
    from llm_effects.turns import JournalEntry as JournalEntry
    from llm_effects.turns import Provenance as Provenance
    from llm_effects.turns import StoredMessage as StoredMessage
    from llm_effects.turns import Summary as Summary
    from llm_effects.turns import Turn as Turn
    from llm_effects.turns import TurnState as TurnState
    from llm_effects.usages import Dimension as Dimension
    from llm_effects.usages import Percentiles as Percentiles
    from llm_effects.usages import UsageReport as UsageReport
    from llm_effects.usages import UsageRow as UsageRow
    from llm_effects.values import InvalidValue as InvalidValue
    from llm_effects.vectors import Vector as Vector
    from llm_effects.vectors import Vectors as Vectors

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
    "batches": "generate_each generate_many",
    "batches.file_journals": "file_journal",
    "batches.journals": "Journal",
    "batches.runs": "Progress",
    "batches.store_journals": "store_journal",
    "budgets": "Account Hold",
    "caching": "cache_key cache_stats clear invalidate",
    "calls": "Call Sink Trail",
    "combinators": "fallback retry timeout using",
    "concurrency": "gather hedge race",
    "config": "BreakerConfig BudgetConfig CacheConfig Capabilities HedgingConfig LLMConfig LimitsConfig ModelConfig Price PriceChange PriceTier RetryBudgetConfig RoutingConfig StorageConfig TelemetryConfig",
    "config.sources": "load_config",
    "config.variables": "embedded_model",
    "conversations": "append_messages delete_conversation fork_conversation list_conversations load_conversation start_conversation",
    "conversations.archives": "export_conversation import_conversation",
    "conversations.dialogues": "converse",
    "decisions": "Fallback describe fallback_for is_retryable",
    "effects": "Effect Generate Policy ask effect fail from_result rescue settle succeed then",
    "embeddings": "Embeddings embed",
    "env": "LLMEnv",
    "errors": "AuthenticationFailed BudgetExceeded Cause ConfigurationError ContentRefused ContextTooLarge ConversationConflict InvalidRequest LLMError MalformedResponse ModelUnavailable NetworkError RateLimitExceeded RequestFailed RequestTimeout SchemaMismatch StorageFailed",
    "events": "Completed ContentEvent Failed ReasoningDelta Restarted Started StreamEvent TextDelta ToolCallDelta",
    "exceptions": "checked",
    "exports": "to_csv to_json_lines",
    "files": "read_document read_image",
    "guards": "Hedges Limits Retries",
    "health": "check_health check_local_model_health",
    "ledgers": "Ledger",
    "live": "open_env",
    "managers": "LLMManager create_default_llm_manager create_default_local_client make_llm_manager make_model_router",
    "messages": "Citation Document Image Message Origin Part Reasoning Text ToolCall ToolResult",
    "pipeline": "explain generate stream",
    "policies": "layered",
    "records": "CacheStats LedgerRow ModelHealth Statistics",
    "reports": "usage_report",
    "requests": "Allow CachePolicy LLMRequest Preferences Recovery TaskType Tool",
    "responses": "Attempt Cost FinishReason LLMResponse Usage",
    "routing.candidates": "Candidate RoutingDecision",
    "routing.suitability": "LeftOut",
    "schedules": "Schedule Step exponential jittered up_to within",
    "secrets": "Secret",
    "services": "Cache Clients Conversations Embedder Health Prices Telemetry Tokens",
    "streams": "open_stream",
    "structured": "Structured generate_as",
    "testing": "Late Pieces Reply Scripted answer failing run_in_virtual_time scripted scripted_env",
    "toolkits": "ToolFunction Toolkit tool tool_with_schema toolkit",
    "toolkits.by_schema": "tools_by_schema",
    "toolkits.runs": "run_tools",
    "toolkits.steps": "Approve Approved Refused ToolAnswer ToolEnd ToolEvent ToolFinished ToolLimits ToolOutcome ToolRun ToolSink ToolStarted ToolStep Verdict",
    "toolkits.unknowns": "resolve_tool_call",
    "turns": "Conversation History JournalEntry Provenance StoredMessage Summary Turn TurnState",
    "usages": "Dimension Percentiles UsageReport UsageRow",
    "values": "InvalidValue",
    "vectors": "Vector Vectors",
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
