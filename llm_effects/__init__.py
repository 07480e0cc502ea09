"""One typed, composable, testable ``generate`` over GPT, Claude and local models.

Every name is loaded when it is first used: importing the package does no I/O and loads no other library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_effects.caching import cache_key as cache_key
    from llm_effects.caching import cache_stats as cache_stats
    from llm_effects.caching import clear as clear
    from llm_effects.caching import invalidate as invalidate
    from llm_effects.calls import Call as Call
    from llm_effects.calls import Sink as Sink
    from llm_effects.calls import Trail as Trail
    from llm_effects.config import BudgetConfig as BudgetConfig
    from llm_effects.config import CacheConfig as CacheConfig
    from llm_effects.config import Capabilities as Capabilities
    from llm_effects.config import LLMConfig as LLMConfig
    from llm_effects.config import ModelConfig as ModelConfig
    from llm_effects.config import Price as Price
    from llm_effects.config import RoutingConfig as RoutingConfig
    from llm_effects.config import StorageConfig as StorageConfig
    from llm_effects.config import TelemetryConfig as TelemetryConfig
    from llm_effects.config.sources import load_config as load_config
    from llm_effects.config.variables import embedded_model as embedded_model
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
    from llm_effects.env import Cache as Cache
    from llm_effects.env import CacheStats as CacheStats
    from llm_effects.env import Clients as Clients
    from llm_effects.env import Conversations as Conversations
    from llm_effects.env import Health as Health
    from llm_effects.env import Ledger as Ledger
    from llm_effects.env import LedgerRow as LedgerRow
    from llm_effects.env import Limits as Limits
    from llm_effects.env import LLMEnv as LLMEnv
    from llm_effects.env import ModelHealth as ModelHealth
    from llm_effects.env import Prices as Prices
    from llm_effects.env import Statistics as Statistics
    from llm_effects.env import Telemetry as Telemetry
    from llm_effects.env import Tokens as Tokens
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
    from llm_effects.health import check_health as check_health
    from llm_effects.health import check_local_model_health as check_local_model_health
    from llm_effects.live import open_env as open_env
    from llm_effects.managers import LLMManager as LLMManager
    from llm_effects.managers import create_default_llm_manager as create_default_llm_manager
    from llm_effects.managers import create_default_local_client as create_default_local_client
    from llm_effects.managers import make_llm_manager as make_llm_manager
    from llm_effects.managers import make_model_router as make_model_router
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
    from llm_effects.routing import Candidate as Candidate
    from llm_effects.routing import RoutingDecision as RoutingDecision
    from llm_effects.schedules import Schedule as Schedule
    from llm_effects.schedules import Step as Step
    from llm_effects.schedules import exponential as exponential
    from llm_effects.schedules import jittered as jittered
    from llm_effects.schedules import up_to as up_to
    from llm_effects.schedules import within as within
    from llm_effects.secrets import Secret as Secret
    from llm_effects.streams import open_stream as open_stream
    from llm_effects.suitability import LeftOut as LeftOut
    from llm_effects.testing import Late as Late
    from llm_effects.testing import Pieces as Pieces
    from llm_effects.testing import Reply as Reply
    from llm_effects.testing import Scripted as Scripted
    from llm_effects.testing import answer as answer
    from llm_effects.testing import failing as failing
    from llm_effects.testing import run_in_virtual_time as run_in_virtual_time
    from llm_effects.testing import scripted as scripted
    from llm_effects.testing import scripted_env as scripted_env
    from llm_effects.values import InvalidValue as InvalidValue

__all__ = [
    "Allow",
    "Attempt",
    "AuthenticationFailed",
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
    "Clients",
    "Completed",
    "ConfigurationError",
    "ContentEvent",
    "ContentRefused",
    "ContextTooLarge",
    "ConversationConflict",
    "Conversations",
    "Cost",
    "Effect",
    "Failed",
    "Fallback",
    "FinishReason",
    "Generate",
    "Health",
    "Image",
    "InvalidRequest",
    "InvalidValue",
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
    "MalformedResponse",
    "Message",
    "ModelConfig",
    "ModelHealth",
    "ModelUnavailable",
    "NetworkError",
    "Origin",
    "Part",
    "Pieces",
    "Policy",
    "Preferences",
    "Price",
    "Prices",
    "RateLimitExceeded",
    "Reasoning",
    "ReasoningDelta",
    "Recovery",
    "Reply",
    "RequestFailed",
    "RequestTimeout",
    "Restarted",
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
    "StreamEvent",
    "TaskType",
    "Telemetry",
    "TelemetryConfig",
    "Text",
    "TextDelta",
    "Tokens",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolResult",
    "Trail",
    "Usage",
    "answer",
    "ask",
    "cache_key",
    "cache_stats",
    "check_health",
    "check_local_model_health",
    "checked",
    "clear",
    "create_default_llm_manager",
    "create_default_local_client",
    "describe",
    "effect",
    "embedded_model",
    "explain",
    "exponential",
    "fail",
    "failing",
    "fallback_for",
    "from_result",
    "generate",
    "invalidate",
    "is_retryable",
    "jittered",
    "layered",
    "load_config",
    "make_llm_manager",
    "make_model_router",
    "open_env",
    "open_stream",
    "rescue",
    "run_in_virtual_time",
    "scripted",
    "scripted_env",
    "settle",
    "stream",
    "succeed",
    "then",
    "up_to",
    "within",
]

_HOMES = {
    "caching": "cache_key cache_stats clear invalidate",
    "calls": "Call Sink Trail",
    "config": "BudgetConfig CacheConfig Capabilities LLMConfig ModelConfig Price RoutingConfig StorageConfig TelemetryConfig",
    "config.variables": "embedded_model",
    "config.sources": "load_config",
    "decisions": "Fallback describe fallback_for is_retryable",
    "effects": "Effect Generate Policy ask effect fail from_result rescue settle succeed then",
    "env": "Cache CacheStats Clients Conversations Health LLMEnv Ledger LedgerRow Limits ModelHealth Prices Statistics Telemetry Tokens",
    "errors": "AuthenticationFailed BudgetExceeded Cause ConfigurationError ContentRefused ContextTooLarge ConversationConflict InvalidRequest LLMError MalformedResponse ModelUnavailable NetworkError RateLimitExceeded RequestFailed RequestTimeout SchemaMismatch StorageFailed",
    "events": "Completed ContentEvent Failed ReasoningDelta Restarted Started StreamEvent TextDelta ToolCallDelta",
    "exceptions": "checked",
    "health": "check_health check_local_model_health",
    "live": "open_env",
    "managers": "LLMManager create_default_llm_manager create_default_local_client make_llm_manager make_model_router",
    "messages": "Image Message Origin Part Reasoning Text ToolCall ToolResult",
    "pipeline": "explain generate stream",
    "policies": "layered",
    "requests": "Allow CachePolicy LLMRequest Preferences Recovery TaskType Tool",
    "responses": "Attempt Cost FinishReason LLMResponse Usage",
    "routing": "Candidate RoutingDecision",
    "schedules": "Schedule Step exponential jittered up_to within",
    "secrets": "Secret",
    "streams": "open_stream",
    "suitability": "LeftOut",
    "testing": "Late Pieces Reply Scripted answer failing run_in_virtual_time scripted scripted_env",
    "values": "InvalidValue",
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
