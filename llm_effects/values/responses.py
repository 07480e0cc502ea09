"""``LLMResponse``, its usage, its cost and the attempts behind it; embedding vectors."""

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from enum import Enum, unique
from typing import ClassVar, Final, Literal, TypeAlias, final, overload

from attrs import Attribute, evolve, field, frozen

from llm_effects.values.display import escaped, milliseconds, names, paragraphs, shown
from llm_effects.values.messages import Part, Stays, ToolCall, staying_parts
from llm_effects.values.requests import TaskType
from llm_effects.values.validation import invalid, is_a
from llm_effects.values.value import Value


@final
@unique
class FinishReason(Enum):
    """Why the model stopped."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


ServiceTier: TypeAlias = Literal["flex", "priority", "batch"]
"""A tier of service that costs less or more than the usual one."""


@final
@frozen(kw_only=True)
class Usage:
    """Tokens in disjoint buckets; ``None`` is unknown, which is not 0.

    ``input_tokens`` were neither read from the provider's prompt cache nor written to it. ``cache_write_1h_tokens`` is
    the part of ``cache_write_tokens`` that is kept for an hour, ``reasoning_tokens`` the part of ``output_tokens``
    spent on reasoning. ``estimated`` means that the provider reported no usage; ``service_tier`` is the tier that it
    reported, if that has a price of its own.

    >>> Usage(input_tokens=20, cache_read_tokens=80, output_tokens=5).total_tokens
    105
    >>> Usage().total_tokens is None
    True
    """

    __repr__ = shown

    input_tokens: int | None = None
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int | None = None
    reasoning_tokens: int = 0
    estimated: bool = False
    cache_write_1h_tokens: int = 0
    service_tier: ServiceTier | None = None

    @property
    def prompt_tokens(self) -> int | None:
        """All input tokens, including those read from the prompt cache and written to it."""
        if self.input_tokens is None:
            return None
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens

    @property
    def total_tokens(self) -> int | None:
        """All tokens in and out, or ``None`` if either is unknown."""
        prompt = self.prompt_tokens
        return None if prompt is None or self.output_tokens is None else prompt + self.output_tokens


NO_USAGE: Final = Usage()
"""The usage of which nothing is known."""


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
        """Whether the cost is known."""
        return self.usd is not None

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(None if self.usd is None or other.usd is None else self.usd + other.usd)

    def __str__(self) -> str:
        return "unknown" if self.usd is None else f"${self.usd}"


Cost.ZERO = Cost(Decimal(0))
Cost.UNKNOWN = Cost(None)


def total_cost(costs: Iterable[Cost]) -> Cost:
    """Return the sum of costs; it is unknown if one of them is."""
    each = tuple(costs)
    return each[0] if len(each) == 1 else sum(each, Cost.ZERO)  # usually of a single attempt: no sum of decimals


@final
@frozen(kw_only=True)
class Attempt:
    """One request that was sent to a model. ``outcome`` is ``success``, ``cancelled`` or the tag of an error.

    Times are milliseconds: ``latency_ms`` of the attempt, ``first_content_ms`` until the first content of a stream
    (``None`` without a stream or content), ``wait_ms`` before it was sent, in retry pauses and queues.
    """

    __repr__ = shown

    model: str
    provider: str
    outcome: str
    latency_ms: float
    first_content_ms: float | None = None
    wait_ms: float = 0.0
    usage: Usage = NO_USAGE
    cost: Cost = Cost.UNKNOWN

    @property
    def succeeded(self) -> bool:
        """Whether the attempt succeeded."""
        return self.outcome == SUCCESS


SUCCESS: Final = "success"
CANCELLED: Final = "cancelled"


@final
@frozen(kw_only=True)
class LLMResponse:
    """A whole answer. ``content`` is its text, ``parts`` all of it, in order.

    ``model`` is the configured name that answered, ``served_model`` the model that the provider reports;
    ``latency_ms`` (milliseconds) covers the whole call; ``cost`` is the sum over ``attempts``; ``warnings`` lists what
    was dropped or is doubtful. An answer is ``doubtful`` if the model may not have read the whole prompt or finished;
    the cache does not store it. A ``cached`` answer is ``stale`` past its time to live. ``skipped`` names the models
    that were to answer, but that a budget did not permit. The answer to a request that ``stays`` on this machine stays
    there too, with all of its parts.
    """

    __repr__ = shown

    content: str
    parts: tuple[Part, ...] = field(default=(), repr=False)
    model: str
    served_model: str | None = None
    provider: str
    task_type: TaskType = TaskType.GENERAL
    finish_reason: FinishReason = FinishReason.STOP
    usage: Usage = NO_USAGE
    cost: Cost = Cost.UNKNOWN
    latency_ms: float = 0.0
    cached: bool = False
    stale: bool = False
    attempts: tuple[Attempt, ...] = field(default=(), repr=names)
    warnings: tuple[str, ...] = ()
    doubtful: bool = field(default=False, repr=False)
    skipped: tuple[str, ...] = ()
    request_id: str | None = None
    stays: Stays | None = None

    def _repr_markdown_(self) -> str:
        usage, doubts = self.usage, [f"- {escaped(warning)}" for warning in self.warnings]
        tokens = f"{_or_unknown(usage.prompt_tokens)} + {_or_unknown(usage.output_tokens)} tokens"
        known = [self.model, tokens, str(self.cost), milliseconds(self.latency_ms), _origin(self)]
        facts = " · ".join(escaped(each) for each in known if each)
        return "\n\n".join(filter(None, [paragraphs(self.content), f"*{facts}*", "\n".join(doubts)]))

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls of the answer, in order."""
        return tuple(part for part in self.parts if isinstance(part, ToolCall))


def staying_answer(response: LLMResponse, stays: Stays | None) -> LLMResponse:
    """Return an answer to a request with this label: it stays where the request does, and so do its parts."""
    return response if stays is None else evolve(response, stays=stays, parts=staying_parts(response.parts, stays))


def _origin(response: LLMResponse) -> str | None:
    return None if not response.cached else "cached, stale" if response.stale else "cached"


def _or_unknown(tokens: int | None) -> str:
    return "?" if tokens is None else f"{tokens}"


# Embeddings.


def _valid_packed(_: object, attribute: "Attribute[bytes]", packed: bytes) -> None:
    if not is_a(packed, bytes) or len(packed) % 4:
        invalid(attribute.name, "must be bytes, four for each number: use Vector.of to pack numbers")


@final
@frozen(repr=False)
class Vector(Sequence[float]):
    """32-bit floats, as models return them: four bytes each, in a value that can be compared and hashed.

    ``packed`` holds them little-endian: ``numpy.frombuffer(vector.packed, "<f4")`` reads them without a copy.

    >>> vector = Vector.of([0.5, -0.25])
    >>> len(vector), vector[0], list(vector)
    (2, 0.5, [0.5, -0.25])
    >>> vector
    Vector(2 numbers)
    """

    packed: bytes = field(validator=_valid_packed)

    @classmethod
    def of(cls, numbers: Iterable[float]) -> "Vector":
        """Pack numbers; one too large for 32 bits is an ``OverflowError``."""
        values = tuple(numbers)
        return cls(struct.pack(f"<{len(values)}f", *values))

    @property
    def finite(self) -> bool:
        """Whether there are numbers and all are finite."""
        return bool(self.packed) and all(map(math.isfinite, self))

    def __len__(self) -> int:
        return len(self.packed) // 4

    @overload
    def __getitem__(self, index: int) -> float: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[float, ...]: ...
    def __getitem__(self, index: int | slice) -> float | tuple[float, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        number: float = struct.unpack_from("<f", self.packed, 4 * range(len(self))[index])[0]
        return number

    def __iter__(self) -> Iterator[float]:
        return iter(struct.unpack(f"<{len(self)}f", self.packed))

    def __repr__(self) -> str:
        return f"Vector({len(self)} numbers)"


@final
@frozen(kw_only=True, eq=False, repr=False)
class Vectors(Value):
    """The vectors of some texts, in their order."""

    vectors: tuple[Vector, ...] = field(repr=False)
    usage: Usage = NO_USAGE
    served_model: str | None = None
    request_id: str | None = None
