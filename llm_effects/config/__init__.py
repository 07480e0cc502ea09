"""The configuration: frozen values, and loading them from environment variables, a mapping or a TOML file."""

from llm_effects.config.config import LLMConfig as LLMConfig
from llm_effects.config.models import Capabilities as Capabilities
from llm_effects.config.models import Family as Family
from llm_effects.config.models import ModelConfig as ModelConfig
from llm_effects.config.models import Price as Price
from llm_effects.config.models import PriceChange as PriceChange
from llm_effects.config.models import PriceTier as PriceTier
from llm_effects.config.models import WireVersion as WireVersion
from llm_effects.config.routing import BreakerConfig as BreakerConfig
from llm_effects.config.routing import HedgingConfig as HedgingConfig
from llm_effects.config.routing import RetryBudgetConfig as RetryBudgetConfig
from llm_effects.config.routing import RoutingConfig as RoutingConfig
from llm_effects.config.routing import Strategy as Strategy
from llm_effects.config.services import KEEPABLE as KEEPABLE
from llm_effects.config.services import BudgetConfig as BudgetConfig
from llm_effects.config.services import CacheConfig as CacheConfig
from llm_effects.config.services import LimitsConfig as LimitsConfig
from llm_effects.config.services import ServeConfig as ServeConfig
from llm_effects.config.services import StorageConfig as StorageConfig
from llm_effects.config.services import TelemetryConfig as TelemetryConfig
from llm_effects.config.services import TransportKind as TransportKind
from llm_effects.config.services import Window as Window
