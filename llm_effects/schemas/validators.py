"""What the validators of an attrs class say: to the schema beforehand, and of an answer afterwards.

Bounds, lengths, choices and patterns are written into the type of their field, in msgspec's words. So the model is told
of them, a grammar holds it to them, and a misfit is told with its place. The class itself has the last word.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import reduce
from types import SimpleNamespace, UnionType
from typing import Annotated, Any, Final, Literal, Union, cast, get_args, get_origin

import attrs
import msgspec
from attrs import validators

from llm_effects.schemas.shapes import Form, Items, Leaf, Noted, Table, is_known, shape_of
from llm_effects.values import inside, is_a

MOST_CHOICES: Final = 1000
"""Choices that are told; a ``range`` may have any number."""

REFUSALS: Final = (ValueError, TypeError, ArithmeticError, LookupError, AssertionError)
"""Exceptions by which a class, its converters and its validators refuse what a model made up."""

_BOUNDS: Final = {">": "gt", ">=": "ge", "<": "lt", "<=": "le"}


def _pattern(pattern: "re.Pattern[Any]", where: str) -> dict[str, object]:
    """JSON Schema looks for a pattern anywhere, and knows no flags."""
    letters = pattern.pattern
    if not isinstance(letters, str) or pattern.flags & ~re.UNICODE:
        return {}
    if where == "search":
        return {"pattern": letters}
    inner = letters.removeprefix("^").removesuffix("$") if where == "fullmatch" else letters
    return {"pattern": f"^{f'({inner})' if '|' in inner else inner}" + "$" * (where == "fullmatch")}


_LIMITS: Final[Mapping[type, Callable[[Any], dict[str, object]]]] = {
    type(validators.ge(0)): lambda each: {_BOUNDS[each.compare_op]: each.bound},  # and gt, le, lt
    type(validators.min_len(0)): lambda each: {"min_length": each.min_length},
    type(validators.max_len(0)): lambda each: {"max_length": each.max_length},
    type(validators.matches_re("")): lambda each: _pattern(each.pattern, each.match_func.__name__),
}

_ANY: Final = validators.instance_of(object)
_ALL_OF: Final[type] = type(validators.and_(_ANY))
_UNLESS_NONE: Final[type] = type(validators.optional(_ANY))
_ONE_OF: Final[type] = type(validators.in_((0,)))
_EACH: Final[type] = type(cast("object", validators.deep_iterable(_ANY)))


def narrowed(kind: Form, validator: object) -> Form:
    """Write into the type of a field what its validator demands, as far as msgspec has words for it.

    >>> narrowed(str | None, validators.optional(validators.max_len(80)))
    typing.Optional[typing.Annotated[str, msgspec.Meta(max_length=80)]]
    """
    if get_origin(kind) in {Union, UnionType}:
        return cast("Any", Union)[tuple(narrowed(each, validator) for each in get_args(kind))]
    held, which = cast("Any", validator), type(validator)
    if which is _ALL_OF:
        return reduce(narrowed, getattr(held, "_validators", ()), kind)
    if which is _UNLESS_NONE:
        return narrowed(kind, held.validator)
    if which is _EACH:
        return narrowed(_of_each(kind, held.member_validator), held.iterable_validator)
    return _chosen(kind, held.options) if which is _ONE_OF else _limited(kind, held)


def _of_each(kind: Form, validator: object) -> Form:
    origin: Any = get_origin(kind)
    first, *more = (*get_args(kind), None)
    if origin is Annotated:
        return origin[(_of_each(first, validator), *more[:-1])]
    return origin[(narrowed(first, validator), *more[:-1])] if more and isinstance(shape_of(kind), Items) else kind


def _chosen(kind: Form, options: Collection[Any]) -> Form:
    if (kind is not str and kind is not int) or isinstance(options, str) or not is_a(options, Collection):
        return kind
    if not 0 < len(options) <= MOST_CHOICES or any(type(each) is not kind for each in options):
        return kind
    return cast("Any", Literal)[tuple(sorted(options))]


def _limited(kind: Form, validator: object) -> Form:
    tell = _LIMITS.get(type(validator))
    try:
        limits: Any = tell(validator) if tell else {}
        told = cast("Any", Annotated)[kind, msgspec.Meta(**limits)] if limits else kind
    except (TypeError, ValueError):  # a bound that is no number, a length below 0
        return kind
    shape = shape_of(told)
    if isinstance(shape, Noted):
        return told if isinstance(shape.shape, Items | Table) and is_known(shape.outline) else kind
    return told if isinstance(shape, Leaf) and is_known(told) else kind


def refusals(kind: type, given: Mapping[str, object], path: str) -> Iterator[str]:
    """Tell what the rules of single fields say of them, by the names that the constructor has for them.

    What looks at more than the values that are ``given`` is left to the class.
    """
    if not attrs.has(kind):
        return
    fields = [each for each in attrs.fields(kind) if each.init and (each.alias or each.name) in given]
    made = SimpleNamespace(**{each.name: given[each.alias or each.name] for each in fields})
    for each in fields:
        try:
            _ruled(each, made)
        except AttributeError:
            continue
        except REFUSALS as problem:
            yield f"{inside(path, each.alias or each.name)}: {said(problem)}"


def _ruled(field: "attrs.Attribute[Any]", made: SimpleNamespace) -> None:
    """Do what the constructor does with one field; a converter that wants to know of the others is not run."""
    value, convert = getattr(made, field.name), cast("Any", field).converter
    if isinstance(convert, attrs.Converter):
        return
    converted = value if convert is None else convert(value)
    if field.validator is not None:
        field.validator(made, field, converted)


def said(problem: Exception) -> str:
    """Say what a class refused, in its own words where it has some.

    >>> said(ValueError("must be even")), said(KeyError("x"))
    ('must be even', "KeyError('x')")
    """
    if not isinstance(problem, ValueError | TypeError):
        return repr(problem)
    told = problem.args[0] if problem.args else None
    return told if isinstance(told, str) else str(problem)
