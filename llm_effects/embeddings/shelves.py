"""Vectors in the cache, by their text: beside the answers, under keys of their own."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final, TypeVar, final
from zlib import crc32

import anyio
from attrs import define, field
from returns.future import FutureResult
from returns.pipeline import is_successful

from llm_effects.caching import PATIENCE_S
from llm_effects.decisions import describe
from llm_effects.effects import result_of
from llm_effects.env import LLMEnv
from llm_effects.errors import LLMError
from llm_effects.jsons import dump
from llm_effects.providers.targets import Target
from llm_effects.tasks import in_parallel
from llm_effects.vectors import Vector

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
class Shelf:
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
        with anyio.move_on_after(PATIENCE_S):
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
