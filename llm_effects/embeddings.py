"""Texts into vectors: in portions, each text once, and none that is in the cache already."""

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
from llm_effects.effects.combinators import places
from llm_effects.effects.effect import Effect, Generate, effect, result_of, run
from llm_effects.effects.env import Embedder, LLMEnv
from llm_effects.effects.tasks import in_parallel
from llm_effects.policies import layered
from llm_effects.policies.budget import with_budget
from llm_effects.policies.cache import TIMEOUT_S, is_cached
from llm_effects.policies.circuit_breaker import with_circuit_breaker
from llm_effects.policies.deadline import with_deadline
from llm_effects.policies.limits import with_limits
from llm_effects.policies.recording import with_recording
from llm_effects.policies.retries import with_retries
from llm_effects.providers.registry import targets_of
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
from llm_effects.values.messages import Message, Text
from llm_effects.values.requests import CachePolicy, LLMRequest, Preferences, TaskType
from llm_effects.values.responses import Attempt, Cost, LLMResponse, Usage, Vector, Vectors, total_cost
from llm_effects.values.validation import is_a, to_tuple

# One portion of texts through the layers: the heart of the onion for embeddings, and the layers around it.
#
# The layers know requests and answers, so a portion goes through them as a request, and its vectors beside the answer.
# No layer chooses a model: another model's vectors mean nothing beside these.


TASK: Final = TaskType("embeddings")
"""The task by which the ledger and budgets know embeddings."""


@final
@frozen
class EmbeddingRequest:
    """What is to be embedded, and how: as which request the portions go out, and how many at once."""

    texts: tuple[str, ...]
    model: str | None
    dimensions: int | None
    workers: int
    template: LLMRequest


@final
@frozen
class EmbeddedBatch:
    """What a model gave for a portion, and what is doubtful about it."""

    came: Vectors
    warnings: tuple[str, ...]


def messages_of(texts: Iterable[str]) -> tuple[Message, ...]:
    """Give the texts as what a request says."""
    return (Message("user", tuple(map(Text, texts))),)


def request_of(owner: str | None, tags: Iterable[str]) -> LLMRequest:
    """Make the request as which every portion is limited, budgeted and booked; there is no answer to pay for."""
    said, no_answer = messages_of(("",)), Preferences(max_tokens=1)
    return LLMRequest(messages=said, task_type=TASK, owner=owner, tags=to_tuple("tags", tags), preferences=no_answer)


async def ask(
    call: Call, texts: tuple[str, ...], dimensions: int | None, env: LLMEnv
) -> Result[EmbeddedBatch, LLMError]:
    """Embed a portion: limited, budgeted, booked, and asked again by the same model where that may help."""
    told: list[Vectors] = []
    pipeline = layered(
        with_deadline,
        with_retries,
        with_circuit_breaker,
        with_limits,
        with_budget,
        with_recording,
        _heart(texts, dimensions, told),
    )
    result = await run(pipeline(call), env)
    return result.map(lambda answer: EmbeddedBatch(told[-1], answer.warnings))


_NOT_HERE: Final = "clients: these embed no texts: give the environment clients with an ``embed``"


def _heart(texts: tuple[str, ...], dimensions: int | None, told: list[Vectors]) -> Generate:
    def embed(call: Call) -> Effect[LLMResponse]:
        async def perform(env: LLMEnv) -> Result[LLMResponse, LLMError]:
            if not isinstance(env.clients, Embedder):
                return Failure(ConfigurationError(model=call.model, message=_NOT_HERE))
            came = await result_of(env.clients.embed(call, texts, dimensions))
            if not is_successful(came):
                return Failure(came.failure())
            told.append(came.unwrap())
            return Success(_answer(came.unwrap(), call, env))

        return effect(perform)

    return embed


def _answer(came: Vectors, call: Call, env: LLMEnv) -> LLMResponse:
    counted = Usage(input_tokens=env.tokens.estimate(call.request), output_tokens=0, estimated=True)
    return LLMResponse(
        content="",
        model=call.model,
        provider=env.config.models[call.model].provider,
        served_model=came.served_model,
        usage=counted if came.usage == Usage() else came.usage,
        request_id=came.request_id,
    )


# Which model embeds: one, and never another in its place.


def chosen(config: LLMConfig, model: str | None) -> Result[Target, LLMError]:
    """Give the model of a name, or the first that embeds; what is not known to embed is not asked.

    >>> from llm_effects import ModelConfig
    >>> config = LLMConfig(
    ...     models={
    ...         "chat": ModelConfig(provider="lm-studio"),
    ...         "small": ModelConfig(provider="ollama", model="nomic-embed-text"),
    ...     }
    ... )
    >>> chosen(config, None).unwrap().name
    'small'
    >>> chosen(config, "chat").failure().message
    "model: 'chat' is not known to embed; set models.chat.capabilities.embeddings to true if it does"
    """
    targets = targets_of(config)
    if not is_successful(targets):
        return Failure(targets.failure())
    for target in targets.unwrap():
        if target.capabilities.embeddings and model in {None, target.name, target.wire_model}:
            return Success(target)
    return Failure(_nobody(config, model))


def _nobody(config: LLMConfig, model: str | None) -> LLMError:
    if model is None:
        remedy = "configure a model that embeds, or set capabilities.embeddings to true for one"
        return ConfigurationError(message=f"models: none is known to embed: {remedy}")
    if model not in config.models:
        configured = ", ".join(config.models)
        return InvalidRequest(message=f"model: {model!r} is not configured; configured are {configured}")
    remedy = f"set models.{model}.capabilities.embeddings to true if it does"
    return InvalidRequest(model=model, message=f"model: {model!r} is not known to embed; {remedy}")


# Texts in portions that one request may hold.


BYTES_PER_TOKEN: Final = 3
"""Of UTF-8: fewer than English has, and about a letter of Chinese, so that a portion is rather too small."""


def batches_of(texts: Iterable[str], preset: Preset) -> Iterator[tuple[str, ...]]:
    """Cut texts into portions, in order, by how many texts and tokens a server takes at once.

    A text that is too long by itself is a portion of its own: only the server knows its exact length.

    >>> from attrs import evolve
    >>> from llm_effects.providers.presets import PRESETS
    >>> list(batches_of(("a", "b", "c"), evolve(PRESETS["vllm"], embedded_texts=2)))
    [('a', 'b'), ('c',)]
    >>> list(batches_of(("a" * 30, "b", "c"), evolve(PRESETS["vllm"], embedded_tokens=10)))
    [('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa',), ('b', 'c')]
    """
    portion, tokens = list[str](), 0
    for text in texts:
        takes = tokens_of(text)
        if portion and (len(portion) == preset.embedded_texts or tokens + takes > preset.embedded_tokens):
            yield tuple(portion)
            portion, tokens = [], 0
        portion.append(text)
        tokens += takes
    if portion:
        yield tuple(portion)


def tokens_of(text: str) -> int:
    """Estimate the tokens of a text, rather too many than too few.

    >>> tokens_of("hello"), tokens_of("你好")
    (2, 2)
    """
    return ceil(len(text.encode()) / BYTES_PER_TOKEN)


# All the texts that must be asked for, portion by portion.


Keep: TypeAlias = Callable[[Mapping[str, Vector]], Awaitable[None]]
"""Keeps the vectors of a portion as soon as they have come."""


@final
@frozen
class EmbeddingRun:
    """What came of the portions, and the calls behind them."""

    asked: dict[int, EmbeddedBatch] = field(factory=dict[int, EmbeddedBatch])
    calls: list[Call] = field(factory=list[Call])
    vectors: dict[str, Vector] = field(factory=dict[str, Vector])

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Everything that was sent."""
        return tuple(attempt for call in self.calls for attempt in call.history.attempts)

    @property
    def usage(self) -> Usage:
        """All tokens together; unknown if those of one portion are."""
        told = [each.usage for each in self.attempts if each.succeeded]
        counts = [each.input_tokens for each in told]
        known = [count for count in counts if count is not None]
        total = sum(known) if len(known) == len(counts) else None
        return Usage(input_tokens=total, output_tokens=0, estimated=any(each.estimated for each in told))

    @property
    def served_model(self) -> str | None:
        """What the provider says it ran."""
        return next((each.came.served_model for each in self.asked.values()), None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is doubtful, each once."""
        return tuple(dict.fromkeys(warning for each in self.asked.values() for warning in each.warnings))


async def ask_all(
    texts: tuple[str, ...], wanted: EmbeddingRequest, target: Target, env: LLMEnv, keep: Keep
) -> Result[EmbeddingRun, LLMError]:
    """Ask for all texts, some portions at once; the first error ends it all, and what came before it was kept."""
    came, problems = EmbeddingRun(), list[LLMError]()

    async def one(number: int, portion: tuple[str, ...]) -> bool:
        request = evolve(wanted.template, messages=messages_of(portion))
        call = Call(id=env.new_id(), request=request, attempt=AttemptContext(model=target.name))
        came.calls.append(call)
        result = await ask(call, portion, wanted.dimensions, env)
        if not is_successful(result):
            problems.append(result.failure())
            return True
        vectors = dict(zip(portion, result.unwrap().came.vectors, strict=True))
        came.asked[number] = result.unwrap()
        came.vectors.update(vectors)
        await keep(vectors)
        return False

    await in_parallel(batches_of(texts, target.preset), wanted.workers, one)
    return Failure(evolve(problems[0], attempts=came.attempts)) if problems else Success(came)


# Vectors in the cache, by their text: beside the answers, under keys of their own.


_Value = TypeVar("_Value")

PREFIX: Final = "embedding-"
"""What the keys of vectors begin with."""

KEY_VERSION: Final = 1
"""Of what goes into a key; with another version nothing that was stored is found."""

WORKERS: Final = 8
"""How many entries are looked up or kept at once."""

_SUM: Final = 4  # bytes


@final
@define
class VectorCache:
    """The vectors of one model in the cache, ``keeping`` new ones or not; left alone after its first ``trouble``."""

    env: LLMEnv
    target: Target
    dimensions: int | None
    owner: str | None
    keeping: bool
    trouble: list[str] = field(factory=list[str])

    def key(self, text: str) -> str:
        """Give the key of a text: of the model, its place, its dimensions and the owner too."""
        own = (self.target.preset.name, self.target.endpoint, self.target.wire_model)
        shape = {"version": KEY_VERSION, "text": text, "model": own, "asked": (self.dimensions, self.owner)}
        return PREFIX + hashlib.sha256(dump(shape)).hexdigest()

    async def find(self, texts: Iterable[str]) -> Mapping[str, Vector]:
        """Give the vectors that are there; what cannot be read is not."""
        found: dict[str, Vector] = {}

        async def one(_: int, text: str) -> bool:
            entry = await self._done("read", self.env.cache.get(self.key(text)))
            vector = None if entry is None else unpacked(entry)
            if vector is not None:
                found[text] = vector
            return bool(self.trouble)

        await in_parallel(texts, WORKERS, one)
        return found

    async def keep(self, vectors: Mapping[str, Vector]) -> None:
        """Keep vectors, as far as the store can."""
        ttl = self.env.config.cache.ttl_seconds

        async def one(_: int, text: str) -> bool:
            await self._done("written", self.env.cache.put(self.key(text), packed(vectors[text]), ttl))
            return bool(self.trouble)

        if self.keeping and not self.trouble:
            await in_parallel(vectors, WORKERS, one)

    async def _done(self, verb: str, operation: FutureResult[_Value, LLMError]) -> _Value | None:
        with anyio.move_on_after(TIMEOUT_S):
            result = await result_of(operation)
            if is_successful(result):
                return result.unwrap()
            self.trouble.append(f"the cache could not be {verb}: {describe(result.failure())}")
            return None
        self.trouble.append(f"the cache could not be {verb}: it took too long")
        return None


def packed(vector: Vector) -> bytes:
    """Write an entry.

    >>> unpacked(packed(Vector.of([1.0]))) == Vector.of([1.0])
    True
    """
    return crc32(vector.packed).to_bytes(_SUM) + vector.packed


def unpacked(entry: bytes) -> Vector | None:
    """Read an entry; one that is damaged is none.

    >>> unpacked(b"damaged") is None
    True
    """
    whole = len(entry) > _SUM and len(entry) % 4 == 0 and crc32(entry[_SUM:]) == int.from_bytes(entry[:_SUM])
    return Vector(entry[_SUM:]) if whole else None


@final
@frozen(kw_only=True)
class Embeddings:
    """Vectors in the order of the texts, all of one ``model`` and one length.

    ``cached`` is how many different texts were found in the cache, which costs nothing; ``usage`` and ``cost`` (US
    dollars) are of the others, over all ``attempts``.
    """

    vectors: tuple[Vector, ...] = field(repr=False)
    model: str
    served_model: str | None = None
    usage: Usage = field(factory=Usage)
    cost: Cost = Cost.UNKNOWN
    cached: int = 0
    attempts: tuple[Attempt, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()


def embed(
    texts: Iterable[str],
    *,
    model: str | None = None,
    dimensions: int | None = None,
    concurrency: int = 4,
    cache: CachePolicy | str = CachePolicy.USE,
    owner: str | None = None,
    tags: Iterable[str] = (),
) -> Effect[Embeddings]:
    """Give a vector for each text, by the ``model`` of that name or the first configured one that embeds.

    The texts go out in portions that the server takes, ``concurrency`` at once, each text once; what is in the cache is
    not asked. A portion that fails is asked again as any call is, but of the same model only: another one's vectors lie
    in another space. ``dimensions`` is how long the vectors shall be, where the model leaves a choice.

    >>> import anyio
    >>> from llm_effects import LLMConfig, ModelConfig, run, scripted_env
    >>> small = ModelConfig(provider="ollama", model="nomic-embed-text")
    >>> env = scripted_env(config=LLMConfig(models={"small": small}))
    >>> told = anyio.run(run, embed(("cat", "dog", "cat")), env).unwrap()
    >>> told.model, len(told.vectors), told.vectors[0] == told.vectors[2] != told.vectors[1], len(told.attempts)
    ('small', 3, True, 1)
    >>> anyio.run(run, embed(("cat", " ")), env).failure().message
    'texts[1]: must not be blank: leave it out'
    """
    size = None if dimensions is None else places("dimensions", dimensions)
    template = evolve(request_of(owner, tags), cache=cache)
    wanted = EmbeddingRequest(to_tuple("texts", texts), model, size, places("concurrency", concurrency), template)
    return effect(lambda env: _embedded(wanted, env))


async def _embedded(wanted: EmbeddingRequest, env: LLMEnv) -> Result[Embeddings, LLMError]:
    problem = _problem(wanted.texts)
    if problem is not None:
        return Failure(problem)
    target = chosen(env.config, wanted.model)
    if not is_successful(target):
        return Failure(target.failure())
    return await _filled(evolve(wanted, texts=tuple(map(repair_surrogates, wanted.texts))), target.unwrap(), env)


def _problem(texts: tuple[str, ...]) -> LLMError | None:
    for index, text in enumerate(texts):
        if not is_a(text, str):
            return InvalidRequest(message=f"texts[{index}]: must be a text, not {type(text).__name__}")
        if not text.strip():
            return InvalidRequest(message=f"texts[{index}]: must not be blank: leave it out")
    return None


_LOOKING: Final = frozenset({CachePolicy.USE, CachePolicy.ONLY})
_KEEPING: Final = frozenset({CachePolicy.USE, CachePolicy.REFRESH})


async def _filled(wanted: EmbeddingRequest, target: Target, env: LLMEnv) -> Result[Embeddings, LLMError]:
    """Look up what is known, ask for the rest, and put all together."""
    policy = wanted.template.cache
    on = is_cached(wanted.template, env.config) and _is_fixed(target)
    shelf = VectorCache(env, target, wanted.dimensions, wanted.template.owner, keeping=on and policy in _KEEPING)
    distinct = tuple(dict.fromkeys(wanted.texts))
    known = await shelf.find(distinct if on and policy in _LOOKING else ())
    missing = tuple(text for text in distinct if text not in known)
    if missing and policy is CachePolicy.ONLY:
        message = f"{len(missing)} texts have no stored vector, and the cache policy is ONLY"
        return Failure(StorageFailed(operation="cache", message=message))
    came = await ask_all(missing, wanted, target, env, shelf.keep)
    if not is_successful(came):
        return Failure(came.failure())
    return _told(wanted, target, known, came.unwrap(), tuple(shelf.trouble))


def _is_fixed(target: Target) -> bool:
    """Whether it is the same model every time: a server that is asked for none by name gives what is loaded."""
    return target.preset.wire == "llama" or target.wire_model is not None


_MIXED: Final = "the vectors have different lengths, so the model is not what it was: cache='refresh' asks for all anew"


def _told(
    wanted: EmbeddingRequest, target: Target, known: Mapping[str, Vector], came: EmbeddingRun, trouble: tuple[str, ...]
) -> Result[Embeddings, LLMError]:
    vectors = {**known, **came.vectors}
    if len({len(vector) for vector in vectors.values()}) > 1:
        return Failure(MalformedResponse(model=target.name, message=_MIXED, attempts=came.attempts))
    told = Embeddings(
        vectors=tuple(vectors[text] for text in wanted.texts),
        model=target.name,
        served_model=came.served_model,
        usage=came.usage,
        cost=total_cost(attempt.cost for attempt in came.attempts),
        cached=len(known),
        attempts=came.attempts,
        warnings=(*came.warnings, *dict.fromkeys(trouble)),
    )
    return Success(told)
