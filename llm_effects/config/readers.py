"""A strict reader of the configuration's classes: plain data in, a value or every problem with its place out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from types import NoneType, UnionType
from typing import Any, Final, Never, TypeAlias, TypeGuard, TypeVar, final, get_args, get_origin

import attrs
from attrs import evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config.fields import day, dollars
from llm_effects.config.variables import Variable, parsed, secret
from llm_effects.secrets import Secret
from llm_effects.values import InvalidValue, inside, suggestion

_Value = TypeVar("_Value")
_Record = TypeVar("_Record", bound=attrs.AttrsInstance)

Problems: TypeAlias = tuple[str, ...]
"""One line for each thing that is wrong."""

_Read: TypeAlias = Result[object, Problems]
_Pair: TypeAlias = Result[tuple[str, object], Problems]


@final
@frozen
class Place:
    """Where in the configuration we are, and the variables that a key may name."""

    path: str
    environ: Mapping[str, str] = field(repr=False)

    def below(self, key: object) -> "Place":
        """The place of a key of this table."""
        return evolve(self, path=inside(self.path, str(key)))

    def item(self, index: int) -> "Place":
        """The place of an item of this list."""
        return evolve(self, path=inside(self.path, index))

    def problem(self, remedy: str) -> Problems:
        """One problem of this place."""
        return (f"{self.path}: {remedy}",)

    def refuse(self, remedy: str) -> Result[Never, Problems]:
        """Fail with one problem of this place."""
        return Failure(self.problem(remedy))

    def expected(self, wanted: str, given: object) -> Result[Never, Problems]:
        """Fail because something else is wanted here."""
        return self.refuse(f"must be {wanted}, not {type(given).__name__}")


def gather(results: Iterable[Result[_Value, Problems]]) -> Result[tuple[_Value, ...], Problems]:
    """Give all values, or all problems."""
    done = tuple(results)
    problems = tuple(line for each in done if not is_successful(each) for line in each.failure())
    return Failure(problems) if problems else Success(tuple(each.unwrap() for each in done))


def _read(kind: object, given: object, at: Place) -> _Read:
    options: tuple[object, ...] = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if given is None and NoneType in options:
        return Success(None)
    wanted = options[0]
    if isinstance(wanted, type) and attrs.has(wanted):
        return record(wanted, given, at)
    return _READERS.get(get_origin(wanted), _leaf)(wanted, given, at)


def record(kind: type[_Record], given: object, at: Place) -> Result[_Record, Problems]:
    """Read a table into an attrs class, whose fields are its keys."""
    if not _is_table(given):
        return at.expected("a table", given)
    fields = attrs.fields_dict(kind)
    required = (name for name, each in fields.items() if each.default is attrs.NOTHING)
    entries = (_entry(fields, key, value, at) for key, value in given.items())
    missing = (at.below(name).refuse("is missing: give it a value") for name in required if name not in given)
    pairs = gather((*entries, *missing))
    return _made(kind, dict(pairs.unwrap()), at) if is_successful(pairs) else Failure(pairs.failure())


def _made(kind: type[_Record], values: Mapping[str, object], at: Place) -> Result[_Record, Problems]:
    """Make the value, whose fields have kept their own rules but may not fit each other."""
    try:
        return Success(kind(**values))
    except InvalidValue as problem:
        return Failure(tuple(f"{at.path}.{line}".removeprefix(".") for line in str(problem).splitlines()))


def _entry(fields: "Mapping[str, attrs.Attribute[Any]]", key: object, given: object, at: Place) -> _Pair:
    name = str(key)
    if name not in fields:
        return at.below(key).refuse(f"unknown key: {suggestion(name, fields)}")
    here = evolve(at, path=given.name) if isinstance(given, Variable) else at.below(key)
    return _valid(fields[name], _read(fields[name].type, given, here), here).map(lambda value: (name, value))


def _valid(attribute: "attrs.Attribute[Any]", read: _Read, at: Place) -> _Read:
    """Apply the field's own rule now, so that one broken field does not hide the next."""
    if attribute.validator is None or not is_successful(read):
        return read
    try:
        attribute.validator(None, attribute, read.unwrap())
    except InvalidValue as problem:
        return at.refuse(str(problem).partition(": ")[2])
    return read


def _is_table(given: object) -> TypeGuard[Mapping[object, object]]:
    return isinstance(given, Mapping)


def _is_list(given: object) -> TypeGuard[Sequence[object]]:
    return isinstance(given, list | tuple)


def _table(kind: object, given: object, at: Place) -> Result[Mapping[str, object], Problems]:
    """Read a table of names that are the user's own."""
    if not _is_table(given):
        return at.expected("a table", given)
    inner = get_args(kind)[1]
    return gather(_pair(inner, key, value, at.below(key)) for key, value in given.items()).map(dict)


def _items(kind: object, given: object, at: Place) -> _Read:
    """Read a list; pairs of a name and a value are written as a table."""
    inner = get_args(kind)[0]
    if get_origin(inner) is tuple:
        return _table(inner, given, at).map(lambda table: tuple(table.items()))
    if not _is_list(given):
        return at.expected("a list", given)
    return gather(_read(inner, item, at.item(index)) for index, item in enumerate(given))


def _pair(kind: object, key: object, given: object, at: Place) -> _Pair:
    if not isinstance(key, str):
        return at.expected("named by a text", key)
    return _read(kind, given, at).map(lambda value: (key, value))


def _leaf(kind: object, given: object, at: Place) -> _Read:
    if isinstance(given, Variable):
        return parsed(kind, given).alt(at.problem)
    accepted, wanted, make = _LEAVES.get(kind, _LEAVES[str])
    if not isinstance(given, accepted) or (isinstance(given, bool) and kind is not bool):
        return at.expected(wanted, given)
    if isinstance(given, int) and given.bit_length() > 63:
        return at.refuse("must be a number of at most 64 bits")
    return make(given, at)


def _same(given: object, _: Place) -> _Read:
    return Success(given)


def _secret(given: object, at: Place) -> _Read:
    return secret(given, at.environ).alt(at.problem) if isinstance(given, str) else Success(given)


_READERS: Final[Mapping[object, Callable[[object, object, Place], _Read]]] = {Mapping: _table, tuple: _items}

_LEAVES: Final[Mapping[object, tuple[tuple[type, ...], str, Callable[[object, Place], _Read]]]] = {
    str: ((str,), "a text", _same),  # and Literals, whose choices are their field's own rule
    bool: ((bool,), "true or false", _same),
    int: ((int,), "a whole number", _same),
    float: ((int, float), "a number", _same),
    Decimal: (
        (int, float, str, Decimal),
        "an amount of US dollars such as 0.15",
        lambda given, _: Success(dollars(str(given))),
    ),
    date: ((date, str), "a day such as 2026-12-01", lambda given, _: Success(day(str(given)))),
    Secret: ((str, Secret), 'a text, or "env:NAME" for an environment variable', _secret),
}
