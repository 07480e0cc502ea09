"""Faults 104 to 109: cancellation, contention, races, closing, forks."""

import os
import random
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, Final, final

import anyio
import anyio.to_thread
import httpx
import pytest
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import LLMEnv, LLMRequest, Preferences, StreamEvent, TextDelta, generate, open_env, run, stream
from llm_effects.clients.transport.transport import Transport
from llm_effects.config.routing import HedgingConfig
from llm_effects.effects.effect import result_of
from llm_effects.manager import make_llm_manager
from llm_effects.values.records import Statistics
from llm_effects.values.responses import CANCELLED
from tests.fixtures.chaos import HEAD, WHOLE, Chaos, Step, chunk, drips, good, holds, piece, says
from tests.fixtures.faults import ASK, MODES, RecordingSink, config_of, model, plan_of, run_case, wait_for_requests
from tests.fixtures.servers import reply_json
from tests.fixtures.wires import Wire

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("carried")]


@pytest.fixture
def anyio_backend(wire: Wire) -> str:
    return wire.loop


STAGES: Final[dict[str, Step]] = {
    "waiting for headers": holds(),
    "waiting for content": holds(HEAD),
    "streaming": drips(HEAD, chunk(piece("x"))),
}


async def recorded(env: LLMEnv) -> list[str]:
    return [row.attempt.outcome for row in (await result_of(env.ledger.rows())).unwrap()]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES)
async def test_104_a_cancelled_call_is_recorded_and_releases_everything(chaos: Chaos, stage: str, mode: str) -> None:
    first, sink = model(chaos, STAGES[stage], good), RecordingSink()
    effect = generate(ASK) if mode == "whole" else stream(ASK, sink)
    narrow = open_env(config_of({"first": first}), transport=lambda: Transport(max_connections=1))
    async with narrow as env:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, effect, env)
            await wait_for_requests(chaos, first)
            await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(chaos.server.settled) == 0
        assert await recorded(env) == [CANCELLED]
        known = env.health.statistics().get("first", Statistics())
        assert (known.attempts, known.error_rate) == (0, 0.0)  # it does not count against the model
        with anyio.fail_after(30):  # the only slot is free
            assert is_successful(await run(generate(ASK), env))
    assert [event for event in sink.events if not isinstance(event, TextDelta)][1:] == []  # no final event


async def test_104_a_call_cancelled_in_the_queue_was_never_sent(chaos: Chaos) -> None:
    first = model(chaos, holds(), good)
    narrow = open_env(config_of({"first": first}), transport=lambda: Transport(max_connections=1))
    async with narrow as env, anyio.create_task_group() as tasks:
        tasks.start_soon(run, generate(ASK), env)
        await wait_for_requests(chaos, first)
        with anyio.move_on_after(0.02) as scope:
            await run(generate(evolve(ASK, prompt="me too")), env)
        assert scope.cancelled_caught
        assert (await recorded(env), chaos.asked[plan_of(first)]) == ([], 1)
        tasks.cancel_scope.cancel()


async def test_104_wire_15_repeated_cancellations_at_any_point_leak_nothing(chaos: Chaos) -> None:
    """Cancel calls through the whole pipeline at random moments, some during the clean-up of another."""
    first, draw = model(chaos, good, timeout_ms=5000), random.Random(3)
    crowd = open_env(config_of({"first": first}), transport=lambda: Transport(max_connections=4, pool_size=2))

    async def one(env: LLMEnv, number: int) -> None:
        with anyio.move_on_after(draw.random() * 0.05), anyio.move_on_after(draw.random() * 0.05):
            request = evolve(ASK, prompt=f"why? {number}")
            await run(generate(request) if number % 2 else stream(request, RecordingSink()), env)

    async with crowd as env:
        for start in range(0, 300, 60):
            async with anyio.create_task_group() as tasks:
                for number in range(start, start + 60):
                    tasks.start_soon(one, env, number)
        with anyio.fail_after(30):  # all slots are still available at once
            async with anyio.create_task_group() as tasks:
                for number in range(4):
                    tasks.start_soon(run, generate(evolve(ASK, prompt=f"last {number}")), env)
    assert await anyio.to_thread.run_sync(chaos.server.settled) == 0


async def test_105_many_calls_are_served_without_an_error(chaos: Chaos) -> None:
    """The order is tested in tests/clients/test_pool.py."""
    first, served = model(chaos, good, timeout_ms=20_000), set[int]()
    small = open_env(config_of({"first": first}), transport=lambda: Transport(max_connections=10, pool_size=5))
    patient = Preferences(timeout_ms=20_000)

    async def one(env: LLMEnv, number: int) -> None:
        request = LLMRequest(prompt=f"why? {number}", preferences=patient)
        assert (await run(generate(request), env)).unwrap().content == "because"
        served.add(number)

    async with small as env, anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(one, env, number)
            await anyio.lowlevel.checkpoint()
    assert len(served) == chaos.asked[plan_of(first)] == 300
    assert await anyio.to_thread.run_sync(chaos.server.settled) == 0


async def test_106_an_answer_at_the_moment_of_the_time_out_is_either_a_success_or_a_time_out(chaos: Chaos) -> None:
    await run_case(chaos, {"first": model(chaos, good)})  # the very first call is slower
    for late in (0.145, 0.15, 0.155):
        first = model(chaos, says(reply_json(WHOLE), after=late), timeout_ms=150)
        outcome = await run_case(chaos, {"first": first}, max_retries=0)  # it compares attempts, ledger and cache
        outcome_tag = "success" if is_successful(outcome.result) else outcome.error.tag
        assert outcome_tag in {"success", "TimeoutError"}


@final
class Clinging(httpx.AsyncBaseTransport, httpx.AsyncByteStream):
    """A pool whose connections cannot be closed."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await anyio.sleep_forever()
        yield b""

    async def aclose(self) -> None:
        await anyio.sleep_forever()


@pytest.mark.parametrize("mode", MODES)
async def test_106_a_connection_that_cannot_be_closed_does_not_delay_a_call_beyond_its_deadline(
    chaos: Chaos, mode: str
) -> None:
    clinging, hasty = (
        lambda: Transport(make_pool=lambda _: Clinging()),
        evolve(ASK, preferences=Preferences(timeout_ms=50)),
    )
    async with open_env(config_of({"first": model(chaos, good)}), transport=clinging) as env:
        began = anyio.current_time()
        error = (await run(generate(hasty) if mode == "whole" else stream(hasty, RecordingSink()), env)).failure()
        assert (error.tag, anyio.current_time() - began < 1) == ("TimeoutError", True)


@pytest.mark.parametrize("at", ["Started", "TextDelta"])
async def test_107_an_exception_of_the_consumer_propagates_without_a_retry(chaos: Chaos, at: str) -> None:
    async def broken(event: StreamEvent) -> None:
        if type(event).__name__ == at:
            raise LookupError(at)

    first, second = model(chaos, drips(HEAD, chunk(piece("x")))), model(chaos, good)
    async with open_env(config_of({"first": first, "second": second})) as env:
        with pytest.raises(LookupError):
            await run(stream(ASK, broken), env)
        assert await anyio.to_thread.run_sync(chaos.server.settled) == 0
    assert (chaos.asked[plan_of(first)], chaos.asked[plan_of(second)]) == (1, 0)


async def test_108_closing_finishes_a_call_in_flight_and_rejects_the_next(chaos: Chaos) -> None:
    first, results = model(chaos, says(reply_json(WHOLE), after=0.05)), list[Result[Any, Any]]()
    manager = make_llm_manager(config_of({"first": first}))

    async def one() -> None:
        results.append(await manager.run(generate(ASK)))

    with anyio.fail_after(30):
        async with manager, anyio.create_task_group() as tasks:
            tasks.start_soon(one)
            await wait_for_requests(chaos, first)
            await manager.aclose()
        after = await manager.run(generate(evolve(ASK, prompt="and now?")))
    assert results[0].unwrap().content == "because"
    assert after.failure().tag == "ConfigurationError"
    assert await anyio.to_thread.run_sync(chaos.server.settled) == 0


FORKING: Final = """
    import os, sys, anyio
    from llm_effects import LLMConfig, LLMRequest, ModelConfig, generate, make_llm_manager

    model = ModelConfig(provider="openai-chat", model="m", endpoint=sys.argv[1])
    manager = make_llm_manager(LLMConfig(models={"m": model}))

    def ask(prompt):
        return anyio.run(manager.run, generate(LLMRequest(prompt=prompt))).unwrap().content

    print(ask("before"), flush=True)
    child = os.fork()
    print(ask(f"after {child == 0}"), flush=True)
    if child:
        os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_108_calls_work_in_both_processes_after_a_fork(chaos: Chaos) -> None:
    endpoint = chaos.endpoint(chaos.plan(good))
    program = [sys.executable, "-c", textwrap.dedent(FORKING), endpoint]
    done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.count("because") == 3


async def test_109_a_timed_out_model_is_cancelled_at_once_and_recorded(chaos: Chaos) -> None:
    slow = model(chaos, drips(HEAD, chunk(b": ping\n\n")), first_content_ms=50)
    outcome = await run_case(chaos, {"first": slow, "second": model(chaos, good)}, mode="streamed", max_retries=0)
    lost, won = outcome.response.attempts
    assert (lost.model, lost.outcome, won.model, won.succeeded) == ("first", "TimeoutError", "second", True)
    assert lost.cost.usd is None  # it may have been billed: unknown, not zero
    assert outcome.response.cost.usd is None


async def test_109_a_losing_hedge_is_cancelled_at_once_and_recorded(chaos: Chaos) -> None:
    first = model(chaos, good, good, good, holds(), good)
    hedging = HedgingConfig(enabled=True, budget=1.0, min_attempts=3, percentile=0.5)
    async with open_env(config_of({"first": first}, hedging=hedging)) as env:
        for number in range(4):
            response = (await run(generate(evolve(ASK, prompt=f"why? {number}")), env)).unwrap()
        lost = next(attempt for attempt in response.attempts if not attempt.succeeded)
        assert (lost.outcome, lost.cost.usd, len(response.attempts)) == (CANCELLED, None, 2)
        assert Counter(await recorded(env)) == {"success": 4, CANCELLED: 1}
    assert await anyio.to_thread.run_sync(chaos.server.settled) == 0
