"""Texts as points in space: a vector each, kept small."""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import final, overload

from attrs import Attribute, field, frozen

from llm_effects.responses import Usage
from llm_effects.values import invalid, is_a


def _whole(_: object, attribute: "Attribute[bytes]", packed: bytes) -> None:
    if not is_a(packed, bytes) or len(packed) % 4:
        invalid(attribute.name, "must be bytes, four for each number: Vector.of packs numbers")


@final
@frozen(repr=False)
class Vector(Sequence[float]):
    """Numbers of 32 bits, which is what models give: four bytes each, in a value that can be compared and hashed.

    ``packed`` has them little-endian: ``numpy.frombuffer(vector.packed, "<f4")`` takes them without a copy.

    >>> vector = Vector.of([0.5, -0.25])
    >>> len(vector), vector[0], list(vector)
    (2, 0.5, [0.5, -0.25])
    >>> vector
    Vector(2 numbers)
    """

    packed: bytes = field(validator=_whole)

    @classmethod
    def of(cls, numbers: Iterable[float]) -> "Vector":
        """Pack numbers; one that 32 bits cannot hold is an ``OverflowError``."""
        given = tuple(numbers)
        return cls(struct.pack(f"<{len(given)}f", *given))

    @property
    def finite(self) -> bool:
        """Whether each is a number, and there is one."""
        return bool(self.packed) and all(map(math.isfinite, self))

    def __len__(self) -> int:
        return len(self.packed) // 4

    @overload
    def __getitem__(self, at: int) -> float: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[float, ...]: ...
    def __getitem__(self, at: int | slice) -> float | tuple[float, ...]:
        if isinstance(at, slice):
            return tuple(self)[at]
        number: float = struct.unpack_from("<f", self.packed, 4 * range(len(self))[at])[0]
        return number

    def __iter__(self) -> Iterator[float]:
        return iter(struct.unpack(f"<{len(self)}f", self.packed))

    def __repr__(self) -> str:
        return f"Vector({len(self)} numbers)"


@final
@frozen(kw_only=True)
class Vectors:
    """What a model gave for some texts, in their order."""

    vectors: tuple[Vector, ...] = field(repr=False)
    usage: Usage = field(factory=Usage)
    served_model: str | None = None
    request_id: str | None = None
