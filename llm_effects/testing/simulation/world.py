"""Worlds: what may happen to models and callers, and the scenarios that a seed draws from them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from random import Random
from typing import Final, Literal, TypeAlias, final, get_args

from attrs import evolve, field, frozen
from returns.pipeline import is_successful

from llm_effects.config import LLMConfig
from llm_effects.config.models import Capabilities, ModelConfig, Price
from llm_effects.config.routing import BreakerConfig, HedgingConfig, RoutingConfig
from llm_effects.config.services import BudgetConfig, CacheConfig, LimitsConfig
from llm_effects.providers.registry import targets_of
from llm_effects.values.errors import describe
from llm_effects.values.messages import Message
from llm_effects.values.requests import Allow, CachePolicy, LLMRequest, Preferences, Recovery, TaskType
from llm_effects.values.validation import each_of, invalid, number, suggestion

FaultKind: TypeAlias = Literal[
    "overloaded",  # a server error, 503
    "throttled",  # a rate limit, 429, with or without a pause
    "refused",  # no server listens
    "reset",  # the connection breaks, before or after the first content
    "stalled",  # no answer, and no more of one that began
    "slow",  # ten times slower
    "malformed",  # an unreadable answer, or a stream that ends early
    "wrong",  # not what was asked for, cut off, or with an impossible count of tokens
    "refusal",  # the content filter refuses
    "unauthorized",  # the key is rejected
]
"""A way in which a model misbehaves for a while."""

CallerKind: TypeAlias = Literal["generate", "stream", "pull", "converse", "tools", "typed", "many"]
"""What a caller does: it generates, streams, pulls a stream, takes a turn, runs tools, asks for a type, or a batch."""

SLOWER: Final = 10.0
"""How much slower a model is while it is ``slow``."""

LONGEST: Final = 3.0
"""The longest time of a healthy model's answer, in medians."""

WORDS: Final = 24
"""Most words, and so most tokens, of a simulated answer."""


def drawn(*parts: object) -> Random:
    """Return random numbers that depend on these parts only, so that what is left out of a scenario changes no other.

    >>> drawn(7, "faults").random() == drawn(7, "faults").random()
    True
    """
    return Random(" ".join(map(str, parts)))  # noqa: S311 - no secret


@final
@frozen(kw_only=True)
class Behaviour:
    """A model without a fault: the median of its answers in seconds, their spread, and its share of errors.

    The times are log-normal with the standard deviation ``spread``, at most ``LONGEST`` medians.
    """

    median_s: float = 1.0
    spread: float = 0.4
    error_rate: float = 0.0

    def latency_s(self, draw: Random) -> float:
        """Draw the time of an answer, in seconds."""
        return self.median_s * min(draw.lognormvariate(0.0, self.spread), LONGEST)


@final
@frozen(kw_only=True)
class Fault:
    """A model that misbehaves from ``at`` on, for some ``seconds``, in a ``share`` (0 to 1) of its calls."""

    model: str
    kind: FaultKind
    at: float
    seconds: float
    share: float = 1.0

    def overlaps(self, since: float, until: float) -> bool:
        """Return whether the fault is active at any time between two times."""
        return self.at <= until and since < self.at + self.seconds


@final
@frozen(kw_only=True)
class Caller:
    """One caller: when it calls, what, and how it behaves.

    It leaves after so many seconds, if ``leaves_after`` is set, and takes ``pause`` seconds over each event of a
    stream. Turns of one ``conversation`` share it, and callers with the same ``turn`` repeat one turn.
    """

    number: int
    at: float
    kind: CallerKind
    request: LLMRequest
    leaves_after: float | None = None
    pause: float = 0.0
    conversation: str = ""
    turn: str = ""


@final
@frozen(kw_only=True)
class Scenario:
    """All that happens in one run, drawn by a seed: the same scenario always runs the same way."""

    seed: int
    config: LLMConfig
    models: Mapping[str, Behaviour]
    faults: tuple[Fault, ...] = ()
    callers: tuple[Caller, ...] = ()

    def behaviour(self, model: str) -> Behaviour:
        """Return the behaviour of a model."""
        return self.models.get(model, _USUAL)

    def keeping(self, callers: Iterable[int] | None, faults: Iterable[int] | None) -> Scenario:
        """Return the same scenario with only these callers, by number, and these faults, by place; all if ``None``."""
        kept = self.callers if callers is None else _numbered(self.callers, callers)
        places = range(len(self.faults)) if faults is None else sorted({*faults})
        _check_numbers("faults", places, range(len(self.faults)))
        return evolve(self, callers=kept, faults=tuple(self.faults[place] for place in places))


_USUAL: Final = Behaviour()


def _numbered(callers: tuple[Caller, ...], numbers: Iterable[int]) -> tuple[Caller, ...]:
    wanted = {*numbers}
    _check_numbers("callers", wanted, {each.number for each in callers})
    return tuple(each for each in callers if each.number in wanted)


def _check_numbers(name: str, wanted: Iterable[int], drawn: Collection[int]) -> None:
    """Refuse numbers that the seed does not draw: then nothing would be replayed, and nothing found."""
    unknown = sorted({*wanted} - {*drawn})
    if unknown:
        invalid(name, f"this seed draws no {unknown[0]}: replay it with the same world and version of this library")


@final
@frozen(kw_only=True)
class World:
    """All that may happen: ``scenario`` draws what does.

    Up to ``callers`` callers come within ``seconds``, and up to ``faults`` times a model misbehaves, in one of the
    ways of ``kinds``. ``does`` lists what callers do, more often what it lists more often, and a share of them
    ``leaves`` early (0 to 1). ``models`` holds the behaviour of models without a fault; the others answer in about a
    second. Callers ask ``requests``, or drawn ones if there are none.
    """

    callers: int = field(default=12, validator=number(at_least=1, whole=True))
    seconds: float = 60.0
    faults: int = field(default=4, validator=number(at_least=0, whole=True))
    kinds: tuple[FaultKind, ...] = field(default=get_args(FaultKind), validator=each_of(*get_args(FaultKind)))
    does: tuple[CallerKind, ...] = field(
        default=("generate", "generate", "stream", "stream", *get_args(CallerKind)),
        validator=each_of(*get_args(CallerKind)),
    )
    leaves: float = 0.15
    models: Mapping[str, Behaviour] = field(factory=dict[str, Behaviour])
    requests: tuple[LLMRequest, ...] = ()

    def scenario(self, config: LLMConfig | None, seed: int) -> Scenario:
        """Draw a scenario for a configuration; without one, that is drawn too.

        >>> World().scenario(None, 7) == World().scenario(None, 7) != World().scenario(None, 8)
        True
        """
        settings = any_config(seed) if config is None else self._checked(config)
        faults = self._faults(settings, seed)
        draw = drawn(seed, "callers")
        burst = draw.random() < _BURSTS
        asked = self.requests or tuple(any_request(drawn(seed, "request", each)) for each in range(_ASKED))
        callers = tuple(
            self._caller(
                settings,
                drawn(seed, "caller", number),
                number,
                draw.choice(_BURSTS_S) if burst else self.seconds,
                asked,
            )
            for number in range(draw.randint(min(2, self.callers), self.callers))
        )
        behaviours = {name: self.models.get(name) or _behaviour(seed, name) for name in settings.models}
        return Scenario(seed=seed, config=settings, models=behaviours, faults=faults, callers=callers)

    def _checked(self, config: LLMConfig) -> LLMConfig:
        """Return a configuration whose models can be called: without one every invariant would hold."""
        targets = targets_of(config)
        if not is_successful(targets):
            invalid("config", describe(targets.failure()))
        for name in self.models.keys() - config.models.keys():
            invalid("models", f"{name!r} is not configured: {suggestion(name, config.models, 'the models')}")
        return config

    def _faults(self, config: LLMConfig, seed: int) -> tuple[Fault, ...]:
        """Draw faults; in a storm the same one hits all models but one, at the same time."""
        count = drawn(seed, "faults").randint(0, self.faults)
        faults = [self._fault(config, drawn(seed, "fault", each)) for each in range(count)]
        if faults and drawn(seed, "storm").random() < _STORMS:
            spared = faults[0].model
            faults += (evolve(faults[0], model=name, share=1.0) for name in config.models if name != spared)
            del faults[0]
        return tuple(faults)

    def _fault(self, config: LLMConfig, draw: Random) -> Fault:
        return Fault(
            model=draw.choice([*config.models]),
            kind=draw.choice(self.kinds),
            at=round(draw.uniform(-5.0, self.seconds), 1),
            seconds=round(draw.choice((2.0, 10.0, 60.0)) * draw.uniform(0.5, 2.0), 1),
            share=draw.choice((0.3, 0.7, 1.0, 1.0)),
        )

    def _caller(
        self, config: LLMConfig, draw: Random, number: int, seconds: float, asked: Sequence[LLMRequest]
    ) -> Caller:
        kind = draw.choice(self.does)
        request = draw.choice(asked)
        if not self.requests:
            request = nearly(request, config, draw)
        leaves = draw.random() < self.leaves
        return Caller(
            number=number,
            at=round(draw.uniform(0.0, seconds), 2),
            kind=kind,
            request=_in_conversation(request) if kind == "converse" else request,
            leaves_after=round(draw.choice((0.5, 3.0, 20.0)) * draw.random(), 3) if leaves else None,
            pause=draw.choice((0.0, 0.0, 0.0, 0.05, 1.5)),
            conversation=draw.choice(CONVERSATIONS),
            turn=f"turn {number if draw.random() < _NEW_TURNS else draw.randint(0, 2)}",
        )


CONVERSATIONS: Final = ("red", "blue")
"""The conversations of simulated callers."""

_BURSTS: Final = 0.4
_STORMS: Final = 0.25


def _behaviour(seed: int, model: str) -> Behaviour:
    draw = drawn(seed, "behaviour", model)
    return Behaviour(median_s=draw.choice((0.2, 1.0, 1.0, 3.0)), error_rate=draw.choice((0.0, 0.0, 0.0, 0.2)))


# Requests: those of a scenario are often equal, and else differ in one thing that shapes the answer.


def any_request(draw: Random) -> LLMRequest:
    """Draw a request."""
    prompt = f"question {draw.randint(0, 9)}"
    earlier = draw.random() < _EARLIER
    messages = (Message("user", "hello"), Message("assistant", "yes?"), Message("user", prompt))
    return LLMRequest(
        prompt=None if earlier else prompt,
        messages=messages if earlier else (),
        task_type=draw.choice((TaskType.GENERAL, TaskType.ANALYSIS)),
        preferences=Preferences(timeout_ms=draw.choice((None, None, None, 500, 5_000, 40_000))),
        recovery=draw.choice([*Recovery]),
        allow=draw.choice(((), (), (Allow.FALLBACK_ON_REFUSAL,), (*Allow,))),
        owner=draw.choice((None, None, "ann", "bob")),
        tags=draw.choice(((), ("nightly",))),
    )


def nearly(request: LLMRequest, config: LLMConfig, draw: Random) -> LLMRequest:
    """Return a request as it is, with other patience, or with one thing changed that shapes its answer."""
    changes = (
        {"system": "Be brief."},
        {"owner": draw.choice((None, "ann", "bob"))},
        {"task_type": TaskType.UI_GENERATION},
        {"model": draw.choice([*config.models])},
        {"cache": draw.choice([*CachePolicy])},
        {"recovery": draw.choice([*Recovery])},
        {"preferences": evolve(request.preferences, max_tokens=draw.choice((32, 64)))},
        {"preferences": evolve(request.preferences, temperature=draw.choice((0.0, 1.0)))},
        {"preferences": evolve(request.preferences, seed=draw.choice((1, 2)))},
        {"preferences": evolve(request.preferences, timeout_ms=draw.choice((500, 5_000, 40_000)))},
    )
    return evolve(request, **draw.choice(changes)) if draw.random() < _CHANGED else request


def _in_conversation(request: LLMRequest) -> LLMRequest:
    """Return a request as a turn: one message, of no owner."""
    if request.prompt is not None:
        return evolve(request, owner=None)
    return evolve(request, prompt=request.messages[-1].text, messages=(), owner=None)


_ASKED: Final = 3
_EARLIER: Final = 0.2
_CHANGED: Final = 0.4
_BURSTS_S: Final = (0.0, 0.5, 2.0)
_NEW_TURNS: Final = 0.8


# Configurations, small enough that every limit is met.


def any_config(seed: int) -> LLMConfig:
    """Draw a configuration: one to four models, with limits, budgets, breakers, hedges and a cache, or without.

    >>> 1 <= len(any_config(1).models) <= 4
    True
    """
    draw = drawn(seed, "config")
    names = ("ash", "elm", "fir", "oak")[: draw.choice((1, 2, 2, 3, 3, 4))]
    return LLMConfig(
        models={name: _model(name, draw) for name in names},
        routing=_routing(draw),
        cache=CacheConfig(enabled=draw.random() < 0.5, ttl_seconds=draw.choice((5.0, 3600.0))),
        limits=LimitsConfig(queue_seconds=draw.choice((1.0, 90.0))),
        budgets=_budgets(draw),
    )


def _model(name: str, draw: Random) -> ModelConfig:
    limited, dollars = draw.random() < 0.3, draw.choice((0, 1, 10))
    return ModelConfig(
        provider="openai-compatible",
        model=draw.choice((name, name, "same")),
        endpoint="https://models.test/v1",
        api_key=f"sk-simulated-{name}",
        price=Price(input=dollars, output=5 * dollars),
        max_tokens=2 * WORDS,
        timeout_ms=draw.choice((4_000, 30_000)),
        first_content_ms=draw.choice((2_000, 15_000)),
        between_content_ms=draw.choice((1_000, 10_000)),
        concurrency=draw.choice((1, 2, None)) if limited else None,
        requests_per_minute=draw.choice((2, 5, None)) if limited else None,
        tokens_per_minute=draw.choice((1_500, None)) if limited else None,
        capabilities=Capabilities(prefill=draw.choice((True, False))),
        weight=draw.choice((1.0, 2.0)),
    )


def _routing(draw: Random) -> RoutingConfig:
    return RoutingConfig(
        strategy=draw.choice(("balanced", "cost", "performance")),
        max_retries=draw.choice((0, 1, 2, 2)),
        max_attempts=draw.choice((4, 8, 8)),
        timeout_ms=draw.choice((20_000, 60_000)),
        candidate_share=draw.choice((0.3, 0.5, 0.5, 1.0)),
        breaker=BreakerConfig(
            enabled=draw.random() < 0.8,
            window_seconds=draw.choice((10.0, 60.0)),
            min_attempts=draw.choice((1, 3, 10)),
            failure_rate=draw.choice((0.5, 1.0)),
            open_seconds=draw.choice((2.0, 20.0)),
        ),
        hedging=HedgingConfig(
            enabled=draw.random() < 0.3,
            percentile=draw.choice((0.5, 0.9)),
            budget=draw.choice((0.2, 1.0)),
            min_attempts=2,
        ),
    )


def _budgets(draw: Random) -> tuple[BudgetConfig, ...]:
    if draw.random() < 0.6:
        return ()
    limit = draw.choice(("0.0003", "0.001", "0.003"))
    scopes = (None, "owner:*", "owner:ann", "task:analysis", "tag:nightly")
    chosen = draw.sample(scopes, draw.randint(1, 2))
    return tuple(BudgetConfig(name=f"{scope}", limit_usd=limit, period="hour", scope=scope) for scope in chosen)
