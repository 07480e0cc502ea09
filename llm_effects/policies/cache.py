"""The cache of answers: a repeated question is answered from the store, streamed or whole, at no cost."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Final, TypeAlias, cast, final
from urllib.parse import urlsplit
from weakref import ref

import anyio
import msgspec
from attrs import astuple, define, evolve, field
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.effects.call import Call, LookedUp, Sink, limit_ms_of
from llm_effects.effects.effect import (
    Answer,
    Effect,
    Generate,
    answering_at_once,
    from_service,
    layer,
    pipeline_name,
    proceed,
    result_of,
)
from llm_effects.effects.env import Cache, Lease, Leases, LLMEnv
from llm_effects.effects.tasks import Pacer
from llm_effects.policies.leases import as_one, await_entry, under_lease
from llm_effects.providers.draft import events_of
from llm_effects.providers.registry import cached_per_config, ready_targets
from llm_effects.providers.target import Target, is_loopback
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
from llm_effects.values.requests import CachePolicy, LLMRequest
from llm_effects.values.responses import Cost, FinishReason, LLMResponse
from llm_effects.values.secrets import public_headers, reveal
from llm_effects.values.serialization import VERSION, Entry, dump_entry, load_entry, owner_prefix

KEY_VERSION: Final = 3
"""Version of the key's contents; entries stored under another version are never found."""

REQUEST_KEY_VERSION: Final = 1
"""Version of the key of a question alone, by which journals find what was answered."""

TIMEOUT_S: Final = 1.0
"""Longest time a call waits for its cache, in seconds."""

_GetWithin: TypeAlias = Callable[[str, float], Awaitable[Result[bytes | None, LLMError]]]

# The operations on the cache itself.


def cache_stats() -> Effect[CacheStats]:
    """Return what the cache holds and how often it was hit.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> anyio.run(run, cache_stats(), scripted_env()).unwrap().hits
    0
    """
    return from_service(lambda env: env.cache.stats())


def invalidate(request: LLMRequest, pipeline: Generate | None = None) -> Effect[bool]:
    """Delete the stored answer to a request; the value is whether there was one.

    ``pipeline`` is the one that answered, if it has layers of your own.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> anyio.run(run, invalidate(LLMRequest(prompt="why?")), scripted_env()).unwrap()
    False
    """
    layers = "" if pipeline is None else pipeline_name(pipeline)
    return from_service(lambda env: env.cache.delete(cache_key(request, env.config, layers)))


def clear() -> Effect[int | None]:
    """Delete all stored answers; the value is their number, where the store knows it.

    >>> import anyio
    >>> from llm_effects import run, scripted_env
    >>> anyio.run(run, clear(), scripted_env()).unwrap()
    0
    """
    return from_service(lambda env: env.cache.clear())


# The layer.


def ready_answer(
    request: LLMRequest, env: LLMEnv, layers: str, deadline: float
) -> LLMResponse | Awaitable[LookedUp] | None:
    """Return the stored answer to a request as ``with_cache`` does, or the way to it, before the layers begin.

    It costs 10 microseconds less than the way there through the layers, which set up what only a model needs, and 50
    less where the cache waits.
    """
    usable = is_cached(request, env.config) and request.cache is not CachePolicy.REFRESH
    usable = usable and not env.config.cache.stale_seconds  # what is stale has more to do
    if not usable or env.telemetry.active:  # a span belongs to every call that is traced
        return None
    within: _GetWithin | None = getattr(env.cache, "get_within", None)
    if within is not None:
        return _found_within(within, request, env, layers, deadline)
    find: Callable[[str], bytes | Entry | None] | None = getattr(env.cache, "hit", None)
    if find is None:
        return None
    stored = find(cache_key(request, env.config, layers))
    entry = load_entry(stored) if isinstance(stored, bytes) else stored
    return None if entry is None else entry.response


async def _found_within(within: _GetWithin, request: LLMRequest, env: LLMEnv, layers: str, deadline: float) -> LookedUp:
    key, seconds = cache_key(request, env.config, layers), limit_ms_of(request, env.config) / 2000
    stored = await within(key, min(seconds, TIMEOUT_S if deadline == math.inf else _time_limit(deadline)))
    return (await _decoded(env.cache, key, stored)).map(_response_of)


def _response_of(entry: Entry | None) -> LLMResponse | None:
    return None if entry is None else entry.response


@partial(answering_at_once, ready_answer)
@layer
def with_cache(next: Generate, call: Call, env: LLMEnv) -> Awaitable[Answer]:
    """Return the stored answer if there is one, else ask and store the answer: by ``LLMRequest.cache``.

    A store that fails counts as a miss, with a warning on the answer.
    """
    return _cached(next, call, env) if is_cached(call.request, env.config) else proceed(next, call, env)


async def _cached(next: Generate, call: Call, env: LLMEnv) -> Answer:
    policy, key = call.request.cache, key_of(call, env.config, next)
    stored = await _stored(call, env, key)
    entry = stored.value_or(None)
    if entry is not None:
        return await (_use_stale(next, call, env, key, entry) if _is_stale(entry, env) else _replay(entry, call))
    if policy is CachePolicy.ONLY or _misconfigured(stored):
        return Failure(_no_answer(stored))
    leases = _leases(env)
    streams = call.sink is not None  # it sees more than the answer
    alone = streams or policy is CachePolicy.REFRESH or not isinstance(stored, Success)
    if leases is not None and not alone:
        return await _ask_as_one(leases, next, call, env, key)
    return await _ask_and_store(next, call, env, key, _read_warning(stored, call))


def _leases(env: LLMEnv) -> Leases | None:
    leases: Leases | None = getattr(env.cache, "leases", None)
    return leases if env.config.cache.lease_seconds else None


async def _ask_as_one(leases: Leases, next: Generate, call: Call, env: LLMEnv, key: str) -> Answer:
    """Return the answer that another process stores, or ask a model, alone or while others wait."""
    lease = await await_entry(leases, key, call, env)
    found = await look_up(env, key, call.deadline) if lease is Lease.STORED else Success(None)
    entry = found.value_or(None)
    if entry is not None:
        return await _replay(entry, call)
    ask = partial(_ask_and_store, next, call, env, key, ())
    return await (under_lease(leases, key, call, env, ask) if lease is Lease.OURS else ask())


async def _stored(call: Call, env: LLMEnv, key: str) -> Result[Entry | None, LLMError]:
    if call.request.cache is CachePolicy.REFRESH:
        return Success(None)
    known, call.history.looked_up = call.history.looked_up, None
    # it was no answer, or the layers would not have begun
    return await look_up(env, key, call.deadline) if known is None else known.map(lambda _: None)


# Stale answers: still returned for a while, while a fresh one is fetched.

REFRESH_TAG: Final = "refresh"
"""The tag of the ledger rows of a refresh."""

REFRESH_PAUSE_S: Final = 1.0
"""Shortest time from a refresh that failed, or that another process makes, to the next one of an answer, in seconds."""


def _is_stale(entry: Entry, env: LLMEnv) -> bool:
    return entry.fresh_until is not None and env.now().timestamp() >= entry.fresh_until


async def _use_stale(next: Generate, call: Call, env: LLMEnv, key: str, entry: Entry) -> Answer:
    """Return a stale answer at once while a fresh one is fetched in the environment's scope; without one, ask first.

    No task may outlive its scope: in an environment that has none, the caller waits, and has the stale answer if the
    models fail before any content, or while another process asks.
    """
    if call.request.cache is CachePolicy.ONLY or _refreshes(next, call, env, key):
        return await _replay(entry, call, stale=True)
    answer = await _ask_afresh(next, call, env, key)
    if answer is None:
        return await _replay(entry, call, stale=True)
    if isinstance(answer, Success) or call.history.contents:
        return answer
    warning = f"the stored answer is stale, and no fresh one could be fetched: {answer.failure().tag}"
    stale = await _replay(entry, call, stale=True)
    return stale.map(lambda response: evolve(response, warnings=(*response.warnings, warning)))


def _refreshes(next: Generate, call: Call, env: LLMEnv, key: str) -> bool:
    """Start a refresh unless one is under way, and return whether the environment has a scope for it."""
    limit_s = (call.request.preferences.timeout_ms or env.config.routing.timeout_ms) / 1000

    async def refresh() -> None:
        request = evolve(call.request, cache=CachePolicy.REFRESH, tags=(*call.request.tags, REFRESH_TAG))
        deadline = anyio.current_time() + limit_s
        fresh = Call(
            id=env.new_id(),
            request=request,
            deadline=deadline,
            turn=call.turn,
            validator=call.validator,
            layers=call.layers,
        )
        answer: Answer | None = None
        with anyio.move_on_after(limit_s):
            answer = await _ask_afresh(next, fresh, env, key)
        if answer is None or not isinstance(answer, Success):  # or each hit would ask for the lease again
            await anyio.sleep(REFRESH_PAUSE_S)

    return env.background is not None and env.background.start((id(env.cache), id(next), key), refresh)


async def _ask_afresh(next: Generate, call: Call, env: LLMEnv, key: str) -> Answer | None:
    """Fetch and store a fresh answer; of all processes that share the cache one does, and the others get ``None``."""
    leases, ask = _leases(env), partial(_ask_and_store, next, call, env, key, ())
    return await ask() if leases is None else await as_one(leases, key + _REFRESHED, call, env, ask)


_REFRESHED: Final = ":refresh"  # no entry has such a key, so its lease is there to be taken while the stale one is


def is_cached(request: LLMRequest, config: LLMConfig) -> bool:
    """Return whether a request uses the cache at all; if it does not, it is not coalesced either.

    What stays on this machine is not stored in a cache on another one.
    """
    if request.stays is not None and not _is_cache_here(config):
        return False
    enabled = config.cache.enabled and config.cache.ttl_seconds != 0
    return enabled and request.cache is not CachePolicy.BYPASS


@cached_per_config
def _is_cache_here(config: LLMConfig) -> bool:
    url = reveal(config.cache.url)
    return url.partition(":")[0].lower() in {"memory", "sqlite"} or is_loopback(urlsplit(url).hostname or "")


def _read_warning(stored: Result[Entry | None, LLMError], call: Call) -> tuple[str, ...]:
    if isinstance(stored, Success):
        return ()
    log_cache_trouble(call, "get")
    return (f"the cache could not be read: {describe(stored.failure())}",)


def _misconfigured(stored: Result[Entry | None, LLMError]) -> bool:
    return not isinstance(stored, Success) and isinstance(stored.failure(), ConfigurationError)


def _no_answer(stored: Result[Entry | None, LLMError]) -> LLMError:
    if not isinstance(stored, Success):
        return stored.failure()
    return StorageFailed(operation="cache", message="no answer is stored, and the request's cache policy is ONLY")


async def _replay(entry: Entry, call: Call, *, stale: bool = False) -> Answer:
    """Return a stored answer with its original deltas and usage, at no cost."""
    if call.sink is not None:
        model, pacer = entry.response.model, Pacer()
        await call.sink(Restarted(model) if call.history.contents else Started(model))
        for event in entry.events or events_of(entry.response):
            await call.sink(event)
            await pacer.step()
    return Success(evolve(entry.response, cached=True, stale=stale, cost=Cost.ZERO, attempts=()))


async def _ask_and_store(next: Generate, call: Call, env: LLMEnv, key: str, warnings: tuple[str, ...]) -> Answer:
    recorder = EventRecorder(call.sink)
    result = await proceed(next, call if call.sink is None else evolve(call, sink=recorder), env)
    if not isinstance(result, Success):
        return result
    response = result.unwrap()
    if not warnings and not recorder.restarted and _worth_storing(response, env.config.cache.keep):
        problem = await store(env, key, Entry(response=response, events=recorder.content_of(response)), call.deadline)
        if problem is not None:
            log_cache_trouble(call, "put")
            warnings = (problem,)
    return Success(evolve(response, warnings=response.warnings + warnings) if warnings else response)


def _worth_storing(response: LLMResponse, keep: tuple[str, ...]) -> bool:
    if response.doubtful:
        return False
    if response.tool_calls and FinishReason.TOOL_CALLS.value not in keep:
        return False
    return response.finish_reason.value in keep and bool(response.content.strip() or response.tool_calls)


@final
@define(eq=False, repr=False)
class EventRecorder:
    """A sink that passes every event on and records the content."""

    sink: Sink | None
    events: list[ContentEvent] = field(factory=list[ContentEvent])
    restarted: bool = False

    async def __call__(self, event: StreamEvent) -> None:
        """Record an event and pass it on."""
        if isinstance(event, TextDelta | ReasoningDelta | ToolCallDelta):
            self.events.append(event)
        # A restart before any content drops what another call delivered; this answer is whole.
        self.restarted = self.restarted or (isinstance(event, Restarted) and bool(self.events))
        if self.sink is not None:
            await self.sink(event)

    def content_of(self, response: LLMResponse) -> tuple[ContentEvent, ...]:
        """Return the recorded content, if it is the whole answer as it is kept: no continuation, without our keys."""
        if not self.events:
            return ()
        return tuple(self.events) if _contents(self.events) == _contents(events_of(response)) else ()


def _contents(events: Iterable[ContentEvent]) -> tuple[str, str, str]:
    """Return the text, the reasoning, and the tool calls that events amount to, however they are cut."""
    text, reasoning, calls = list[str](), list[str](), dict[int, list[str]]()
    for event in events:
        match event:
            case TextDelta():
                text.append(event.text)
            case ReasoningDelta():
                reasoning.append(event.text)
            case ToolCallDelta():
                calls.setdefault(event.index, [event.id, event.name]).append(event.arguments)
    return "".join(text), "".join(reasoning), "".join(piece for index in sorted(calls) for piece in calls[index])


# The store, with a limit on the time it may take.


async def look_up(env: LLMEnv, key: str, deadline: float = math.inf) -> Result[Entry | None, LLMError]:
    """Find a stored answer; an unreadable entry is deleted and counts as a miss."""
    within: _GetWithin | None = getattr(env.cache, "get_within", None)
    if within is not None:
        return await _decoded(env.cache, key, await within(key, _time_limit(deadline)))
    if not _waits(env.cache):
        return await _get(env.cache, key)
    with anyio.move_on_after(_time_limit(deadline)):
        return await _get(env.cache, key)
    return Failure(StorageFailed(operation="get", message="it took too long", transient=True))


async def _get(cache: Cache, key: str) -> Result[Entry | None, LLMError]:
    find: Callable[[str], bytes | Entry | None] | None = getattr(cache, "find", None)
    return await _decoded(cache, key, await result_of(cache.get(key)) if find is None else Success(find(key)))


async def _decoded(
    cache: Cache, key: str, stored: Result[bytes | Entry | None, LLMError]
) -> Result[Entry | None, LLMError]:
    if not isinstance(stored, Success):
        return Failure(stored.failure())
    data = stored.unwrap()
    entry = load_entry(data) if isinstance(data, bytes) else data
    if data is not None and entry is None:
        await result_of(cache.delete(key))
    return Success(entry)


async def store(env: LLMEnv, key: str, entry: Entry, deadline: float = math.inf) -> str | None:
    """Store an answer and return what went wrong, which makes the call neither fail nor wait."""
    keep: Callable[[str, Entry, float | None], None] | None = getattr(env.cache, "keep", None)
    ttl, stale = env.config.cache.ttl_seconds, env.config.cache.stale_seconds
    if ttl is not None and stale:
        entry, ttl = evolve(entry, fresh_until=env.now().timestamp() + ttl), ttl + stale
    if keep is not None:
        keep(key, entry, ttl)
        return None
    if not _waits(env.cache):
        return await _put(env, key, entry, ttl)
    with anyio.move_on_after(_time_limit(deadline)):
        return await _put(env, key, entry, ttl)
    return "the answer could not be stored: it took too long"


async def _put(env: LLMEnv, key: str, entry: Entry, ttl: float | None) -> str | None:
    stored = await result_of(env.cache.put(key, dump_entry(entry), ttl))
    return None if isinstance(stored, Success) else f"the answer could not be stored: {describe(stored.failure())}"


def _waits(cache: Cache) -> bool:
    """Return whether a cache may take time; a time limit costs more than a look-up in memory."""
    return getattr(cache, "waits", True)


def _time_limit(deadline: float) -> float:
    """Return at most half of the time left: a paid answer must not be lost to its cache."""
    return min(TIMEOUT_S, max(0.0, deadline - anyio.current_time()) / 2)


# The key: what makes two questions the same.

_newest_key: tuple[ref[LLMRequest], LLMConfig, str, str] | None = None


def cache_key(request: LLMRequest, config: LLMConfig, layers: str = "") -> str:
    """Return the key of a question: a hash of everything that shapes its answer, equal in every process.

    It covers the messages, system, task, preferences, tools, schema, pinned model and owner of the request, whether it
    stays on this machine, the sorted configured candidates (their endpoints, models, headers and sampling), the
    namespace, and the ``layers`` of a pipeline that are not the library's own. It leaves out keys, deadlines, tags,
    metadata, and the health and order of the candidates.

    >>> from llm_effects import ModelConfig
    >>> config = LLMConfig(models={"studio": ModelConfig(provider="lm-studio")})
    >>> cache_key(LLMRequest(prompt="why?"), config) == cache_key(LLMRequest(prompt="why?", tags=("a",)), config)
    True
    >>> cache_key(LLMRequest(prompt="why?"), config) == cache_key(LLMRequest(prompt="how?"), config)
    False
    """
    global _newest_key  # noqa: PLW0603 - with_coalescing and then with_cache ask for the key of the same request
    newest = _newest_key
    if newest is not None and newest[0]() is request and newest[1] is config and newest[2] == layers:
        return newest[3]
    key = owner_prefix(request.owner) + hashlib.sha256(_digest_of(config) + dump([layers, _shape(request)])).hexdigest()
    _newest_key = (ref(request), config, layers, key)
    return key


@cached_per_config
def _digest_of(config: LLMConfig) -> bytes:
    """Return a hash of what is the same for every question: hashing 100 candidates takes 30 microseconds."""
    return hashlib.sha256(dump({"version": [KEY_VERSION, VERSION], "candidates": _candidates(config)})).digest()


def key_of(call: Call, config: LLMConfig, pipeline: Generate) -> str:
    """Return the key of a call, which is on its way through a pipeline of which this is the rest."""
    return cache_key(call.request, config, call.layers or pipeline_name(pipeline))


def request_key(request: LLMRequest) -> str:
    """Return the key of a question alone, whichever models may answer it.

    The key of one that stays on this machine has the label, so that a store elsewhere refuses it: who guesses a short
    question can check the guess by its digest.

    >>> request_key(LLMRequest(prompt="why?")) == request_key(LLMRequest(prompt="why?", tags=("a",)))
    True
    """
    digest = hashlib.sha256(dump({"version": REQUEST_KEY_VERSION, "request": _shape(request)})).hexdigest()
    return digest if request.stays is None else f'{digest} "stays":"{request.stays}"'


def _shape(request: LLMRequest) -> Mapping[str, object]:
    preferences = request.preferences
    return {
        "messages": _messages(request),
        "system": request.system,
        "task": str(request.task_type),
        "sampling": [
            preferences.max_tokens,
            preferences.temperature,
            preferences.top_p,
            preferences.seed,
            preferences.reasoning_effort,
        ],
        "stop": preferences.stop,
        "tools": [(tool.name, tool.description, _sorted(tool.parameters)) for tool in request.tools],
        "tool_choice": request.tool_choice,
        "schema": request.response_schema and _sorted(request.response_schema),
        "model": request.model,
        "owner": request.owner,
        "allow": sorted(each.value for each in request.allow) if request.allow else (),
        **({} if request.stays is None else {"stays": request.stays}),
    }


def _messages(request: LLMRequest) -> list[tuple[str, list[tuple[str, object]]]]:
    if request.prompt is not None:  # as the message that it is, without making one: 0.5 microseconds instead of 2.5
        return [("user", [("Text", {"citations": (), "text": request.prompt})])]
    return [(turn.role, [_tagged(part) for part in turn.parts]) for turn in request.messages]


def _tagged(part: object) -> tuple[str, object]:
    fields = cast("dict[str, object]", msgspec.to_builtins(part))
    for mark in ("cache", "trusted"):  # they shape the price of an answer, or what may follow it, not the answer
        fields.pop(mark, None)
    fields.pop("stays", None)  # the label of the whole request is part of its shape
    return type(part).__name__, fields


def _sorted(value: object) -> object:
    """Return the same JSON value whatever the order of its keys."""
    if isinstance(value, dict):
        table = cast("dict[str, object]", value)
        return {key: _sorted(table[key]) for key in sorted(table)}
    return [_sorted(item) for item in cast("list[object]", value)] if isinstance(value, list) else value


def _candidates(config: LLMConfig) -> list[list[object]]:
    answering = (target for target in ready_targets(config).values() if not target.capabilities.embeddings)
    return sorted((_candidate(target, config) for target in answering), key=repr)


def namespace_of(target: Target, config: LLMConfig) -> list[str]:
    """Return what separates this configuration's entries from others: its namespace, or a digest of a model's headers.

    Headers may select a tenant, and so another model or other data behind the same endpoint. Secrets are left out.
    """
    if config.cache.namespace is not None:
        return ["namespace", config.cache.namespace]
    return ["headers", hashlib.sha256(repr(public_headers(target.config.headers)).encode()).hexdigest()]


def _candidate(target: Target, whole: LLMConfig) -> list[object]:
    config = target.config
    return [
        namespace_of(target, whole),
        target.name,
        target.preset.name,
        target.endpoint,
        config.model,
        config.wire_version,
        config.max_tokens,
        config.temperature,
        config.context_length,
        astuple(target.capabilities),
    ]
