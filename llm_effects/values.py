"""What every value module needs: JSON, and validation that names the field and the remedy."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias, TypeVar

import attrs

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
"""Any JSON value."""

JSONObject: TypeAlias = Mapping[str, JSON]
"""A JSON object."""

_Item = TypeVar("_Item")

Validator: TypeAlias = Callable[[Any, "attrs.Attribute[Any]", Any], None]
"""What attrs runs on a field; its own types are the field's, not ours."""


class InvalidValue(ValueError):  # noqa: N818 - named for what it says of the value, like the tagged errors
    """A value that breaks its own rules; the message names the field and the remedy.

    Raised by constructors only, where a wrong literal is a bug. For data from outside use
    ``checked``, which gives the same problem as an ``InvalidRequest`` value.

    >>> from llm_effects import Preferences
    >>> Preferences(max_tokens=-1)
    Traceback (most recent call last):
        ...
    llm_effects.values.InvalidValue: max_tokens: must be at least 1, not -1
    """


def invalid(field: str, remedy: str) -> NoReturn:
    """Refuse a value: ``field`` is its name, ``remedy`` says what it must be."""
    msg = f"{field}: {remedy}"
    raise InvalidValue(msg)


def to_tuple(items: Iterable[_Item]) -> tuple[_Item, ...]:
    """Freeze what the caller gave; a bare text is a sequence of letters and almost surely a slip."""
    if isinstance(items, str | bytes):
        msg = f"expected several values, got the single text {items!r}: write ({items!r},)"
        raise InvalidValue(msg)
    return tuple(items)


def number(
    *, at_least: float = -math.inf, above: float = -math.inf, at_most: float = math.inf, whole: bool = False
) -> Validator:
    """Make an attrs validator for a finite number (or ``None``) inside bounds."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if value is None:
            return
        kinds = "a whole number" if whole else "a number"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            invalid(attribute.name, f"must be {kinds}, not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            invalid(attribute.name, f"must be a finite number, not {value!r}")
        if value < at_least:
            invalid(attribute.name, f"must be at least {at_least:g}, not {value!r}")
        if value <= above:
            invalid(attribute.name, f"must be above {above:g}, not {value!r}")
        if value > at_most:
            invalid(attribute.name, f"must be at most {at_most:g}, not {value!r}")

    return check


def text(*, empty: bool = False) -> Validator:
    """Make an attrs validator for a text (or ``None``), not blank unless ``empty``."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if value is None:
            return
        if not isinstance(value, str):
            invalid(attribute.name, f"must be a text, not {type(value).__name__}")
        if not empty and not value.strip():
            invalid(attribute.name, "must not be blank: give some text, or leave it out")

    return check


def one_of(*choices: str) -> Validator:
    """Make an attrs validator for one of a few names (or ``None``)."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if value is not None and value not in choices:
            invalid(attribute.name, f"must be one of {', '.join(choices)}, not {value!r}")

    return check


def instances(*kinds: type) -> Validator:
    """Make an attrs validator for a tuple that holds only these classes."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: tuple[object, ...]) -> None:
        for index, item in enumerate(value):
            if not isinstance(item, kinds):
                wanted = " or ".join(kind.__name__ for kind in kinds)
                invalid(f"{attribute.name}[{index}]", f"must be {wanted}, not {type(item).__name__}")

    return check
