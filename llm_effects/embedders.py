"""One exchange with a model that embeds: texts out, vectors in, from a server or in this process."""

from collections.abc import Awaitable
from typing import TypeAlias, TypeVar

import anyio
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.calls import Call
from llm_effects.engines import Engine
from llm_effects.errors import ConfigurationError, LLMError
from llm_effects.exchanges import signed, timeouts_of
from llm_effects.jsons import dump
from llm_effects.providers.failures import classify_error_object
from llm_effects.providers.openai_embeddings import decode, encode, read
from llm_effects.providers.rate_limits import rate_limits
from llm_effects.providers.reading import parse, record
from llm_effects.providers.targets import Target
from llm_effects.timers import Timers
from llm_effects.transports import Transport, TransportFault
from llm_effects.vectors import Vectors
from llm_effects.wire import WireRequest, WireResponse

_Embedded: TypeAlias = Result[Vectors, LLMError]
_Came = TypeVar("_Came")


async def embed_at_server(
    transport: Transport, target: Target, call: Call, texts: tuple[str, ...], dimensions: int | None
) -> _Embedded:
    """Ask a server."""
    if target.preset.wire == "anthropic":
        message = f"models.{target.name}.capabilities.embeddings: {target.preset.name} gives none; configure another"
        return Failure(ConfigurationError(model=target.name, message=message))
    timers = Timers(target.config, call.queueing, streamed=False)
    wire = encode(target, texts, dimensions)
    answer = await _timed(target, timers, _asked(transport, target, call, timers, wire))
    if not is_successful(answer):
        return Failure(answer.failure())
    return decode(target, answer.unwrap(), len(texts), dimensions)


async def _timed(
    target: Target, timers: Timers, exchange: Awaitable[Result[_Came, LLMError]]
) -> Result[_Came, LLMError]:
    with timers.scope:
        return await exchange
    return Failure(signed(target, timers.overdue()))


async def _asked(
    transport: Transport, target: Target, call: Call, timers: Timers, wire: WireRequest
) -> Result[WireResponse, LLMError]:
    try:
        response = await transport.exchange(wire, timeouts_of(target), timers.start)
    except TransportFault as fault:
        return Failure(signed(target, fault.error))
    call.heard.limits = rate_limits(response.headers, response.received, anyio.current_time())
    return Success(response)


async def embed_in_engine(
    engine: Engine, target: Target, call: Call, texts: tuple[str, ...], dimensions: int | None
) -> _Embedded:
    """Ask the model in this process; it reads a batch to its end, also where nobody waits for it any more."""
    timers = Timers(target.config, call.queueing, streamed=False)
    return await _timed(target, timers, _run(engine, target, timers, texts, dimensions))


async def _run(
    engine: Engine, target: Target, timers: Timers, texts: tuple[str, ...], dimensions: int | None
) -> _Embedded:
    ran = await engine.embed(dump({"input": texts}), timers.start)
    if not is_successful(ran):
        return Failure(ran.failure())
    told = parse(ran.unwrap())
    if record(told).get("error"):
        return Failure(classify_error_object(target, told))
    return read(target, told, len(texts), dimensions)
