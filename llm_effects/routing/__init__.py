"""Which model is asked: pure ranking, prices and statistics."""

from llm_effects.routing.candidates import Candidate as Candidate
from llm_effects.routing.candidates import Excluded as Excluded
from llm_effects.routing.candidates import RoutingDecision as RoutingDecision
