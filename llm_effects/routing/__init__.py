"""Which model is asked: a pure ranking of the configured ones.

First a filter by what a model can do, then the order of the strategy. Nothing here does I/O: the same inputs
give the same decision, which ``explain`` shows and ``generate`` follows.
"""

from collections.abc import Iterable
from typing import Protocol, TypeVar

from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.config import LLMConfig, RoutingConfig
from llm_effects.decisions import Fallback, fallback_for
from llm_effects.errors import LLMError
from llm_effects.fleet import targets_of
from llm_effects.requests import Allow, LLMRequest
from llm_effects.responses import Cost
from llm_effects.routing.candidates import Facts, RoutingDecision
from llm_effects.routing.places import Ranked
from llm_effects.routing.rankings import is_exploring, ranked
from llm_effects.routing.suitability import Sieved, sieved


def order(request: LLMRequest, config: LLMConfig, facts: Facts) -> Result[tuple[Ranked, ...], LLMError]:
    """Give the models that may answer a request in their order; nothing is worked out that does not decide it."""
    return _sieved(request, config, facts).map(lambda found: ranked(request, found.suited, config.routing, facts))


def route(request: LLMRequest, config: LLMConfig, facts: Facts) -> Result[RoutingDecision, LLMError]:
    """Decide as ``order`` does, and show every number."""
    return _sieved(request, config, facts).map(lambda found: _decision(request, found, config.routing, facts))


def _sieved(request: LLMRequest, config: LLMConfig, facts: Facts) -> Result[Sieved, LLMError]:
    targets = targets_of(config)
    if not is_successful(targets):
        return Failure(targets.failure())
    return sieved(request, targets.unwrap(), facts.tokens)


def _decision(request: LLMRequest, found: Sieved, routing: RoutingConfig, facts: Facts) -> RoutingDecision:
    return RoutingDecision(
        task_type=request.task_type,
        strategy=routing.strategy,
        candidates=tuple(each.told() for each in ranked(request, found.suited, routing, facts)),
        left_out=found.left_out,
        drawn=facts.drawn,
        exploring=is_exploring(routing, facts.drawn),
        streamed=facts.streamed,
    )


class Known(Protocol):
    """What decides who may still be tried."""

    @property
    def context_length(self) -> int | None:
        """Tokens of its window, where they are known."""
        ...

    @property
    def estimated_cost(self) -> Cost:
        """What the request would cost there."""
        ...


_Known = TypeVar("_Known", bound=Known)


def left_after(error: LLMError, failed: _Known, rest: Iterable[_Known], allow: frozenset[Allow]) -> tuple[_Known, ...]:
    """Give the candidates that may still be tried after one failed: what ``fallback_for`` leaves of the rest."""
    match fallback_for(error):
        case Fallback.ANY:
            return tuple(rest)
        case Fallback.NEVER:
            return ()
        case Fallback.IF_ALLOWED:
            return tuple(rest) if Allow.FALLBACK_ON_REFUSAL in allow else ()
        case Fallback.LARGER_WINDOW:
            return tuple(each for each in rest if _larger(each, failed))
        case Fallback.CHEAPER:
            return tuple(each for each in rest if _cheaper(each, failed)) if Allow.CHEAPER_MODEL in allow else ()


def _larger(other: Known, failed: Known) -> bool:
    if other.context_length is None or failed.context_length is None:
        return True
    return other.context_length > failed.context_length


def _cheaper(other: Known, failed: Known) -> bool:
    mine, theirs = failed.estimated_cost.usd, other.estimated_cost.usd
    return theirs is not None and (mine is None or theirs < mine)
