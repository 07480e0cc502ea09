"""The answers of chat completions: whole, or as server-sent events, and errors in OpenAI's shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final, NamedTuple, assert_never, final

import anyio
from anyio.lowlevel import checkpoint
from attrs import define, field
from returns.pipeline import is_successful
from returns.result import Result
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llm_effects.asgi.chat_requests import AUTO, ChatRequest
from llm_effects.config.models import entry_of
from llm_effects.effects.effect import run
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.tasks import task_group
from llm_effects.pipeline import generate, stream
from llm_effects.providers.registry import MUST_STAY
from llm_effects.values.errors import (
    AuthenticationFailed,
    BudgetExceeded,
    ConfigurationError,
    ContentRefused,
    ContextTooLarge,
    ConversationConflict,
    InvalidRequest,
    LLMError,
    MalformedResponse,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    RequestFailed,
    RequestTimeout,
    SchemaMismatch,
    StorageFailed,
    describe,
)
from llm_effects.values.events import (
    Completed,
    Failed,
    ReasoningDelta,
    Restarted,
    Started,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
)
from llm_effects.values.json import dump
from llm_effects.values.openai import to_openai
from llm_effects.values.responses import LLMResponse
from llm_effects.values.validation import printable

HEARTBEAT_S: Final = 10.0
"""Seconds of silence after which a stream gets a comment: proxies and clients close silent connections."""

WARNING_HEADER: Final = "x-llm-effects-warning"
"""The header of an answer that names the fields of its request that had no effect."""

_WARNING_CHARACTERS: Final = 1_000
_SSE: Final = (
    ("content-type", "text/event-stream; charset=utf-8"),
    ("cache-control", "no-cache"),
    ("x-accel-buffering", "no"),
)


@final
@define(eq=False)
class Exchange:
    """One request and its answer, over the connection of a client.

    A stream begins with its first event, so that an error before that has a status of its own.
    """

    asked: ChatRequest
    env: LLMEnv
    scope: Scope
    receive: Receive
    send: Send
    id: str = field(init=False)
    created: int = field(init=False)
    model: str = AUTO
    calls: set[int] = field(factory=set[int])
    begun: bool = False
    ended: bool = False
    silent: bool = False
    lock: anyio.Lock = field(factory=lambda: anyio.Lock(fast_acquire=True))
    connected: anyio.CancelScope = field(factory=anyio.CancelScope)

    def __attrs_post_init__(self) -> None:
        self.id, self.created = f"chatcmpl-{self.env.new_id()}", int(self.env.now().timestamp())

    async def run(self) -> None:
        """Answer while the client is connected; once it leaves, the call ends at once."""
        with self.connected:
            async with task_group() as group:
                group.start_soon(self._watch)
                if self.asked.streamed:
                    group.start_soon(self._beat)
                    await run(stream(self.asked.request, self.deliver), self.env)
                else:
                    await self._answer(await run(generate(self.asked.request), self.env))
                group.cancel_scope.cancel()
        if not self.begun:  # the client has left, but a layer around the app may wait for a response
            await self._respond(Response(status_code=499))

    async def _watch(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.connected.cancel()

    async def _beat(self) -> None:
        while True:
            self.silent = True
            await anyio.sleep(HEARTBEAT_S)
            if self.silent:
                await self._write(b": still there\n\n")

    # A whole answer.

    async def _answer(self, result: Result[LLMResponse, LLMError]) -> None:
        if not is_successful(result):
            await self._respond(error_response(result.failure(), self._headers))
            return
        response = result.unwrap()
        named = {"id": self.id, "model": entry_of(response.model), "llm_effects": _extras(response)}
        await self._respond(json_response({**to_openai(response, created=self.created), **named}, 200, self._headers))

    async def _respond(self, response: Response) -> None:
        self.begun = self.ended = True
        await response(self.scope, self.receive, self.send)

    @property
    def _headers(self) -> dict[str, str]:
        """The id of the answer, and the names of ignored fields: as a client wrote them, but in printable ASCII."""
        names = printable(", ".join(self.asked.ignored))[:_WARNING_CHARACTERS]
        ignored = names.encode("ascii", "backslashreplace").decode()
        return {"x-request-id": self.id, **({WARNING_HEADER: f"ignored: {ignored}"} if ignored else {})}

    # A stream.

    async def deliver(self, event: StreamEvent) -> None:
        """Send an event."""
        match event:
            case Started() | Restarted():
                self.model = entry_of(event.model)
                await self._send_delta({"role": "assistant", "content": ""})
            case TextDelta():
                await self._send_delta({"content": event.text})
            case ReasoningDelta():
                await self._send_delta({"reasoning_content": event.text})
            case ToolCallDelta():
                await self._send_delta({"tool_calls": [self._call(event)]})
            case Completed():
                await self._complete(event.response)
            case Failed():
                await self._fail(event.error)
            case _:
                assert_never(event)

    def _call(self, event: ToolCallDelta) -> dict[str, object]:
        """Return a piece of a call; clients join its texts, so its id and its name are sent once."""
        if event.index in self.calls:
            return {"index": event.index, "function": {"arguments": event.arguments}}
        self.calls.add(event.index)
        function = {"name": event.name, "arguments": event.arguments}
        return {"index": event.index, "id": event.id, "type": "function", "function": function}

    async def _send_delta(self, delta: dict[str, object], finish_reason: str | None = None, **extras: object) -> None:
        choice: dict[str, object] = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        await self._write(_event(self._chunk([choice], **extras)))

    def _chunk(self, choices: list[dict[str, object]], **extras: object) -> dict[str, object]:
        head = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        usage = {"usage": None} if self.asked.include_usage else {}
        return {**head, "choices": choices, **usage, **extras}

    async def _complete(self, response: LLMResponse) -> None:
        self.model = entry_of(response.model)
        await self._send_delta({}, response.finish_reason.value, llm_effects=_extras(response))
        usage = _event(self._chunk([], usage=to_openai(response)["usage"])) if self.asked.include_usage else b""
        await self._write(usage + b"data: [DONE]\n\n", more=False)

    async def _fail(self, error: LLMError) -> None:
        if self.begun:
            await self._write(_event(error_body(error)), more=False)
        else:
            await self._respond(error_response(error, self._headers))

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        async with self.lock:
            if self.ended:
                return
            self.silent, self.ended = False, not more
            try:
                if not self.begun:
                    self.begun = True
                    await self._begin()
                await self.send({"type": "http.response.body", "body": data, "more_body": more})
            except OSError:  # how some servers report a client that has left
                self.connected.cancel()
                await checkpoint()

    async def _begin(self) -> None:
        headers = [(name.encode(), value.encode()) for name, value in (*_SSE, *self._headers.items())]
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})


def _event(value: object) -> bytes:
    return b"data: " + dump(value) + b"\n\n"


def _extras(response: LLMResponse) -> dict[str, object]:
    """Return what OpenAI's shape has no place for; the cost is in US dollars, ``None`` where it is unknown."""
    cost = None if response.cost.usd is None else str(response.cost.usd)
    stays = {} if response.stays is None else {"stays": response.stays}
    return {"cached": response.cached, "cost_usd": cost, "warnings": response.warnings, **stays}


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a value as JSON."""
    return Response(dump(value), status, headers, media_type="application/json")


# Errors.


class ErrorStatus(NamedTuple):
    """The HTTP status of an error, and OpenAI's type and code for it; an error without one has its tag as the code."""

    status: int
    type: str
    code: str | None


def status_of(error: LLMError) -> ErrorStatus:
    """Return the status of an error; of a ``RequestFailed`` it is that of the error that passes soonest.

    >>> status_of(RateLimitExceeded(retry_after=2.0))
    ErrorStatus(status=429, type='rate_limit_error', code='rate_limit_exceeded')
    >>> status_of(AuthenticationFailed()).status  # the endpoint's own key: that of the client is valid
    502
    """
    match error:
        case InvalidRequest() | ContextTooLarge() | ContentRefused():
            return ErrorStatus(400, "invalid_request_error", _CODES.get(error.tag))
        case BudgetExceeded():
            return OUT_OF_QUOTA
        case RateLimitExceeded():
            return OUT_OF_QUOTA if error.quota else ErrorStatus(429, "rate_limit_error", "rate_limit_exceeded")
        case ModelUnavailable():
            return _UNAVAILABLE.get(error.reason) or ErrorStatus(503, "server_error", error.reason)
        case RequestTimeout():
            return ErrorStatus(504, "server_error", error.tag)
        case NetworkError() | MalformedResponse() | SchemaMismatch() | AuthenticationFailed():
            return ErrorStatus(502, "server_error", error.tag)
        case ConfigurationError() if error.code == MUST_STAY:
            return ErrorStatus(400, "invalid_request_error", MUST_STAY)
        case ConfigurationError() | StorageFailed() | ConversationConflict():
            return ErrorStatus(500, "server_error", error.tag)
        case RequestFailed():
            return status_of(_soonest(error))
        case _:
            assert_never(error)


OUT_OF_QUOTA: Final = ErrorStatus(429, "insufficient_quota", "insufficient_quota")
"""The status where waiting does not help: a budget is spent, or the endpoint's own quota."""

_CODES: Final = {ContextTooLarge.tag: "context_length_exceeded", ContentRefused.tag: "content_filter"}
_UNAVAILABLE: Final = {
    "unknown_model": ErrorStatus(404, "invalid_request_error", "model_not_found"),
    "unsupported": ErrorStatus(400, "invalid_request_error", "unsupported"),
}


def _soonest(failed: RequestFailed) -> LLMError:
    return min(reversed(failed.errors), key=lambda each: math.inf if each.retry_after is None else each.retry_after)


def error_body(error: LLMError) -> dict[str, object]:
    """Return an error in OpenAI's shape; one that concerns the endpoint alone is left to its log.

    >>> error_body(InvalidRequest(message="n: must be 1"))["error"]
    {'message': 'InvalidRequest: n: must be 1', 'type': 'invalid_request_error', 'param': 'n', 'code': None}
    """
    status, kind, code = status_of(error)
    message = describe(error) if status != 500 else "the endpoint cannot answer: its log says why"
    place = _PLACE.match(error.message) if isinstance(error, InvalidRequest | ModelUnavailable) else None
    return {"error": {"message": message, "type": kind, "param": place and place[1], "code": code}}


_PLACE: Final = re.compile(r"([a-z_]+(?:\.\w+|\[\d+\])*): ")


def error_response(error: LLMError, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error with its status; a client is to ask again only where a pause is known to help.

    The pipeline has retried already, and retries of its clients would multiply that.
    """
    soonest = _soonest(error) if isinstance(error, RequestFailed) else error
    status, wait = status_of(error), soonest.retry_after
    pause = {"x-should-retry": "false"}
    if wait is not None and status.status in {429, 503} and status != OUT_OF_QUOTA:
        pause = {"retry-after": f"{math.ceil(wait)}", "retry-after-ms": f"{math.ceil(wait * 1000)}"}
    return json_response(error_body(error), status.status, {**(headers or {}), **pause})
