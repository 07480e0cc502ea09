"""The cache layer: keys, entries, policies, and what is stored and replayed."""

import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import ClassVar, final

import anyio
import pytest
from attrs import define, evolve, field, fields_dict, frozen
from hypothesis import given
from hypothesis import strategies as st
from returns.future import FutureResult
from returns.io import IOSuccess
from returns.result import Result, Success

from llm_effects import (
    Allow,
    AuthenticationFailed,
    CachePolicy,
    Completed,
    ContentRefused,
    FinishReason,
    Image,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    MalformedResponse,
    Message,
    Preferences,
    Reasoning,
    Recovery,
    Restarted,
    Started,
    TextDelta,
    ToolCall,
    generate,
    make_llm_manager,
    open_env,
    run,
    scripted_env,
)
from llm_effects.config import CacheConfig
from llm_effects.effects.call import Call
from llm_effects.effects.effect import Answer, Generate, layer, layered
from llm_effects.pipeline import run_call, standard_pipeline
from llm_effects.policies.cache import cache_key, cache_stats, clear, invalidate, with_cache
from llm_effects.policies.coalescing import with_coalescing
from llm_effects.policies.complete import complete
from llm_effects.policies.deadline import with_deadline
from llm_effects.policies.recording import with_recording
from llm_effects.policies.routing import with_routing
from llm_effects.policies.tracing import with_tracing
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.stores.disabled import NoCache
from llm_effects.stores.worker_threads import TOO_LATE
from llm_effects.testing import Chunks, Delayed, Reply, Scripted, answer, run_in_virtual_time, scripted
from llm_effects.values import CacheStats, Tool
from llm_effects.values.errors import LLMError, describe
from llm_effects.values.events import ToolCallDelta
from llm_effects.values.messages import Citation, Origin, Text
from llm_effects.values.requests import TaskType
from llm_effects.values.responses import Attempt, Cost
from llm_effects.values.serialization import Entry, dump_entry, dump_value, load_entry
from tests.fixtures.cached import ASK, ONE, STUDIO, TWO, remembering, streamed_events

SHAPING: dict[str, LLMRequest] = {
    "prompt": evolve(ASK, prompt="how?"),
    "messages": LLMRequest(messages=(Message("user", "why?"), Message("assistant", "because"), Message("user", "so?"))),
    "system": evolve(ASK, system="be brief"),
    "task_type": evolve(ASK, task_type="analysis"),
    "preferences.max_tokens": evolve(ASK, preferences=Preferences(max_tokens=5)),
    "preferences.temperature": evolve(ASK, preferences=Preferences(temperature=0.5)),
    "preferences.top_p": evolve(ASK, preferences=Preferences(top_p=0.5)),
    "preferences.stop": evolve(ASK, preferences=Preferences(stop=("x",))),
    "preferences.seed": evolve(ASK, preferences=Preferences(seed=5)),
    "preferences.reasoning_effort": evolve(ASK, preferences=Preferences(reasoning_effort="low")),
    "tools": evolve(ASK, tools=(Tool("look"),)),
    "tool_choice": evolve(ASK, tool_choice="none"),
    "response_schema": evolve(ASK, response_schema={"type": "object"}),
    "model": evolve(ASK, model="one"),
    "owner": evolve(ASK, owner="alice"),
    "allow": evolve(ASK, allow=(Allow.CHEAPER_MODEL,)),
    "stays": evolve(ASK, stays="machine"),
}


REST: dict[str, LLMRequest] = {
    "preferences.timeout_ms": evolve(ASK, preferences=Preferences(timeout_ms=5)),
    "cache": evolve(ASK, cache=CachePolicy.REFRESH),
    "recovery": evolve(ASK, recovery=Recovery.RESTART),
    "tags": evolve(ASK, tags=("nightly",)),
    "metadata": evolve(ASK, metadata={"a": "b"}),
    "conversation": evolve(ASK, conversation="c"),
    "prompt_cache": evolve(ASK, prompt_cache="1h"),
}


FULL = evolve(
    answer("because"),
    parts=(
        Reasoning("hm", '{"signature":"x"}'),
        ToolCall("call_1", "look", "{}"),
        Image(data=b"\x00\xff", media_type="image/png"),
    ),
    warnings=("temperature was dropped",),
    request_id="req_1",
    task_type="triage",
)


@frozen
class Slow:
    """A store that takes its time over everything."""

    seconds: float

    def get(self, key: str) -> FutureResult[bytes | None, LLMError]:
        return FutureResult(self._late())

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:
        return FutureResult(self._late())

    def delete(self, key: str) -> FutureResult[bool, LLMError]:
        return NoCache().delete(key)

    def clear(self) -> FutureResult[int | None, LLMError]:
        return NoCache().clear()

    def stats(self) -> FutureResult[CacheStats, LLMError]:
        return NoCache().stats()

    async def aclose(self) -> None:
        pass

    async def _late(self) -> Result[None, LLMError]:
        await anyio.sleep(self.seconds)
        return Success(None)


def test_every_request_field_is_classified_as_shaping_the_answer_or_not() -> None:
    known = {name.split(".")[0] for name in (*SHAPING, *REST)}
    assert known == set(fields_dict(LLMRequest))
    classified = {name.split(".")[1] for name in (*SHAPING, *REST) if "." in name}
    assert classified == set(fields_dict(Preferences))


@pytest.mark.parametrize("name", SHAPING)
def test_a_field_that_shapes_the_answer_changes_the_key(name: str) -> None:
    keys = {cache_key(request, TWO) for request in (ASK, *SHAPING.values())}
    assert len(keys) == 1 + len(SHAPING)
    assert cache_key(SHAPING[name], TWO) != cache_key(ASK, TWO)


@pytest.mark.parametrize("name", REST)
def test_a_field_that_does_not_shape_the_answer_keeps_the_key(name: str) -> None:
    assert cache_key(REST[name], TWO) == cache_key(ASK, TWO)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"api_key": "sk-another-key"}, True),
        ({"timeout_ms": 5}, True),
        ({"model": "n"}, False),
        ({"endpoint": "http://localhost:99/v1"}, False),
        ({"temperature": 0.3}, False),
        ({"max_tokens": 3}, False),
        ({"context_length": 99}, False),
    ],
)
def test_candidates_are_in_the_key_but_their_api_keys_are_not(change: dict[str, object], same: bool) -> None:
    changed = LLMConfig(models={"one": evolve(STUDIO, **change), "two": STUDIO})
    assert (cache_key(ASK, changed) == cache_key(ASK, TWO)) is same


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ({}, {}, True),
        ({"headers": {"X-Tenant": "a"}}, {"headers": {"x-tenant": "b"}}, False),
        ({"headers": {"X-Tenant": "a"}}, {"headers": {"x-tenant": "a"}}, True),
        ({"api_key": "sk-one-key"}, {"api_key": "sk-another-key"}, True),
        ({"headers": {"Authorization": "Bearer a"}}, {"headers": {"Authorization": "Bearer b"}}, True),
        ({"namespace": "a"}, {"namespace": "b"}, False),
        ({"namespace": "a", "headers": {"x-pod": "1"}}, {"namespace": "a", "headers": {"x-pod": "2"}}, True),
    ],
)
@pytest.mark.anyio
async def test_fault_159_configurations_share_entries_only_in_one_namespace(
    ours: dict[str, object], theirs: dict[str, object], *, same: bool
) -> None:
    contents, shared = list[str](), MemoryCache()
    for number, settings in enumerate((ours, theirs)):
        namespace = settings.get("namespace")
        model = {key: value for key, value in settings.items() if key != "namespace"}
        cache = CacheConfig(namespace=namespace)  # type: ignore[arg-type]
        config = LLMConfig(models={"one": evolve(STUDIO, **model)}, cache=cache)
        env = evolve(scripted_env(f"answer {number}", config=config), cache=shared)
        contents.append((await run(generate(ASK), env)).unwrap().content)
    assert contents == ["answer 0", "answer 0" if same else "answer 1"]


def test_the_order_of_candidates_and_mappings_does_not_change_the_key() -> None:
    turned = LLMConfig(models={"two": STUDIO, "one": STUDIO})
    assert cache_key(ASK, turned) == cache_key(ASK, TWO)
    there = evolve(ASK, response_schema={"type": "object", "title": "A", "properties": {"a": {}, "b": {}}})
    back = evolve(ASK, response_schema={"properties": {"b": {}, "a": {}}, "title": "A", "type": "object"})
    assert cache_key(there, TWO) == cache_key(back, TWO)


def test_a_prompt_and_its_message_have_the_same_key() -> None:
    assert cache_key(LLMRequest(messages=(Message("user", "why?"),)), TWO) == cache_key(ASK, TWO)


def test_the_key_is_the_same_in_another_process() -> None:
    program = (
        "from llm_effects import *;from llm_effects.policies.cache import cache_key;"
        "m=ModelConfig(provider='lm-studio', model='m');"
        "print(cache_key(LLMRequest(prompt='why?', response_schema={'b': 1, 'a': 2}), LLMConfig(models={'x': m})))"
    )
    keys = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    here = cache_key(LLMRequest(prompt="why?", response_schema={"b": 1, "a": 2}), LLMConfig(models={"x": STUDIO}))
    assert keys == {here + "\n"}


@given(st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_different_texts_have_different_keys(one: str, other: str) -> None:
    same = cache_key(LLMRequest(prompt=one), TWO) == cache_key(LLMRequest(prompt=other), TWO)
    assert same == (one == other)


def test_an_entry_round_trips() -> None:
    entry = Entry(response=FULL, events=(TextDelta("be"), TextDelta("cause")))
    assert load_entry(dump_entry(entry)) == entry


def test_every_flipped_bit_and_every_truncation_is_a_miss() -> None:
    data = dump_entry(Entry(response=answer("because"), events=(TextDelta("because"),)))
    for index in range(len(data)):
        assert load_entry(data[:index]) is None
        for bit in range(8):
            assert load_entry(data[:index] + bytes([data[index] ^ (1 << bit)]) + data[index + 1 :]) is None


@pytest.mark.parametrize("data", [b"", b"null", b"\x80\x04K\x01.", b'{"version":2,"sha256":"","body":{}}', b"[" * 9999])
def test_foreign_data_is_a_miss(data: bytes) -> None:
    assert load_entry(data) is None


@pytest.mark.anyio
async def test_a_hit_returns_the_first_answer_at_no_cost() -> None:
    env, model = remembering("because")
    first = (await run(generate(ASK), env)).unwrap()
    second = (await run(generate(ASK), env)).unwrap()
    assert (first.cached, second.cached, len(model.calls)) == (False, True, 1)
    assert (second.content, second.usage, second.cost.usd, second.attempts) == ("because", first.usage, 0, ())


@pytest.mark.anyio
async def test_refresh_asks_and_stores_bypass_does_neither_and_only_never_asks() -> None:
    env, model = remembering("one", "two", "three", "four")
    policies = (CachePolicy.BYPASS, CachePolicy.USE, CachePolicy.REFRESH, CachePolicy.USE, CachePolicy.ONLY)
    contents = [(await run(generate(evolve(ASK, cache=policy)), env)).unwrap().content for policy in policies]
    assert contents == ["one", "two", "three", "three", "three"]
    missed = (await run(generate(evolve(ASK, prompt="new?", cache=CachePolicy.ONLY)), env)).failure()
    assert (missed.tag, len(model.calls)) == ("StorageFailed", 3)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "reply",
    [
        AuthenticationFailed(),
        ContentRefused(),
        evolve(answer("cut off"), finish_reason=FinishReason.LENGTH),
        evolve(answer(""), finish_reason=FinishReason.TOOL_CALLS),
    ],
    ids=lambda reply: getattr(reply, "tag", None) or reply.finish_reason.value,
)
async def test_only_whole_answers_are_stored(reply: Reply) -> None:
    env, model = remembering(reply)
    request = evolve(ASK, model="one")
    for _ in range(2):
        await run(generate(request), env)
    assert len(model.calls) == 2


@pytest.mark.anyio
async def test_a_truncated_answer_is_stored_if_configured() -> None:
    config = evolve(TWO, cache=CacheConfig(keep=("stop", "length")))
    env, model = remembering(evolve(answer("cut off"), finish_reason=FinishReason.LENGTH), config=config)
    for _ in range(2):
        await run(generate(ASK), env)
    assert len(model.calls) == 1


@pytest.mark.anyio
async def test_one_entry_serves_plain_and_streamed_calls() -> None:
    env, model = remembering(Chunks(("be", "cause")))
    streamed = await streamed_events(env)
    again = await streamed_events(env)
    plain = (await run(generate(ASK), env)).unwrap()
    assert again[:-1] == streamed[:-1] == [Started("one"), TextDelta("be"), TextDelta("cause")]
    assert isinstance(again[-1], Completed)
    assert (again[-1].response.cached, plain.cached, plain.content, len(model.calls)) == (True, True, "because", 1)


@pytest.mark.anyio
async def test_a_plain_answer_is_replayed_to_a_later_stream() -> None:
    env, _ = remembering("because")
    await run(generate(ASK), env)
    assert (await streamed_events(env))[:-1] == [Started("one"), TextDelta("because")]


@pytest.mark.anyio
async def test_a_restarted_answer_is_not_stored() -> None:
    env, model = remembering(Chunks(("half",), then=MalformedResponse()), "whole", "whole again")
    request = evolve(ASK, recovery=Recovery.RESTART)
    assert Restarted("two") in await streamed_events(env, request)
    await streamed_events(env, request)
    assert len(model.calls) == 3


@pytest.mark.anyio
async def test_a_corrupt_entry_is_a_miss_and_is_replaced() -> None:
    env, model = remembering("because")
    await env.cache.put(cache_key(ASK, env.config), b'{"version": 99}', None)
    assert not (await run(generate(ASK), env)).unwrap().cached
    assert (await run(generate(ASK), env)).unwrap().cached
    assert len(model.calls) == 1


@pytest.mark.anyio
async def test_a_failing_store_is_a_miss_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / "broken.db").write_bytes(b"this is no database, however long it may be" * 50)
    url = f"sqlite:///{tmp_path}/broken.db"
    model = scripted("because")
    adapted = make_llm_manager(evolve(TWO, cache=CacheConfig(url=url)), lambda env: evolve(env, clients=model))
    async with adapted as manager:
        response = (await manager.run(generate(ASK))).unwrap()
        await manager.run(generate(ASK))
    assert (response.content, len(model.calls)) == ("because", 2)
    assert "cache could not be read" in response.warnings[0]


@pytest.mark.anyio
async def test_failures_of_the_store_are_counted() -> None:
    nowhere = evolve(TWO, cache=CacheConfig(url="redis://127.0.0.1:9/0"))
    model = scripted("because")
    async with make_llm_manager(nowhere, lambda env: evolve(env, clients=model)) as manager:
        response = (await manager.run(generate(ASK))).unwrap()
        stats = (await manager.run(cache_stats())).unwrap()
    assert (response.content, stats.failures, stats.hits) == ("because", 1, 0)


@pytest.mark.anyio
async def test_a_wrong_url_is_a_configuration_error() -> None:
    async with open_env(evolve(TWO, cache=CacheConfig(url="ftp://nowhere"))) as env:
        error = (await run(generate(ASK), env)).failure()
    assert (error.tag, "cache.url" in str(error)) == ("ConfigurationError", True)


@pytest.mark.anyio
async def test_owners_do_not_share_entries() -> None:
    env, model = remembering("for alice", "for bob")
    alice = (await run(generate(evolve(ASK, owner="alice")), env)).unwrap()
    bob = (await run(generate(evolve(ASK, owner="bob")), env)).unwrap()
    assert (alice.content, bob.content, len(model.calls)) == ("for alice", "for bob", 2)


@pytest.mark.anyio
async def test_stats_invalidate_and_clear() -> None:
    env, model = remembering("because")
    await run(generate(ASK), env)
    await run(generate(ASK), env)
    stats = (await run(cache_stats(), env)).unwrap()
    assert (stats.entries, stats.hits) == (1, 1)
    assert (await run(invalidate(ASK), env)).unwrap()
    assert not (await run(invalidate(ASK), env)).unwrap()
    await run(generate(ASK), env)
    assert (await run(clear(), env)).unwrap() == 1
    await run(generate(ASK), env)
    assert len(model.calls) == 3


def test_answers_survive_a_restart(tmp_path: Path) -> None:
    config = evolve(TWO, cache=CacheConfig(url=f"sqlite:///{tmp_path}/answers.db"))

    async def use(model: Scripted) -> bool:
        async with make_llm_manager(config, lambda env: evolve(env, clients=model)) as manager:
            return (await manager.run(generate(ASK))).unwrap().cached

    model = scripted("because")
    assert [anyio.run(use, model, backend=backend) for backend in ("asyncio", "trio", "asyncio")] == [False, True, True]
    assert len(model.calls) == 1


@pytest.mark.anyio
async def test_an_empty_answer_is_not_stored() -> None:
    env, model = remembering("")
    for _ in range(2):
        await run(generate(ASK), env)
    assert len(model.calls) == 2


@pytest.mark.anyio
async def test_a_custom_layer_may_change_the_question() -> None:
    def for_user(inner: Generate) -> Generate:
        return lambda call: inner(evolve(call, request=evolve(call.request, system=call.request.metadata["user"])))

    pipeline = layered(with_deadline, with_coalescing, for_user, with_cache, with_routing, with_recording, complete)
    env, _ = remembering(lambda request: f"for {request.system}")
    answers = [
        (await run(run_call(pipeline, evolve(ASK, metadata={"user": user})), env)).unwrap().content
        for user in ("alice", "bob", "alice")
    ]
    assert answers == ["for alice", "for bob", "for alice"]


@pytest.mark.parametrize("timeout_ms", [400, 60_000])
def test_a_slow_store_costs_neither_the_answer_nor_much_time(timeout_ms: float) -> None:
    env = evolve(scripted_env(Delayed(0.1, "because"), config=ONE), cache=Slow(3600))
    request = evolve(ASK, preferences=Preferences(timeout_ms=timeout_ms))
    response = run_in_virtual_time(run, generate(request), env).unwrap()
    assert response.content == "because"
    assert response.latency_ms <= min(timeout_ms, 2100)
    assert "took too long" in response.warnings[0]


@pytest.mark.anyio
async def test_a_manager_closes_its_own_cache_but_not_a_supplied_one() -> None:
    shared, model = MemoryCache(10), scripted("because")

    def adapt(env: LLMEnv) -> LLMEnv:
        return evolve(env, clients=model, cache=shared)

    async with make_llm_manager(TWO, adapt) as first:
        await first.run(generate(ASK))
    async with make_llm_manager(TWO, adapt) as second:
        assert (await second.run(generate(ASK))).unwrap().cached


# Answers at once: a hit in memory passes through the layers only where they may change it.


@pytest.mark.anyio
async def test_a_layer_before_the_cache_changes_stored_answers_too() -> None:
    @layer
    async def with_shouting(next: Generate, call: Call, env: LLMEnv) -> Answer:
        result = await run(next(call), env)
        return result.map(lambda response: evolve(response, content=response.content.upper()))

    env = evolve(scripted_env("because"), cache=MemoryCache())
    loud = layered(with_shouting, standard_pipeline)
    answers = [(await run(run_call(loud, ASK), env)).unwrap() for _ in range(2)]
    assert [(each.content, each.cached) for each in answers] == [("BECAUSE", False), ("BECAUSE", True)]


@pytest.mark.anyio
async def test_an_answer_at_once_is_the_answer_that_the_layers_give() -> None:
    @layer
    async def with_nothing(next: Generate, call: Call, env: LLMEnv) -> Answer:
        return await run(next(call), env)

    named = LLMRequest(prompt="why?", task_type="anlysis")
    env = evolve(scripted_env("because"), cache=MemoryCache())
    slow = layered(with_tracing, with_nothing, with_cache, with_routing, with_recording, complete)
    fast = layered(with_tracing, with_cache, with_nothing, with_routing, with_recording, complete)
    for pipeline in (slow, fast):  # the same name of layers, and so the same key
        assert (await run(run_call(pipeline, named), env)).unwrap().cached is (pipeline is fast)
    slowly, at_once = [(await run(run_call(each, named), env)).unwrap() for each in (slow, fast)]
    assert evolve(at_once, latency_ms=0.0) == evolve(slowly, latency_ms=0.0)
    assert at_once.warnings
    assert (await env.cache.stats()).map(lambda stats: (stats.hits, stats.misses)) == IOSuccess((3, 1))


@final
@define
class TimedCache:
    """A cache that takes some time for a look-up, within the time that it is given, and counts look-ups."""

    takes_s: float = 0.0
    looks: int = 0
    stored: MemoryCache = field(factory=MemoryCache)
    waits: ClassVar[bool] = False

    async def get_within(self, key: str, seconds: float) -> Result[bytes | Entry | None, LLMError]:
        self.looks += 1
        await anyio.sleep(min(self.takes_s, seconds))
        return Success(self.stored.find(key)) if self.takes_s <= seconds else TOO_LATE

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> FutureResult[None, LLMError]:
        return self.stored.put(key, entry, ttl_seconds)


@pytest.mark.anyio
async def test_a_file_is_read_once_for_each_call(tmp_path: Path) -> None:
    async with open_env(evolve(TWO, cache=CacheConfig(url=f"sqlite:///{tmp_path}/cache.db"))) as live:
        env = evolve(scripted_env("because"), cache=live.cache)
        answers = [(await run(generate(ASK), env)).unwrap() for _ in range(3)]
        assert [each.cached for each in answers] == [False, True, True]
        stats = (await run(cache_stats(), env)).unwrap()
        assert (stats.hits, stats.misses) == (2, 1)
        nothing = await run(generate(evolve(ASK, prompt="new?", cache=CachePolicy.ONLY)), env)
        assert "no answer is stored" in describe(nothing.failure())
        assert (await run(cache_stats(), env)).unwrap().misses == 2


def test_a_look_up_before_the_layers_is_part_of_the_calls_time() -> None:
    async def main() -> tuple[float, str]:
        began = anyio.current_time()
        env = evolve(scripted_env(clients=scripted(Delayed(0.8, "because"))), cache=TimedCache(takes_s=0.4))
        result = await run(generate(evolve(ASK, preferences=Preferences(timeout_ms=1000))), env)
        return round(anyio.current_time() - began, 6), result.failure().tag

    assert run_in_virtual_time(main) == (1.0, "TimeoutError")


def test_a_look_up_takes_half_of_the_calls_time_at_most() -> None:
    async def main() -> tuple[float, tuple[str, ...]]:
        began = anyio.current_time()
        env = evolve(scripted_env("because"), cache=TimedCache(takes_s=9.0))
        result = await run(generate(evolve(ASK, preferences=Preferences(timeout_ms=1000))), env)
        return round(anyio.current_time() - began, 6), result.unwrap().warnings

    took, warnings = run_in_virtual_time(main)
    assert took == 0.5
    assert "it took too long" in warnings[0]


def test_who_followed_a_call_in_vain_looks_again() -> None:
    async def main() -> tuple[int, int]:
        model, cache = scripted(Delayed(5.0, "lost"), "because"), TimedCache(takes_s=0.1)
        env = evolve(scripted_env(clients=model), cache=cache)
        answers = list[str]()

        async def follow() -> None:
            answers.append((await run(generate(ASK), env)).unwrap().content)

        async with anyio.create_task_group() as followers:
            with anyio.move_on_after(1.0):
                async with anyio.create_task_group() as leader:
                    leader.start_soon(run, generate(ASK), env)
                    await anyio.sleep(0.5)
                    followers.start_soon(follow)
        assert answers == ["because"]
        return cache.looks, len(model.calls)

    assert run_in_virtual_time(main) == (3, 2)


def test_an_entry_is_written_without_the_converter_as_with_it() -> None:
    parts = (
        Text("x", (Citation(start=0, end=1, quote="x"),)),
        Reasoning("so", "sealed", Origin("p", "m")),
        ToolCall("1", "look", "{}"),
    )
    attempt = Attempt(model="m", provider="p", outcome="success", latency_ms=1.5, cost=Cost(Decimal("0.10")))
    whole = evolve(answer("x\ud83d"), parts=parts, task_type=TaskType("mine"), attempts=(attempt,), warnings=("w",))
    pictured = evolve(whole, parts=(*parts, Image(data=b"\x89PNG", media_type="image/png")))
    events = (TextDelta("x"), ToolCallDelta(0, "1", "look", "{}"))
    for entry in (Entry(response=whole, events=events), Entry(response=pictured)):
        body, known = json.loads(dump_entry(entry))["body"], json.loads(dump_value(entry))
        assert (known.pop("fresh_until"), known["response"].pop("stale")) == (None, False)
        assert {part.pop("stays") for part in (known["response"], *known["response"]["parts"])} == {None}
        assert body == known
        assert load_entry(dump_entry(entry)) == evolve(entry, response=evolve(entry.response, content="x\ufffd"))


def test_a_first_call_does_not_make_the_converter() -> None:
    program = (
        "import sys, anyio\n"
        "from attrs import evolve\n"
        "from llm_effects import LLMRequest, generate, run, scripted_env\n"
        "from llm_effects.stores.cache.memory import MemoryCache\n"
        "env = evolve(scripted_env('because'), cache=MemoryCache())\n"
        "stored = [anyio.run(run, generate(LLMRequest(prompt='why?')), env).unwrap() for _ in range(1)]\n"
        "print(stored[0].content, 'cattrs' in sys.modules)\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown == "because False\n"


@pytest.mark.anyio
async def test_a_doubtful_answer_is_not_stored() -> None:
    env, model = remembering(evolve(answer("cut?"), doubtful=True), "whole", config=ONE)
    contents = [(await run(generate(ASK), env)).unwrap().content for _ in range(3)]
    assert (contents, len(model.calls)) == (["cut?", "whole", "whole"], 2)
