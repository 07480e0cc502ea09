"""The live edge: from a call to bytes and back, over HTTP or to the model in this process."""

from collections.abc import Mapping
from typing import final

from attrs import define, evolve, field
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.calls import Call, Sink
from llm_effects.config import LLMConfig, ModelConfig
from llm_effects.engines import Engine
from llm_effects.env import ModelHealth
from llm_effects.errors import LLMError
from llm_effects.events import ReasoningDelta, Started, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.messages import Reasoning, Text, ToolCall
from llm_effects.probes import probe_engine, probe_server
from llm_effects.providers.base import ServerEvent
from llm_effects.providers.drafts import Draft
from llm_effects.providers.registry import provider_of, target_of
from llm_effects.providers.targets import Target
from llm_effects.responses import LLMResponse
from llm_effects.transports import Timeouts, Transport, TransportFault
from llm_effects.wire import WireRequest

Answer = Result[LLMResponse, LLMError]


@final
@define(kw_only=True)
class LiveClients:
    """Every configured model. ``engines`` are those of the models that run in this process, by name."""

    config: LLMConfig
    transport: Transport
    engines: Mapping[str, Engine] = field(factory=dict[str, Engine])

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Ask ``call.model`` once; events go to ``call.sink`` where there is one."""
        return FutureResult(self._complete(call))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """See how a model is without asking it anything."""
        return FutureResult(self._probe(name, model))

    async def aclose(self) -> None:
        """Close every connection and free the models in this process; closing twice is fine."""
        for engine in self.engines.values():
            engine.close()
        await self.transport.aclose()

    async def _complete(self, call: Call) -> Answer:
        target = target_of(call.model, self.config.models[call.model])
        if not is_successful(target):
            return Failure(target.failure())
        engine = self.engines.get(call.model)
        if engine is not None:
            return await ask_engine(engine, target.unwrap(), call)
        return await ask_server(self.transport, target.unwrap(), call)

    async def _probe(self, name: str, model: ModelConfig) -> Result[ModelHealth, LLMError]:
        target = target_of(name, model)
        if not is_successful(target):
            return Failure(target.failure())
        engine = self.engines.get(name)
        if engine is not None:
            return await probe_engine(engine, target.unwrap())
        return await probe_server(self.transport, target.unwrap())


async def ask_server(transport: Transport, target: Target, call: Call) -> Answer:
    """Send a call to a server and read its whole answer."""
    encoded = provider_of(target).encode(target, call.request, False)
    if not is_successful(encoded):
        return Failure(encoded.failure())
    answer = await _exchange(transport, target, encoded.unwrap())
    if call.sink is not None and is_successful(answer):
        await _tell_whole(answer.unwrap(), call.sink)
    return answer


async def _exchange(transport: Transport, target: Target, request: WireRequest) -> Answer:
    provider = provider_of(target)
    try:
        response = await transport.exchange(request, timeouts(target.config))
    except TransportFault as fault:
        return Failure(evolve(fault.error, model=target.name, provider=target.preset.name))
    if not 200 <= response.status < 300:
        return Failure(provider.classify(target, response))
    return provider.decode(target, response).map(lambda answer: warned(answer, request))


async def ask_engine(engine: Engine, target: Target, call: Call) -> Answer:
    """Run a call in this process, token by token."""
    provider = provider_of(target)
    encoded = provider.encode(target, call.request, True)
    if not is_successful(encoded):
        return Failure(encoded.failure())
    draft = Draft(target=target)
    problems: list[LLMError] = []

    async def deliver(chunk: str) -> None:
        told = provider.decode_event(draft, ServerEvent("message", chunk))
        if not is_successful(told):
            problems.append(told.failure())
        elif call.sink is not None:
            await _tell(told.unwrap(), call.sink)

    ran = await engine.run(encoded.unwrap().body, deliver)
    if not is_successful(ran) or problems:
        return Failure(problems[0] if problems else ran.failure())
    return provider.finish(draft).map(lambda answer: warned(answer, encoded.unwrap()))


def timeouts(model: ModelConfig) -> Timeouts:
    """How long the transport may wait: to connect, and for the next bytes of a whole answer."""
    return Timeouts(connect_s=model.connect_ms / 1000, read_s=model.timeout_ms / 1000)


def warned(answer: LLMResponse, request: WireRequest) -> LLMResponse:
    """Say in the answer what had to be dropped from the request."""
    return evolve(answer, warnings=request.warnings + answer.warnings) if request.warnings else answer


async def _tell(events: tuple[StreamEvent, ...], sink: Sink) -> None:
    for event in events:
        await sink(event)


async def _tell_whole(answer: LLMResponse, sink: Sink) -> None:
    await _tell((Started(answer.model), *_as_events(answer)), sink)


def _as_events(answer: LLMResponse) -> tuple[StreamEvent, ...]:
    events: list[StreamEvent] = []
    for part in answer.parts:
        match part:
            case Text():
                events.append(TextDelta(part.text))
            case Reasoning():
                events.append(ReasoningDelta(part.text))
            case ToolCall():
                events.append(ToolCallDelta(len(events), part.id, part.name, part.arguments))
            case _:
                continue
    return tuple(events)
