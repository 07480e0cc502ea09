"""Shared calls: a follower gets what it would get alone, no later and no less."""

from itertools import pairwise

import anyio
import pytest
from attrs import evolve

from llm_effects import (
    Completed,
    Failed,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    MalformedResponse,
    ModelConfig,
    ReasoningDelta,
    Recovery,
    Started,
    StreamEvent,
    TextDelta,
    converse,
    generate,
    generate_as,
    open_env,
    run,
    scripted_env,
    stream,
)
from llm_effects.config import Capabilities
from llm_effects.effects import Call, Generate
from llm_effects.effects.effect import Answer
from llm_effects.pipeline import (
    complete,
    layer,
    layered,
    run_call,
    standard_pipeline,
    with_cache,
    with_coalescing,
    with_deadline,
    with_routing,
)
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.structured.schema import type_schema
from llm_effects.testing import Chunks, Delayed, Reply, Scripted, answer, run_in_virtual_time, scripted
from llm_effects.values import Reasoning, Text, Usage
from llm_effects.values.validation import InvalidValue
from tests.fixtures.chaos import WHOLE, Chaos, says
from tests.fixtures.models import models_in_order, scripted_models
from tests.fixtures.servers import reply_json

ASK = LLMRequest(prompt="why?")
PREFILL = Capabilities(prefill=True)


def remembering(*replies: Reply) -> tuple[LLMEnv, Scripted]:
    model = scripted(*replies)
    return evolve(scripted_env(clients=model), cache=MemoryCache(100)), model


async def events_of_stream(env: LLMEnv, pause: float = 0.0, request: LLMRequest = ASK) -> list[StreamEvent]:
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        await anyio.sleep(pause)
        events.append(event)

    await run(stream(request, sink), env)
    return events


# 154: flights are shared only under the same validation.


@pytest.mark.anyio
async def test_fault_154_a_flight_is_shared_only_under_the_same_validation() -> None:
    env, model = remembering(Delayed(0.02, '{"value": "nine"}'))
    plain = evolve(ASK, response_schema=type_schema(list[int]).unwrap().schema)
    contents: list[str] = []

    async def follow() -> None:
        contents.append((await run(generate(plain), env)).unwrap().content)

    async with anyio.create_task_group() as group:
        group.start_soon(run, generate_as(ASK, list[int], max_repairs=0), env)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(follow)
    assert contents == ['{"value": "nine"}']
    assert len(model.calls) == 2


@pytest.mark.anyio
async def test_fault_154_equal_validation_still_shares_a_flight() -> None:
    env, model = remembering(Delayed(0.02, '{"value": [9]}'))
    values: list[list[int]] = []

    async def one() -> None:
        values.append((await run(generate_as(ASK, list[int]), env)).unwrap().value)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(one)
    assert values == [[9]] * 5
    assert len(model.calls) == 1


# 155: a follower is never slower than alone by more than a beat, and loses no event.


@pytest.mark.parametrize("pause", [0.1, 0.9, 30.0])
@pytest.mark.parametrize("streamed", [False, True])
def test_fault_155_a_slow_consumer_of_the_leader_does_not_delay_a_follower(pause: float, *, streamed: bool) -> None:
    env, _ = remembering(Chunks(("because ",) * 100, pause=0.1))
    took: list[float] = []

    async def follow() -> None:
        began = anyio.current_time()
        await (events_of_stream(env) if streamed else run(generate(ASK), env))
        took.append(anyio.current_time() - began)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(events_of_stream, env, pause)
            await anyio.sleep(0.01)
            for _ in range(3):
                group.start_soon(follow)

    alone = 101 * 0.1
    run_in_virtual_time(main)
    assert max(took) <= alone + 1.1


def test_fault_155_the_slow_leader_gets_every_event_once() -> None:
    env, model = remembering(Chunks(tuple("abcdefghij"), pause=0.1))
    leader: list[StreamEvent] = []

    async def lead() -> None:
        leader.extend(await events_of_stream(env, 0.5))

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(lead)
            await anyio.sleep(0.7)
            group.start_soon(events_of_stream, env)

    run_in_virtual_time(main)
    assert leader[:-1] == [Started("scripted"), *map(TextDelta, "abcdefghij")]
    assert isinstance(leader[-1], Completed)
    assert len(model.calls) == 1


def test_fault_155_a_stream_behind_a_plain_call_makes_its_own() -> None:
    env, model = remembering(Chunks(tuple("abcdefghij"), pause=1.0))
    arrived: list[float] = []

    async def sink(_: StreamEvent) -> None:
        arrived.append(anyio.current_time())

    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(run, generate(ASK), env)
            await anyio.sleep(0.1)
            group.start_soon(run, stream(ASK, sink), env)

    run_in_virtual_time(main)
    assert len(model.calls) == 2
    assert [round(later - earlier, 3) for earlier, later in pairwise(arrived)] == [1.0] * 10 + [0.0]


@pytest.mark.anyio
async def test_fault_155_a_follower_loses_no_event_of_a_long_answer() -> None:
    thoughts = (Reasoning("hm"), Text("a")) * 6_000
    env, model = remembering(Delayed(0.01, evolve(answer("a" * 6_000), parts=thoughts)))
    both: list[list[StreamEvent]] = []

    async def one() -> None:
        both.append(await events_of_stream(env))

    async with anyio.create_task_group() as group:
        group.start_soon(one)
        group.start_soon(one)
    assert [len([each for each in events if isinstance(each, ReasoningDelta)]) for events in both] == [6_000, 6_000]
    assert [events.count(Started("scripted")) for events in both] == [1, 1]
    assert len(model.calls) == 1


@pytest.mark.anyio
async def test_fault_155_a_follower_sees_one_start_of_two_leaders() -> None:
    env, _ = remembering("because", "because")
    events: list[StreamEvent] = []
    opened = anyio.Event()

    async def stuck(_: StreamEvent) -> None:
        opened.set()
        await anyio.sleep_forever()

    async def follow() -> None:
        events.extend(await events_of_stream(env))

    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as leading:
                leading.start_soon(run, stream(ASK, stuck), env)
                await opened.wait()
                group.start_soon(follow)
                await anyio.wait_all_tasks_blocked()
                scope.cancel()
    assert events[:-1] == [Started("scripted"), TextDelta("because")]


@pytest.mark.anyio
async def test_fault_155_an_exception_of_a_buffered_consumer_is_raised_as_it_is() -> None:
    env, _ = remembering(Chunks(tuple("abcdef"), pause=0.005))
    contents: list[str] = []

    async def broken(event: StreamEvent) -> None:
        if event == TextDelta("d"):
            raise KeyError("mine")

    async def lead() -> None:
        with pytest.raises(KeyError, match="mine"):
            await run(stream(ASK, broken), env)

    async def follow() -> None:
        contents.append((await run(generate(ASK), env)).unwrap().content)

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(follow)
    assert contents == ["abcdef"]


@pytest.mark.parametrize("recovery", list(Recovery))
def test_fault_155_an_answer_that_breaks_off_is_the_same_for_a_slow_leader(recovery: Recovery) -> None:
    broken = Chunks(("one, ", "two, ", "three, "), then=MalformedResponse(), pause=0.1)
    request, pauses = evolve(ASK, recovery=recovery), (0.2, 0.0)
    alone: list[list[StreamEvent]] = []
    together: list[list[StreamEvent]] = []

    async def one(env: LLMEnv, pause: float, seen: list[list[StreamEvent]]) -> None:
        seen.append(await events_of_stream(env, pause, request))

    async def main(env: LLMEnv, seen: list[list[StreamEvent]], *pauses: float) -> None:
        async with anyio.create_task_group() as group:
            for pause in pauses:
                group.start_soon(one, env, pause, seen)
                await anyio.sleep(0.05)

    for seen, consumers in ((alone, pauses[:1]), (together, pauses)):
        clients = scripted_models(a=broken, b="and four")
        models = models_in_order("a", "b", a={"capabilities": PREFILL}, b={"capabilities": PREFILL})
        env = evolve(scripted_env(clients=clients, config=models), cache=MemoryCache(100))
        run_in_virtual_time(main, env, seen, *consumers)
        assert clients.asked == (["a"] if recovery is Recovery.FAIL else ["a", "b"])
    kinds = [type(event) for event in alone[0]]
    assert all(events[:-1] == alone[0][:-1] for events in together)
    assert kinds[-1] is (Failed if recovery is Recovery.FAIL else Completed)
    if recovery is Recovery.RESUME:
        assert "".join(event.text for event in together[0] if isinstance(event, TextDelta)).endswith("three, and four")


# 156: the pipeline's own layers are in the key.


@layer
async def with_shouting(next: Generate, call: Call, env: LLMEnv) -> Answer:
    result = await run(next(call), env)
    return result.map(lambda response: evolve(response, content=response.content.upper()))


OUTSIDE = with_shouting(standard_pipeline)
INSIDE = layered(with_deadline, with_coalescing, with_cache, with_shouting, with_routing, complete)


@pytest.mark.anyio
@pytest.mark.parametrize("pipeline", [OUTSIDE, INSIDE])
async def test_fault_156_a_pipeline_of_ones_own_shares_no_flight_and_no_cache_entry(pipeline: Generate) -> None:
    env, model = remembering(Delayed(0.02, "because"))
    contents: list[str] = []

    async def one(through: Generate) -> None:
        contents.append((await run(run_call(through, ASK), env)).unwrap().content)

    for _ in range(2):
        async with anyio.create_task_group() as group:
            group.start_soon(one, pipeline)
            group.start_soon(one, standard_pipeline)
    assert sorted(contents) == ["BECAUSE", "BECAUSE", "because", "because"]
    assert len(model.calls) == 2


def with_suffix(suffix: str) -> Generate:
    @layer
    async def with_end(next: Generate, call: Call, env: LLMEnv) -> Answer:
        result = await run(next(call), env)
        return result.map(lambda response: evolve(response, content=response.content + suffix))

    return layered(with_coalescing, with_cache, with_end, with_routing, complete)


@pytest.mark.anyio
async def test_fault_156_layers_made_with_other_values_are_different() -> None:
    env, _ = remembering("because")
    contents = [(await run(run_call(with_suffix(end), ASK), env)).unwrap().content for end in (".", "!")]
    assert contents == ["because.", "because!"]


# 158: owners are checked, so that no two share a key.


@pytest.mark.parametrize("owner", ["a\ud800", f"a{chr(0xD801)}", "a\0", " ", "a" * 513])
def test_fault_158_an_owner_that_no_store_could_distinguish_is_refused(owner: str) -> None:
    with pytest.raises(InvalidValue, match=r"^owner: "):
        LLMRequest(prompt="why?", owner=owner)


@pytest.mark.anyio
async def test_fault_158_an_invalid_owner_of_an_operation_is_an_error_value() -> None:
    result = await run(converse("c1", "why?", owner="a\ud800"), scripted_env("because"))
    assert result.failure().tag == "InvalidRequest"


# 157: doubtful answers are not stored.

LONG = LLMRequest(prompt="word " * 5_000)


@pytest.mark.anyio
@pytest.mark.parametrize("streamed", [False, True])
async def test_fault_157_an_answer_to_a_truncated_prompt_is_not_stored(*, streamed: bool) -> None:
    truncated = evolve(answer("because"), usage=Usage(input_tokens=40, output_tokens=1))
    env, model = remembering(truncated)

    async def ignore(_: StreamEvent) -> None:
        """Drop an event."""

    for _ in range(2):
        response = (await run(stream(LONG, ignore) if streamed else generate(LONG), env)).unwrap()
        assert response.doubtful
        assert "truncated the prompt" in response.warnings[0]
    assert len(model.calls) == 2


@pytest.mark.anyio
@pytest.mark.parametrize(("finish", "asked"), [("stop", 1), (None, 2), ("tired", 2)])
async def test_fault_157_an_answer_that_may_be_unfinished_is_not_stored(
    chaos: Chaos, finish: str | None, asked: int
) -> None:
    message = {"role": "assistant", "content": "because"}
    whole = WHOLE | {"choices": [{"index": 0, "finish_reason": finish, "message": message}]}
    name = chaos.plan(says(reply_json(whole)))
    server = ModelConfig(provider="openai-chat", model="m", endpoint=chaos.endpoint(name))
    async with open_env(LLMConfig(models={"m": server})) as env:
        for _ in range(2):
            assert (await run(generate(ASK), env)).unwrap().content == "because"
    assert chaos.asked[name] == asked
