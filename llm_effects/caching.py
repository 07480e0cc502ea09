"""The cache of answers: what makes two questions the same, what is kept, and looking after it."""

import hashlib
import math
from collections.abc import Mapping
from typing import Final, cast

import anyio
import msgspec
from attrs import astuple
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.codecs import VERSION, Entry, dump_entry, load_entry
from llm_effects.config import LLMConfig
from llm_effects.decisions import describe
from llm_effects.effects import Effect, effect, result_of
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError, StorageFailed
from llm_effects.fleet import of_newest, ready_targets
from llm_effects.jsons import dump
from llm_effects.providers.targets import Target
from llm_effects.records import CacheStats
from llm_effects.requests import CachePolicy, LLMRequest, conversation
from llm_effects.services import Cache

KEY_VERSION: Final = 1
"""Of what goes into a key; with another version nothing that was stored is found."""


PATIENCE_S: Final = 1.0
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
    return min(PATIENCE_S, max(0.0, deadline - anyio.current_time()) / 2)


def cache_stats() -> Effect[CacheStats]:
    """Tell what the cache holds and how often it helped.

    >>> import anyio
    >>> from llm_effects import scripted_env, settle
    >>> anyio.run(settle, cache_stats(), scripted_env()).unwrap().hits
    0
    """

    async def run(env: LLMEnv) -> Result[CacheStats, LLMError]:
        return await result_of(env.cache.stats())

    return effect(run)


def invalidate(request: LLMRequest) -> Effect[bool]:
    """Drop the stored answer to a request; says whether there was one.

    >>> import anyio
    >>> from llm_effects import scripted_env, settle
    >>> anyio.run(settle, invalidate(LLMRequest(prompt="why?")), scripted_env()).unwrap()
    False
    """

    async def run(env: LLMEnv) -> Result[bool, LLMError]:
        return await result_of(env.cache.delete(cache_key(request, env.config)))

    return effect(run)


def clear() -> Effect[int | None]:
    """Drop all stored answers; gives how many, where the store can tell.

    >>> import anyio
    >>> from llm_effects import scripted_env, settle
    >>> anyio.run(settle, clear(), scripted_env()).unwrap()
    0
    """

    async def run(env: LLMEnv) -> Result[int | None, LLMError]:
        return await result_of(env.cache.clear())

    return effect(run)
