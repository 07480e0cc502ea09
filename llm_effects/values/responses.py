"""What comes back: ``LLMResponse``, its usage, its cost and the attempts behind it."""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from enum import Enum, unique
from typing import ClassVar, Final, final, overload

from attrs import Attribute, field, frozen

from llm_effects.values.messages import Part, ToolCall
from llm_effects.values.requests import TaskType
from llm_effects.values.validation import invalid, is_a


@final
@unique
class FinishReason(Enum):
    """Why the model stopped."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


@final
@frozen(kw_only=True)
class Usage:
    """Tokens in disjoint buckets; ``None`` is unknown, which is not 0.

    ``input_tokens`` are the fresh ones: neither read from the provider's prompt cache nor written to it.
    ``reasoning_tokens`` is the part of ``output_tokens`` spent thinking. ``estimated`` says that the
    provider did not tell and we counted.

    >>> Usage(input_tokens=20, cache_read_tokens=80, output_tokens=5).total_tokens
    105
    >>> Usage().total_tokens is None
    True
    """

    input_tokens: int | None = None
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int | None = None
    reasoning_tokens: int = 0
    estimated: bool = False

    @property
    def prompt_tokens(self) -> int | None:
        """All that was read: fresh, from the cache and into it."""
        if self.input_tokens is None:
            return None
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens

    @property
    def total_tokens(self) -> int | None:
        """All tokens in and out, or ``None`` if either is unknown."""
        read = self.prompt_tokens
        return None if read is None or self.output_tokens is None else read + self.output_tokens


@final
@frozen
class Cost:
    """US dollars as a ``Decimal``, or unknown: never 0 for unknown.

    >>> Cost(Decimal("0.002")) + Cost(Decimal("0.001"))
    Cost(usd=Decimal('0.003'))
    >>> Cost.ZERO + Cost.UNKNOWN
    Cost(usd=None)
    """

    usd: Decimal | None = None

    ZERO: ClassVar["Cost"]
    UNKNOWN: ClassVar["Cost"]

    @property
    def known(self) -> bool:
        """Whether ``usd`` is a figure."""
        return self.usd is not None

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(None if self.usd is None or other.usd is None else self.usd + other.usd)

    def __str__(self) -> str:
        return "unknown" if self.usd is None else f"${self.usd}"


Cost.ZERO = Cost(Decimal(0))
Cost.UNKNOWN = Cost(None)


def total_cost(costs: Iterable[Cost]) -> Cost:
    """Add costs up; one unknown makes the sum unknown."""
    return sum(costs, Cost.ZERO)


@final
@frozen(kw_only=True)
class Attempt:
    """Something that was sent. ``outcome`` is ``success``, ``cancelled`` or an error's tag.

    ``latency_ms`` is the time the attempt took, ``first_content_ms`` the time until the first content of a stream
    (``None`` where nothing was streamed, or no content came), ``wait_ms`` the time before it was sent, in the pause of
    its retry and in queues, all in milliseconds.
    """

    model: str
    provider: str
    outcome: str
    latency_ms: float
    first_content_ms: float | None = None
    wait_ms: float = 0.0
    usage: Usage = field(factory=Usage)
    cost: Cost = Cost.UNKNOWN

    @property
    def succeeded(self) -> bool:
        """Whether it gave the answer."""
        return self.outcome == SUCCESS


SUCCESS: Final = "success"
CANCELLED: Final = "cancelled"


@final
@frozen(kw_only=True)
class LLMResponse:
    """A whole answer. ``content`` is its text, ``parts`` all of it, in order.

    ``model`` is the configured name that answered and ``served_model`` what the provider says it ran;
    ``latency_ms`` covers the whole call; ``cost`` is the sum of ``attempts``; ``warnings`` says what was
    dropped or doubtful.
    """

    content: str
    parts: tuple[Part, ...] = field(default=(), repr=False)
    model: str
    served_model: str | None = None
    provider: str
    task_type: TaskType = TaskType.GENERAL
    finish_reason: FinishReason = FinishReason.STOP
    usage: Usage = field(factory=Usage)
    cost: Cost = Cost.UNKNOWN
    latency_ms: float = 0.0
    cached: bool = False
    attempts: tuple[Attempt, ...] = ()
    warnings: tuple[str, ...] = ()
    request_id: str | None = None

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tools the model asks for, in order."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))


# Texts as points in space: a vector each, kept small.


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
