"""Embeddings: texts to vectors, sent in batches, each distinct text once, and cached by text."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from math import ceil
from typing import Final, TypeAlias, TypeVar, final
from zlib import crc32

import anyio
from attrs import define, evolve, field, frozen
from returns.future import FutureResult
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.effects.call import AttemptContext, Call
from llm_effects.effects.combinators import at_least_one
from llm_effects.effects.effect import Answer, Effect, Generate, effect, layered, result_of, run
from llm_effects.effects.env import Embedder, LLMEnv
from llm_effects.effects.tasks import in_parallel
from llm_effects.policies.budget import with_budget
from llm_effects.policies.cache import TIMEOUT_S, is_cached, namespace_of
from llm_effects.policies.circuit_breaker import with_circuit_breaker
from llm_effects.policies.deadline import with_deadline
from llm_effects.policies.limits import with_limits
from llm_effects.policies.recording import with_recording
from llm_effects.policies.retries import with_retries
from llm_effects.providers.registry import is_proxied, must_stay, targets_of, why_it_leaves
from llm_effects.providers.target import Preset, Target
from llm_effects.values.errors import (
    ConfigurationError,
    InvalidRequest,
    LLMError,
    MalformedResponse,
    StorageFailed,
    describe,
)
from llm_effects.values.json import dump, repair_surrogates
from llm_effects.values.messages import Message, Stays, Text
from llm_effects.values.requests import CachePolicy, LLMRequest, Preferences, TaskType
from llm_effects.values.responses import Attempt, Cost, LLMResponse, Usage, Vector, Vectors, total_cost
from llm_effects.values.serialization import owner_prefix
from llm_effects.values.validation import is_a, to_tuple

TASK: Final = TaskType("embeddings")
"""The task of embeddings in the ledger and in budgets."""

_READING: Final = frozenset({CachePolicy.USE, CachePolicy.ONLY})
_WRITING: Final = frozenset({CachePolicy.USE, CachePolicy.REFRESH})

_MIXED: Final = "the vectors have different lengths, so the model has changed: embed all texts with cache='refresh'"


@final
@frozen(kw_only=True)
class Embeddings:
    """Vectors in the order of the texts, all of one ``model`` and one length.

    ``cached`` is the number of distinct texts found in the cache, which cost nothing; ``usage`` and ``cost`` (USD) are
    for the others, over all ``attempts``. The vectors of texts that stay on this machine stay there too.
    """

    vectors: tuple[Vector, ...] = field(repr=False)
    model: str
    served_model: str | None = None
    usage: Usage = field(factory=Usage)
    cost: Cost = Cost.UNKNOWN
    cached: int = 0
    attempts: tuple[Attempt, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()
    stays: Stays | None = None


def embed(
    texts: Iterable[str],
    *,
    model: str | None = None,
    dimensions: int | None = None,
    concurrency: int = 4,
    cache: CachePolicy | str = CachePolicy.USE,
    owner: str | None = None,
    tags: Iterable[str] = (),
    stays: Stays | None = None,
) -> Effect[Embeddings]:
    """Embed each text with ``model``, or with the first configured model that embeds.

    Texts are sent in batches of the size that the server accepts, ``concurrency`` batches at once; duplicates are sent
    once, and cached texts not at all. A batch that fails is retried as any call is, but only with the same model: the
    vectors of another model are in another space. ``dimensions`` is the length of the vectors, for models that offer a
    choice. With ``stays="machine"`` only models that run on this machine are asked.

    >>> import anyio
    >>> from llm_effects import LLMConfig, ModelConfig, run, scripted_env
    >>> small = ModelConfig(provider="ollama", model="nomic-embed-text")
    >>> env = scripted_env(config=LLMConfig(models={"small": small}))
    >>> result = anyio.run(run, embed(("cat", "dog", "cat")), env).unwrap()
    >>> result.model, result.vectors[0] == result.vectors[2] != result.vectors[1], len(result.attempts)
    ('small', True, 1)
    >>> anyio.run(run, embed(("cat", " ")), env).failure().message
    'texts[1]: must not be blank: leave it out'
    """
    template = LLMRequest(
        messages=_messages(("",)),
        task_type=TASK,
        cache=cache,
        owner=owner,
        tags=to_tuple("tags", tags),
        stays=stays,
        preferences=Preferences(max_tokens=1),  # there is no answer to reserve tokens for
    )
    request = EmbeddingRequest(
        texts=to_tuple("texts", texts),
        model=model,
        dimensions=None if dimensions is None else at_least_one("dimensions", dimensions),
        workers=at_least_one("concurrency", concurrency),
        template=template,
    )
    return effect(lambda env: _embed(request, env))


@final
@frozen(kw_only=True)
class EmbeddingRequest:
    """The arguments of ``embed``; ``template`` is the request that each batch is sent as, without its texts."""

    texts: tuple[str, ...]
    model: str | None
    dimensions: int | None
    workers: int
    template: LLMRequest


async def _embed(request: EmbeddingRequest, env: LLMEnv) -> Result[Embeddings, LLMError]:
    error = _text_error(request.texts)
    if error is not None:
        return Failure(error)
    target = embedding_target(env.config, request.model, request.template.stays, proxied=is_proxied(env.clients))
    if not is_successful(target):
        return Failure(target.failure())
    texts = tuple(map(repair_surrogates, request.texts))
    redacted = Success(texts) if env.redact is None else await env.redact.texts(texts, request.template.owner, env)
    if not is_successful(redacted):
        return Failure(redacted.failure())
    return await _embed_with(target.unwrap(), evolve(request, texts=redacted.unwrap()), env)


def _text_error(texts: tuple[str, ...]) -> LLMError | None:
    for index, text in enumerate(texts):
        if not is_a(text, str):
            return InvalidRequest(message=f"texts[{index}]: must be a text, not {type(text).__name__}")
        if not text.strip():
            return InvalidRequest(message=f"texts[{index}]: must not be blank: leave it out")
    return None


async def _embed_with(target: Target, request: EmbeddingRequest, env: LLMEnv) -> Result[Embeddings, LLMError]:
    """Read cached vectors, send the other texts, and combine both."""
    policy = request.template.cache
    cached = is_cached(request.template, env.config) and _is_fixed(target)
    vector_cache = VectorCache(
        env,
        target,
        request.dimensions,
        request.template.owner,
        writable=cached and policy in _WRITING,
        stays=request.template.stays,
    )
    distinct = tuple(dict.fromkeys(request.texts))
    known = await vector_cache.find(distinct if cached and policy in _READING else ())
    missing = tuple(text for text in distinct if text not in known)
    if missing and policy is CachePolicy.ONLY:
        message = f"{len(missing)} texts have no stored vector, and the cache policy is ONLY"
        return Failure(StorageFailed(operation="cache", message=message))
    sent = await send_batches(missing, request, target, env, vector_cache.save)
    if not is_successful(sent):
        return Failure(sent.failure())
    return _combined(request, target, known, sent.unwrap(), vector_cache.warnings)


def _is_fixed(target: Target) -> bool:
    """Return whether the target is always the same model: without a model name, a server uses whatever is loaded."""
    return target.preset.wire == "llama" or target.wire_model is not None


def _combined(
    request: EmbeddingRequest, target: Target, known: Mapping[str, Vector], sent: SentBatches, warnings: Iterable[str]
) -> Result[Embeddings, LLMError]:
    vectors = {**known, **sent.vectors}
    if len({len(vector) for vector in vectors.values()}) > 1:
        return Failure(MalformedResponse(model=target.name, message=_MIXED, attempts=sent.attempts))
    embeddings = Embeddings(
        vectors=tuple(vectors[text] for text in request.texts),
        model=target.name,
        served_model=sent.served_model,
        usage=sent.usage,
        cost=total_cost(attempt.cost for attempt in sent.attempts),
        cached=len(known),
        attempts=sent.attempts,
        warnings=(*sent.warnings, *dict.fromkeys(warnings)),
        stays=request.template.stays,
    )
    return Success(embeddings)


# The model: always one, never another in its place.


def embedding_target(
    config: LLMConfig, model: str | None, stays: Stays | None = None, *, proxied: bool = False
) -> Result[Target, LLMError]:
    """Return the named model, or the first that embeds; a model is only used if it is known to embed.

    For texts that stay on this machine, only models that run on it are used.

    >>> from llm_effects import ModelConfig
    >>> config = LLMConfig(
    ...     models={
    ...         "chat": ModelConfig(provider="lm-studio"),
    ...         "small": ModelConfig(provider="ollama", model="nomic-embed-text"),
    ...     }
    ... )
    >>> embedding_target(config, None).unwrap().name
    'small'
    >>> embedding_target(config, "chat").failure().message
    "model: 'chat' is not known to embed; set models.chat.capabilities.embeddings to true if it does"
    """
    targets = targets_of(config)
    if not is_successful(targets):
        return Failure(targets.failure())
    excluded = dict[str, str]()
    for target in targets.unwrap():
        if target.capabilities.embeddings and (model is None or model in target.names):
            why = "" if stays is None else why_it_leaves(target, proxied=proxied)
            if not why:
                return Success(target)
            excluded[target.name] = why
    return Failure(must_stay(excluded) if excluded else _no_model_error(config, model))


def _no_model_error(config: LLMConfig, model: str | None) -> LLMError:
    if model is None:
        remedy = "configure a model that embeds, or set capabilities.embeddings to true for one"
        return ConfigurationError(message=f"models: none is known to embed: {remedy}")
    if model not in config.models:
        configured = ", ".join(config.models)
        return InvalidRequest(message=f"model: {model!r} is not configured; configured are {configured}")
    remedy = f"set models.{model}.capabilities.embeddings to true if it does"
    return InvalidRequest(model=model, message=f"model: {model!r} is not known to embed; {remedy}")


# Batches: as many texts as one request may hold, sent several at once.

BYTES_PER_TOKEN: Final = 3
"""UTF-8 bytes: fewer than in English, and about one Chinese character, so that batches are rather too small."""


def batches_of(texts: Iterable[str], preset: Preset) -> Iterator[tuple[str, ...]]:
    """Split texts into batches, in order, by how many texts and tokens a server accepts at once.

    A text that is too long is a batch by itself: only the server knows its exact length.

    >>> from attrs import evolve
    >>> from llm_effects.providers.presets import PRESETS
    >>> list(batches_of(("a", "b", "c"), evolve(PRESETS["vllm"], embedded_texts=2)))
    [('a', 'b'), ('c',)]
    >>> list(batches_of(("a" * 30, "b", "c"), evolve(PRESETS["vllm"], embedded_tokens=10)))
    [('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',), ('b', 'c')]
    """
    batch, total = list[str](), 0
    for text in texts:
        tokens = tokens_of(text)
        if batch and (len(batch) == preset.embedded_texts or total + tokens > preset.embedded_tokens):
            yield tuple(batch)
            batch, total = [], 0
        batch.append(text)
        total += tokens
    if batch:
        yield tuple(batch)


def tokens_of(text: str) -> int:
    """Estimate the tokens of a text, rather too many than too few.

    >>> tokens_of("hello"), tokens_of("你好")
    (2, 2)
    """
    return ceil(len(text.encode()) / BYTES_PER_TOKEN)


Save: TypeAlias = Callable[[Mapping[str, Vector]], Awaitable[None]]
"""Stores the vectors of a batch as soon as they arrive."""


@final
@frozen
class SentBatches:
    """The calls of all batches, the answers to those that succeeded, and their vectors by text."""

    calls: list[Call] = field(factory=list[Call])
    answers: list[LLMResponse] = field(factory=list[LLMResponse])
    vectors: dict[str, Vector] = field(factory=dict[str, Vector])

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Every attempt that was sent."""
        return tuple(attempt for call in self.calls for attempt in call.history.attempts)

    @property
    def usage(self) -> Usage:
        """The total of tokens; unknown if those of one batch are."""
        usages = [attempt.usage for attempt in self.attempts if attempt.succeeded]
        counts = [usage.input_tokens for usage in usages]
        known = [count for count in counts if count is not None]
        total = sum(known) if len(known) == len(counts) else None
        return Usage(input_tokens=total, output_tokens=0, estimated=any(usage.estimated for usage in usages))

    @property
    def served_model(self) -> str | None:
        """The model that the provider reports."""
        return next((answer.served_model for answer in self.answers), None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """The distinct warnings of all answers."""
        return tuple(dict.fromkeys(warning for answer in self.answers for warning in answer.warnings))


async def send_batches(
    texts: tuple[str, ...], request: EmbeddingRequest, target: Target, env: LLMEnv, save: Save
) -> Result[SentBatches, LLMError]:
    """Embed all texts, several batches at once; the first error ends the run, after earlier batches were saved."""
    sent, errors = SentBatches(), list[LLMError]()

    async def send(_: int, batch_texts: tuple[str, ...]) -> bool:
        batch_request = evolve(request.template, messages=_messages(batch_texts))
        call = Call(id=env.new_id(), request=batch_request, attempt=AttemptContext(model=target.name))
        sent.calls.append(call)
        batch = _Batch(batch_texts, request.dimensions)
        answer = await run(batch.pipeline(call), env)
        if not is_successful(answer):
            errors.append(answer.failure())
            return True
        vectors = dict(zip(batch_texts, batch.vectors, strict=True))
        sent.answers.append(answer.unwrap())
        sent.vectors.update(vectors)
        await save(vectors)
        return False

    await in_parallel(batches_of(texts, target.preset), request.workers, send)
    return Failure(evolve(errors[0], attempts=sent.attempts)) if errors else Success(sent)


def _messages(texts: Iterable[str]) -> tuple[Message, ...]:
    return (Message("user", tuple(map(Text, texts))),)


_NO_EMBEDDER: Final = "clients: cannot embed texts: give the environment clients with an ``embed`` method"


@final
@define(eq=False)
class _Batch:
    """A batch on its way through the layers, which know only requests and answers: its vectors travel beside them."""

    texts: tuple[str, ...]
    dimensions: int | None
    vectors: tuple[Vector, ...] = ()

    @property
    def pipeline(self) -> Generate:
        """The layers around one batch. None of them chooses a model: vectors of two models cannot be mixed."""
        return layered(
            with_deadline,
            with_retries,
            with_circuit_breaker,
            with_limits,
            with_budget,
            with_recording,
            self._embed,
        )

    def _embed(self, call: Call) -> Effect[LLMResponse]:
        async def embed_once(env: LLMEnv) -> Answer:
            if not isinstance(env.clients, Embedder):
                return Failure(ConfigurationError(model=call.model, message=_NO_EMBEDDER))
            result = await result_of(env.clients.embed(call, self.texts, self.dimensions))
            self.vectors = result.map(lambda embedded: embedded.vectors).value_or(())
            return result.map(lambda embedded: _answer(embedded, call, env))

        return effect(embed_once)


def _answer(embedded: Vectors, call: Call, env: LLMEnv) -> LLMResponse:
    estimated = Usage(input_tokens=env.tokens.estimate(call.request), output_tokens=0, estimated=True)
    return LLMResponse(
        content="",
        model=call.model,
        provider=env.config.models[call.model].provider,
        served_model=embedded.served_model,
        usage=estimated if embedded.usage == Usage() else embedded.usage,
        request_id=embedded.request_id,
    )


# The vector cache: vectors by text in the cache of answers, under keys of their own.

_Value = TypeVar("_Value")

PREFIX: Final = "embedding-"
"""The prefix of the keys of vectors."""

KEY_VERSION: Final = 2
"""The version of what goes into a key; another version ignores all stored entries."""

CACHE_WORKERS: Final = 8
"""How many entries are read or written at once."""

_CHECKSUM_BYTES: Final = 4


@final
@define
class VectorCache:
    """The cached vectors of one model. After its first error, which becomes a warning, it is no longer used."""

    env: LLMEnv
    target: Target
    dimensions: int | None
    owner: str | None
    writable: bool
    stays: Stays | None = None
    warnings: list[str] = field(factory=list[str])

    def key(self, text: str) -> str:
        """Return the key of a text, with the model, its endpoint, the namespace, the dimensions and the owner."""
        namespace = namespace_of(self.target, self.env.config)
        model = (self.target.preset.name, self.target.endpoint, self.target.wire_model, namespace)
        asked = (self.dimensions, self.owner) if self.stays is None else (self.dimensions, self.owner, self.stays)
        shape = {"version": KEY_VERSION, "text": text, "model": model, "asked": asked}
        return f"{owner_prefix(self.owner)}{PREFIX}{hashlib.sha256(dump(shape)).hexdigest()}"

    async def find(self, texts: Iterable[str]) -> Mapping[str, Vector]:
        """Return the stored vectors of these texts; damaged entries count as missing."""
        vectors: dict[str, Vector] = {}

        async def find_one(_: int, text: str) -> bool:
            entry = await self._checked("read", self.env.cache.get(self.key(text)))
            vector = None if entry is None else decode_entry(entry)
            if vector is not None:
                vectors[text] = vector
            return bool(self.warnings)

        await in_parallel(texts, CACHE_WORKERS, find_one)
        return vectors

    async def save(self, vectors: Mapping[str, Vector]) -> None:
        """Store vectors, unless the cache is not writable or has failed before."""
        ttl = self.env.config.cache.ttl_seconds

        async def save_one(_: int, text: str) -> bool:
            await self._checked("written", self.env.cache.put(self.key(text), encode_entry(vectors[text]), ttl))
            return bool(self.warnings)

        if self.writable and not self.warnings:
            await in_parallel(vectors, CACHE_WORKERS, save_one)

    async def _checked(self, verb: str, operation: FutureResult[_Value, LLMError]) -> _Value | None:
        with anyio.move_on_after(TIMEOUT_S):
            result = await result_of(operation)
            if is_successful(result):
                return result.unwrap()
            self.warnings.append(f"the cache could not be {verb}: {describe(result.failure())}")
            return None
        self.warnings.append(f"the cache could not be {verb}: it took too long")
        return None


def encode_entry(vector: Vector) -> bytes:
    """Encode a vector as a cache entry, with a checksum.

    >>> decode_entry(encode_entry(Vector.of([1.0]))) == Vector.of([1.0])
    True
    """
    return crc32(vector.packed).to_bytes(_CHECKSUM_BYTES) + vector.packed


def decode_entry(entry: bytes) -> Vector | None:
    """Decode a cache entry; return ``None`` if it is damaged.

    >>> decode_entry(b"damaged") is None
    True
    """
    checksum, packed = entry[:_CHECKSUM_BYTES], entry[_CHECKSUM_BYTES:]
    intact = len(packed) > 0 and len(packed) % 4 == 0 and crc32(packed) == int.from_bytes(checksum)
    return Vector(packed) if intact else None
