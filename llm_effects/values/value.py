"""The base of frozen values: how they compare, hash and show themselves."""

from collections.abc import Callable
from functools import cache
from operator import attrgetter

import attrs

from llm_effects.values.display import shown


class Value:
    """The base of a class with ``@frozen(eq=False, repr=False)``: it compares, hashes and shows its fields.

    attrs would write these methods for each class, which takes 12 ms of the first call of a process. Those of
    attrs are four times as fast: values that every call compares or hashes leave this base out.

    >>> from llm_effects.values import NetworkError
    >>> NetworkError(phase="refused") == NetworkError(phase="refused", status=502), NetworkError(phase="refused")
    (True, NetworkError(phase='refused'))
    """

    __slots__ = ()

    __repr__ = shown

    def __eq__(self, other: object) -> bool:
        kind: type = type(self)
        compared = _compared(kind)
        return compared(self) == compared(other) if type(other) is kind else NotImplemented

    def __hash__(self) -> int:
        kind: type = type(self)
        return hash((kind, _compared(kind)(self)))


@cache
def _compared(kind: type) -> Callable[[object], object]:
    names = [each.name for each in attrs.fields(kind) if each.eq]
    return attrgetter(*names) if names else type
