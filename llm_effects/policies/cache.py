"""The same question is paid for once: whole answers are kept, and told again as they came."""

import hashlib
import math
from collections.abc import Mapping
from typing import Final, cast, final

import anyio
import msgspec
from attrs import astuple, define, evolve, field
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.effects.call import Call, Sink, changed
from llm_effects.effects.effect import Answer, Effect, Generate, effect, result_of, run
from llm_effects.effects.env import Cache, LLMEnv
from llm_effects.providers.draft import events_of
from llm_effects.providers.target import Target
from llm_effects.routing.model_registry import of_newest, ready_targets
from llm_effects.telemetry.logs import log_cache_trouble
from llm_effects.values.errors import ConfigurationError, LLMError, StorageFailed, describe
from llm_effects.values.events import (
    ContentEvent,
    ReasoningDelta,
    Restarted,
    Started,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
)
from llm_effects.values.json import dump
from llm_effects.values.records import CacheStats
from llm_effects.values.requests import CachePolicy, LLMRequest, conversation
from llm_effects.values.responses import Cost, FinishReason, LLMResponse
from llm_effects.values.serialization import VERSION, Entry, dump_entry, load_entry

# The cache of answers: what makes two questions the same, what is kept, and looking after it.


KEY_VERSION: Final = 1
"""Of what goes into a key; with another version nothing that was stored is found."""


TIMEOUT_S: Final = 1.0
"""How long a call waits for its cache at the most, in seconds."""


def is_cached(request: LLMRequest, config: LLMConfig) -> bool:
    """Whether a request has to do with the cache at all; if not, nothing is shared either."""
    on = config.cache.enabled and config.cache.ttl_seconds != 0
    return on and request.cache is not CachePolicy.BYPASS


def cache_key(request: LLMRequest, config: LLMConfig) -> str:
    """Give the key of a question: a hash of all that shapes its answer, the same in every process.

    In it are the messages, system, task, preferences, tools, schema, pinned model and owner of the request, and the
    configured candidates, sorted: where they are, which model, how they sample. Not in it are keys, deadlines,
    tags, metadata, and the health and order of the candidates.

    >>> from llm_effects import ModelConfig
    >>> config = LLMConfig(models={"studio": ModelConfig(provider="lm-studio")})
    >>> cache_key(LLMRequest(prompt="why?"), config) == cache_key(LLMRequest(prompt="why?", tags=("a",)), config)
    True
    >>> cache_key(LLMRequest(prompt="why?"), config) == cache_key(LLMRequest(prompt="how?"), config)
    False
    """
    shape = {"version": [KEY_VERSION, VERSION], "request": _asked(request), "candidates": _candidates(config)}
    return hashlib.sha256(dump(shape)).hexdigest()


def request_key(request: LLMRequest) -> str:
    """Give the key of a question alone, whichever models may answer it.

    >>> request_key(LLMRequest(prompt="why?")) == request_key(LLMRequest(prompt="why?", tags=("a",)))
    True
    """
    return hashlib.sha256(dump({"version": KEY_VERSION, "request": _asked(request)})).hexdigest()


def _asked(request: LLMRequest) -> Mapping[str, object]:
    wanted = request.preferences
    return {
        "messages": [(turn.role, [_tagged(part) for part in turn.parts]) for turn in conversation(request)],
        "system": request.system,
        "task": str(request.task_type),
        "sampling": [wanted.max_tokens, wanted.temperature, wanted.top_p, wanted.seed, wanted.reasoning_effort],
        "stop": wanted.stop,
        "tools": [(tool.name, tool.description, _sorted(tool.parameters)) for tool in request.tools],
        "tool_choice": request.tool_choice,
        "schema": _sorted(request.response_schema),
        "model": request.model,
        "owner": request.owner,
        "allow": sorted(each.value for each in request.allow),
    }


def _tagged(part: object) -> tuple[str, object]:
    return type(part).__name__, msgspec.to_builtins(part)


def _sorted(value: object) -> object:
    """The same JSON whatever the order of its keys."""
    if isinstance(value, dict):
        table = cast("dict[str, object]", value)
        return {key: _sorted(table[key]) for key in sorted(table)}
    return [_sorted(item) for item in cast("list[object]", value)] if isinstance(value, list) else value


@of_newest
def _candidates(config: LLMConfig) -> list[list[object]]:
    answering = (target for target in ready_targets(config).values() if not target.capabilities.embeddings)
    return sorted(map(_candidate, answering), key=repr)


def _candidate(target: Target) -> list[object]:
    own = target.config
    return [
        target.name,
        target.preset.name,
        target.endpoint,
        own.model,
        own.wire_version,
        own.max_tokens,
        own.temperature,
        own.context_length,
        astuple(target.capabilities),
    ]


async def look_up(env: LLMEnv, key: str, deadline: float = math.inf) -> Result[Entry | None, LLMError]:
    """Find a stored answer; an entry that cannot be read is none, and goes."""
    if not _waits(env.cache):
        return await _found(env.cache, key)
    with anyio.move_on_after(_patience(deadline)):
        return await _found(env.cache, key)
    return Failure(StorageFailed(operation="get", message="it took too long", transient=True))


async def _found(cache: Cache, key: str) -> Result[Entry | None, LLMError]:
    found = await result_of(cache.get(key))
    if not is_successful(found):
        return Failure(found.failure())
    data = found.unwrap()
    entry = None if data is None else load_entry(data)
    if data is not None and entry is None:
        await result_of(cache.delete(key))
    return Success(entry)


async def store(env: LLMEnv, key: str, entry: Entry, deadline: float = math.inf) -> str | None:
    """Keep an answer; gives what went wrong, which is no reason to fail, nor to be late."""
    if not _waits(env.cache):
        return await _kept(env, key, entry)
    with anyio.move_on_after(_patience(deadline)):
        return await _kept(env, key, entry)
    return "the answer could not be stored: it took too long"


async def _kept(env: LLMEnv, key: str, entry: Entry) -> str | None:
    kept = await result_of(env.cache.put(key, dump_entry(entry), env.config.cache.ttl_seconds))
    return None if is_successful(kept) else f"the answer could not be stored: {describe(kept.failure())}"


def _waits(cache: Cache) -> bool:
    """Whether a cache can take its time. Setting a limit costs more than all that one in this process does."""
    return getattr(cache, "waits", True)


def _patience(deadline: float) -> float:
    """At most half of the time that is left: an answer that was paid for must not be lost to its cache."""
    return min(TIMEOUT_S, max(0.0, deadline - anyio.current_time()) / 2)


def cache_stats() -> Effect[CacheStats]:
    """Tell what the cache holds and how often it helped.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> anyio.run(run, cache_stats(), scripted_env()).unwrap().hits
    0
    """

    async def perform(env: LLMEnv) -> Result[CacheStats, LLMError]:
        return await result_of(env.cache.stats())

    return effect(perform)


def invalidate(request: LLMRequest) -> Effect[bool]:
    """Drop the stored answer to a request; says whether there was one.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> anyio.run(run, invalidate(LLMRequest(prompt="why?")), scripted_env()).unwrap()
    False
    """

    async def perform(env: LLMEnv) -> Result[bool, LLMError]:
        return await result_of(env.cache.delete(cache_key(request, env.config)))

    return effect(perform)


def clear() -> Effect[int | None]:
    """Drop all stored answers; gives how many, where the store can tell.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> anyio.run(run, clear(), scripted_env()).unwrap()
    0
    """

    async def perform(env: LLMEnv) -> Result[int | None, LLMError]:
        return await result_of(env.cache.clear())

    return effect(perform)


def with_cache(inner: Generate) -> Generate:
    """Give a stored answer where there is one, else ask and keep what comes: by ``LLMRequest.cache``.

    A store that fails is a miss, told in the answer's ``warnings``.
    """

    def remember(call: Call) -> Effect[LLMResponse]:
        async def perform(env: LLMEnv) -> Answer:
            if not is_cached(call.request, env.config):
                return await run(inner(call), env)
            return await _remembered(inner, call, env, _key(call, env))

        return effect(perform)

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
    return await _asked_and_stored(inner, call, env, key, _trouble(found, call))


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
        await call.sink(Restarted(model) if call.history.contents else Started(model))
        for event in entry.events or events_of(entry.response):
            await call.sink(event)
    return Success(evolve(entry.response, cached=True, cost=Cost.ZERO, attempts=()))


async def _asked_and_stored(inner: Generate, call: Call, env: LLMEnv, key: str, trouble: tuple[str, ...]) -> Answer:
    record = Record(call.sink)
    result = await run(inner(call if call.sink is None else changed(call, sink=record)), env)
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
