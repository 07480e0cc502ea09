"""Texts into vectors: in portions, each text once, and none that is in the cache already."""

from collections.abc import Iterable, Mapping
from typing import Final, final

from attrs import evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.caching import is_cached
from llm_effects.concurrency import places
from llm_effects.effects import Effect, effect
from llm_effects.embeddings.asks import Wanted, request_of
from llm_effects.embeddings.choices import chosen
from llm_effects.embeddings.rounds import Round, ask_all
from llm_effects.embeddings.shelves import Shelf
from llm_effects.env import LLMEnv
from llm_effects.errors import InvalidRequest, LLMError, MalformedResponse, StorageFailed
from llm_effects.jsons import mended
from llm_effects.providers.targets import Target
from llm_effects.requests import CachePolicy
from llm_effects.responses import Attempt, Cost, Usage, total_cost
from llm_effects.values import is_a, to_tuple
from llm_effects.vectors import Vector

__all__ = ("Embeddings", "embed")


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
    >>> from llm_effects import LLMConfig, ModelConfig, scripted_env, settle
    >>> small = ModelConfig(provider="ollama", model="nomic-embed-text")
    >>> env = scripted_env(config=LLMConfig(models={"small": small}))
    >>> told = anyio.run(settle, embed(("cat", "dog", "cat")), env).unwrap()
    >>> told.model, len(told.vectors), told.vectors[0] == told.vectors[2] != told.vectors[1], len(told.attempts)
    ('small', 3, True, 1)
    >>> anyio.run(settle, embed(("cat", " ")), env).failure().message
    'texts[1]: must not be blank: leave it out'
    """
    size = None if dimensions is None else places("dimensions", dimensions)
    template = evolve(request_of(owner, tags), cache=cache)
    wanted = Wanted(to_tuple("texts", texts), model, size, places("concurrency", concurrency), template)
    return effect(lambda env: _embedded(wanted, env))


async def _embedded(wanted: Wanted, env: LLMEnv) -> Result[Embeddings, LLMError]:
    problem = _problem(wanted.texts)
    if problem is not None:
        return Failure(problem)
    target = chosen(env.config, wanted.model)
    if not is_successful(target):
        return Failure(target.failure())
    return await _filled(evolve(wanted, texts=tuple(map(mended, wanted.texts))), target.unwrap(), env)


def _problem(texts: tuple[str, ...]) -> LLMError | None:
    for index, text in enumerate(texts):
        if not is_a(text, str):
            return InvalidRequest(message=f"texts[{index}]: must be a text, not {type(text).__name__}")
        if not text.strip():
            return InvalidRequest(message=f"texts[{index}]: must not be blank: leave it out")
    return None


_LOOKING: Final = frozenset({CachePolicy.USE, CachePolicy.ONLY})
_KEEPING: Final = frozenset({CachePolicy.USE, CachePolicy.REFRESH})


async def _filled(wanted: Wanted, target: Target, env: LLMEnv) -> Result[Embeddings, LLMError]:
    """Look up what is known, ask for the rest, and put all together."""
    policy = wanted.template.cache
    on = is_cached(wanted.template, env.config) and _is_fixed(target)
    shelf = Shelf(env, target, wanted.dimensions, wanted.template.owner, keeping=on and policy in _KEEPING)
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
    wanted: Wanted, target: Target, known: Mapping[str, Vector], came: Round, trouble: tuple[str, ...]
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
