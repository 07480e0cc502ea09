"""The live edge: from a call to bytes and back, over HTTP or to the model in this process."""

from collections.abc import Mapping
from typing import ClassVar, final

from attrs import define, field
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.clients.exchange import ask_engine, ask_server, embed_at_server, embed_in_engine
from llm_effects.clients.health_checks import probe_engine, probe_server
from llm_effects.clients.local_engine import Engine
from llm_effects.clients.transport.transport import Transport
from llm_effects.config import LLMConfig
from llm_effects.config.models import ModelConfig
from llm_effects.effects.call import Call
from llm_effects.providers.registry import target_of
from llm_effects.values.errors import LLMError
from llm_effects.values.records import ModelHealth
from llm_effects.values.responses import LLMResponse, Vectors


@final
@define(kw_only=True)
class LiveClients:
    """Every configured model. ``engines`` are those of the models that run in this process, by name.

    ``keeps_time`` says that each attempt is ended in its time here, counted from when it has left the queue.
    """

    keeps_time: ClassVar[bool] = True

    config: LLMConfig
    transport: Transport
    engines: Mapping[str, Engine] = field(factory=dict[str, Engine])

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Ask ``call.model`` once; events go to ``call.sink`` where there is one."""
        return FutureResult(self._complete(call))

    def embed(self, call: Call, texts: tuple[str, ...], dimensions: int | None) -> FutureResult[Vectors, LLMError]:
        """Ask ``call.model`` once for a vector of each text, of so many numbers where that is said."""
        return FutureResult(self._embed(call, texts, dimensions))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """See how a model is without asking it anything."""
        return FutureResult(self._probe(name, model))

    async def aclose(self) -> None:
        """Close every connection and free the models in this process; closing twice is fine."""
        for engine in self.engines.values():
            engine.close()
        await self.transport.aclose()

    async def _complete(self, call: Call) -> Result[LLMResponse, LLMError]:
        target = target_of(call.model, self.config.models[call.model])
        if not is_successful(target):
            return Failure(target.failure())
        engine = self.engines.get(call.model)
        if engine is not None:
            return await ask_engine(engine, target.unwrap(), call)
        return await ask_server(self.transport, target.unwrap(), call)

    async def _embed(self, call: Call, texts: tuple[str, ...], dimensions: int | None) -> Result[Vectors, LLMError]:
        target = target_of(call.model, self.config.models[call.model])
        if not is_successful(target):
            return Failure(target.failure())
        engine = self.engines.get(call.model)
        if engine is not None:
            return await embed_in_engine(engine, target.unwrap(), call, texts, dimensions)
        return await embed_at_server(self.transport, target.unwrap(), call, texts, dimensions)

    async def _probe(self, name: str, model: ModelConfig) -> Result[ModelHealth, LLMError]:
        target = target_of(name, model)
        if not is_successful(target):
            return Failure(target.failure())
        ready, engine = target.unwrap(), self.engines.get(name)
        if ready.preset.wire != "llama":
            return await probe_server(self.transport, ready)
        if engine is None or engine.target != ready:  # the name may mean another model than the configured one
            engine = Engine(ready)
        return await probe_engine(engine, ready)
