"""JSON Schemas of strangers: whether one may be shown to a provider, and whether a value fits it, in bounded time.

A schema is a program that its author lets others run: a regular expression or a few nested choices can take for ever.
Here patterns are never run, and every step of a check is counted. A value that takes too many steps counts as fitting,
since nothing is known against it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from importlib import import_module
from itertools import islice
from typing import Any, Final, TypeAlias, final

from attrs import define, field, frozen
from returns.result import Failure, Result, Success

from llm_effects.values import caps
from llm_effects.values.json import as_list, as_object, dump, to_json_object
from llm_effects.values.secrets import mask_all
from llm_effects.values.validation import InvalidValue, is_list, is_table, join_path, printable

Schema: TypeAlias = Mapping[str, object]

SCHEMA_BYTES: Final = 64 * 2**10
"""Largest schema of a tool, in bytes of JSON."""

STEPS: Final = 20_000
"""Most steps of one check: about 0.2 s."""

_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_NEVER_RUN: Final = frozenset({"pattern", "patternProperties", "uniqueItems", "format", "$schema", "$id"})
_NAMES: Final = frozenset({"properties", "$defs", "definitions", "dependentSchemas"})
"""Keywords whose keys are names, not keywords."""

_COMPARED: Final = frozenset({"const", "enum"})


def plain(text: str, masks: tuple[str, ...] = ()) -> str:
    r"""Return a text of several lines from outside, each without what steers a terminal or a reader's eye.

    >>> plain("one\r\n\ttwo\x1b[31m\u202e")
    'one\n\ttwo [31m'
    """
    pieces = re.split(r"([\n\t])", text.replace("\r\n", "\n"))
    return mask_all("".join(each if each in "\n\t" else printable(each) for each in pieces), masks)


def shortened(text: str, length: int) -> str:
    """Return a text of at most so many characters; the last ones of a longer text become an ellipsis.

    >>> shortened("a long text", 7)
    'a long…'
    """
    return text if len(text) <= length else f"{text[: length - 1]}…"


def accepted_schema(schema: object, masks: tuple[str, ...] = ()) -> Result[dict[str, object], str]:
    """Return a copy of a tool's schema with its texts made plain, or why no provider should see it.

    >>> accepted_schema({"type": "object", "properties": {"a": {"$ref": "http://elsewhere/a"}}}).failure()
    "'http://elsewhere/a' is not in the schema"
    """
    try:
        copy = to_json_object("schema", as_object(schema))
    except InvalidValue as wrong:
        return Failure(shortened(printable(str(wrong)), caps.MESSAGE_CHARACTERS))
    if len(dump(copy)) > SCHEMA_BYTES:
        return Failure(f"its schema is larger than {SCHEMA_BYTES} bytes")
    if copy.get("type") != "object":
        return Failure("its schema is not that of an object")
    problem = _wrong_reference(copy) or _not_a_schema(copy)
    return Success(as_object(_plain_texts(copy, masks))) if problem is None else Failure(problem)


def _plain_texts(value: object, masks: tuple[str, ...]) -> object:
    if isinstance(value, str):
        return plain(value, masks)
    if is_table(value):
        return {plain(str(key), masks): _plain_texts(each, masks) for key, each in value.items()}
    return [_plain_texts(each, masks) for each in value] if is_list(value) else value


def _wrong_reference(schema: dict[str, object]) -> str | None:
    """Return the first reference that leads out of the schema, or nowhere: nothing is ever fetched."""
    texts = (text for name, text in _entries(schema) if name in {"$ref", "$dynamicRef"} and isinstance(text, str))
    wrong = next((text for text in texts if not _resolves(schema, text)), None)
    return None if wrong is None else f"{shortened(printable(wrong), caps.NAME_CHARACTERS)!r} is not in the schema"


def _entries(value: object) -> Iterator[tuple[str, object]]:
    for name, each in as_object(value).items():
        yield name, each
        yield from _entries(each)
    for each in as_list(value):
        yield from _entries(each)


def _resolves(schema: dict[str, object], reference: str) -> bool:
    where: object = schema
    start, *steps = reference.split("/")
    for step in steps:
        name = step.replace("~1", "/").replace("~0", "~")
        items = as_list(where)
        where = items[int(name)] if name.isdecimal() and int(name) < len(items) else as_object(where).get(name)
    return start == "#" and isinstance(where, dict | bool)


def _not_a_schema(schema: dict[str, object]) -> str | None:
    from jsonschema import Draft202012Validator, SchemaError

    try:
        Draft202012Validator.check_schema(_without_patterns(schema))
    except SchemaError as problem:
        return f"its schema is not valid: {_message(problem.message)}"
    return None


def _without_patterns(schema: object) -> dict[str, object]:
    """Return a schema without the keywords that cost too much to check."""
    return as_object(_cleaned(schema, names=False))


def _cleaned(value: object, *, names: bool) -> object:
    if is_table(value):
        return {
            name: each if not names and name in _COMPARED else _cleaned(each, names=not names and name in _NAMES)
            for name, each in value.items()
            if names or name not in _NEVER_RUN
        }
    return [_cleaned(each, names=False) for each in value] if is_list(value) else value


# The check of a value.


class _TooLong(Exception):  # noqa: N818 - the end of a count, caught below
    """A check has taken all its steps."""


@final
@define(eq=False)
class _Count:
    left: int = STEPS
    sizes: dict[int, int] = field(factory=dict[int, int])

    def spend(self, keyword: str, value: object, instance: object) -> None:
        """Count a keyword by how much it compares; raise ``_TooLong`` at the end."""
        size = self._size(value) if keyword in _COMPARED else _length(value)
        self.left -= 1 + size + _length(instance)
        if self.left < 0:
            raise _TooLong

    def _size(self, value: object) -> int:
        if id(value) not in self.sizes:
            self.sizes[id(value)] = len(dump(value))
        return self.sizes[id(value)]


def _length(value: object) -> int:
    return len(value) if is_table(value) or is_list(value) else 0


@final
@frozen
class SchemaCheck:
    """The check of values against a schema.

    >>> check = SchemaCheck({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    >>> check.problems({"a": 1}), check.problems({"a": "x"})
    ((), ("$.a: 'x' is not of type 'integer'",))
    """

    schema: Schema = field(repr=False)

    def problems(self, value: object) -> tuple[str, ...]:
        """Return what is wrong with a value, at most 20 sentences with their paths."""
        from referencing.exceptions import Unresolvable

        try:
            return tuple(islice(_problems(self.schema, value), 20))
        except (_TooLong, Unresolvable, RecursionError):
            return ()


def _problems(schema: Schema, value: object) -> Iterator[str]:
    jsonschema: Any = import_module("jsonschema")  # its types are not complete
    draft, count = jsonschema.Draft202012Validator, _Count()
    keywords = {name: _counted(name, check, count) for name, check in draft.VALIDATORS.items()}
    counting = jsonschema.validators.extend(draft, keywords)
    nothing_fetched = import_module("referencing").Registry()
    for error in counting(_without_patterns(schema), registry=nothing_fetched).iter_errors(value):
        path = reduce(join_path, error.absolute_path, "$")
        yield f"{shortened(printable(path), caps.NAME_CHARACTERS)}: {_message(error.message)}"


def _message(text: str) -> str:
    return shortened(printable(text), caps.NAME_CHARACTERS)


_Keyword: TypeAlias = Callable[[Any, Any, Any, Any], Any]
"""A keyword of ``jsonschema``, which has no types for these."""


def _counted(name: str, check: _Keyword, count: _Count) -> _Keyword:
    def counted(validator: object, value: object, instance: object, schema: object) -> object:
        count.spend(name, value, instance)
        return check(validator, value, instance, schema)

    return counted
