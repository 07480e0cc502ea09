"""The signature of a typed function as a tool: what a model sees of it, and how the model's arguments are read."""

from __future__ import annotations

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
from returns.result import Result

from llm_effects.structured.decoding import Problems, decode_text
from llm_effects.structured.schema import TypeSchema, type_schema
from llm_effects.values.errors import describe
from llm_effects.values.json import repair_surrogates
from llm_effects.values.requests import Tool
from llm_effects.values.validation import invalid

Handler: TypeAlias = Callable[..., object]
"""A function behind a tool: plain, ``async``, or one that returns an ``Effect`` or a ``Result``."""

Arguments: TypeAlias = Mapping[str, object]
"""The arguments of a function, by the names of its parameters."""

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NO_ARGUMENTS: Final = ("", "null")
_NAMED: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_ANY_OBJECT: Final = type_schema(dict[str, object]).unwrap()


@final
@frozen
class Signature:
    """The signature of a function: the ``tool`` that a model sees, and the ``target`` of its arguments."""

    tool: Tool
    target: TypeSchema

    def read(self, arguments: str) -> Result[Arguments, Problems]:
        """Read the arguments of a call (JSON text), strictly, and list everything that is wrong with them."""
        return decode_text(self.target, _object_text(arguments)).map(_by_name)


def _by_name(instance: object) -> Arguments:
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(cast("Any", type(instance)))
    return {each.name: getattr(instance, each.name) for each in fields}


def signature_of(function: Handler, name: str | None = None, description: str | None = None) -> Signature:
    """Read a function's signature and docstring; one that no model can call is an ``InvalidValue`` with the remedy.

    >>> def load(host: str, minutes: int = 5) -> float:
    ...     '''Return the load of a machine.'''
    ...     return 0.5
    >>> signature = signature_of(load)
    >>> signature.tool.description, signature.tool.parameters["properties"]["minutes"]
    ('Return the load of a machine.', {'type': 'integer', 'default': 5})
    >>> signature.read('{"host": "db-1"}').unwrap(), signature.read('{"hosts": 3}').failure()[0]
    ({'host': 'db-1', 'minutes': 5}, '$.host: is missing')
    """
    documentation = documentation_of(_documented(function).__doc__)
    target = type_schema(_arguments_class(function, documentation))
    if not is_successful(target):
        invalid(_name_of(function), describe(target.failure()))
    chosen = checked_name(name or _name_of(function))
    summary = documentation.summary if description is None else description
    return Signature(Tool(chosen, summary, target.unwrap().schema), target.unwrap())


def checked_name(name: str) -> str:
    """Return a name if every provider accepts it for a tool, else raise ``InvalidValue``."""
    if not _NAME.fullmatch(name):
        invalid("name", f"must be at most 64 letters, digits, _ and - (ASCII), not {name!r}: set one with name=")
    return name


def _documented(function: Handler) -> Handler:
    """Return the function that has the docstring of a partial or a callable object."""
    if isinstance(function, partial):
        return cast("Handler", function.func)
    is_plain = inspect.isroutine(function) or inspect.isclass(function)
    return function if is_plain else cast("Handler", type(function).__call__)


def _name_of(function: Handler) -> str:
    inner = function.func if isinstance(function, partial) else function
    return str(getattr(inner, "__name__", type(inner).__name__))


def _arguments_class(function: Handler, documentation: Documentation) -> type:
    """Return a class whose fields are the parameters, so that arguments are read like every other typed answer."""
    parameters = _parameters(function)
    fields = {name: _field(each, documentation.parameters.get(name, "")) for name, each in parameters.items()}
    return attrs.make_class("Arguments", fields, kw_only=True, eq=False, repr=False)


def _parameters(function: Handler) -> Mapping[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except (NameError, AttributeError, SyntaxError, TypeError, ValueError) as problem:
        invalid(_name_of(function), f"its signature cannot be read: {problem}")
    for name, each in parameters.items():
        path = f"{_name_of(function)}.{name}"
        if name == "self":
            invalid(path, "it is a method: make the tool of a bound one, as in tool(desk.find)")
        if each.kind not in _NAMED:
            invalid(path, "a model passes arguments by name: make it a plain parameter")
        if each.annotation is each.empty:
            invalid(path, "needs a type, which the model sees")
    return parameters


def _field(parameter: inspect.Parameter, description: str) -> object:
    default = attrs.NOTHING if parameter.default is parameter.empty else parameter.default
    metadata = {"description": description} if description else {}
    return attrs.field(default=default, type=parameter.annotation, alias=parameter.name, metadata=metadata)


def read_any_object(arguments: str) -> Result[Arguments, Problems]:
    """Read any JSON object, for a handler that checks its arguments itself.

    >>> read_any_object('{"a": 1}').unwrap(), read_any_object("[1]").failure()
    ({'arguments': {'a': 1}}, ('$: expected an object, got a list',))
    """
    return decode_text(_ANY_OBJECT, _object_text(arguments)).map(_as_one_argument)


def _as_one_argument(value: object) -> Arguments:
    return {"arguments": value}


def _object_text(arguments: str) -> str:
    text = repair_surrogates(arguments).strip()
    return "{}" if text in _NO_ARGUMENTS else text


# What a docstring says about its function and each parameter, in Google's form or in Sphinx's.


@final
@frozen
class Documentation:
    """The summary of a docstring, and its descriptions of parameters."""

    summary: str
    parameters: Mapping[str, str]


_ARGS: Final = re.compile(r"^(?:args|arguments|parameters):[ \t]*\n", re.IGNORECASE | re.MULTILINE)
_END: Final = re.compile(
    r"^(?:(?:args|arguments|parameters|returns?|raises|yields?|examples?|notes?):[ \t]*$|:\w+|>>> )",
    re.IGNORECASE | re.MULTILINE,
)
_ENTRY: Final = re.compile(r"^\*{0,2}(\w+)(?:[ \t]*\(.*?\))?:[ \t]*", re.MULTILINE)
_FIELD: Final = re.compile(r"^:(?:param|arg)[ \t]+(?:[^:\n]*[ \t])?\*{0,2}(\w+):[ \t]*", re.MULTILINE)


def documentation_of(docstring: str | None) -> Documentation:
    r"""Parse a docstring.

    >>> google = documentation_of("Do it.\n\nArgs:\n    host: a name\n        of a machine\n    days (int): how many\n")
    >>> google.summary, dict(google.parameters)
    ('Do it.', {'host': 'a name of a machine', 'days': 'how many'})
    >>> dict(documentation_of("Return it.\n\n:param str host: a name\n:returns: it").parameters)
    {'host': 'a name'}
    """
    text = cleandoc(docstring or "")
    end = _END.search(text)
    return Documentation(text[: end.start() if end else None].strip(), _sphinx_fields(text) | _google_section(text))


def _sphinx_fields(text: str) -> dict[str, str]:
    pieces = _FIELD.split(text)
    descriptions = (re.split(r"\n(?=:|\n)", piece)[0] for piece in pieces[2::2])
    return dict(zip(pieces[1::2], map(_one_line, descriptions), strict=True))


def _google_section(text: str) -> dict[str, str]:
    heading = _ARGS.search(text)
    if heading is None:
        return {}
    section = takewhile(_is_indented, text[heading.end() :].splitlines())
    pieces = _ENTRY.split(textwrap.dedent("\n".join(section)))
    return dict(zip(pieces[1::2], map(_one_line, pieces[2::2]), strict=True))


def _is_indented(line: str) -> bool:
    return not line.strip() or line[0].isspace()


def _one_line(text: str) -> str:
    return " ".join(text.split())
