"""Exchanges with misbehaving servers on the loopback, through the whole library."""

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from attrs import define, evolve, field
from returns.result import Result

from llm_effects import (
    Completed,
    Failed,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    LLMResponse,
    ModelConfig,
    Preferences,
    RequestTimeout,
    Restarted,
    Started,
    StreamEvent,
    TextDelta,
    generate,
    open_env,
    run,
    stream,
)
from llm_effects.clients.transport.transport import Transport
from llm_effects.config import CacheConfig, RoutingConfig
from llm_effects.effects.call import AttemptContext, AttemptRecord, Call, CallHistory, Timers, opening_of
from llm_effects.testing import run_in_virtual_time
from llm_effects.values import caps
from llm_effects.values.errors import LLMError, NetworkError
from tests.fixtures.servers import Behave, Peer, Server, answering, chunked, reply, reply_json, sending, serving

pytestmark = pytest.mark.anyio

ASK = LLMRequest(prompt="why?")
HEAD = chunked(end=False)
DONE = b"data: [DONE]\n\n"
WHOLE = {
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "because"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}


def event(delta: dict[str, object], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


def piece(text: str) -> bytes:
    return event({"content": text})


def chunk(data: bytes) -> bytes:
    """Encode one chunk of a chunked transfer."""
    return b"%x\r\n%b\r\n" % (len(data), data)


STOP = event({}, "stop")
GOOD = piece("be") + piece("cause") + STOP + DONE


@define
class RecordingSink:
    """A sink that records its events."""

    events: list[StreamEvent] = field(factory=list[StreamEvent])

    async def __call__(self, event: StreamEvent) -> None:
        self.events.append(event)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))


def config_of(server: Server, **settings: Any) -> LLMConfig:
    model = ModelConfig(provider="lm-studio", model="m", endpoint=server.url)
    fresh = CacheConfig(enabled=False)
    return LLMConfig(models={"m": evolve(model, **settings)}, routing=RoutingConfig(max_retries=0), cache=fresh)


@asynccontextmanager
async def tidy_env(server: Server, **settings: Any) -> AsyncGenerator[LLMEnv]:
    """Open an environment that must leave neither a connection nor a task behind."""
    before = len(anyio.get_running_tasks())
    async with open_env(config_of(server, **settings)) as env:
        yield env
        await anyio.wait_all_tasks_blocked()
        assert len(anyio.get_running_tasks()) == before
    assert server.settled() == 0


async def streamed(behave: Behave, **settings: Any) -> tuple[Result[LLMResponse, LLMError], RecordingSink]:
    sink = RecordingSink()
    with serving(behave) as server:
        async with tidy_env(server, **settings) as env:
            with anyio.fail_after(30):
                result = await run(stream(ASK, sink), env)
        assert len(server.requests) == 1
    last = sink.events[-1]
    assert last == (Completed(result.unwrap()) if isinstance(last, Completed) else Failed(result.failure()))
    return result, sink


# --- Valid streams in every form ----------------------------------------------------------------------------------

VALID: dict[str, bytes] = {
    "in one chunk": chunked(GOOD),
    "a byte at a time": chunked(*(bytes([byte]) for byte in GOOD)),
    "cut in odd places": chunked(*(GOOD[at : at + 7] for at in range(0, len(GOOD), 7))),
    "with CRLF": chunked(GOOD.replace(b"\n", b"\r\n")),
    "with pings": chunked(b": ping\n\n", piece("be"), b": ping\n\n", piece("cause"), b":\n\n", STOP, DONE),
    "compressed": chunked(gzip.compress(GOOD), headers=("content-encoding: gzip",)),
    "compressed, a byte at a time": chunked(
        *(bytes([byte]) for byte in gzip.compress(GOOD)), headers=("content-encoding: gzip",)
    ),
    "without its last blank line": chunked(GOOD[:-2]),
    "without [DONE]": chunked(GOOD[: -len(DONE)]),
    "without a length, to the end of the connection": (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + GOOD
    ),
    "as plain text": chunked(GOOD).replace(b"text/event-stream", b"text/plain"),
    "as JSON": chunked(GOOD).replace(b"text/event-stream", b"application/json"),
    "as a page": chunked(b": ping\n\n", GOOD).replace(b"text/event-stream", b"text/html"),
    "without a content type": chunked(GOOD).replace(b"content-type: text/event-stream\r\n", b""),
    "with more after [DONE], at once": chunked(GOOD + piece("!!") + event({}, "length")),
    "with more after [DONE], later": chunked(GOOD, piece("!!"), b'data: {"error": {"message": "late"}}\n\n'),
    "broken off after [DONE]": chunked(GOOD, end=False),
    "broken off after the finish": chunked(piece("be"), piece("cause"), STOP, end=False),
    "whole, though a stream was asked for": reply_json(WHOLE),
}


@pytest.mark.parametrize("name", VALID)
async def test_a_valid_stream_is_read_in_any_form(name: str) -> None:
    result, sink = await streamed(sending(VALID[name]))
    assert result.unwrap().content == sink.text == "because"
    assert sink.events[0] == Started("m")
    assert [type(each) for each in sink.events[1:-1]] in ([TextDelta, TextDelta], [TextDelta])


async def test_multibyte_characters_survive_any_chunking() -> None:
    text = "naïve 日本 🙂\x00\x85\u2028 end"
    data = piece(text) + STOP + DONE
    result, sink = await streamed(sending(chunked(*(bytes([byte]) for byte in data))))
    assert result.unwrap().content == sink.text == text


async def test_a_connection_kept_open_after_the_end_does_not_delay_the_response() -> None:
    with anyio.fail_after(30):
        result, _ = await streamed(sending(chunked(GOOD, end=False), hold=True))
    assert result.unwrap().content == "because"


async def test_a_reset_after_the_end_is_ignored() -> None:
    result, _ = await streamed(sending(chunked(GOOD, end=False), reset=True))
    assert result.unwrap().content == "because"


async def test_completed_streams_share_a_connection() -> None:
    with serving(answering(chunked(GOOD))) as server:
        async with tidy_env(server) as env:
            for _ in range(3):
                assert (await run(stream(ASK, RecordingSink()), env)).unwrap().content == "because"
        assert (server.accepted, len(server.requests)) == (1, 3)


# --- Invalid responses --------------------------------------------------------------------------------------------

ERROR = b'data: {"error": {"message": "no memory left", "type": "server_error", "code": 500}}\n\n'

INVALID: dict[str, tuple[bytes, str, str]] = {
    "a page": (reply(b"<html>It works!</html>").replace(b"application/json", b"text/html"), "MalformedResponse", ""),
    "JSON that is no answer": (reply(b'{"ok": true}'), "MalformedResponse", ""),
    "JSON cut short": (reply(b'{"choices": ['), "MalformedResponse", ""),
    "an error before any event": (reply(b'{"error": {"message": "busy"}}', "503 Busy"), "ModelUnavailable", ""),
    "an error as the first event": (chunked(ERROR), "ModelUnavailable", ""),
    "an error in the middle": (chunked(piece("be"), ERROR, STOP, DONE), "ModelUnavailable", "be"),
    "an end before the finish": (chunked(piece("be")), "MalformedResponse", "be"),
    "[DONE] before the finish": (chunked(piece("be"), DONE), "MalformedResponse", "be"),
    "nothing": (chunked(), "MalformedResponse", ""),
    "only [DONE]": (chunked(DONE), "MalformedResponse", ""),
    "a finish without content": (chunked(STOP, DONE), "MalformedResponse", ""),
    "an event that is no JSON": (chunked(piece("be"), b"data: {oops\n\n", STOP, DONE), "MalformedResponse", "be"),
    "NULs": (chunked(piece("be"), bytes(1000) + b"\n\n", b"data: " + bytes(9) + b"\n\n"), "MalformedResponse", "be"),
    "bytes that are no UTF-8": (chunked(piece("be"), b"data: \xff\xfe\n\n", STOP, DONE), "MalformedResponse", "be"),
    "an endless line": (chunked(piece("be"), b"data: " + b"x" * 2**21), "MalformedResponse", "be"),
    "an endless event": (chunked(piece("be"), (b"data: " + b"x" * 999 + b"\n") * 2000), "MalformedResponse", "be"),
    "a broken compression": (
        chunked(b"\x1f\x8b" + b"x" * 50, headers=("content-encoding: gzip",)),
        "NetworkError",
        "",
    ),
    "a chunk with no length": (chunked(piece("be"), end=False) + b"zz\r\n", "NetworkError", "be"),
    "a connection closed in the middle": (chunked(piece("be"), end=False), "NetworkError", "be"),
}


@pytest.mark.parametrize("name", INVALID)
async def test_an_invalid_response_is_an_error_with_the_partial_text(name: str) -> None:
    answer, tag, partial = INVALID[name]
    result, sink = await streamed(sending(answer))
    error = result.failure()
    assert (error.tag, error.partial or "", sink.text) == (tag, partial, partial)
    assert (error.model, error.provider) == ("m", "lm-studio")
    assert [attempt.outcome for attempt in error.attempts] == [tag]


async def test_a_reset_in_the_middle_is_a_network_error_with_the_partial_text() -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + chunk(piece("be")))
        await asyncio.sleep(0.05)  # a reset discards what the client has not read yet
        peer.reset()

    result, sink = await streamed(behave)
    error = result.failure()
    assert isinstance(error, NetworkError)
    assert (error.phase, error.partial, sink.text) == ("reset", "be", "be")


# --- Timers -------------------------------------------------------------------------------------------------------


def dripping(start: bytes, drop: bytes) -> Behave:
    """Send a start, then the same bytes again and again."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD + start)
        while True:
            await peer.send(chunk(drop))
            await asyncio.sleep(0.005)

    return behave


PING = b": ping\n\n"
EMPTY = event({"role": "assistant", "content": ""})

TIMEOUTS: dict[str, tuple[Behave, dict[str, float], str, str]] = {
    "silence": (sending(b"", hold=True), {"first_content_ms": 200}, "first_content", ""),
    "a head and silence": (sending(HEAD, hold=True), {"first_content_ms": 200}, "first_content", ""),
    "pings": (dripping(b"", PING), {"first_content_ms": 200}, "first_content", ""),
    "events without content": (dripping(b"", EMPTY), {"first_content_ms": 200}, "first_content", ""),
    "content and silence": (
        sending(HEAD + chunk(piece("be")), hold=True),
        {"between_content_ms": 200},
        "between_content",
        "be",
    ),
    "content and pings": (dripping(chunk(piece("be")), PING), {"between_content_ms": 200}, "between_content", "be"),
    "half an event": (
        sending(HEAD + chunk(piece("be") + b"data: {"), hold=True),
        {"between_content_ms": 200},
        "between_content",
        "be",
    ),
    "a whole answer that does not come": (
        sending(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{", hold=True),
        {"first_content_ms": 200},
        "first_content",
        "",
    ),
}


@pytest.mark.parametrize("name", TIMEOUTS)
async def test_only_content_resets_the_timers(name: str) -> None:
    behave, limits, phase, partial = TIMEOUTS[name]
    with anyio.fail_after(30):
        result, sink = await streamed(behave, **limits)
    error = result.failure()
    assert isinstance(error, RequestTimeout)
    assert (error.phase, error.timeout_ms, error.partial or "", sink.text) == (phase, 200, partial, partial)


async def test_an_endless_response_ends_with_its_attempt() -> None:
    result, sink = await streamed(dripping(b"", piece("x")), timeout_ms=300)
    error = result.failure()
    assert isinstance(error, RequestTimeout)
    assert (error.phase, error.timeout_ms) == ("attempt", 300)
    assert error.partial == sink.text
    assert len(sink.text) > 2


async def test_a_whole_response_has_only_the_limit_of_its_attempt() -> None:
    limits = {"first_content_ms": 10, "between_content_ms": 10}
    with serving(answering(reply_json(WHOLE), delay=0.1)) as server:
        async with tidy_env(server, **limits) as env:
            assert (await run(generate(ASK), env)).unwrap().content == "because"
        async with tidy_env(server, **limits, timeout_ms=30) as env:
            error = (await run(generate(ASK), env)).failure()
    assert isinstance(error, RequestTimeout)
    assert (error.phase, error.timeout_ms, error.model) == ("attempt", 30, "m")


# --- Consumers ----------------------------------------------------------------------------------------------------


async def test_time_in_the_consumer_does_not_count_against_the_model() -> None:
    async def slowly(event: StreamEvent) -> None:
        await anyio.sleep(0.35 if isinstance(event, TextDelta) else 0)

    with serving(answering(chunked(piece("be"), piece("cause"), STOP, DONE))) as server:
        async with tidy_env(server, timeout_ms=300, first_content_ms=300, between_content_ms=300) as env:
            assert (await run(stream(ASK, slowly), env)).unwrap().content == "because"


@pytest.mark.parametrize("start", [piece("be"), piece("because") + STOP + DONE], ids=["amid", "at the end"])
async def test_a_consumer_that_never_returns_ends_the_call(start: bytes) -> None:
    async def never(event: StreamEvent) -> None:
        if isinstance(event, TextDelta):
            await anyio.sleep_forever()

    with serving(sending(chunked(start, end=False), hold=True)) as server:
        async with tidy_env(server, sink_ms=50) as env:
            with anyio.fail_after(30):
                error = (await run(stream(ASK, never), env)).failure()
            assert server.settled() == 0
    assert isinstance(error, RequestTimeout)
    assert (error.phase, error.timeout_ms, error.model) == ("sink", 50, "m")


def flooding(sent: list[int]) -> Behave:
    """Send endless content as fast as it is read."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(HEAD)
        while True:
            await peer.send(chunk(piece("x" * 10_000)))
            sent.append(10_000)

    return behave


async def test_a_slow_consumer_slows_the_server() -> None:
    sent: list[int] = []
    seen: list[int] = []
    with anyio.CancelScope() as scope, serving(flooding(sent)) as server:

        async def slowly(event: StreamEvent) -> None:
            if not isinstance(event, TextDelta):
                return
            for _ in range(2):
                await anyio.sleep(0.15)
                seen.append(sum(sent))
            scope.cancel()
            await anyio.sleep_forever()

        async with open_env(config_of(server)) as env:
            await run(stream(ASK, slowly), env)
    assert scope.cancelled_caught
    assert 0 < seen[0] < 16 * 2**20  # the buffers of the system
    assert seen[0] == seen[1]


@pytest.mark.parametrize("how", ["cancelled", "raising"])
async def test_leaving_early_closes_the_connection_at_once(how: str) -> None:
    async def leaving(event: StreamEvent) -> None:
        if isinstance(event, TextDelta):
            if how == "raising":
                raise KeyError(event.text)
            scope.cancel()
            await anyio.lowlevel.checkpoint()

    with serving(dripping(b"", piece("x"))) as server:
        async with tidy_env(server) as env:
            with anyio.CancelScope() as scope:
                with pytest.raises(KeyError) if how == "raising" else nullcontext():
                    await run(stream(ASK, leaving), env)
            assert server.settled() == 0


# --- The queue ----------------------------------------------------------------------------------------------------


async def asking(env: LLMEnv, sink: Callable[[StreamEvent], Any] | None, **preferences: Any) -> Result[Any, LLMError]:
    request = evolve(ASK, preferences=Preferences(**preferences))
    return await run(generate(request) if sink is None else stream(request, sink), env)


@pytest.mark.parametrize("sink", [None, RecordingSink()], ids=["whole", "streamed"])
async def test_fault_9_time_in_the_queue_does_not_count_against_the_model(sink: RecordingSink | None) -> None:
    answer = reply_json(WHOLE)
    limits = {"timeout_ms": 400, "first_content_ms": 400}
    results: list[Result[Any, LLMError]] = []
    with serving(answering(answer, delay=0.12)) as server:
        async with open_env(config_of(server, **limits), transport=lambda: Transport(max_connections=1)) as env:

            async def ask() -> None:
                results.append(await asking(env, sink))

            async with anyio.create_task_group() as tasks:
                for _ in range(6):
                    tasks.start_soon(ask)
            known = env.health.statistics()["m"]
        assert server.most == 1
    assert [result.unwrap().content for result in results] == ["because"] * 6
    assert (known.attempts, known.error_rate) == (6, 0.0)


@pytest.mark.parametrize("sink", [None, RecordingSink()], ids=["whole", "streamed"])
async def test_fault_9_only_the_deadline_ends_the_wait_in_the_queue(sink: RecordingSink | None) -> None:
    with serving(sending(HEAD, hold=True)) as server:
        limits = {"timeout_ms": 10_000, "first_content_ms": 10_000}
        opened = open_env(config_of(server, **limits), transport=lambda: Transport(max_connections=1))
        async with opened as env, anyio.create_task_group() as tasks:
            tasks.start_soon(run, generate(ASK), env)
            assert await anyio.to_thread.run_sync(server.asked) == 1
            error = (await asking(env, sink, timeout_ms=60)).failure()
            assert isinstance(error, RequestTimeout)
            assert error.timeout_ms == 60
            assert len(server.requests) == 1
            tasks.cancel_scope.cancel()


# --- Content types, and slow consumers ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON", "text/plain", "text/event-stream", "x/y"])
async def test_fault_101_a_whole_response_to_a_stream_is_read_despite_its_content_type(kind: str) -> None:
    body = json.dumps(WHOLE).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    result, sink = await streamed(answering(head + body))
    assert result.unwrap().content == "because"
    assert sink.events[1:-1] == [TextDelta("because")]


async def test_a_slow_consumer_of_a_burst_has_its_limit_for_each_event() -> None:
    pieces = [piece("x") for _ in range(60)]
    with serving(answering(chunked(b"".join(pieces) + STOP + DONE))) as server:
        async with tidy_env(server, sink_ms=400) as env:

            async def slow(event: StreamEvent) -> None:
                await anyio.sleep(0.01)

            response = (await run(stream(ASK, slow), env)).unwrap()
    assert response.content == "x" * 60


async def test_a_consumer_that_waits_often_over_one_event_has_its_limit_once() -> None:
    async def often(event: StreamEvent) -> None:
        for _ in range(100):
            await anyio.sleep(0.02)

    with serving(answering(chunked(piece("be") + piece("cause") + STOP + DONE))) as server:
        async with tidy_env(server, sink_ms=100) as env:
            error = (await run(stream(ASK, often), env)).failure()
    assert isinstance(error, RequestTimeout)
    assert error.phase == "sink"


@pytest.mark.parametrize("waits", [0, 1, 3])
async def test_a_timer_is_set_for_the_first_wait_of_a_consumer_over_an_event_and_for_plain_code_never(
    monkeypatch: pytest.MonkeyPatch, waits: int
) -> None:
    timed = list[str]()
    start = Timers.wait_for_consumer
    monkeypatch.setattr(Timers, "wait_for_consumer", lambda timers: timed.append(timers.phase) or start(timers))
    received = list[StreamEvent]()

    async def sink(event: StreamEvent) -> None:
        received.append(event)
        for _ in range(waits):
            await anyio.lowlevel.checkpoint()

    with serving(answering(chunked(*[piece("x")] * 100, STOP, DONE))) as server:
        async with tidy_env(server) as env:
            assert (await run(stream(ASK, sink), env)).unwrap().content == "x" * 100
    assert len(received) == 102
    assert timed == ["sink"] * (101 if waits else 0)


async def test_the_limit_of_an_attempt_also_ends_one_without_a_consumer() -> None:
    config = ModelConfig(provider="llama", timeout_ms=50, between_content_ms=60_000)
    timers = Timers(config, AttemptRecord(), streamed=True)
    with timers.scope:
        timers.start()
        timers.wait_for_model()
        await anyio.sleep(1)
    assert timers.scope.cancelled_caught
    assert timers.expired().phase == "attempt"


def test_the_time_of_the_consumer_is_not_that_of_the_model() -> None:
    config = ModelConfig(
        provider="llama", timeout_ms=1000, between_content_ms=60_000, first_content_ms=1000, sink_ms=60_000
    )

    async def main() -> bool:
        timers = Timers(config, AttemptRecord(), streamed=True)
        with timers.scope:
            timers.start()
            timers.pause()
            timers.wait_for_consumer()
            await anyio.sleep(5)
            timers.wait_for_model()
            await anyio.sleep(0.9)
        return timers.scope.cancelled_caught

    assert not run_in_virtual_time(main)


def test_an_answer_after_content_of_another_model_is_a_restart() -> None:
    attempt = AttemptContext(model="two")
    assert opening_of(Call(id="1", request=ASK, attempt=attempt)) == Started("two")
    after = Call(id="1", request=ASK, attempt=attempt, history=CallHistory(contents=1))
    assert opening_of(after) == Restarted("two")


async def test_a_stream_with_too_many_characters_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caps, "CONTENT_CHARACTERS", 6)
    result, sink = await streamed(answering(chunked(piece("be"), piece("cause"))))
    assert "more than 6 characters" in getattr(result.failure(), "message", "")
    assert len(sink.text) <= 6


async def test_a_defect_of_a_consumer_that_waits_is_raised_as_it_is() -> None:
    async def broken(event: StreamEvent) -> None:
        try:
            await anyio.lowlevel.checkpoint()
        finally:
            raise KeyError(type(event).__name__)

    with serving(answering(chunked(GOOD))) as server:
        async with tidy_env(server) as env:
            with pytest.raises(KeyError, match="Started"):
                await run(stream(ASK, broken), env)


async def test_endless_blanks_time_out_without_content() -> None:
    result, sink = await streamed(dripping(b"", b" " * 1000), timeout_ms=200)
    assert isinstance(result.failure(), RequestTimeout)
    assert [type(event) for event in sink.events] == [Failed]
