"""Hedging: when a second attempt is made, which one wins, and what the consumer sees."""

import math
from datetime import UTC, datetime
from decimal import Decimal

import anyio
import pytest
from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st
from returns.result import Result

from llm_effects import (
    Completed,
    Cost,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    MalformedResponse,
    ModelConfig,
    ModelUnavailable,
    NetworkError,
    Recovery,
    Restarted,
    Started,
    StreamEvent,
    TextDelta,
    generate,
    open_env,
    run,
    scripted_env,
    stream,
)
from llm_effects.config import CacheConfig, Price, RoutingConfig
from llm_effects.config.routing import HedgingConfig
from llm_effects.stores.health import MemoryHealth
from llm_effects.stores.limits.memory import MemoryHedges
from llm_effects.testing import Chunks, Delayed, Reply, run_in_virtual_time
from llm_effects.values import Tool
from llm_effects.values.responses import Attempt, Usage
from tests.fixtures.futures import given_by
from tests.fixtures.servers import Peer, reply_json, serving

ASK = LLMRequest(prompt="why?")


NOON = datetime(2026, 1, 1, tzinfo=UTC)


USUAL_S = 1.0


ON = HedgingConfig(enabled=True, budget=1.0)


def routing(hedging: HedgingConfig = ON, max_retries: int = 0, max_attempts: int = 8) -> RoutingConfig:
    return RoutingConfig(hedging=hedging, max_retries=max_retries, max_attempts=max_attempts)


def warm(names: tuple[str, ...], attempts: int = 25, usual_ms: float = USUAL_S * 1000) -> MemoryHealth:
    """What is known after some answers of the usual time, half of them streamed."""
    health = MemoryHealth()
    for name in names:
        known = Attempt(model=name, provider="lm-studio", outcome="success", latency_ms=usual_ms)
        for _ in range(attempts):
            health.observe(known, NOON)
            health.observe(evolve(known, first_content_ms=usual_ms), NOON)
    return health


def env_of(
    *replies: Reply, routes: RoutingConfig | None = None, names: tuple[str, ...] = ("one",), **settings: object
) -> LLMEnv:
    model = evolve(ModelConfig(provider="lm-studio", model="m"), **settings)
    off = CacheConfig(enabled=False)
    config = LLMConfig(models=dict.fromkeys(names, model), routing=routes or routing(), cache=off)
    return evolve(scripted_env(*replies, config=config), health=warm(names))


def asked(env: LLMEnv) -> int:
    return len(env.clients.calls)  # type: ignore[attr-defined]


def ask(env: LLMEnv, request: LLMRequest = ASK) -> Result[LLMResponse, LLMError]:
    return run_in_virtual_time(run, generate(request), env)


@define
class SlowConsumer:
    """A sink that records its events, and pauses before each."""

    pause: float = 0.0
    events: list[StreamEvent] = field(factory=list[StreamEvent])

    async def __call__(self, event: StreamEvent) -> None:
        await anyio.sleep(self.pause)
        self.events.append(event)


def streamed_events(env: LLMEnv, request: LLMRequest = ASK, pause: float = 0.0) -> list[StreamEvent]:
    consumer = SlowConsumer(pause)
    run_in_virtual_time(run, stream(request, consumer), env)
    return consumer.events


async def recorded_attempts(env: LLMEnv) -> set[int]:
    rows = await given_by(env.ledger.rows())
    assert len({row.call_id for row in rows}) == 1
    return {id(row) for row in rows}


NEVER = {
    "off": (ASK, routing(HedgingConfig()), {}),
    "with tools": (evolve(ASK, tools=(Tool("launch"),)), routing(), {}),
    "in this process": (ASK, routing(), {"provider": "llama", "model_path": "/dev/null"}),
    "little known": (ASK, routing(evolve(ON, min_attempts=51)), {}),
    "no attempts left": (ASK, routing(max_attempts=1), {}),
    "no budget": (ASK, routing(evolve(ON, budget=0.5)), {}),
}


ANSWER = reply_json(
    {
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "because"}}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }
)


async def behave(peer: Peer) -> None:
    """The first connection is never answered, and waits to be left; the others are."""
    number = peer.server.accepted  # before anything is awaited: the second connection may come meanwhile
    await peer.request()
    if number == 1:
        await peer.gone()
    else:
        await peer.send(ANSWER)


def test_a_slow_answer_is_hedged_and_the_loser_recorded() -> None:
    env = env_of(Delayed(60, "slow"), "quick", price=Price(input=1, output=1))
    answer = ask(env).unwrap()
    assert (answer.content, answer.latency_ms) == ("quick", USUAL_S * 1000)
    assert [(each.outcome, each.latency_ms) for each in answer.attempts] == [("success", 0), ("cancelled", 1000)]
    assert [each.cost.known for each in answer.attempts] == [True, False]
    assert answer.cost == Cost.UNKNOWN
    assert len(run_in_virtual_time(recorded_attempts, env)) == 2


def test_the_first_attempt_may_still_win() -> None:
    env = env_of(Delayed(2, "first"), Delayed(60, "second"))
    answer = ask(env).unwrap()
    assert (answer.content, answer.latency_ms) == ("first", 2000)
    assert [each.outcome for each in answer.attempts] == ["success", "cancelled"]


def test_an_answer_in_the_usual_time_is_not_hedged() -> None:
    env = env_of(Delayed(0.9, "in time"))
    assert (ask(env).unwrap().content, asked(env)) == ("in time", 1)


def test_an_error_before_the_delay_is_left_to_the_retries() -> None:
    env = env_of(NetworkError(), Delayed(60, "slow"), "never", routes=routing(max_retries=1))
    assert (ask(env).unwrap().content, asked(env)) == ("slow", 2)


def test_an_error_of_one_attempt_leaves_the_other_running() -> None:
    first_fails = env_of(Delayed(2, NetworkError()), Delayed(5, "second"))
    second_fails = env_of(Delayed(2, "first"), NetworkError())
    assert ask(first_fails).unwrap().content == "second"
    assert ask(second_fails).unwrap().content == "first"


def test_when_both_attempts_fail_the_first_error_is_returned() -> None:
    env = env_of(Delayed(3, MalformedResponse()), ModelUnavailable())
    error = ask(env).failure()
    assert {each.outcome for each in error.attempts} == {"ModelUnavailable", "MalformedResponse"}
    assert error.tag == "RequestFailed"
    assert {each.tag for each in error.errors} == {"ModelUnavailable", "MalformedResponse"}


def test_retries_of_both_attempts_stay_within_the_attempts_of_the_call() -> None:
    slow_failure = Delayed(2 * USUAL_S, NetworkError(phase="reset"))
    env = env_of(slow_failure, routes=routing(max_retries=5, max_attempts=4))
    assert len(ask(env).failure().attempts) == asked(env) == 4


def test_the_consumer_sees_one_answer_only() -> None:
    env = env_of(Delayed(60, "slow"), Chunks(("be", "cause"), pause=0.1))
    *events, last = streamed_events(env)
    assert events == [Started("one"), TextDelta("be"), TextDelta("cause")]
    assert isinstance(last, Completed)
    assert [each.outcome for each in last.response.attempts] == ["cancelled", "success"]


def test_the_first_content_wins_rather_than_the_first_end() -> None:
    env = env_of(Chunks(("long", " story"), pause=5), Delayed(5, "short"))
    events = streamed_events(env)
    assert events[:2] == [Started("one"), TextDelta("short")]
    slow_but_first = env_of(Chunks(("a", "b", "c"), pause=0.6), "late")
    assert [type(event) for event in streamed_events(slow_but_first)].count(Started) == 1


def test_a_stream_with_content_is_not_hedged() -> None:
    env = env_of(Chunks(("be", "cause"), pause=0.4))
    streamed_events(env)
    assert asked(env) == 1


def test_a_break_after_the_first_content_belongs_to_that_attempt() -> None:
    env = env_of(Delayed(60, "slow"), Chunks(("half",), then=MalformedResponse()))
    events = streamed_events(env)
    assert events[:2] == [Started("one"), TextDelta("half")]
    assert events[-1].error.partial == "half"  # type: ignore[union-attr]


def test_no_later_candidate_is_hedged_after_content() -> None:
    broken = Chunks(("half",), then=MalformedResponse())
    env = env_of(broken, Delayed(60, "whole"), "never", names=("one", "two"))
    events = streamed_events(env, evolve(ASK, recovery=Recovery.RESTART))
    assert events[1:4] == [TextDelta("half"), Restarted("two"), TextDelta("whole")]
    assert asked(env) == 2


def test_a_slow_consumer_does_not_hold_up_the_call_for_ever() -> None:
    env = env_of(Delayed(60, "slow"), Chunks(("be", "cause")))
    assert [type(event) for event in streamed_events(env, pause=10)] == [Started, TextDelta, TextDelta, Completed]


def test_an_answer_without_content_still_starts() -> None:
    empty = LLMResponse(content="", model="m", provider="p", usage=Usage())
    assert [type(event) for event in streamed_events(env_of(Delayed(60, "slow"), empty))] == [Started, Completed]


@pytest.mark.anyio
async def test_an_exception_of_the_sink_ends_the_call() -> None:
    async def sink(_: StreamEvent) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        await run(stream(ASK, sink), env_of("at once"))


@pytest.mark.parametrize("why", NEVER)
def test_calls_that_are_never_hedged(why: str) -> None:
    request, routes, settings = NEVER[why]
    env = env_of(Delayed(60, "slow"), "never", routes=routes, **settings)
    assert (ask(env, request).unwrap().content, asked(env)) == ("slow", 1)


def test_a_wait_for_a_permit_is_not_hedged() -> None:
    env = env_of(Delayed(60, "first"), Delayed(60, "second"), Delayed(0.5, "third"), concurrency=2)

    async def main() -> list[str]:
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(run, generate(LLMRequest(prompt=f"why? ({number})")), env)
                await anyio.sleep(0.1)
        return [row.attempt.outcome for row in await given_by(env.ledger.rows())]

    assert run_in_virtual_time(main) == ["success"] * 3


def test_fault_151_the_delay_counts_from_sending_not_from_queueing() -> None:
    unhedged = LLMRequest(prompt="look", tools=(Tool("look", "Look."),))
    env = env_of(Delayed(5, "a"), Delayed(5, "b"), Delayed(60, "stalled"), "hedge", concurrency=2)

    async def main() -> tuple[str, float]:
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(run, generate(unhedged), env)
            await anyio.sleep(0.1)
            began = anyio.current_time()
            content = (await run(generate(ASK), env)).unwrap().content
            return content, anyio.current_time() - began

    content, took = run_in_virtual_time(main)
    assert content == "hedge"
    assert took == pytest.approx(4.9 + USUAL_S, abs=0.01)


def test_fault_151_a_call_earns_once_however_many_candidates_it_asks() -> None:
    down = ModelUnavailable(reason="overloaded", status=503)
    env = env_of(down, down, "because", names=("one", "two", "three"), routes=routing(evolve(ON, budget=0.4)))
    assert ask(env).unwrap().content == "because"
    assert asked(env) == 3
    assert not env.limits.hedges.spend()  # 0.4 of a hedge; each candidate earned, it would be 1.2


@given(st.integers(10, 1000).map(lambda each: each / 1000), st.integers(1, 60))
def test_hedges_stay_within_their_budget(budget: float, calls: int) -> None:
    hedges = MemoryHedges()
    spent = 0
    for number in range(1, calls + 1):
        hedges.earn(budget)
        spent += hedges.spend()
        assert spent == math.floor(budget * number + 1e-6)


def test_the_budget_holds_for_a_model_that_is_always_slow() -> None:
    env = env_of(Delayed(3, "slow"), routes=routing(evolve(ON, budget=0.25)))

    async def main() -> None:
        for _ in range(20):
            await run(generate(ASK), env)

    run_in_virtual_time(main)
    assert asked(env) == 20 + 5


@pytest.mark.anyio
@pytest.mark.parametrize("streamed", [False, True])
async def test_the_loser_s_connection_is_closed(streamed: bool) -> None:
    consumer = SlowConsumer()
    operation = stream(ASK, consumer) if streamed else generate(ASK)
    with serving(behave) as server:
        price = Price(input=1, output=2)
        models = {"m": ModelConfig(provider="lm-studio", model="m", endpoint=server.url, price=price)}
        config = LLMConfig(models=models, routing=routing(), cache=CacheConfig(enabled=False))
        async with open_env(config) as live:
            answer = (await run(operation, evolve(live, health=warm(("m",), usual_ms=100)))).unwrap()
            assert server.settled(open_connections=1) <= 1
        assert (server.settled(), server.accepted) == (0, 2)
    assert answer.content == "because"
    costs = {each.outcome: each.cost for each in answer.attempts}
    assert costs == {"success": Cost(Decimal("0.000005")), "cancelled": Cost.UNKNOWN}
    assert [type(event) for event in consumer.events] == ([Started, TextDelta, Completed] if streamed else [])
