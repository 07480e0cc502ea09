"""A web service: chats as server-sent events, typed analyses, usage, a budget for each user, traces and health checks.

``uvicorn --app-dir examples service:app --timeout-graceful-shutdown 20`` serves it with the models of the environment
variables. ``python examples/service.py`` plays a short session of a client in this process. The guide
``docs/guides/services.md`` explains it part by part.
"""

import os
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from datetime import timedelta
from typing import Final, Literal, TypeVar, final

import anyio
import httpx
import msgspec
from attrs import evolve, frozen
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from returns.pipeline import is_successful
from returns.result import Result, Success
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from llm_effects import (
    AuthenticationFailed,
    BudgetExceeded,
    Completed,
    ConfigurationError,
    ContentRefused,
    ContextTooLarge,
    ConversationConflict,
    Failed,
    InvalidRequest,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    MalformedResponse,
    ModelUnavailable,
    NetworkError,
    Preferences,
    RateLimitExceeded,
    RequestFailed,
    RequestTimeout,
    Restarted,
    SchemaMismatch,
    StorageFailed,
    StreamEvent,
    TaskType,
    TextDelta,
    check_health,
    describe,
    generate_as,
    load_config,
    load_conversation,
    open_converse,
    open_env,
    run,
    start_conversation,
    usage_report,
)
from llm_effects.config import BudgetConfig
from llm_effects.values import History, InvalidValue, ModelHealth

_Value = TypeVar("_Value")


def configured() -> LLMConfig:
    """Return the models of the environment variables, with a budget for each user, or raise all that is wrong."""
    budget = BudgetConfig(name="each user", limit_usd="1", period="day", scope="owner:*")
    return evolve(load_config().unwrap(), budgets=(budget,))


# What comes in: a question, a user.


@final
@frozen
class Question:
    """A text of a user. Sent again with the same ``turn_id``, it is neither stored nor paid for twice."""

    text: str
    turn_id: str | None = None


LIMITS: Final = Preferences(max_tokens=100, timeout_ms=60_000)
"""The longest answer, in tokens, and the longest time for it, in milliseconds."""


async def asked(request: Request, task: str = TaskType.GENERAL) -> tuple[LLMRequest, str | None]:
    """Read the question of a request, and its turn id if it has one."""
    asked = msgspec.json.decode(await request.body(), type=Question)
    question = LLMRequest(prompt=asked.text, owner=user_of(request), task_type=task, preferences=LIMITS)
    return question, asked.turn_id


def user_of(request: Request) -> str:
    """Return the user of a request, the owner of its conversations. Put your authentication here."""
    user = request.headers.get("x-user")
    if not user:
        raise HTTPException(401, "the header x-user is missing")
    return user


def env_of(request: Request) -> LLMEnv:
    """Return the environment that the app opened when it started."""
    env: LLMEnv = request.app.state.env
    return env


# What goes out: a value, or an error with its status.


def reply(result: Result[_Value, LLMError], status: int = 200) -> Response:
    """Send a value as JSON, or an error with its status."""
    if is_successful(result):
        return json_of(result.unwrap(), status)
    error = result.failure()
    wait = {} if error.retry_after is None else {"retry-after": f"{error.retry_after:.0f}"}
    return json_of(shown(error), status_of(error), wait)


def json_of(value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def shown(error: LLMError) -> dict[str, str]:
    """Return what a user sees of an error; the log and the trace have the rest."""
    return {"error": error.tag, "message": describe(error)}


def status_of(error: LLMError) -> int:
    """Return the HTTP status of an error. A type checker names the error that is missing here."""
    match error:
        case InvalidRequest() | ContextTooLarge() | ContentRefused():
            return 422
        case BudgetExceeded():
            return 402
        case ConversationConflict():
            return 409
        case RateLimitExceeded() | ModelUnavailable():
            return 503
        case RequestTimeout():
            return 504
        case NetworkError() | MalformedResponse() | SchemaMismatch() | AuthenticationFailed():
            return 502
        case ConfigurationError() | StorageFailed():
            return 500
        case RequestFailed():
            return status_of(error.errors[-1])


async def refuse(_: Request, problem: Exception) -> Response:
    """Send what is wrong with the JSON of a request, or with its values."""
    return json_of({"error": "InvalidRequest", "message": str(problem)}, 400)


# Chats: server-sent events.

PING_S: Final = 15.0
"""Seconds without an event after which a comment is sent: proxies close silent connections."""


@final
class ServerSentEvents(StreamingResponse):
    """A response that ends its events as soon as the client has left, even while one of them is being sent."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str]) -> None:
        super().__init__(events, headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.events = events

    async def stream_response(self, send: Send) -> None:
        """Send the events; whatever ends this, the call to the model ends before it."""
        async with aclosing(self.events):
            await super().stream_response(send)


async def sent(opened: AbstractAsyncContextManager[AsyncIterator[StreamEvent]]) -> AsyncGenerator[str]:
    """Write the events of a stream as texts, with a comment whenever none came for a while."""
    async with opened as events:
        event: StreamEvent | None = None
        while not isinstance(event, Completed | Failed):
            event = None
            with anyio.move_on_after(PING_S):
                event = await anext(events)
            yield text_of(event)


def text_of(event: StreamEvent | None) -> str:
    """Return an event as a browser's ``EventSource`` reads it."""
    match event:
        case TextDelta(text):
            return event_text("delta", {"text": text})
        case Restarted():
            return event_text("restart", {})
        case Completed(response):
            return event_text("done", {"model": response.model, "warnings": response.warnings})
        case Failed(error):
            return event_text("failed", shown(error))
        case _:
            return ": still there\n\n"


def event_text(name: str, data: object) -> str:
    return f"event: {name}\ndata: {msgspec.json.encode(data).decode()}\n\n"


async def start(request: Request) -> Response:
    """Start a conversation of the user."""
    started = await run(start_conversation(owner=user_of(request), system="Be brief."), env_of(request))
    return reply(started.map(lambda conversation: {"id": conversation.id}), 201)


async def turn(request: Request) -> Response:
    """Answer one turn of a conversation, event by event."""
    question, turn_id = await asked(request)
    return ServerSentEvents(sent(open_converse(request.path_params["id"], question, turn_id=turn_id)(env_of(request))))


async def history(request: Request) -> Response:
    """Show a conversation of the user: every turn, how it ended, and its texts."""
    stored = load_conversation(request.path_params["id"], owner=user_of(request))
    return reply((await run(stored, env_of(request))).map(turns_of))


def turns_of(history: History) -> list[dict[str, object]]:
    return [{"state": turn.state, "texts": [each.message.text for each in turn.messages]} for turn in history.turns]


# Analyses, usage and health: values.


@final
@frozen
class Judgement:
    """What the model makes of an incident."""

    severity: Literal["low", "medium", "high"]
    likely_cause: Literal["deployment", "traffic", "dependency", "hardware", "unknown"]


async def analyse(request: Request) -> Response:
    """Judge an incident."""
    question, _ = await asked(request, TaskType.ANALYSIS)
    judged = await run(generate_as(question, Judgement), env_of(request))
    return reply(judged.map(lambda answer: answer.value))


async def usage(request: Request) -> Response:
    """Show what the user spent in the last thirty days, by model."""
    user, env = user_of(request), env_of(request)
    report = await run(usage_report(env.now() - timedelta(days=30), by=("owner", "model")), env)
    return reply(report.map(lambda report: [row for row in report.rows if row.group[0] == user]))


async def live(_: Request) -> Response:
    """Say that the process runs."""
    return Response("ok")


async def ready(request: Request) -> Response:
    """Say whether a model is ready."""
    models = (await run(check_health(), env_of(request))).unwrap()
    return json_of({each.model: each.ready for each in models}, status_of_models(models))


def status_of_models(models: tuple[ModelHealth, ...]) -> int:
    return 200 if any(each.ready for each in models) else 503


# The app: it opens the environment when it starts, and closes it after the last request.

CLOSE_S: Final = 8.0
"""Seconds that cancelled requests have to store their end when the server stops."""

TRACER: Final = trace.get_tracer("service")


@final
@frozen
class UnderWay:
    """A layer around the app: it traces every request, and remembers those that have not ended."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request in a span of its own."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        ended, under_way = anyio.Event(), scope["app"].state.under_way
        under_way.add(ended)
        try:
            with TRACER.start_as_current_span(scope["method"], attributes={"url.path": scope["path"]}):
                await self.app(scope, receive, send)
        finally:
            under_way.remove(ended)
            ended.set()


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncGenerator[None]:
    """Open the environment, or fail with all that is known to be wrong; close it after the last request."""
    if os.environ.get("OTEL_TRACES_EXPORTER") == "console":
        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter()))
        trace.set_tracer_provider(provider)
    async with open_env(configured(), check=True) as env:
        app.state.env = env
        yield
        with anyio.move_on_after(CLOSE_S):
            for ended in tuple(app.state.under_way):
                await ended.wait()


ROUTES: Final = (
    Route("/conversations", start, methods=["POST"]),
    Route("/conversations/{id}", history),
    Route("/conversations/{id}/turns", turn, methods=["POST"]),
    Route("/analyses", analyse, methods=["POST"]),
    Route("/usage", usage),
    Route("/health/live", live),
    Route("/health/ready", ready),
)


def create_app(env: LLMEnv | None = None) -> Starlette:
    """Make the app. It opens its own environment when it starts, unless it is given one, as in a test."""
    created = Starlette(
        routes=ROUTES,
        middleware=[Middleware(UnderWay)],
        exception_handlers={msgspec.DecodeError: refuse, InvalidValue: refuse},
        lifespan=lifespan if env is None else None,
    )
    created.state.env, created.state.under_way = env, set[anyio.Event]()
    return created


app = create_app()


# A session of a client.

INCIDENT: Final = "Since the deployment at noon, the checkout answers every second request with status 500."


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Chat, ask for an analysis and read the usage, as a client would, but in this process."""
    transport, user = httpx.ASGITransport(create_app(env)), {"x-user": "ada"}
    async with httpx.AsyncClient(transport=transport, base_url="http://service", headers=user, timeout=90) as client:
        conversation = (await client.post("/conversations")).json()["id"]
        replies = (
            await client.post(f"/conversations/{conversation}/turns", json={"text": "Why do disks fill up?"}),
            await client.get(f"/conversations/{conversation}"),
            await client.post("/analyses", json={"text": INCIDENT}),
            await client.get("/usage"),
            await client.get("/health/ready"),
        )
    return Success("\n".join(line(each) for each in replies))


def line(reply: httpx.Response) -> str:
    """Show a response: the last line of what it says."""
    return f"{reply.status_code} {reply.request.method} {reply.url.path}: {reply.text.strip().splitlines()[-1]}"


async def play() -> Result[str, LLMError]:
    """Play the session with the models of the environment variables."""
    async with open_env(configured()) as env:
        return await main(env)


if __name__ == "__main__":
    result = anyio.run(play)
    print(result.unwrap()) if is_successful(result) else sys.exit(describe(result.failure()))
