"""Recordings: what was recorded is replayed as it was, without a model, and what was not is named."""

import json
import re
from decimal import Decimal
from pathlib import Path

import anyio
import pytest
from attrs import define, evolve
from returns.future import FutureResult
from returns.result import Failure, Result, Success

from llm_effects import (
    Attempt,
    AuthenticationFailed,
    Cost,
    Failed,
    Image,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    MalformedResponse,
    Message,
    ModelConfig,
    ModelUnavailable,
    NetworkError,
    Preferences,
    RateLimitExceeded,
    Reasoning,
    Recovery,
    StreamEvent,
    Text,
    ToolCall,
    ToolCallDelta,
    check_health,
    converse,
    embed,
    generate,
    load_conversation,
    open_env,
    run,
    run_tools,
    scripted_env,
    start_conversation,
    stream,
    tool,
    toolkit,
)
from llm_effects.config import Price, RoutingConfig
from llm_effects.config.routing import HedgingConfig
from llm_effects.effects.call import AttemptContext, Call
from llm_effects.limits.quotas import Allowance, RateLimits
from llm_effects.testing import Chunks, Delayed, Reply, answer, calling, failing, run_in_virtual_time, scripted
from llm_effects.testing.exchanges import Exchange, Piece, dump_exchange, request_of, scrubber
from llm_effects.testing.recordings import Mode, Recording, recorded
from llm_effects.testing.virtual_time import Backend
from llm_effects.values.errors import Cause
from llm_effects.values.records import ModelHealth
from llm_effects.values.secrets import Secret
from llm_effects.values.validation import InvalidValue
from tests.fixtures.models import models_in_order, scripted_models
from tests.fixtures.servers import answering, reply, reply_json, serving

PRICE = Price(input=1, output=4)
TWO = models_in_order("a", "b", a={"price": PRICE}, b={"price": PRICE})
NEVER = failing(NetworkError(message="a model was asked in a replay"))

BACKENDS: tuple[Backend, ...] = ("asyncio", "trio")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recordings" / "incident.jsonl"


def env_of(config: LLMConfig = TWO, **replies: Reply | tuple[Reply, ...]) -> LLMEnv:
    """Return an environment of models that usually answer within a second."""
    env = scripted_env(config=config, clients=scripted_models(**replies) if replies else NEVER)
    for name in config.models if config.routing.hedging.enabled else ():
        for first_content_ms in (None, 1000.0) * 20:
            usual = Attempt(model=name, provider="lm-studio", outcome="success", latency_ms=1000.0)
            env.health.observe(evolve(usual, first_content_ms=first_content_ms), env.now())
    return env


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]]


async def asked(env: LLMEnv, request: LLMRequest) -> tuple[object, list[StreamEvent]]:
    """Stream one request; return how it ended, and its events."""
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    return await run(stream(request, sink), env), events


def timeless(value: object) -> str:
    """Return the repr of a value without its durations."""
    return re.sub(r"\b(latency_ms|first_content_ms|wait_ms)=[\d.e-]+", r"\1=...", repr(value))


def rounded(attempt: Attempt) -> Attempt:
    first = attempt.first_content_ms
    return evolve(
        attempt,
        latency_ms=round(attempt.latency_ms, 3),
        first_content_ms=None if first is None else round(first, 3),
        wait_ms=round(attempt.wait_ms, 3),
    )


# What is replayed is what was recorded.

WHY = LLMRequest(prompt="Why?")
FAILOVER = (
    Delayed(1.5, RateLimitExceeded(retry_after=1.0, message="slow down", status=429)),
    Delayed(0.25, NetworkError(phase="reset", message="connection reset")),
    Delayed(0.5, ModelUnavailable(status=503)),
)
HEDGED = evolve(TWO, routing=RoutingConfig(timeout_ms=300_000, hedging=HedgingConfig(enabled=True, budget=1.0)))
STREAMED = Chunks(("The ", "disk ", "is full."), pause=0.75)
BROKEN_STREAM = Chunks(("The ",), then=MalformedResponse(message="cut"), pause=1)


def within(seconds: float) -> LLMRequest:
    return evolve(WHY, preferences=Preferences(timeout_ms=seconds * 1000))


INCIDENTS: dict[str, tuple[LLMConfig, LLMRequest, dict[str, Reply | tuple[Reply, ...]]]] = {
    "a failover after retries": (TWO, WHY, {"a": FAILOVER, "b": Delayed(2, "The disk is full.")}),
    "a rejected key": (TWO, WHY, {"a": AuthenticationFailed(status=401), "b": "The disk is full."}),
    "a stream": (TWO, WHY, {"a": STREAMED, "b": "unused"}),
    "a stream that breaks before content": (TWO, WHY, {"a": Chunks((), then=NetworkError()), "b": STREAMED}),
    "a stream that starts again": (
        TWO,
        evolve(WHY, recovery=Recovery.RESTART),
        {"a": BROKEN_STREAM, "b": STREAMED},
    ),
    "a stream that fails": (TWO, WHY, {"a": BROKEN_STREAM, "b": "x"}),
    "a model that stalls": (TWO, within(20), {"a": Delayed(3600, "late"), "b": Delayed(1, "now")}),
    "a call out of time": (TWO, within(5), {"a": Delayed(3600, "late"), "b": Delayed(3600, "late")}),
    "a slow model that is hedged": (HEDGED, WHY, {"a": Delayed(30, "late"), "b": Delayed(1, "now")}),
    "no answer at all": (TWO, WHY, {"a": NetworkError(phase="dns"), "b": ModelUnavailable(reason="unknown_model")}),
}  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", INCIDENTS)
def test_an_incident_replays_with_the_same_attempts_times_events_usage_and_cost(
    name: str, backend: Backend, path: Path
) -> None:
    config, request, replies = INCIDENTS[name]
    other: Backend = "trio" if backend == "asyncio" else "asyncio"
    for ask in (asked, lambda env, request: run(generate(request), env)):
        with recorded(env_of(config, **replies), path, "refresh") as env:
            first = run_in_virtual_time(ask, env, request, backend=backend)
        with recorded(env_of(config), path, gaps=True) as env:
            again = run_in_virtual_time(ask, env, request, backend=other)
        assert timeless(again) == timeless(first)
        ends = [each[0] if isinstance(each, tuple) else each for each in (first, again)]
        # Attempts that end in the same moment are recorded in any order.
        trails = [sorted((rounded(each) for each in attempts_of(end)), key=repr) for end in ends]
        assert trails[0] == trails[1]
        assert cost_of(ends[0]) == cost_of(ends[1])
        assert trails[0]


def attempts_of(end: object) -> tuple[Attempt, ...]:
    assert isinstance(end, Success | Failure)
    held: LLMResponse = end.unwrap() if isinstance(end, Success) else end.failure()
    return held.attempts


def cost_of(end: object) -> Cost:
    assert isinstance(end, Success | Failure)
    held: LLMResponse = end.unwrap() if isinstance(end, Success) else end.failure()
    return held.cost


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failover_replays_at_once_with_the_same_outcomes(backend: Backend, path: Path) -> None:
    config = evolve(TWO, routing=evolve(TWO.routing, max_retries=0))
    with recorded(env_of(config, a=FAILOVER, b=Delayed(2, "The disk is full.")), path, "record") as env:
        first = run_in_virtual_time(run, generate(WHY), env).unwrap()
    with recorded(env_of(config), path) as env:
        again = anyio.run(run, generate(WHY), env, backend=backend).unwrap()
    outcomes = [("a", "RateLimitExceeded"), ("b", "success")]
    assert [(each.model, each.outcome) for each in first.attempts] == outcomes
    assert [(each.model, each.outcome, each.usage, each.cost) for each in again.attempts] == [
        (each.model, each.outcome, each.usage, each.cost) for each in first.attempts
    ]
    assert again.cost == first.cost == Cost(Decimal("0.000026"))


def test_at_once_an_attempt_that_was_cancelled_is_a_time_out(path: Path) -> None:
    config, request, replies = INCIDENTS["a model that stalls"]
    with recorded(env_of(config, **replies), path, "record") as env:
        run_in_virtual_time(run, generate(request), env)
    with recorded(env_of(config), path) as env:
        again = anyio.run(run, generate(request), env).unwrap()
    assert [(each.model, each.outcome) for each in again.attempts] == [("a", "TimeoutError"), ("b", "success")]


def test_equal_requests_have_their_answers_in_turn(path: Path) -> None:
    with recorded(scripted_env("one", "two", "three"), path, "record") as env:
        first = [anyio.run(run, generate("Roll."), env).unwrap().content for _ in range(3)]
    with recorded(scripted_env(), path) as env:
        assert [anyio.run(run, generate("Roll."), env).unwrap().content for _ in range(3)] == first
        again = anyio.run(run, generate("Roll."), env).failure()
    assert "recorded 3 times, and asked once more" in describe_of(again)


def describe_of(error: object) -> str:
    return str(getattr(error, "message", ""))


def test_a_whole_answer_serves_a_stream_and_a_stream_a_whole_answer(path: Path) -> None:
    with recorded(scripted_env("The disk is full.", STREAMED), path, "record") as env:
        anyio.run(run, generate("a"), env)
        run_in_virtual_time(asked, env, LLMRequest(prompt="b"))
    with recorded(scripted_env(), path) as env:
        end, events = anyio.run(asked, env, LLMRequest(prompt="a"))
        assert [type(event).__name__ for event in events] == ["Started", "TextDelta", "Completed"]
        assert isinstance(end, Success)
        assert anyio.run(run, generate("b"), env).unwrap().content == "The disk is full."


@pytest.mark.anyio
async def test_the_stores_of_a_replay_are_real(path: Path) -> None:
    async def talk(env: LLMEnv) -> list[str]:
        await run(start_conversation("c"), env)
        answers = [(await run(converse("c", question), env)).unwrap().content for question in ("one?", "two?")]
        history = (await run(load_conversation("c"), env)).unwrap()
        rows = (await env.ledger.rows()).unwrap()._inner_value
        return [*answers, str(len(history.turns)), str(len(rows))]

    with recorded(scripted_env("1", "2"), path, "record") as env:
        first = await talk(env)
    with recorded(scripted_env(clients=NEVER), path) as env:
        assert await talk(env) == first == ["1", "2", "2", "2"]
    assert [len(each["request"]["messages"]) for each in lines_of(path)] == [1, 3]  # type: ignore[index]


@pytest.mark.anyio
async def test_the_tools_of_a_replay_run(path: Path) -> None:
    ran: list[str] = []

    @tool
    def disk_usage(disk: str) -> str:
        """Return how full a disk is."""
        ran.append(disk)
        return f"{disk}: 97 %"

    ids = ("call_p9ZkQ3vT7", "toolu_01AbCdEf", "call_Zz12345678")
    *two, third = (ToolCall(each, "disk_usage", f'{{"disk": "{disk}"}}') for each, disk in zip(ids, "abc", strict=True))
    env = scripted_env(calling(*two), calling(third), lambda request: f"{len(request.messages)} messages")
    with recorded(env, path, "record") as env:
        first = (await run(run_tools(LLMRequest(prompt="How full?"), toolkit(disk_usage)), env)).unwrap()
    with recorded(scripted_env(clients=NEVER), path) as env:
        again = (await run(run_tools(LLMRequest(prompt="How full?"), toolkit(disk_usage)), env)).unwrap()
    assert first.response.content == again.response.content
    assert sorted(ran) == sorted(["a", "b", "c"] * 2)
    assert not [each for each in ids if each in read(path)]


@pytest.mark.anyio
async def test_embeddings_and_health_checks_are_replayed(path: Path) -> None:
    config = LLMConfig(models={"e": ModelConfig(provider="lm-studio", model="nomic-embed-text")})
    with recorded(scripted_env(config=config), path, "record") as env:
        vectors = (await run(embed(("one", "two")), env)).unwrap()
        health = (await run(check_health(), env)).unwrap()
    with recorded(scripted_env(config=config, clients=NEVER), path) as env:
        assert (await run(embed(("one", "two")), env)).unwrap().vectors == vectors.vectors
        assert [(await run(check_health(), env)).unwrap() for _ in range(3)] == [health] * 3
        error = (await run(embed(("one", "three")), env)).failure()
    assert "texts[1]: recorded 'two', asked 'three'" in describe_of(error)


@pytest.mark.anyio
async def test_the_limits_that_a_server_reports_are_replayed(path: Path) -> None:
    limits = RateLimits(requests=Allowance(limit=10, remaining=9, reset=6.0), at=anyio.current_time())

    def reports(call: Call) -> Call:
        call.attempt.record.rate_limits = limits
        return call

    asking = Call(id="1", request=WHY, attempt=AttemptContext(model="scripted"))
    with recorded(scripted_env("ok"), path, "record") as env:
        await env.clients.complete(reports(asking))
    with recorded(scripted_env(clients=NEVER), path) as env:
        again = Call(id="2", request=WHY, attempt=AttemptContext(model="scripted"))
        await env.clients.complete(again)
    found = again.attempt.record.rate_limits
    assert found is not None
    assert (found.requests, found.at >= limits.at) == (limits.requests, True)


def test_a_live_exchange_is_replayed_without_its_server(path: Path) -> None:
    completion = {
        "id": "chatcmpl-B9MHDbslfkBeAs8l4bebGdFOJ6PeG",
        "model": "stub",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Logs."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 2},
    }

    async def ask(config: LLMConfig, mode: Mode) -> LLMResponse:
        async with open_env(config) as live:
            with recorded(live, path, mode) as env:
                return (await run(generate("Why do disks fill up?"), env)).unwrap()

    with serving(answering(reply_json(completion, "200 OK", "x-request-id: req_0123456789abcdef"))) as server:
        model = ModelConfig(provider="openai-compatible", model="stub", endpoint=server.url, api_key="k-12345678")
        config = LLMConfig(models={"stub": model})
        first = anyio.run(ask, config, "record")
    again = anyio.run(ask, config, "replay")
    assert (again.content, again.usage, again.served_model) == (first.content, first.usage, first.served_model)
    assert not re.search("0123456789abcdef|k-12345678|B9MHD", path.read_text())


def test_a_live_stream_is_replayed_piece_by_piece(path: Path) -> None:
    def piece(text: str) -> str:
        return json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})

    end = json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    lines = [*map(piece, ("The ", "disk ", "is full.")), end, "[DONE]"]
    body = "".join(f"data: {line}\n\n" for line in lines).encode()

    async def ask(config: LLMConfig, mode: Mode) -> list[StreamEvent]:
        async with open_env(config) as live:
            with recorded(live, path, mode) as env:
                return (await asked(env, WHY))[1]

    with serving(answering(reply(body, "200 OK", "content-type: text/event-stream"))) as server:
        model = ModelConfig(provider="openai-compatible", model="stub", endpoint=server.url)
        first = anyio.run(ask, LLMConfig(models={"stub": model}), "record")
        again = anyio.run(ask, LLMConfig(models={"stub": model}), "replay")
    assert again[:-1] == first[:-1]
    assert [type(event).__name__ for event in again] == ["Started", *["TextDelta"] * 3, "Completed"]


def test_a_time_out_of_one_attempt_is_recorded_as_one(path: Path) -> None:
    slow = models_in_order("a", "b", a={"timeout_ms": 5_000.0})
    with recorded(env_of(slow, a=Delayed(3600, "late"), b="now"), path, "record") as env:
        first = run_in_virtual_time(run, generate(WHY), env).unwrap()
    with recorded(env_of(slow), path, gaps=True) as env:
        again = run_in_virtual_time(run, generate(WHY), env).unwrap()
    trail = [("a", "TimeoutError", 5_000.0), ("b", "success", 0.0)]
    assert [(each.model, each.outcome, each.latency_ms) for each in first.attempts] == trail
    assert [(each.model, each.outcome, each.latency_ms) for each in again.attempts] == trail
    assert [each.get("cancelled") for each in lines_of(path)] == [None, None]


def test_a_cancelled_attempt_that_no_caller_cancels_again_ends_as_a_time_out(path: Path) -> None:
    async def impatient(env: LLMEnv) -> None:
        with anyio.move_on_after(1):
            await run(generate(WHY), env)

    patient = models_in_order("a")
    with recorded(env_of(patient, a=Delayed(3600, "late")), path, "record") as env:
        run_in_virtual_time(impatient, env)
    longer = evolve(WHY, preferences=Preferences(timeout_ms=3_600_000))  # a time-out is no part of the question
    with recorded(env_of(patient), path, gaps=True) as env:
        attempt = run_in_virtual_time(run, generate(longer), env).failure().attempts[0]
    assert (attempt.outcome, attempt.latency_ms) == ("TimeoutError", patient.models["a"].timeout_ms)


@define
class Queueing:
    """Clients with a queue, as live ones have: each call waits there, for ever if its model is busy."""

    busy: tuple[str, ...] = ()

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        return FutureResult(self._complete(call))

    async def _complete(self, call: Call) -> Result[LLMResponse, LLMError]:
        record = call.attempt.record
        record.queued_since = anyio.current_time()
        await anyio.sleep(3600 if call.model in self.busy else 2)
        record.queued_since, record.queued_s = None, 2.0
        await anyio.sleep(3)
        return Success(evolve(answer("ok"), model=call.model))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        return FutureResult.from_value(ModelHealth(model=name, provider=model.provider))


@pytest.mark.parametrize("backend", BACKENDS)
def test_time_in_the_queue_of_the_clients_is_replayed_as_such(backend: Backend, path: Path) -> None:
    busy = scripted_env(config=TWO, clients=Queueing(busy=("a",)))
    with recorded(busy, path, "record") as env:
        first = run_in_virtual_time(run, generate(within(30)), env, backend=backend).unwrap()
    with recorded(env_of(TWO), path, gaps=True) as env:
        again = run_in_virtual_time(run, generate(within(30)), env, backend=backend).unwrap()
    assert [(each.model, each.wait_ms, each.latency_ms) for each in first.attempts] == [("b", 2_000.0, 3_000.0)]
    assert again.attempts == first.attempts


# A miss.

MISSES = {
    "the text": (evolve(WHY, prompt="Why now?"), "line 3: messages[0].text: recorded 'Why?', asked 'Why now?'"),
    "the system": (evolve(WHY, system="Be brief."), "line 3: system: recorded nothing, asked 'Be brief.'"),
    "the sampling": (
        evolve(WHY, preferences=Preferences(temperature=0.5)),
        "preferences.temperature: recorded nothing, asked 0.5",
    ),
    "one more message": (
        LLMRequest(messages=(Message("user", "Why?"), Message("user", "Now."))),
        "messages[1].role: recorded nothing, asked 'user'",
    ),
    "a part": (LLMRequest(messages=(Message("user", (Text("Why?"), Image(b"GIF89a12"))),)), "messages[0].parts"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", MISSES)
async def test_a_miss_names_the_first_difference_and_asks_no_model(name: str, path: Path) -> None:
    request, difference = MISSES[name]
    with recorded(scripted_env("a", "b"), path, "record") as env:
        await run(generate(WHY), env)
        await run(generate(LLMRequest(prompt="Something else entirely", system="S")), env)
    never = scripted("never")
    with recorded(scripted_env(clients=never), path) as env:
        error = (await run(generate(request), env)).failure()
    assert error.tag == "ConfigurationError"
    assert difference in describe_of(error)
    assert "incident.jsonl" in describe_of(error)
    assert "mode='new'" in describe_of(error)
    assert never.calls == []
    assert isinstance(env.clients, Recording)
    assert env.clients.misses == [describe_of(error)]


@pytest.mark.anyio
async def test_a_miss_by_another_model_names_both(path: Path) -> None:
    with recorded(env_of(a="x", b="y"), path, "record") as env:
        await run(generate(evolve(WHY, model="b")), env)
    with recorded(env_of(), path) as env:
        error = (await run(generate(evolve(WHY, model="a")), env)).failure()
    assert "model: recorded 'b', asked 'a'" in describe_of(error)


@pytest.mark.anyio
async def test_a_miss_in_a_long_text_shows_only_what_differs(path: Path) -> None:
    text = "".join(f"{number}, " for number in range(5000))
    with recorded(scripted_env(), path, "record") as env:
        await run(generate(text + "end"), env)
    with recorded(scripted_env(), path) as env:
        error = (await run(generate(text.replace("2500, ", "2501, ") + "end"), env)).failure()
    assert "2500" in describe_of(error)
    assert "2501" in describe_of(error)
    assert len(describe_of(error)) < 400


# The file.


@pytest.mark.anyio
async def test_no_secret_and_no_id_of_a_server_reaches_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2hunter2")
    model = ModelConfig(
        provider="openai-chat", model="m", api_key="sk-proj-abcdefghijk1", headers={"x-tenant": "tenant-4711"}
    )
    config = LLMConfig(models={"m": model}, routing=RoutingConfig(max_retries=0))
    refused = AuthenticationFailed(
        message="wrong key sk-proj-abcdefghijk1 (request req_9876543210abcdef)",
        request_id="req_9876543210abcdef",
        cause=Cause("HTTPError", "Authorization: Bearer sk-proj-abcdefghijk1"),
        status=401,
    )
    echoed = evolve(answer("the password is hunter2hunter2, tenant-4711"), request_id="req_9876543210abcdef")
    cut = Chunks(("hunter2", "hunter2", " sk-proj-", "abcdefghijk1"))
    with recorded(scripted_env(refused, echoed, cut, config=config), path, "record") as env:
        await run(generate("the key is sk-proj-abcdefghijk1"), env)
        await run(generate("the password?"), env)
        await asked(env, LLMRequest(prompt="again"))
    written = read(path)
    for secret in ("abcdefghijk1", "hunter2", "tenant-4711", "9876543210abcdef"):
        assert secret not in written
    monkeypatch.delenv("DATABASE_PASSWORD")
    other = evolve(config, models={"m": evolve(model, api_key=Secret("sk-other-key-12345"))})
    with recorded(scripted_env(clients=NEVER, config=other), path) as env:
        assert isinstance(await run(generate("the key is sk-other-key-12345"), env), Failure)
        assert (await run(generate("the password?"), env)).unwrap().content == "the password is ***, ***"
        assert (await run(generate("again"), env)).unwrap().content == "*** ***"


def test_a_secret_that_is_cut_by_any_pieces_reaches_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2hunter2")
    call = ToolCallDelta(0, "call-1", "log_in", '{"password": "hunter2')
    pieces = (
        Piece(reasoning="hunter2", after_ms=1.0),
        Piece(text="Done", after_ms=2.0),
        Piece(reasoning="hunter2", after_ms=4.0),
        Piece(call=call, after_ms=8.0),
        Piece(call=evolve(call, arguments='hunter2"}'), after_ms=16.0),
    )
    written = dump_exchange(Exchange(model="m", request={"messages": []}, pieces=pieces), scrubber(TWO))
    assert "hunter2" not in written
    assert [each.pop("after_ms") for each in json.loads(written)["pieces"]] == [3.0, 4.0, 24.0]


def test_a_secret_in_a_schema_reaches_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "hunter2hunter2")
    schema = {"properties": {"data": {"description": "not hunter2hunter2"}, "packed": {"const": "hunter2hunter2"}}}
    request = request_of(LLMRequest(prompt="why?", response_schema=schema))
    assert "hunter2" not in dump_exchange(Exchange(model="m", request=request), scrubber(TWO))


def test_a_secret_in_a_prompt_is_found_again_without_the_secret(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESKTOP_SESSION", "gnome-classic")  # its name says that it is secret
    with recorded(scripted_env("ok"), path, "record") as env:
        anyio.run(run, generate("Is gnome-classic up?"), env)
    monkeypatch.delenv("DESKTOP_SESSION")
    with recorded(scripted_env(clients=NEVER), path) as env:
        assert anyio.run(run, generate("Is gnome-classic up?"), env).unwrap().content == "ok"


@pytest.mark.parametrize("mode", ["record", "new"])
def test_requests_that_differ_only_in_a_secret_have_their_answers_in_turn(mode: Mode, path: Path) -> None:
    prompts = ("Is sk-aaaaaaaa1 valid?", "Is sk-bbbbbbbb2 valid?")
    with recorded(scripted_env("yes", "no"), path, mode) as env:
        assert [anyio.run(run, generate(prompt), env).unwrap().content for prompt in prompts] == ["yes", "no"]
    with recorded(scripted_env(clients=NEVER), path) as env:
        assert [anyio.run(run, generate(prompt), env).unwrap().content for prompt in prompts] == ["yes", "no"]
        once_more = anyio.run(run, generate(prompts[0]), env)
    assert "it is recorded 2 times, and asked once more" in describe_of(once_more.failure())


def test_a_word_that_is_secret_only_where_it_is_replayed_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(scripted_env("ok"), path, "record") as env:
        anyio.run(run, generate("Is production up?"), env)
    monkeypatch.setenv("CI_TOKEN_NAME", "production")
    with recorded(scripted_env(clients=NEVER), path) as env:
        assert anyio.run(run, generate("Is production up?"), env).unwrap().content == "ok"
        assert "production" not in describe_of(anyio.run(run, generate("Is production down?"), env).failure())


@pytest.mark.parametrize("text", ["a\u2028b\x85c\x0cd\r\n", "half \ud800", "😀 \x00", "[***] .* \\"])
def test_any_text_is_found_again(text: str, path: Path) -> None:
    with recorded(scripted_env(f"{text}!"), path, "record") as env:
        anyio.run(run, generate(text), env)
    with recorded(scripted_env(clients=NEVER), path) as env:
        again = anyio.run(run, generate(text), env).unwrap().content
    assert again == f"{text}!".replace("\ud800", "\ufffd")


@pytest.mark.parametrize("backend", BACKENDS)
def test_lines_are_in_the_order_of_requests_not_of_a_race(backend: Backend, tmp_path: Path) -> None:
    async def at_once(env: LLMEnv, prompts: list[str]) -> None:
        async with anyio.create_task_group() as group:
            for prompt in prompts:
                group.start_soon(run, generate(prompt), env)

    def echo(request: LLMRequest) -> Reply:
        return Delayed(1.0, f"to {request.prompt}")

    prompts = [f"question {number % 7} {number}" for number in range(20)]
    texts = []
    for name, order in (("one", prompts), ("two", prompts[::-1])):
        with recorded(scripted_env(echo), tmp_path / name, "record") as env:
            run_in_virtual_time(at_once, env, order, backend=backend)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    assert len(texts[0].splitlines()) == 21


@pytest.mark.anyio
async def test_the_file_is_readable(path: Path) -> None:
    with recorded(scripted_env("The disk is full."), path, "record") as env:
        await run(generate(LLMRequest(prompt="Why?", owner="alice", tags=("t",))), env)
    header, line = read(path).splitlines()
    assert header == '{"llm_effects_recording":1}'
    fields = json.loads(line)
    fields.pop("timing", None)
    assert fields == {
        "model": "scripted",
        "request": {"messages": [{"role": "user", "text": "Why?"}]},
        "answer": {
            "content": "The disk is full.",
            "provider": "scripted",
            "usage": {"input_tokens": 10, "output_tokens": 4},
        },
    }


def test_media_and_opaque_reasoning_are_not_copied_from_requests(path: Path) -> None:
    messages = (
        Message("user", (Text("What is this?"), Image(b"GIF89a" + bytes(500)))),
        Message("assistant", (Reasoning("hm", opaque='{"signature": "c2ln"}'),)),
        Message("user", "Well?"),
    )
    with recorded(scripted_env("A picture."), path, "record") as env:
        anyio.run(run, generate(LLMRequest(messages=messages)), env)
    assert "506 bytes, sha256 " in path.read_text()
    assert "c2ln" not in path.read_text()
    with recorded(scripted_env(clients=NEVER), path) as env:
        assert anyio.run(run, generate(LLMRequest(messages=messages)), env).unwrap().content == "A picture."


@pytest.mark.anyio
async def test_new_adds_what_is_missing_and_changes_nothing_else(path: Path) -> None:
    for prompts, replies in ((["a"], ["1"]), (["a", "b"], ["2"]), (["a", "b"], [])):
        model = scripted(*replies) if replies else NEVER
        with recorded(scripted_env(clients=model), path, "new") as env:
            answers = [(await run(generate(prompt), env)).unwrap().content for prompt in prompts]
        assert answers == ["1", "2"][: len(prompts)]
    texts = [str(each["answer"]["content"]) for each in lines_of(path)]  # type: ignore[index]
    assert texts == ["1", "2"]


@pytest.mark.anyio
async def test_refresh_replaces_the_file_unless_the_block_fails(path: Path) -> None:
    with recorded(scripted_env("old"), path, "record") as env:
        for prompt in ("a", "b"):
            await run(generate(prompt), env)
    with pytest.raises(KeyError), recorded(scripted_env("new"), path, "refresh") as env:
        await run(generate("a"), env)
        raise KeyError
    assert [each["answer"]["content"] for each in lines_of(path)] == ["new", "old"]  # type: ignore[index]
    with recorded(scripted_env("newest"), path, "refresh") as env:
        await run(generate("c"), env)
    assert [each["answer"]["content"] for each in lines_of(path)] == ["newest"]  # type: ignore[index]


@pytest.mark.parametrize("mode", ["record", "new"])
def test_two_blocks_at_once_add_to_one_file(mode: Mode, path: Path) -> None:
    with recorded(scripted_env("one"), path, mode) as first, recorded(scripted_env("two"), path, mode) as second:
        anyio.run(run, generate("1?"), first)
        anyio.run(run, generate("2?"), second)
    with recorded(scripted_env(clients=NEVER), path) as env:
        answers = [anyio.run(run, generate(prompt), env).unwrap().content for prompt in ("1?", "2?")]
    assert answers == ["one", "two"]


def test_record_does_not_replace_a_recording(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(InvalidValue, match="is there already"), recorded(scripted_env(), path, "record"):
        pass
    assert path.read_text() == "precious"


HEADER = '{"llm_effects_recording": 1}'
ODD = {
    "request": '"error": {"tag": "NetworkError"}',
    "outcome": '"request": {"health": 1}',
    "tag": '"request": {"health": 1}, "error": {"tag": "Odd"}',
    "occurrence": '"request": {"health": 1}, "cancelled": true, "occurrence": "x"',
}
BROKEN = {
    '{"llm_effects_recording": 2}': "line 1: version 2 is newer than 1, the newest that is known here: upgrade",
    "": "line 1: is no recording",
    "[]": "line 1: is no recording",
    f"{HEADER}\n<<<<<<< HEAD": "line 2: is not JSON",
    f"{HEADER}\n\n{{}}": "line 3: ",
    **{
        f'{HEADER}\n{{"model": "m", {ODD[name]}}}': f"line 2: {problem}"
        for name, problem in {
            "request": "request: is missing",
            "outcome": "needs one of answer, ",
            "tag": "'Odd' is missing or unknown",
            "occurrence": "occurrence: has the wrong type",
        }.items()
    },
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_file_says_where_and_what_to_do(text: str, path: Path) -> None:
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(InvalidValue, match=re.escape(BROKEN[text])), recorded(scripted_env(), path):
        pass


def test_a_file_that_is_no_text_names_the_remedy(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidValue, match=r"is not UTF-8 .*: record it again with mode='refresh'"):
        Recording.opened(scripted_env(), path, "replay", gaps=False)


def test_a_missing_file_names_the_remedy(path: Path) -> None:
    with (
        pytest.raises(InvalidValue, match=r"no such recording: record it with mode='new'"),
        recorded(scripted_env(), path),
    ):
        pass


def test_nothing_is_written_by_a_replay(path: Path) -> None:
    with recorded(scripted_env("a"), path, "record") as env:
        anyio.run(run, generate("?"), env)
    before = path.stat().st_mtime_ns
    with recorded(scripted_env("a"), path) as env:
        anyio.run(run, generate("?"), env)
        anyio.run(run, generate("??"), env)
    assert path.stat().st_mtime_ns == before


def test_a_failed_stream_ends_with_its_partial_text(path: Path) -> None:
    with recorded(scripted_env(Chunks(("The ",), then=MalformedResponse(message="cut"))), path, "record") as env:
        anyio.run(asked, env, WHY)
    with recorded(scripted_env(), path) as env:
        _, events = anyio.run(asked, env, WHY)
    assert isinstance(events[-1], Failed)
    assert events[-1].error.partial == "The "
