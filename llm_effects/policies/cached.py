"""The same question is paid for once: whole answers are kept, and told again as they came."""

from typing import final

from attrs import define, evolve, field
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.caching import cache_key, is_cached, look_up, store
from llm_effects.calls import Call, Sink, changed
from llm_effects.codecs import Entry
from llm_effects.decisions import describe
from llm_effects.effects import Answer, Effect, Generate, effect, settle
from llm_effects.env import LLMEnv
from llm_effects.errors import ConfigurationError, LLMError, StorageFailed
from llm_effects.events import ContentEvent, ReasoningDelta, Restarted, Started, StreamEvent, TextDelta, ToolCallDelta
from llm_effects.providers.drafts import events_of
from llm_effects.requests import CachePolicy
from llm_effects.responses import Cost, FinishReason, LLMResponse
from llm_effects.telemetry.logs import log_cache_trouble


def cached(inner: Generate) -> Generate:
    """Give a stored answer where there is one, else ask and keep what comes: by ``LLMRequest.cache``.

    A store that fails is a miss, told in the answer's ``warnings``.
    """

    def remember(call: Call) -> Effect[LLMResponse]:
        async def run(env: LLMEnv) -> Answer:
            if not is_cached(call.request, env.config):
                return await settle(inner(call), env)
            return await _remembered(inner, call, env, _key(call, env))

        return effect(run)

    return remember


def _key(call: Call, env: LLMEnv) -> str:
    """A layer in between may have changed the request."""
    return call.key if call.keyed is call.request else cache_key(call.request, env.config)


async def _remembered(inner: Generate, call: Call, env: LLMEnv, key: str) -> Answer:
    policy = call.request.cache
    found: Result[Entry | None, LLMError] = (
        Success(None) if policy is CachePolicy.REFRESH else await look_up(env, key, call.deadline)
    )
    entry = found.value_or(None)
    if entry is not None:
        return await _told_again(entry, call)
    if policy is CachePolicy.ONLY or _misconfigured(found):
        return Failure(_nothing(found))
    return await _asked(inner, call, env, key, _trouble(found, call))


def _trouble(found: Result[Entry | None, LLMError], call: Call) -> tuple[str, ...]:
    if is_successful(found):
        return ()
    log_cache_trouble(call, "get")
    return (f"the cache could not be read: {describe(found.failure())}",)


def _misconfigured(found: Result[Entry | None, LLMError]) -> bool:
    return not is_successful(found) and isinstance(found.failure(), ConfigurationError)


def _nothing(found: Result[Entry | None, LLMError]) -> LLMError:
    if not is_successful(found):
        return found.failure()
    return StorageFailed(operation="cache", message="no answer is stored, and the request's cache policy is ONLY")


async def _told_again(entry: Entry, call: Call) -> Answer:
    """Tell a stored answer: its deltas as they came, its usage as it was, at no cost."""
    if call.sink is not None:
        model = entry.response.model
        await call.sink(Restarted(model) if call.trail.contents else Started(model))
        for event in entry.events or events_of(entry.response):
            await call.sink(event)
    return Success(evolve(entry.response, cached=True, cost=Cost.ZERO, attempts=()))


async def _asked(inner: Generate, call: Call, env: LLMEnv, key: str, trouble: tuple[str, ...]) -> Answer:
    record = Record(call.sink)
    result = await settle(inner(call if call.sink is None else changed(call, sink=record)), env)
    if not is_successful(result):
        return result
    response = result.unwrap()
    if not trouble and not record.restarted and _worth_keeping(response, env.config.cache.keep):
        entry = Entry(response=response, events=record.told(response))
        problem = await store(env, key, entry, call.deadline)
        if problem is not None:
            log_cache_trouble(call, "put")
            trouble = (problem,)
    return Success(evolve(response, warnings=response.warnings + trouble) if trouble else response)


def _worth_keeping(response: LLMResponse, keep: tuple[str, ...]) -> bool:
    if response.tool_calls and FinishReason.TOOL_CALLS.value not in keep:
        return False
    return response.finish_reason.value in keep and bool(response.content.strip() or response.tool_calls)


@final
@define
class Record:
    """A sink that passes every event on and keeps the content."""

    sink: Sink | None
    events: list[ContentEvent] = field(factory=list[ContentEvent])
    restarted: bool = False

    async def __call__(self, event: StreamEvent) -> None:
        """Take an event."""
        if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
            self.events.append(event)
        # One before any content drops what another call told: this one is whole.
        self.restarted = self.restarted or (isinstance(event, Restarted) and bool(self.events))
        if self.sink is not None:
            await self.sink(event)

    def told(self, response: LLMResponse) -> tuple[ContentEvent, ...]:
        """Give the content, if it is the whole answer and not only how it went on."""
        text = "".join(event.text for event in self.events if isinstance(event, TextDelta))
        return tuple(self.events) if text == response.content else ()
