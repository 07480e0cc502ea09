"""The layers of the pipeline, one module each."""

from llm_effects.effects.effect import layer as layer
from llm_effects.effects.effect import layered as layered
from llm_effects.policies.budget import with_budget as with_budget
from llm_effects.policies.cache import cache_stats as cache_stats
from llm_effects.policies.cache import clear as clear
from llm_effects.policies.cache import invalidate as invalidate
from llm_effects.policies.cache import with_cache as with_cache
from llm_effects.policies.circuit_breaker import with_circuit_breaker as with_circuit_breaker
from llm_effects.policies.coalescing import with_coalescing as with_coalescing
from llm_effects.policies.complete import complete as complete
from llm_effects.policies.deadline import with_deadline as with_deadline
from llm_effects.policies.hedging import with_hedging as with_hedging
from llm_effects.policies.limits import with_limits as with_limits
from llm_effects.policies.recording import with_recording as with_recording
from llm_effects.policies.repair import with_repair as with_repair
from llm_effects.policies.retries import with_retries as with_retries
from llm_effects.policies.routing import with_routing as with_routing
from llm_effects.policies.tracing import with_tracing as with_tracing
