"""Spans and metrics by the GenAI conventions, without any prompt, answer or key."""

import json
import logging
import subprocess
import sys
import warnings
from decimal import Decimal
from types import ModuleType

import anyio
import pytest
from attrs import evolve, field, frozen
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, Metric
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from returns.future import FutureResult

from llm_effects import (
    AuthenticationFailed,
    Image,
    InvalidRequest,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    Message,
    ModelConfig,
    NetworkError,
    Preferences,
    RateLimitExceeded,
    Reasoning,
    RequestTimeout,
    Text,
    ToolCall,
    ToolResult,
    Usage,
    embed,
    generate,
    open_stream,
    run,
    scripted_env,
    stream,
)
from llm_effects.clients.transport.transport import Transport
from llm_effects.config import Price
from llm_effects.config.services import TelemetryConfig
from llm_effects.effects import Call, Generate
from llm_effects.effects.call import TurnContext
from llm_effects.effects.effect import Answer, layer, layered
from llm_effects.effects.env import Span
from llm_effects.manager import live_clients, live_env
from llm_effects.pipeline import run_call, standard_pipeline
from llm_effects.policies.complete import complete
from llm_effects.policies.recording import with_recording
from llm_effects.policies.routing import with_routing
from llm_effects.policies.tracing import with_tracing
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.stores.disabled import NoTelemetry
from llm_effects.telemetry import conventions
from llm_effects.telemetry.logs import LOGGER
from llm_effects.telemetry.otel import SECONDS, TOKENS, open_telemetry
from llm_effects.telemetry.spans import request_bodies, response_body
from llm_effects.testing import Chunks, Delayed, answer
from llm_effects.values import Tool
from llm_effects.values.messages import Document
from llm_effects.values.records import Attributes, Measure
from llm_effects.values.responses import FinishReason

pytestmark = pytest.mark.anyio

KEY = "sk-canary-0123456789"
CANARY = "the prompt canary"
ANSWER = "the answer canary"

GPT = ModelConfig(provider="openai", model="gpt-5.6", api_key=KEY, price=Price(input=Decimal(1), output=Decimal(2)))
STUDIO = ModelConfig(provider="lm-studio", model="qwen", endpoint="http://localhost:4321/v1")
ONE = LLMConfig(models={"gpt": GPT})
TWO = LLMConfig(models={"gpt": GPT, "studio": STUDIO})
WITH_BODIES = evolve(TWO, telemetry=TelemetryConfig(bodies=True))

QUESTION = LLMRequest(prompt=CANARY, owner="alice")


@frozen
class Recorder:
    """Providers of the SDK that record spans and metrics in memory."""

    tracers: TracerProvider = field(factory=TracerProvider)
    spans: InMemorySpanExporter = field(factory=InMemorySpanExporter)
    metric_reader: InMemoryMetricReader = field(factory=InMemoryMetricReader)

    def __attrs_post_init__(self) -> None:
        self.tracers.add_span_processor(SimpleSpanProcessor(self.spans))

    def env(self, *replies: object, config: LLMConfig = ONE) -> LLMEnv:
        telemetry = open_telemetry(self.tracers, MeterProvider([self.metric_reader]))
        return evolve(scripted_env(*replies, config=config), telemetry=telemetry)

    def tree(self) -> tuple[ReadableSpan, list[ReadableSpan]]:
        """Return the only span without a parent, and the spans below it in the order in which they started."""
        spans = sorted(self.spans.get_finished_spans(), key=lambda span: span.start_time)
        (parent,) = [span for span in spans if span.parent is None]
        children = [span for span in spans if span.parent is not None]
        assert all(child.parent.span_id == parent.context.span_id for child in children)
        return parent, children

    def metrics(self) -> dict[str, Metric]:
        data = self.metric_reader.get_metrics_data()
        metrics = data.resource_metrics[0].scope_metrics[0].metrics if data else ()
        return {metric.name: metric for metric in metrics}

    def points(self, name: str) -> list[HistogramDataPoint]:
        return list(self.metrics()[name].data.data_points) if name in self.metrics() else []

    def everything(self) -> str:
        data = self.metric_reader.get_metrics_data()
        return "".join(span.to_json() for span in self.spans.get_finished_spans()) + (data.to_json() if data else "")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


async def ask(env: LLMEnv, request: LLMRequest = QUESTION) -> LLMResponse:
    return (await run(generate(request), env)).unwrap()


async def test_a_call_has_a_span_with_its_attempt_below(recorder: Recorder) -> None:
    usage = Usage(input_tokens=20, cache_read_tokens=80, output_tokens=5, reasoning_tokens=2)
    reply = evolve(answer(ANSWER), usage=usage, served_model="gpt-5.6-0101", request_id="req-1")
    preferences = Preferences(max_tokens=50, temperature=0, top_p=0.5, stop=("END",), seed=7)

    response = await ask(recorder.env(reply), evolve(QUESTION, preferences=preferences))

    parent, (attempt,) = recorder.tree()
    assert (parent.name, parent.kind, parent.status.status_code) == ("generate", SpanKind.INTERNAL, StatusCode.UNSET)
    assert parent.attributes == {
        "llm_effects.call_id": "id-1",
        "llm_effects.task_type": "general",
        "llm_effects.outcome": "success",
        "llm_effects.attempts": 1,
        "llm_effects.cached": False,
        "llm_effects.model": "gpt",
        "llm_effects.cost_usd": float(response.cost.usd),
    }
    assert (attempt.name, attempt.kind, attempt.status.status_code) == (
        "chat gpt-5.6",
        SpanKind.CLIENT,
        StatusCode.UNSET,
    )
    assert attempt.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5.6",
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.temperature": 0,
        "gen_ai.request.top_p": 0.5,
        "gen_ai.request.stop_sequences": ("END",),
        "gen_ai.request.seed": 7,
        "gen_ai.response.model": "gpt-5.6-0101",
        "gen_ai.response.id": "req-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 100,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 80,
        "gen_ai.usage.reasoning.output_tokens": 2,
        "server.address": "api.openai.com",
        "server.port": 443,
        "llm_effects.model": "gpt",
        "llm_effects.outcome": "success",
        "llm_effects.wait_ms": 0.0,
        "llm_effects.cost_usd": parent.attributes["llm_effects.cost_usd"],
    }


async def test_embeddings_have_no_finish_reason_and_no_output(recorder: Recorder) -> None:
    small = evolve(STUDIO, provider="ollama", model="nomic-embed-text")
    await run(embed([CANARY]), recorder.env(config=evolve(WITH_BODIES, models={"small": small})))
    (attempt,) = recorder.spans.get_finished_spans()
    assert attempt.name == "embeddings nomic-embed-text"
    assert attempt.attributes["gen_ai.usage.input_tokens"]
    assert CANARY in attempt.attributes["gen_ai.input.messages"]
    assert not attempt.attributes.keys() & {"gen_ai.response.finish_reasons", "gen_ai.output.messages"}


async def test_retries_and_fallbacks_are_attempts_of_one_call(recorder: Recorder) -> None:
    env = recorder.env(
        RateLimitExceeded(retry_after=0.001, status=429), AuthenticationFailed(status=401), ANSWER, config=TWO
    )
    await ask(evolve(env, draw=lambda: 0.0))

    parent, attempts = recorder.tree()
    assert [(each.name, each.attributes.get("error.type")) for each in attempts] == [
        ("chat qwen", "RateLimitExceeded"),
        ("chat qwen", "AuthenticationFailed"),
        ("chat gpt-5.6", None),
    ]
    assert [each.attributes.get("http.response.status_code") for each in attempts] == [429, 401, None]
    assert [each.status.status_code for each in attempts] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]
    assert attempts[1].attributes["llm_effects.wait_ms"] == pytest.approx(1.0)
    assert parent.attributes["llm_effects.attempts"] == 3
    assert parent.status.status_code is StatusCode.UNSET


async def test_a_failed_call_has_its_error_type_but_not_its_message(recorder: Recorder) -> None:
    await run(generate(QUESTION), recorder.env(InvalidRequest(message=f"cannot read {CANARY}")))

    parent, (attempt,) = recorder.tree()
    for span in (parent, attempt):
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)
        assert span.attributes["error.type"] == "InvalidRequest"
        assert not span.events
    assert CANARY not in recorder.everything()


async def test_a_call_without_a_model_has_no_attempt(recorder: Recorder) -> None:
    await run(generate(evolve(QUESTION, model="nobody")), recorder.env(ANSWER))
    parent, attempts = recorder.tree()
    assert parent.status.status_code is StatusCode.ERROR
    assert not attempts


async def test_a_cached_answer_has_no_attempt(recorder: Recorder) -> None:
    env = evolve(recorder.env(ANSWER), cache=MemoryCache(10))
    await ask(env)
    recorder.spans.clear()
    await ask(env)

    parent, attempts = recorder.tree()
    assert not attempts
    assert parent.attributes["llm_effects.cached"] is True
    assert parent.attributes["llm_effects.attempts"] == 0
    assert parent.attributes["llm_effects.cost_usd"] == 0


async def test_of_two_coalesced_calls_one_has_the_attempt(recorder: Recorder) -> None:
    env = evolve(recorder.env(Delayed(0.02, ANSWER)), cache=MemoryCache(10))
    async with anyio.create_task_group() as both:
        both.start_soon(ask, env)
        both.start_soon(ask, env)
    spans = recorder.spans.get_finished_spans()
    assert sorted(span.name for span in spans) == ["chat gpt-5.6", "generate", "generate"]
    assert sorted(s.attributes["llm_effects.attempts"] for s in spans if s.name == "generate") == [0, 1]


async def test_a_stream_records_the_time_to_its_first_content(recorder: Recorder) -> None:
    seen: list[bool] = []

    async def sink(event: object) -> None:
        seen.append(trace.get_current_span().is_recording())

    await run(stream(QUESTION, sink), recorder.env(Chunks(("a", "b"), pause=0.002)))

    _, (attempt,) = recorder.tree()
    took = attempt.attributes["gen_ai.response.time_to_first_chunk"]
    assert attempt.attributes["gen_ai.request.stream"] is True
    assert 0.002 <= took < attempt.end_time - attempt.start_time
    (point,) = recorder.points(conventions.FIRST_CHUNK)
    assert (point.sum, point.explicit_bounds) == (pytest.approx(took), SECONDS)
    assert seen == [True, True, True, False]  # the library's last event is outside of the call's span


async def test_a_stream_that_breaks_is_an_error(recorder: Recorder) -> None:
    async def sink(event: object) -> None:
        pass

    broken = Chunks((ANSWER,), then=NetworkError(phase="reset"))
    await run(stream(QUESTION, sink), recorder.env(broken))
    parent, (attempt,) = recorder.tree()
    assert {span.attributes["error.type"] for span in (parent, attempt)} == {"NetworkError"}
    assert ANSWER not in recorder.everything()


async def test_leaving_a_stream_early_ends_its_spans(recorder: Recorder) -> None:
    env = recorder.env(Chunks(("a", "b"), pause=0.002))
    async with open_stream(QUESTION)(env) as events:
        async for _ in events:
            break
    parent, (attempt,) = recorder.tree()
    assert {span.attributes["llm_effects.outcome"] for span in (parent, attempt)} == {"cancelled"}


async def test_attempts_in_other_tasks_are_below_their_call(recorder: Recorder) -> None:
    @layer
    async def twice(next: Generate, call: Call, env: LLMEnv) -> Answer:
        async with anyio.create_task_group() as both:
            both.start_soon(run, next(call), env)
            await anyio.sleep(0.01)
            both.cancel_scope.cancel()
        return await run(next(call.again()), env)

    pipeline = layered(with_tracing, with_routing, twice, with_recording, complete)
    await run(run_call(pipeline, QUESTION), recorder.env(Delayed(60, ANSWER), ANSWER))
    _, attempts = recorder.tree()
    assert [each.attributes["llm_effects.outcome"] for each in attempts] == ["cancelled", "success"]


async def test_a_cancelled_call_ends_its_spans_without_an_error(recorder: Recorder) -> None:
    env = recorder.env(Delayed(60, ANSWER))
    with anyio.move_on_after(0.01):
        await run(generate(QUESTION), env)

    parent, (attempt,) = recorder.tree()
    for span in (parent, attempt):
        assert span.attributes["llm_effects.outcome"] == "cancelled"
        assert "error.type" not in span.attributes
        assert span.status.status_code is StatusCode.UNSET
    assert not trace.get_current_span().is_recording()


async def test_an_attempt_that_timed_out_in_its_queue_was_not_sent(recorder: Recorder) -> None:
    class Queue:
        def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
            call.attempt.record.queued_since = anyio.current_time()
            return FutureResult.from_failure(RequestTimeout(phase="queue"))

    await run(generate(QUESTION), evolve(recorder.env(), clients=Queue()))
    parent, (attempt,) = recorder.tree()
    assert attempt.attributes["llm_effects.sent"] is False
    assert attempt.attributes["error.type"] == RequestTimeout.tag
    assert parent.attributes["llm_effects.attempts"] == 0
    assert not recorder.points(conventions.DURATION)


async def test_a_deadline_is_an_error_of_the_attempt_and_of_the_call(recorder: Recorder) -> None:
    request = evolve(QUESTION, preferences=Preferences(timeout_ms=10))
    await run(generate(request), recorder.env(Delayed(60, ANSWER)))
    parent, (attempt,) = recorder.tree()
    assert {span.attributes["error.type"] for span in (parent, attempt)} == {RequestTimeout.tag}


async def test_a_defect_has_its_class_but_not_its_message(recorder: Recorder) -> None:
    def broken(request: LLMRequest) -> str:
        raise KeyError(request.prompt)

    with pytest.raises(KeyError):
        await run(generate(QUESTION), recorder.env(broken))
    parent, (attempt,) = recorder.tree()
    assert {span.attributes["error.type"] for span in (parent, attempt)} == {"KeyError"}
    assert CANARY not in recorder.everything()


async def test_the_callers_span_is_the_parent(recorder: Recorder) -> None:
    with recorder.tracers.get_tracer("application").start_as_current_span("request") as outer:
        await ask(recorder.env(ANSWER))
        assert trace.get_current_span() is outer
    (whole,) = [span for span in recorder.spans.get_finished_spans() if span.name == "generate"]
    assert whole.parent.span_id == outer.get_span_context().span_id


async def test_concurrent_calls_have_their_own_attempts(recorder: Recorder) -> None:
    env = recorder.env(Delayed(0.005, ANSWER))
    async with anyio.create_task_group() as many:
        for number in range(10):
            many.start_soon(ask, env, LLMRequest(prompt=f"{number}"))
    spans = recorder.spans.get_finished_spans()
    parents = {span.context.span_id for span in spans if span.name == "generate"}
    assert {span.parent.span_id for span in spans if span.name != "generate"} == parents
    assert len(parents) == 10


async def test_spans_have_the_conversation_id(recorder: Recorder) -> None:
    talk = run_call(standard_pipeline, QUESTION, turn=TurnContext("talk-1"))
    await run(talk, recorder.env(ANSWER))
    parent, (attempt,) = recorder.tree()
    assert {span.attributes["gen_ai.conversation.id"] for span in (parent, attempt)} == {"talk-1"}


async def test_each_attempt_records_its_measures(recorder: Recorder) -> None:
    usage = Usage(input_tokens=20, cache_read_tokens=80, output_tokens=5)
    env = recorder.env(NetworkError(phase="reset"), evolve(answer(ANSWER), usage=usage))
    await ask(evolve(env, draw=lambda: 0.0))

    place = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5.6",
        "server.address": "api.openai.com",
        "server.port": 443,
    }
    durations = recorder.points(conventions.DURATION)
    assert [dict(point.attributes) for point in durations] == [
        place | {"error.type": "NetworkError", "llm_effects.outcome": "NetworkError"},
        place | {"llm_effects.outcome": "success"},
    ]
    assert durations[0].explicit_bounds == SECONDS
    tokens = recorder.points(conventions.TOKEN_USAGE)
    assert {point.attributes["gen_ai.token.type"]: point.sum for point in tokens} == {"input": 100, "output": 5}
    assert tokens[0].explicit_bounds == TOKENS
    assert {metric.name: metric.unit for metric in recorder.metrics().values()} == {
        conventions.DURATION: "s",
        conventions.TOKEN_USAGE: "{token}",
    }


async def test_estimated_tokens_are_not_recorded(recorder: Recorder) -> None:
    usage = Usage(input_tokens=20, output_tokens=5, estimated=True)
    await ask(recorder.env(evolve(answer(ANSWER), usage=usage)))
    assert not recorder.points(conventions.TOKEN_USAGE)


async def test_telemetry_contains_no_text_key_or_owner(recorder: Recorder) -> None:
    request = evolve(QUESTION, system="the system canary", tools=(Tool("look"),), metadata={"note": "the note canary"})
    await ask(recorder.env(ANSWER), request)
    exported = recorder.everything()
    assert "chat gpt-5.6" in exported
    for secret in (CANARY, ANSWER, KEY, "canary", "alice", "look"):
        assert secret not in exported


async def test_message_bodies_are_opt_in_and_masked(recorder: Recorder) -> None:
    request = evolve(QUESTION, prompt=f"{CANARY}, with the key {KEY}", system="be brief", tools=(Tool("look"),))
    await ask(recorder.env(ANSWER, config=WITH_BODIES), request)
    _, (attempt,) = recorder.tree()

    def body(name: str) -> object:
        return json.loads(attempt.attributes[name])

    assert body("gen_ai.input.messages") == [
        {"role": "user", "parts": [{"type": "text", "content": f"{CANARY}, with the key ***"}]}
    ]
    assert body("gen_ai.output.messages") == [
        {"role": "assistant", "parts": [{"type": "text", "content": ANSWER}], "finish_reason": "stop"}
    ]
    assert body("gen_ai.system_instructions") == [{"type": "text", "content": "be brief"}]
    assert body("gen_ai.tool.definitions") == [{"type": "function", "name": "look"}]
    assert KEY not in recorder.everything()


def test_every_kind_of_part_is_encoded() -> None:
    parts = (
        Reasoning("hm", opaque="sealed"),
        Image(data=b"png", media_type="image/png"),
        Document(url="https://host/a.pdf"),
        Text(f"Bearer {KEY} there"),
    )
    messages = (
        Message("user", parts),
        Message("assistant", (ToolCall("1", "look", '{"at": 1}'),)),
        Message("tool", (ToolResult("1", "a lock"),)),
    )
    messages_json = json.loads(request_bodies(LLMRequest(messages=messages), ONE)["gen_ai.input.messages"])
    assert [part for message in messages_json for part in message["parts"]] == [
        {"type": "reasoning", "content": "hm"},
        {"type": "image", "mime_type": "image/png", "uri": None},
        {"type": "document", "mime_type": None, "uri": "https://host/a.pdf"},
        {"type": "text", "content": "*** there"},
        {"type": "tool_call", "id": "1", "name": "look", "arguments": '{"at": 1}'},
        {"type": "tool_call_response", "id": "1", "response": "a lock"},
    ]
    wants_tools = evolve(answer(""), parts=messages[1].parts, finish_reason=FinishReason.TOOL_CALLS)
    assert json.loads(response_body(wants_tools, ONE)["gen_ai.output.messages"])[0]["finish_reason"] == "tool_call"


def test_names_are_those_of_the_conventions() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all of the GenAI names are marked as moved to another repository
        from opentelemetry.semconv._incubating.attributes import (
            error_attributes,
            gen_ai_attributes,
            http_attributes,
            server_attributes,
        )
        from opentelemetry.semconv._incubating.metrics import gen_ai_metrics

        providers = {each.value for each in gen_ai_attributes.GenAiProviderNameValues}
        operations = {each.value for each in gen_ai_attributes.GenAiOperationNameValues}

    homes = (error_attributes, gen_ai_attributes, http_attributes, server_attributes, gen_ai_metrics)
    known = {name for home in homes for name in texts_of(home)}
    dotted = {name for name in texts_of(conventions) if "." in name}
    assert {name for name in dotted if not name.startswith("llm_effects.")} <= known
    assert set(conventions.PROVIDERS.values()) <= providers
    assert conventions.CHAT in operations


def texts_of(module: ModuleType) -> set[str]:
    return {value for name, value in vars(module).items() if name.isupper() and isinstance(value, str)}


@frozen
class Broken:
    """A custom telemetry that raises wherever it can."""

    active: bool = True
    begins: bool = True

    def begin(self, name: str, attributes: Attributes, *, client: bool = False) -> Span:
        if self.begins:
            return self
        raise ValueError(CANARY)

    def end(self, attributes: Attributes, error: str | None = None) -> None:
        raise ValueError(CANARY)

    def record(self, measures: tuple[Measure, ...]) -> None:
        raise ValueError(CANARY)


@pytest.mark.parametrize("begins", [True, False])
async def test_a_telemetry_that_raises_fails_no_call(begins: bool, caplog: pytest.LogCaptureFixture) -> None:
    env = evolve(scripted_env(ANSWER), telemetry=Broken(begins=begins))
    assert (await ask(env)).content == ANSWER
    assert "a hook failed: ValueError" in caplog.messages
    assert CANARY not in caplog.text


async def test_a_span_processor_that_raises_fails_no_call(recorder: Recorder) -> None:
    class Raising(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise ValueError

    recorder.tracers.add_span_processor(Raising())
    assert (await ask(recorder.env(ANSWER))).content == ANSWER
    assert not trace.get_current_span().is_recording()


async def test_an_exporter_that_raises_fails_no_call(recorder: Recorder) -> None:
    class Raising(InMemorySpanExporter):
        def export(self, spans: object) -> object:
            raise ValueError

    recorder.tracers.add_span_processor(SimpleSpanProcessor(Raising()))
    assert (await ask(recorder.env(ANSWER))).content == ANSWER


async def test_inactive_telemetry_and_logging_collect_nothing() -> None:
    """``Broken`` would raise if it got anything."""
    closed = evolve(scripted_env(ANSWER), telemetry=Broken(active=False, begins=False))
    LOGGER.addFilter(refuse := Refusing())
    try:
        await ask(closed)
    finally:
        LOGGER.removeFilter(refuse)
    assert refuse.seen == []


class Refusing(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[logging.LogRecord] = []

    def filter(self, record: logging.LogRecord) -> bool:
        self.seen.append(record)
        return False


def test_telemetry_is_inactive_without_a_provider() -> None:
    assert not open_telemetry().active
    assert not NoTelemetry().active


def test_a_provider_of_either_kind_activates_telemetry() -> None:
    assert open_telemetry(tracers=TracerProvider()).active
    assert open_telemetry(meters=MeterProvider()).active


def test_the_live_environment_has_telemetry_unless_disabled() -> None:
    def made(config: LLMConfig) -> str:
        return type(live_env(config, live_clients(config, Transport())).telemetry).__name__

    assert made(ONE) == "OpenTelemetry"
    assert made(evolve(ONE, telemetry=TelemetryConfig(enabled=False))) == "NoTelemetry"


def test_without_the_package_telemetry_is_inactive() -> None:
    run_apart(
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from llm_effects import LLMConfig\n"
        "from llm_effects.manager import live_clients, live_env\n"
        "from llm_effects.clients.transport.transport import Transport\n"
        "config = LLMConfig(models={})\n"
        "assert not live_env(config, live_clients(config, Transport())).telemetry.active\n"
    )


def run_apart(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
