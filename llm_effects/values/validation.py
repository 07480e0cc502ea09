"""What every value module needs: validation that names the field and the remedy."""

import difflib
import json
import math
import re
import reprlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from enum import Enum
from functools import cache
from types import NoneType
from typing import Any, NoReturn, TypeAlias, TypeVar, cast, get_args

import attrs

JSONObject: TypeAlias = Mapping[str, object]
"""A JSON object; ``llm_effects.values.json`` checks what is in it."""

_Item = TypeVar("_Item")
_Choice = TypeVar("_Choice", bound=Enum)

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
    llm_effects.values.validation.InvalidValue: max_tokens: must be at least 1, not -1
    """


def invalid(field: str, remedy: str) -> NoReturn:
    """Refuse a value: ``field`` is its name, ``remedy`` says what it must be."""
    msg = f"{field}: {remedy}"
    raise InvalidValue(msg)


def inside(path: str, key: str | int) -> str:
    """Name the place of a key or an index below another place.

    >>> inside(inside("models", "gpt 4"), 1)
    'models."gpt 4"[1]'
    """
    if isinstance(key, int):
        return f"{path}[{key}]"
    name = key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key)  # as TOML itself would quote it
    return f"{path}.{name}" if path else name


def suggestion(name: str, known: Iterable[str], these: str = "the keys here") -> str:
    """Say which name was meant, or which ones there are.

    >>> suggestion("gtp", ("gpt", "claude")), suggestion("x", ("gpt", "claude"), "the models")
    ('did you mean gpt?', 'the models are gpt, claude')
    """
    names = tuple(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"{these} are {', '.join(names)}"


def shown(value: object) -> str:
    """Show a value in a message: short, and never by a ``repr`` that is not Python's own.

    >>> shown("blue"), shown(-1), shown(10**5000), shown([1])
    ("'blue'", '-1', 'a number of more than 64 bits', 'list')
    """
    if isinstance(value, str):
        return reprlib.repr(str(value))
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"  # Python may even refuse to write all of its digits
    return repr(value) if isinstance(value, bool | int | float | None) else type(value).__name__


def is_a(value: object, kind: type) -> bool:
    """Whether a value from outside is of a class, whatever its type says that it is."""
    return isinstance(value, kind)


def to_tuple(name: str, items: Iterable[_Item]) -> tuple[_Item, ...]:
    """Freeze what the caller gave for a field; a bare text is a sequence of letters and almost surely a slip."""
    if type(items) is tuple:
        return cast("tuple[_Item, ...]", items)
    if isinstance(items, str | bytes):
        given = shown(items)
        invalid(name, f"must be several values, not the single text {given}: write ({given},)")
    if not is_a(items, Iterable):
        invalid(name, f"must be several values, not {type(items).__name__}")
    return tuple(items)


def to_table(name: str, given: Mapping[str, _Item]) -> dict[str, _Item]:
    """Copy a table of a field, in the same order; its keys are texts."""
    if not is_a(given, Mapping):
        invalid(name, f"must be a table, not {type(given).__name__}")
    for key in given:
        if not is_a(key, str):
            invalid(name, f"each key must be a text, not {type(key).__name__}")
    return dict(given)


def to_member(name: str, kind: type[_Choice], given: _Choice | str) -> _Choice:
    """Take a member of an enumeration, or the text that stands for it."""
    if isinstance(given, kind):
        return given
    for member in kind:
        if isinstance(given, str) and given == member.value:
            return member
    return invalid(name, f"must be one of {', '.join(member.value for member in kind)}, not {shown(given)}")


def _unset(attribute: "attrs.Attribute[Any]", value: object) -> bool:
    return value is None and _is_optional(cast("Hashable", attribute.type))


@cache
def _is_optional(kind: Hashable) -> bool:
    return NoneType in get_args(kind)


def number(
    *, at_least: float = -math.inf, above: float = -math.inf, at_most: float = math.inf, whole: bool = False
) -> Validator:
    """Make an attrs validator for a finite number of at most 64 bits inside bounds."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if _unset(attribute, value):
            return
        if remedy := _number_remedy(value, whole=whole):
            invalid(attribute.name, remedy)
        if not isinstance(value, int | float):
            return
        if value < at_least:
            invalid(attribute.name, f"must be at least {at_least:g}, not {value!r}")
        if value <= above:
            invalid(attribute.name, f"must be above {above:g}, not {value!r}")
        if value > at_most:
            invalid(attribute.name, f"must be at most {at_most:g}, not {value!r}")

    return check


def _number_remedy(value: object, *, whole: bool) -> str:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        return f"must be {'a whole number' if whole else 'a number'}, not {shown(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, not {value!r}"
    return "must be a number of at most 64 bits" if abs(value) >= 2**63 else ""


def text(*, empty: bool = False) -> Validator:
    """Make an attrs validator for a text, not blank unless ``empty``."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if isinstance(value, str):
            if not empty and not value.strip():
                invalid(attribute.name, "must not be blank: give some text, or leave it out")
        elif not _unset(attribute, value):
            invalid(attribute.name, f"must be a text, not {type(value).__name__}")

    return check


def one_of(*choices: str) -> Validator:
    """Make an attrs validator for one of a few names."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not (isinstance(value, str) and value in choices) and not _unset(attribute, value):
            invalid(attribute.name, f"must be one of {', '.join(choices)}, not {shown(value)}")

    return check


def each_of(*choices: str) -> Validator:
    """Make an attrs validator for a tuple that holds only some of a few names."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: tuple[object, ...]) -> None:
        for index, item in enumerate(value):
            if item not in choices:
                name = inside(attribute.name, index)
                invalid(name, f"must be one of {', '.join(choices)}, not {shown(item)}")

    return check


def instance(kind: type) -> Validator:
    """Make an attrs validator for a value of this class."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
        if not isinstance(value, kind) and not _unset(attribute, value):
            invalid(attribute.name, f"must be {kind.__name__}, not {type(value).__name__}")

    return check


def instances(*kinds: type) -> Validator:
    """Make an attrs validator for a tuple or a table that holds only these classes."""

    def check(_: object, attribute: "attrs.Attribute[Any]", value: tuple[object, ...] | Mapping[str, object]) -> None:
        if not value:
            return
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            if not isinstance(item, kinds):
                wanted = " or ".join(kind.__name__ for kind in kinds)
                invalid(inside(attribute.name, key), f"must be {wanted}, not {type(item).__name__}")

    return check
