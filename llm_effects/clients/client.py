"""The live clients: every configured model, over HTTP or in this process."""

from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar, TypeVar, final

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
from llm_effects.providers.target import Target
from llm_effects.values.errors import LLMError
from llm_effects.values.records import ModelHealth
from llm_effects.values.responses import LLMResponse, Vectors

_T = TypeVar("_T")


@final
@define(kw_only=True)
class LiveClients:
    """The clients of every configured model; ``engines`` are those of the in-process models, by name.

    ``keeps_time`` means that the time-out of an attempt is enforced here, starting when it leaves the queue.
    """

    keeps_time: ClassVar[bool] = True

    config: LLMConfig
    transport: Transport
    engines: Mapping[str, Engine] = field(factory=dict[str, Engine])

    def complete(self, call: Call) -> FutureResult[LLMResponse, LLMError]:
        """Send ``call`` to its model once; events go to ``call.sink``, if there is one."""

        async def complete_at(target: Target) -> Result[LLMResponse, LLMError]:
            engine = self.engines.get(call.model)
            if engine is not None:
                return await ask_engine(engine, target, call)
            return await ask_server(self.transport, target, call)

        return FutureResult(_at(call.model, self.config.models[call.model], complete_at))

    def embed(self, call: Call, texts: tuple[str, ...], dimensions: int | None) -> FutureResult[Vectors, LLMError]:
        """Ask the model of ``call`` once for a vector of each text, of ``dimensions`` numbers if given."""

        async def embed_at(target: Target) -> Result[Vectors, LLMError]:
            engine = self.engines.get(call.model)
            if engine is not None:
                return await embed_in_engine(engine, target, call, texts, dimensions)
            return await embed_at_server(self.transport, target, call, texts, dimensions)

        return FutureResult(_at(call.model, self.config.models[call.model], embed_at))

    def probe(self, name: str, model: ModelConfig) -> FutureResult[ModelHealth, LLMError]:
        """Check the health of a model without sending it a prompt."""

        async def probe_at(target: Target) -> Result[ModelHealth, LLMError]:
            if target.preset.wire != "llama":
                return await probe_server(self.transport, target)
            engine = self.engines.get(name)
            if engine is None or engine.target != target:  # the name may mean another model than the configured one
                engine = Engine(target)
            return await probe_engine(engine, target)

        return FutureResult(_at(name, model, probe_at))

    async def aclose(self) -> None:
        """Close every connection and free the in-process models; closing twice is fine."""
        for engine in self.engines.values():
            engine.close()
        await self.transport.aclose()


async def _at(
    name: str, model: ModelConfig, work: Callable[[Target], Awaitable[Result[_T, LLMError]]]
) -> Result[_T, LLMError]:
    """Do some work with the target of a model, unless the model is misconfigured."""
    target = target_of(name, model)
    return await work(target.unwrap()) if is_successful(target) else Failure(target.failure())
