"""A model in the order of a decision, and what is worked out of the facts about it."""

from typing import Final, final

from attrs import evolve, field, frozen

from llm_effects.experience import faded, kept
from llm_effects.providers.targets import Target
from llm_effects.records import Statistics
from llm_effects.requests import LLMRequest
from llm_effects.responses import Cost, Usage
from llm_effects.routing.candidates import EXPECTED_ANSWER, Candidate, Facts

_NOTHING: Final = Statistics()


@final
@frozen
class Ranked:
    """A model in its place. Its other numbers are worked out where somebody asks for them: most calls never do."""

    target: Target
    score: float
    request: LLMRequest = field(repr=False)
    facts: Facts = field(repr=False)

    @property
    def model(self) -> str:
        """The model's configured name."""
        return self.target.name

    @property
    def context_length(self) -> int | None:
        """Tokens of its window, where they are known."""
        return self.target.capabilities.context_length

    @property
    def estimated_cost(self) -> Cost:
        """What this request would cost there."""
        return estimated_cost(self.request, self.target, self.facts)

    def told(self) -> Candidate:
        """Show every number."""
        source = self.facts.prices.source(self.model, self.facts.at)
        known = known_of(self.target, self.facts)
        return evolve(known, score=self.score, estimated_cost=self.estimated_cost, price_source=source)


def estimated_cost(request: LLMRequest, target: Target, facts: Facts) -> Cost:
    """Estimate what a request costs at a model: its prompt, and the longest answer that it permits."""
    answer = request.preferences.max_tokens or target.config.max_tokens or EXPECTED_ANSWER
    return facts.prices.cost(target.name, Usage(input_tokens=facts.tokens, output_tokens=answer), facts.at)


def is_away(model: str, facts: Facts) -> bool:
    """Whether a model asked for a pause that is not over, or is left alone by its breaker."""
    known = facts.statistics.get(model)
    parked = known is not None and known.parked_until > facts.now
    return parked or facts.opened.get(model, facts.now) > facts.now


def known_of(target: Target, facts: Facts) -> Candidate:
    """Put together what is known of a model: all but its score and what a request costs there."""
    name = target.name
    known = facts.statistics.get(name, _NOTHING)
    confidence = kept(known, facts.at)
    return Candidate(
        model=name,
        provider=target.preset.name,
        family=target.preset.family,
        estimated_tokens=facts.tokens,
        expected_latency_ms=known.latency_ms,
        expected_first_content_ms=known.first_content_ms,
        expected_failure_ms=known.failure_ms,
        error_rate=faded(known.error_rate, confidence),
        confidence=confidence,
        attempts=known.attempts,
        calls_since=facts.calls - known.calls if known.attempts else 0,
        context_length=target.capabilities.context_length,
        parked_s=max(0.0, known.parked_until - facts.now),
        open_s=max(0.0, facts.opened.get(name, facts.now) - facts.now),
        last_resort=target.config.last_resort,
    )
