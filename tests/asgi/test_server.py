"""The endpoint behind a real server: clients that leave or read nothing, long bodies, a stop, apps around it."""

import json
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from attrs import evolve
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.routing import Mount

from llm_effects import LLMConfig, LLMEnv, ModelConfig, open_env, scripted_env
from llm_effects.asgi import create_app
from llm_effects.config import RoutingConfig, ServeConfig, StorageConfig
from llm_effects.effects.effect import result_of
from llm_effects.testing import Chunks
from llm_effects.values import InvalidValue, LedgerRow
from tests.fixtures.chaos import CANARY, HEAD, Chaos, Step, chaos_server, chunk, drips, good, holds, piece, says
from tests.fixtures.endpoint import QUESTION, ask, client_of, events_of
from tests.fixtures.servers import reply_json
from tests.fixtures.web import Service, served, stalled_request

ENDLESS = drips(HEAD, chunk(piece("x ")))


@pytest.fixture(scope="module")
def chaos() -> Iterator[Chaos]:
    with chaos_server() as server:
        yield server


@pytest.fixture
def config(chaos: Chaos, tmp_path: Path) -> Callable[..., LLMConfig]:
    """Return a configuration of one model that takes some steps, with a ledger in a file."""

    def configured(*steps: Step, **fields: Any) -> LLMConfig:
        endpoint = chaos.endpoint(chaos.plan(*steps))
        model = ModelConfig(provider="openai-chat", model="m", endpoint=endpoint, api_key=CANARY, **fields)
        storage = StorageConfig(url=f"sqlite:///{tmp_path}/llm.db")
        return LLMConfig(models={"house": model}, routing=RoutingConfig(max_retries=0), storage=storage)

    return configured


def rows_in(config: LLMConfig) -> list[LedgerRow]:
    async def read() -> list[LedgerRow]:
        async with open_env(config) as env:
            return list((await result_of(env.ledger.rows(datetime(2020, 1, 1, tzinfo=UTC)))).unwrap())

    return anyio.run(read)


def client_at(running: Service, path: str = "/v1") -> httpx.Client:
    return httpx.Client(base_url=f"{running.url}{path}", timeout=30)


@contextmanager
def streaming(running: Service) -> Iterator[Iterator[str]]:
    """Ask for a stream and yield its lines."""
    body = {**QUESTION, "stream": True}
    with client_at(running) as client, client.stream("POST", "/chat/completions", json=body) as response:
        yield response.iter_lines()


def wait_until(true: Callable[[], bool], within: float = 30.0) -> bool:
    until = time.monotonic() + within
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    return true()


LISTED = says(reply_json({"data": [{"id": "m"}]}))  # to the check before the start


def test_whole_and_streamed_answers_of_a_model_behind_a_server(config: Callable[..., LLMConfig]) -> None:
    with served(create_app(config(LISTED, good))) as running, client_at(running) as client:
        whole = client.post("/chat/completions", json=QUESTION)
        assert whole.json()["choices"][0]["message"]["content"] == "because"
        again = client.post("/chat/completions", json=QUESTION)
        assert (whole.json()["llm_effects"]["cached"], again.json()["llm_effects"]["cached"]) == (False, True)
        streamed = client.post("/chat/completions", json={**QUESTION, "stream": True, "seed": 1})
        texts = [event["choices"][0]["delta"].get("content", "") for event in events_of(streamed.text)[:-1]]
        assert "".join(texts) == "because"


@pytest.mark.parametrize("streamed", [False, True])
def test_fault_248_a_client_that_leaves_closes_the_connection_to_the_model(
    chaos: Chaos, config: Callable[..., LLMConfig], *, streamed: bool
) -> None:
    held = config(LISTED, ENDLESS if streamed else holds())
    with served(create_app(held)) as running:
        asked = chaos.asked.total()
        if streamed:
            with streaming(running) as lines:
                next(lines)
                assert chaos.server.open > 0
        else:
            with client_at(running) as client, pytest.raises(httpx.ReadTimeout):
                client.post("/chat/completions", json=QUESTION, timeout=0.5)
            assert wait_until(lambda: chaos.asked.total() == asked + 1)
        assert chaos.server.settled(within=30) == 0
    (row,) = rows_in(held)
    assert row.attempt.outcome == "cancelled"


def test_fault_248_a_client_that_reads_nothing_ends_its_call(chaos: Chaos, config: Callable[..., LLMConfig]) -> None:
    flood = drips(HEAD, chunk(piece("x" * 20_000)), every=0.001)
    flooded = config(LISTED, flood, sink_ms=300)
    with served(create_app(flooded)) as running:
        body = json.dumps({**QUESTION, "stream": True})
        with stalled_request(running.port, "POST /v1/chat/completions HTTP/1.1", body, host="localhost"):
            assert wait_until(lambda: chaos.server.open > 0)
            assert chaos.server.settled(within=30) == 0
    (row,) = rows_in(flooded)
    assert row.attempt.outcome == "cancelled"


def test_fault_251_a_long_body_is_refused_before_it_is_sent() -> None:
    with (
        served(create_app(scripted_env("never"))) as running,
        socket.create_connection(("127.0.0.1", running.port)) as peer,
    ):
        peer.settimeout(30)
        head = "POST /v1/chat/completions HTTP/1.1", "host: localhost", f"content-length: {10**12}", "", ""
        peer.sendall("\r\n".join(head).encode())
        assert peer.recv(2**16).startswith(b"HTTP/1.1 413 ")
        peer.close()


def test_a_stream_under_way_ends_before_the_server_stops() -> None:
    env = scripted_env(Chunks(tuple(f"{number} " for number in range(20)), pause=0.02))
    with served(create_app(env), grace_s=30) as running, streaming(running) as lines:
        next(lines)
        running.server.should_exit = True
        assert [line for line in lines if line][-1] == "data: [DONE]"


def test_a_stream_that_takes_too_long_to_stop_is_cut_and_recorded(
    chaos: Chaos, config: Callable[..., LLMConfig]
) -> None:
    endless = config(LISTED, ENDLESS)
    with served(create_app(endless), grace_s=1) as running, streaming(running) as lines:
        next(lines)
        running.stop()
    (row,) = rows_in(endless)
    assert row.attempt.outcome == "cancelled"
    assert chaos.server.settled() == 0


@pytest.mark.anyio
async def test_the_app_does_not_start_with_a_wrong_configuration() -> None:
    app = create_app(LLMConfig(models={"gpt": ModelConfig(provider="openai", model="m")}))
    with pytest.raises(InvalidValue, match=r"models\.gpt\.api_key"):
        async with app.router.lifespan_context(app):
            pass


# Apps around it.


def around(endpoint: Starlette, env: LLMEnv | None = None) -> Callable[[Any], Any]:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[None]:
        endpoint.state.env = env or endpoint.state.env
        async with endpoint.router.lifespan_context(endpoint):
            yield

    return lifespan


def test_mounted_in_starlette_with_an_environment_of_its_own(config: Callable[..., LLMConfig]) -> None:
    endpoint = create_app(config(LISTED, good))
    app = Starlette(routes=[Mount("/llm", endpoint)], lifespan=around(endpoint))
    with served(app) as running, client_at(running, "/llm/v1") as client:
        assert client.post("/chat/completions", json=QUESTION).status_code == 200
        assert [each["id"] for each in client.get("/models").json()["data"]] == ["auto", "house"]


def test_mounted_in_fastapi_with_the_environment_of_the_app() -> None:
    endpoint = create_app()
    app = FastAPI(lifespan=around(endpoint, scripted_env("Logs.")))
    app.mount("/llm", endpoint)
    with served(app) as running, client_at(running, "/llm/v1") as client:
        answer = client.post("/chat/completions", json=QUESTION).json()
    assert answer["choices"][0]["message"]["content"] == "Logs."


@pytest.mark.anyio
async def test_a_mounted_endpoint_that_was_not_started_names_the_remedy() -> None:
    transport = httpx.ASGITransport(Starlette(routes=[Mount("/llm", create_app())]))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost/llm/v1") as client:
        with pytest.raises(RuntimeError, match="lifespan_context"):
            await ask(client)


def test_middleware_in_another_task_sees_a_response_of_a_client_that_left(
    chaos: Chaos, config: Callable[..., LLMConfig]
) -> None:
    statuses = list[int]()

    async def watch(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        statuses.append(response.status_code)
        return response

    endpoint = create_app(config(LISTED, holds()))
    middleware = [Middleware(BaseHTTPMiddleware, dispatch=watch)]
    app = Starlette(routes=[Mount("/", endpoint)], middleware=middleware, lifespan=around(endpoint))
    with served(app) as running:
        with client_at(running) as client, pytest.raises(httpx.ReadTimeout):
            client.post("/chat/completions", json=QUESTION, timeout=0.5)
        assert wait_until(lambda: statuses == [499])
        assert chaos.server.settled(within=30) == 0


@pytest.mark.anyio
async def test_the_limit_of_a_body_is_configured() -> None:
    env = scripted_env("ok")
    small = evolve(env, config=evolve(env.config, serve=ServeConfig(body_bytes=10)))
    async with client_of(small) as client:
        assert (await ask(client)).status_code == 413


def test_a_flood_of_small_requests_is_answered() -> None:
    with served(create_app(scripted_env("ok"))) as running, client_at(running) as client:
        assert {client.post("/chat/completions", json=QUESTION).status_code for _ in range(200)} == {200}
