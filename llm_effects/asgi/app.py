"""The ASGI app: its life, access to it, the bodies of requests, and the list of models."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, nullcontext
from functools import partial
from http import HTTPStatus
from inspect import isawaitable
from typing import Final, TypeAlias, cast, final
from urllib.parse import urlsplit

import anyio
from attrs import field, frozen
from returns.pipeline import is_successful
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from llm_effects.asgi.answers import Exchange, error_response, json_response
from llm_effects.asgi.chat_requests import AUTO, model_names, no_such_model, read_chat_request
from llm_effects.config import LLMConfig
from llm_effects.config.models import entry_of
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.mistakes import check_config
from llm_effects.effects.tasks import in_steps
from llm_effects.manager import open_env
from llm_effects.providers.target import is_loopback
from llm_effects.values.secrets import Secret
from llm_effects.values.validation import InvalidValue, check_id, instance, invalid, short_repr

Identify: TypeAlias = Callable[[Secret], str | Awaitable[str | None] | None]
"""A function, sync or async, that returns the owner of a key, or ``None`` (or a blank text) for one that is not valid.

Whatever is no owner, such as ``True``, counts as ``None`` and is logged.
"""

_LOGGER: Final = logging.getLogger("llm_effects")

BODY_S: Final = 60.0
"""Seconds that a client has to send the body of its request."""

CLOSE_S: Final = 8.0
"""Seconds that cancelled requests have to record their end when the app stops."""


def create_app(
    source: LLMConfig | LLMEnv | None = None, *, identify: Identify | None = None, allow_anyone: bool = False
) -> Starlette:
    """Return the endpoint as an ASGI app, to be served by itself or mounted in another app.

    A configuration is opened when the app starts and closed after its last request; with a problem in it, the app does
    not start (``InvalidValue``). An environment is used as it is. Without a ``source`` the app uses the environment
    that you set as its ``state.env``. Starlette does not start an app that is mounted: enter
    ``app.router.lifespan_context(app)`` in your own lifespan.

    The keys are those of ``serve.keys`` in the configuration, or ``identify`` returns the owner of a key. Without keys
    only programs on this machine are served, unless you ``allow_anyone``.

    >>> import httpx
    >>> from llm_effects.testing import scripted_env
    >>> async def main() -> str:
    ...     transport = httpx.ASGITransport(create_app(scripted_env("Logs.")))
    ...     async with httpx.AsyncClient(transport=transport, base_url="http://localhost/v1") as client:
    ...         question = {"model": "auto", "messages": [{"role": "user", "content": "Why?"}]}
    ...         answer = await client.post("/chat/completions", json=question)
    ...         return answer.json()["choices"][0]["message"]["content"]
    >>> anyio.run(main)
    'Logs.'
    """
    if source is not None and not isinstance(cast("object", source), LLMEnv):
        check_config(source)
    gate = Gate(identify, allow_anyone)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _ChatCompletions(gate), methods=["POST"]),
            Route("/v1/models", partial(_list_models, gate)),
            Route("/v1/models/{name:path}", partial(_show_model, gate)),
        ],
        exception_handlers={HTTPException: _refused, ClientDisconnect: _abandoned, Exception: _broken},
        lifespan=partial(_lifespan, source),
    )
    app.state.env = source if isinstance(source, LLMEnv) else None
    app.state.under_way = set[anyio.Event]()
    return app


@asynccontextmanager
async def _lifespan(source: LLMConfig | LLMEnv | None, app: Starlette) -> AsyncGenerator[None]:
    async with open_env(source, check=True) if isinstance(source, LLMConfig) else nullcontext(source) as env:
        if env is not None:
            app.state.env = env
        yield
        with anyio.move_on_after(CLOSE_S):  # a server that stops cancels them, and does not wait
            for ended in tuple(app.state.under_way):
                await ended.wait()


def _env_of(request: Request) -> LLMEnv:
    env: LLMEnv | None = request.app.state.env
    if env is None:
        msg = "the endpoint is not open: enter app.router.lifespan_context(app) in the lifespan of the app around it"
        raise RuntimeError(msg)
    return env


# Access: by key, or from this machine only.


@final
@frozen
class Gate:
    """The access to an endpoint: for the owner of a key, or without keys for a program on this machine."""

    identify: Identify | None = None
    allow_anyone: bool = field(default=False, validator=instance(bool))

    def __attrs_post_init__(self) -> None:
        if self.identify is not None and not callable(cast("object", self.identify)):
            invalid("identify", f"must be a function of a key, not {type(self.identify).__name__}")

    async def owner(self, request: Request, env: LLMEnv) -> str | None:
        """Return the owner of a request; one that may not pass is an ``HTTPException``."""
        keys = env.config.serve.keys
        if self.identify is None and not keys:
            if not self.allow_anyone:
                _require_local(request)
            return None
        key = _bearer(request.headers.get("authorization", ""))
        owner = None if key is None else await self._owner_of(key, keys)
        if owner is None:
            detail = "a key is missing: send it as Authorization: Bearer KEY" if key is None else "the key is not valid"
            raise HTTPException(401, detail, {"www-authenticate": "Bearer"})
        return owner

    async def _owner_of(self, key: Secret, keys: Mapping[str, Secret]) -> str | None:
        if self.identify is None:
            # Each comparison takes the same time wherever two keys differ, and none is left out.
            owners = [owner for owner, known in keys.items() if known == key]
            return owners[0] if owners else None
        owner = self.identify(key)
        return _valid_owner(await owner if isawaitable(owner) else owner)


def _valid_owner(owner: object) -> str | None:
    """Return an owner, or ``None`` for what no store could take for one."""
    if not owner:
        return None
    try:
        check_id("the owner that identify returned", owner)
    except InvalidValue as problem:
        _LOGGER.warning("%s", problem)
        return None
    return cast("str", owner)


def _bearer(authorization: str) -> Secret | None:
    scheme, _, key = authorization.partition(" ")
    return Secret(key.strip()) if scheme.lower() == "bearer" and key.strip() else None


_FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


def _require_local(request: Request) -> None:
    """Reject a request from another machine: sent by it, through a proxy here, or by a web page in a browser here.

    A page names its site in ``Origin``, and in ``Host`` after the name of its site was pointed at this machine.
    """
    peer = (request.client.host if request.client else "").removeprefix("::ffff:")
    sites = [f"//{request.headers.get('host', '')}", *request.headers.getlist("origin")]
    forwarded = any(name in request.headers for name in _FORWARDED)
    if forwarded or not is_loopback(peer) or not all(is_loopback(_host_of(site)) for site in sites):
        raise HTTPException(
            403, "no key is configured, so only programs on this machine may ask: set serve.keys, or allow_anyone"
        )


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # half an IPv6 address
        return ""


# Chat completions.


@final
@frozen
class _ChatCompletions:
    gate: Gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        env = _env_of(request)
        owner = await self.gate.owner(request, env)
        body = await _read_body(request, env.config.serve.body_bytes)
        asked = await in_steps(partial(read_chat_request, body, env.config, owner), len(body))
        if not is_successful(asked):
            await error_response(asked.failure())(scope, receive, send)
            return
        ended, under_way = anyio.Event(), cast("set[anyio.Event]", request.app.state.under_way)
        under_way.add(ended)
        try:
            await Exchange(asked.unwrap(), env, scope, receive, send).run()
        finally:
            under_way.remove(ended)
            ended.set()


async def _read_body(request: Request, most: int) -> bytes:
    """Read the body of a request; a longer one is refused as soon as that is known, and so is a slow one."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise HTTPException(415, "the body must not be compressed")
    too_long = HTTPException(413, f"the body must have at most {most} bytes")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > _LENGTH_DIGITS or int(length) > most):
        raise too_long
    body = bytearray()
    with anyio.move_on_after(BODY_S):
        async with aclosing(request.stream()) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > most:
                    raise too_long
        return bytes(body)
    raise HTTPException(408, f"the body did not arrive within {BODY_S:g} s")


_LENGTH_DIGITS: Final = 18


# Refusals, in OpenAI's shape.


async def _refused(request: Request, problem: Exception) -> Response:
    refusal = cast("HTTPException", problem)
    status, detail, headers = refusal.status_code, refusal.detail, refusal.headers or {}
    if detail == HTTPStatus(status).phrase:  # of the router, which names no remedy
        detail = _REMEDIES.get(status, detail).format(path=short_repr(request.url.path), methods=headers.get("Allow"))
    return _refusal(status, detail, headers)


_REMEDIES: Final = {
    404: "there is nothing at {path}: a base URL ends in /v1, and below it are chat/completions and models",
    405: "{path} takes only {methods}",
}


def _refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": None, "code": _CODES.get(status)}
    return json_response({"error": error}, status, headers)


_CODES: Final = {401: "invalid_api_key", 404: "not_found", 413: "request_too_large"}


async def _abandoned(_: Request, __: Exception) -> Response:
    return Response(status_code=499)


async def _broken(_: Request, __: Exception) -> Response:
    return _refusal(500, "the endpoint has a defect: its log says more")


# Models.


async def _list_models(gate: Gate, request: Request) -> Response:
    env = _env_of(request)
    await gate.owner(request, env)
    return json_response({"object": "list", "data": _models(env.config)})


async def _show_model(gate: Gate, request: Request) -> Response:
    env = _env_of(request)
    await gate.owner(request, env)
    for model in _models(env.config):
        if model["id"] == request.path_params["name"]:
            return json_response(model)
    return error_response(no_such_model(request.path_params["name"], env.config))


def _models(config: LLMConfig) -> list[dict[str, object]]:
    providers = {entry_of(name): model.provider for name, model in config.models.items()}
    owners = {AUTO: "llm_effects", **{name: providers[name] for name in model_names(config)}}
    return [{"id": name, "object": "model", "created": 0, "owned_by": owner} for name, owner in owners.items()]
