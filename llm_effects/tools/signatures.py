"""From a typed function to the tool that a model is told of, and from a model's arguments to the function's own."""

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from functools import partial
from inspect import cleandoc
from itertools import takewhile
from typing import Any, Final, TypeAlias, cast, final

import attrs
from attrs import frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.structured.decoding import Problems, decode_text
from llm_effects.structured.schema import TypeSchema, type_schema
from llm_effects.values.errors import describe
from llm_effects.values.json import repair_surrogates
from llm_effects.values.requests import Tool
from llm_effects.values.validation import invalid

# What a docstring says of its function, and of each parameter: in Google's form or in Sphinx's.


@final
@frozen
class Documentation:
    """What a function is for, and what is said of its parameters."""

    summary: str
    parameters: Mapping[str, str]


_ARGS: Final = re.compile(r"^(?:args|arguments|parameters):[ \t]*\n", re.IGNORECASE | re.MULTILINE)
_END: Final = re.compile(
    r"^(?:(?:args|arguments|parameters|returns?|raises|yields?|examples?|notes?):[ \t]*$|:\w+|>>> )",
    re.IGNORECASE | re.MULTILINE,
)
_ENTRY: Final = re.compile(r"^\*{0,2}(\w+)(?:[ \t]*\(.*?\))?:[ \t]*", re.MULTILINE)
_FIELD: Final = re.compile(r"^:(?:param|arg)[ \t]+(?:[^:\n]*[ \t])?\*{0,2}(\w+):[ \t]*", re.MULTILINE)


def documentation_of(written: str | None) -> Documentation:
    r"""Read a docstring.

    >>> told = documentation_of("Give the load.\n\nArgs:\n    host: a name\n        of a machine\n    minutes (int): how long\n")
    >>> told.summary, dict(told.parameters)
    ('Give the load.', {'host': 'a name of a machine', 'minutes': 'how long'})
    >>> dict(documentation_of("Give it.\n\n:param str host: a name\n:returns: it").parameters)
    {'host': 'a name'}
    """
    text = cleandoc(written or "")
    end = _END.search(text)
    return Documentation(text[: end.start() if end else None].strip(), _of_fields(text) | _of_section(text))


def _of_fields(text: str) -> dict[str, str]:
    pieces = _FIELD.split(text)
    ends = (re.split(r"\n(?=:|\n)", piece)[0] for piece in pieces[2::2])
    return dict(zip(pieces[1::2], map(_on_one_line, ends), strict=True))


def _of_section(text: str) -> dict[str, str]:
    head = _ARGS.search(text)
    if head is None:
        return {}
    block = takewhile(_inside, text[head.end() :].splitlines())
    pieces = _ENTRY.split(textwrap.dedent("\n".join(block)))
    return dict(zip(pieces[1::2], map(_on_one_line, pieces[2::2]), strict=True))


def _inside(line: str) -> bool:
    return not line.strip() or line[0].isspace()


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


Handler: TypeAlias = Callable[..., object]
"""A function behind a tool: plain, ``async``, or one that gives an ``Effect`` or a ``Result``."""

Arguments: TypeAlias = Mapping[str, object]
"""What a function is called with, by the names of its parameters."""

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NO_ARGUMENTS: Final = ("", "null")
_TAKEN: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@final
@frozen
class Signature:
    """What a function takes: the tool as a model is told of it, and how the model's arguments are read."""

    tool: Tool
    wanted: TypeSchema

    def read(self, arguments: str) -> Result[Arguments, Problems]:
        """Read the arguments of a call (JSON text), strictly, with all that is wrong with them."""
        text = repair_surrogates(arguments).strip()
        return decode_text(self.wanted, "{}" if text in _NO_ARGUMENTS else text).map(_by_name)


def _by_name(made: object) -> Arguments:
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(cast("Any", type(made)))
    return {each.name: getattr(made, each.name) for each in fields}


def signature_of(function: Handler, name: str | None = None, description: str | None = None) -> Signature:
    """Take a function's signature and docstring; what no model can be told is an ``InvalidValue`` with the remedy.

    >>> def load(host: str, minutes: int = 5) -> float:
    ...     '''Give the load of a machine.'''
    ...     return 0.5
    >>> signature = signature_of(load)
    >>> signature.tool.description, signature.tool.parameters["properties"]["minutes"]
    ('Give the load of a machine.', {'type': 'integer', 'default': 5})
    >>> signature.read('{"host": "db-1"}').unwrap(), signature.read('{"hosts": 3}').failure()[0]
    ({'host': 'db-1', 'minutes': 5}, '$.host: is missing')
    """
    told = documentation_of(_documented(function).__doc__)
    made = type_schema(_record(function, told))
    if not is_successful(made):
        invalid(_named(function), describe(made.failure()))
    chosen = named(name or _named(function))
    says = told.summary if description is None else description
    return Signature(Tool(chosen, says, made.unwrap().schema), made.unwrap())


def named(name: str) -> str:
    """Take a name that every provider takes for a tool."""
    if not _NAME.fullmatch(name):
        invalid("name", f"must be at most 64 letters, digits, _ and - (ASCII), not {name!r}: give one with name=")
    return name


def _documented(function: Handler) -> Handler:
    if isinstance(function, partial):
        return cast("Handler", function.func)
    plain = inspect.isroutine(function) or inspect.isclass(function)
    return function if plain else cast("Handler", type(function).__call__)


def _named(function: Handler) -> str:
    inner = function.func if isinstance(function, partial) else function
    return str(getattr(inner, "__name__", type(inner).__name__))


def _record(function: Handler, told: Documentation) -> type:
    """A class whose fields are the parameters: so arguments are described and read as all other answers are."""
    parameters = _parameters(function)
    fields = {name: _field(each, told.parameters.get(name, "")) for name, each in parameters.items()}
    return attrs.make_class("Arguments", fields, kw_only=True, eq=False, repr=False)


def _parameters(function: Handler) -> Mapping[str, inspect.Parameter]:
    try:
        found = inspect.signature(function, eval_str=True).parameters
    except (NameError, AttributeError, SyntaxError, TypeError, ValueError) as problem:
        invalid(_named(function), f"its signature cannot be read: {problem}")
    for name, each in found.items():
        if name == "self":
            invalid(f"{_named(function)}.self", "it is a method: make the tool of a bound one, as in tool(desk.find)")
        if each.kind not in _TAKEN:
            invalid(f"{_named(function)}.{name}", "a model gives arguments by name: let it be a plain parameter")
        if each.annotation is each.empty:
            invalid(f"{_named(function)}.{name}", "needs a type, which the model is told")
    return found


def _field(parameter: inspect.Parameter, description: str) -> object:
    default = attrs.NOTHING if parameter.default is parameter.empty else parameter.default
    metadata = {"description": description} if description else {}
    return attrs.field(default=default, type=parameter.annotation, alias=parameter.name, metadata=metadata)


def any_object(arguments: str) -> Result[Arguments, Problems]:
    """Read arguments of which only the handler knows more: any JSON object.

    >>> any_object('{"a": 1}').unwrap(), any_object("[1]").failure()
    ({'arguments': {'a': 1}}, ('$: expected an object, got a list',))
    """
    text = repair_surrogates(arguments).strip()
    read = decode_text(_ANY, "{}" if text in _NO_ARGUMENTS else text)
    return Success({"arguments": read.unwrap()}) if is_successful(read) else Failure(read.failure())


_ANY: Final = type_schema(dict[str, object]).unwrap()
