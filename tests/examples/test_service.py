"""The example ``service``: over real HTTP with a model server that streams, and in process with scripted models."""

import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import httpx
import pytest
from attrs import evolve
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llm_effects import (
    AuthenticationFailed,
    LLMConfig,
    LLMEnv,
    ModelConfig,
    NetworkError,
    RateLimitExceeded,
    RequestFailed,
    load_conversation,
    open_env,
    run,
    scripted_env,
    start_conversation,
)
from llm_effects.config import BudgetConfig, Price, StorageConfig
from llm_effects.effects.effect import result_of
from llm_effects.telemetry.otel import open_telemetry
from llm_effects.testing import Chunks, Delayed
from llm_effects.values import History, InvalidValue, LedgerRow
from tests.fixtures.chaos import END, HEAD, STOP, Chaos, Step, chaos_server, chunk, drips, piece
from tests.fixtures.examples import EXAMPLES, load
from tests.fixtures.servers import Peer
from tests.fixtures.slow_stores import Slow
from tests.fixtures.web import Service, served, stalled_request

ADA = {"x-user": "ada"}
ENDLESS = drips(HEAD, chunk(piece("x ")))


@pytest.fixture(scope="module")
def service() -> ModuleType:
    return load("service")


def code_lines(text: str) -> list[str]:
    """Return lines of code, without the headings that a page writes as its own."""
    return [line for line in text.splitlines() if line and not line.startswith("# ")]


def test_the_guide_has_the_code_of_the_service() -> None:
    page = (EXAMPLES.parent / "docs" / "guides" / "services.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page.partition("\n## Test it")[0], re.DOTALL)
    program = (EXAMPLES / "service.py").read_text(encoding="utf-8").partition("import os\n")
    session = "# A session of a client."
    assert session in program[2]
    assert code_lines("".join(blocks)) == code_lines("".join(program[1:]).partition(session)[0])


# Over real HTTP.


@pytest.fixture
def chaos() -> Iterator[Chaos]:
    with chaos_server() as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "service.db"


@pytest.fixture
def configured(chaos: Chaos, file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes the model take a step for every request."""

    def configure(step: Step) -> None:
        monkeypatch.setenv("LM_STUDIO_ENDPOINT", chaos.endpoint(chaos.plan(step)))
        monkeypatch.setenv("LM_STUDIO_MODEL", "m")
        monkeypatch.setenv("LLM_STORAGE_URL", f"sqlite:///{file}")

    return configure


def started(client: httpx.Client) -> str:
    return str(client.post("/conversations").json()["id"])


def client_of(running: Service) -> httpx.Client:
    return httpx.Client(base_url=running.url, headers=ADA, timeout=10)


def stored(file: Path, conversation: str) -> tuple[History, list[LedgerRow]]:
    """Read what a service that has stopped left behind."""

    async def read() -> tuple[History, list[LedgerRow]]:
        async with open_env(LLMConfig(models={}, storage=StorageConfig(url=f"sqlite:///{file}"))) as env:
            history = (await run(load_conversation(conversation, owner="ada"), env)).unwrap()
            return history, list((await result_of(env.ledger.rows())).unwrap())

    return anyio.run(read)


def wait_for_end(client: httpx.Client, conversation: str) -> dict[str, Any]:
    """Wait until the newest turn has ended, and return it."""
    until = time.monotonic() + 5
    turns: list[dict[str, Any]] = []
    while time.monotonic() < until and (not turns or turns[-1]["state"] == "pending"):
        time.sleep(0.02)
        turns = client.get(f"/conversations/{conversation}").json()
    return turns[-1]


def answering(pieces: int, every: float) -> Step:
    """Answer with some pieces, ``every`` so many seconds."""

    async def step(peer: Peer, _: bytes) -> None:
        await peer.send(HEAD)
        for number in range(pieces):
            await anyio.sleep(every)
            await peer.send(chunk(piece(f"{number} ")))
        await peer.send(chunk(STOP), chunk(b"data: [DONE]\n\n"), END)

    return step


def test_a_client_that_leaves_closes_the_connection_to_the_model_and_interrupts_its_turn(
    service: ModuleType, chaos: Chaos, configured: Any
) -> None:
    configured(ENDLESS)
    with served(service.create_app()) as running, client_of(running) as client:
        conversation = started(client)
        with client.stream("POST", f"/conversations/{conversation}/turns", json={"text": "why?"}) as response:
            lines = response.iter_lines()
            assert next(line for line in lines if line.startswith("data:")) == 'data: {"text":"x "}'
            assert response.headers["content-type"].startswith("text/event-stream")
        turn = wait_for_end(client, conversation)
        assert turn["state"] == "interrupted"
        assert turn["texts"][0] == "why?"
        assert turn["texts"][1].startswith("x ")
        assert chaos.server.settled() == 0


def test_a_client_that_stops_reading_and_leaves_interrupts_its_turn(
    service: ModuleType, chaos: Chaos, configured: Any, caplog: pytest.LogCaptureFixture
) -> None:
    configured(drips(HEAD, chunk(piece("x" * 20_000)), every=0.001))
    with served(service.create_app()) as running, client_of(running) as client:
        conversation = started(client)
        head = f"POST /conversations/{conversation}/turns HTTP/1.1"
        connection = stalled_request(running.port, head, json.dumps({"text": "why?"}))
        time.sleep(0.5)  # long enough to fill every buffer between the model and this client
        connection.close()
        assert wait_for_end(client, conversation)["state"] == "interrupted"
        assert chaos.server.settled() == 0
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_an_answer_under_way_is_finished_when_the_service_stops(
    service: ModuleType, configured: Any, file: Path
) -> None:
    configured(answering(10, every=0.05))
    with served(service.create_app(), grace_s=5) as running, client_of(running) as client:
        conversation = started(client)
        with client.stream("POST", f"/conversations/{conversation}/turns", json={"text": "why?"}) as response:
            lines = response.iter_lines()
            next(line for line in lines if line.startswith("data:"))
            running.server.should_exit = True
            assert [line for line in lines if line.startswith("event:")][-1] == "event: done"
    history, rows = stored(file, conversation)
    assert [each.message.text for each in history.turns[0].messages][1] == "0 1 2 3 4 5 6 7 8 9 "
    assert [row.attempt.outcome for row in rows] == ["success"]


def test_an_answer_that_takes_too_long_to_stop_is_cut_and_stored(
    service: ModuleType, chaos: Chaos, configured: Any, file: Path
) -> None:
    configured(ENDLESS)
    with served(service.create_app(), grace_s=1) as running, client_of(running) as client:
        conversation = started(client)
        with client.stream("POST", f"/conversations/{conversation}/turns", json={"text": "why?"}) as response:
            lines = response.iter_lines()
            next(line for line in lines if line.startswith("data:"))
            began = time.monotonic()
            running.stop()
            assert time.monotonic() - began < 4
    history, rows = stored(file, conversation)
    (turn,) = history.turns
    assert (turn.state.value, turn.error) == ("interrupted", "cancelled")
    assert turn.messages[1].message.text.startswith("x ")
    assert [row.attempt.outcome for row in rows] == ["cancelled"]
    assert chaos.server.settled() == 0


@pytest.mark.anyio
async def test_the_service_does_not_start_with_a_storage_that_cannot_be_opened(
    service: ModuleType, configured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(ENDLESS)
    monkeypatch.setenv("LLM_STORAGE_URL", "sqlite:////nowhere/at/all.db")
    with pytest.raises(InvalidValue, match=r"storage\.url"):
        async with service.lifespan(service.create_app()):
            pass


# In process, with scripted models.


def in_process(service: ModuleType, env: LLMEnv, user: str | None = "ada") -> httpx.AsyncClient:
    headers = {} if user is None else {"x-user": user}
    transport = httpx.ASGITransport(service.create_app(env))
    return httpx.AsyncClient(transport=transport, base_url="http://service", headers=headers)


async def chatted(client: httpx.AsyncClient, text: str, **fields: str) -> list[tuple[str, Any]]:
    """Start a conversation, ask, and return the events."""
    conversation = (await client.post("/conversations")).json()["id"]
    response = await client.post(f"/conversations/{conversation}/turns", json={"text": text, **fields})
    blocks = [block.split("\n") for block in response.text.split("\n\n") if block.startswith("event:")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


@pytest.mark.anyio
async def test_a_chat_is_a_stream_of_events_and_is_stored(service: ModuleType) -> None:
    env = scripted_env(Chunks(("be", "cause")), "Ada.")
    async with in_process(service, env) as client:
        events = await chatted(client, "why?")
        assert events == [
            ("delta", {"text": "be"}),
            ("delta", {"text": "cause"}),
            ("done", {"model": "scripted", "warnings": []}),
        ]
        assert (await client.get("/conversations/id-1")).json() == [{"state": "finished", "texts": ["why?", "because"]}]
    async with in_process(service, env, user="bob") as client:
        assert (await client.get("/conversations/id-1")).status_code == 422


@pytest.mark.anyio
async def test_a_request_ends_after_its_turn_is_stored_even_if_it_is_cancelled_while_an_event_is_sent(
    service: ModuleType,
) -> None:
    env = evolve(scripted_env(Chunks(("x ",) * 9)), conversations=Slow(seconds=0.02))
    (await run(start_conversation("c", owner="ada"), env)).unwrap()
    app, sending = service.create_app(env), anyio.Event()
    body = iter([{"type": "http.request", "body": b'{"text": "why?"}', "more_body": False}])

    async def receive() -> dict[str, Any]:
        return next(body, None) or await anyio.sleep_forever()

    async def send(message: dict[str, Any]) -> None:
        if b"delta" in message.get("body", b""):
            sending.set()
            await anyio.sleep_forever()

    scope = {"type": "http", "method": "POST", "path": "/conversations/c/turns", "headers": [(b"x-user", b"ada")]}
    async with anyio.create_task_group() as group:
        group.start_soon(app, scope, receive, send)
        await sending.wait()
        group.cancel_scope.cancel()
    (turn,) = (await run(load_conversation("c", owner="ada"), env)).unwrap().turns
    assert (turn.state.value, turn.messages[1].message.text) == ("interrupted", "x ")


@pytest.mark.anyio
async def test_silence_of_a_model_is_bridged_by_comments(service: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PING_S", 0.01)
    async with in_process(service, scripted_env(Delayed(0.5, "because"))) as client:
        conversation = (await client.post("/conversations")).json()["id"]
        text = (await client.post(f"/conversations/{conversation}/turns", json={"text": "why?"})).text
    assert text.count(": still there\n\n") > 3
    assert text.endswith('event: done\ndata: {"model":"scripted","warnings":[]}\n\n')


@pytest.mark.anyio
async def test_the_same_turn_id_gets_the_stored_answer(service: ModuleType) -> None:
    env = scripted_env("because", "never")
    async with in_process(service, env) as client:
        conversation = (await client.post("/conversations")).json()["id"]
        question = {"text": "why?", "turn_id": "t-1"}
        for _ in range(2):
            assert (
                '{"text":"because"}' in (await client.post(f"/conversations/{conversation}/turns", json=question)).text
            )


@pytest.mark.anyio
async def test_a_failure_before_or_within_a_chat_is_its_last_event(service: ModuleType) -> None:
    async with in_process(service, scripted_env(RateLimitExceeded(quota=True))) as client:
        ((name, data),) = await chatted(client, "why?")
        assert (name, data["error"]) == ("failed", "RateLimitExceeded")


@pytest.mark.anyio
async def test_an_analysis_is_a_value(service: ModuleType) -> None:
    judgement = {"severity": "high", "likely_cause": "deployment"}
    async with in_process(service, scripted_env(json.dumps(judgement))) as client:
        response = await client.post("/analyses", json={"text": "All is slow."})
        assert (response.status_code, response.json()) == (200, judgement)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (AuthenticationFailed(), 502),
        (RateLimitExceeded(quota=True, retry_after=7.0), 503),
        (RequestFailed(errors=(NetworkError(), RateLimitExceeded(quota=True))), 503),
    ],
)
async def test_an_error_has_its_status(service: ModuleType, error: Any, status: int) -> None:
    async with in_process(service, scripted_env(error)) as client:
        response = await client.post("/analyses", json={"text": "All is slow."})
    assert (response.status_code, response.json()["error"]) == (status, error.tag)
    assert response.headers.get("retry-after") == ("7" if error.retry_after else None)


@pytest.mark.anyio
async def test_each_user_has_a_budget_and_sees_only_their_own_usage(service: ModuleType) -> None:
    dear = ModelConfig(provider="lm-studio", price=Price(input=1, output=10))
    budget = BudgetConfig(name="each user", limit_usd="0.0015", scope="owner:*")
    env = scripted_env(
        '{"severity": "low", "likely_cause": "traffic"}', config=LLMConfig(models={"a": dear}, budgets=(budget,))
    )
    async with in_process(service, env) as ada, in_process(service, env, user="bob") as bob:
        for client in (ada, bob):
            assert (await client.post("/analyses", json={"text": "All is slow."})).status_code == 200
        spent = [await ada.post("/analyses", json={"text": "All is slow."}) for _ in range(20)]
        assert (spent[-1].status_code, spent[-1].json()["error"]) == (402, "BudgetExceeded")
        assert (await bob.post("/analyses", json={"text": "All is slow."})).status_code == 200
        (row,) = (await bob.get("/usage")).json()
        assert (row["group"], row["requests"]) == (["bob", "a"], 2)


@pytest.mark.anyio
@pytest.mark.parametrize("body", ["", "{", '{"txt": "why?"}', '{"text": " "}', '{"text": 7}'])
async def test_a_wrong_question_is_refused(service: ModuleType, body: str) -> None:
    async with in_process(service, scripted_env("never")) as client:
        assert (await client.post("/analyses", content=body)).status_code == 400


@pytest.mark.anyio
async def test_a_request_without_a_user_is_refused(service: ModuleType) -> None:
    async with in_process(service, scripted_env("never"), user=None) as client:
        for method, path in (("POST", "/conversations"), ("GET", "/usage"), ("GET", "/conversations/c")):
            assert (await client.request(method, path)).status_code == 401


@pytest.mark.anyio
async def test_the_health_of_process_and_models(service: ModuleType) -> None:
    async with in_process(service, scripted_env(), user=None) as client:
        assert (await client.get("/health/live")).status_code == 200
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()) == (200, {"scripted": True})
    assert service.status_of_models(()) == 503


@pytest.mark.anyio
async def test_the_span_of_a_request_is_the_parent_of_its_call(
    service: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans, tracers = InMemorySpanExporter(), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(service, "TRACER", tracers.get_tracer("service"))
    env = evolve(scripted_env("because"), telemetry=open_telemetry(tracers))
    async with in_process(service, env) as client:
        await chatted(client, "why?")
    finished = spans.get_finished_spans()
    (call,) = [span for span in finished if span.name == "generate"]
    (request,) = [span for span in finished if span.attributes.get("url.path") == "/conversations/id-1/turns"]
    assert call.parent is not None
    assert call.parent.span_id == request.context.span_id
