"""What a docstring says of its function, and of each parameter: in Google's form or in Sphinx's."""

import re
import textwrap
from collections.abc import Mapping
from inspect import cleandoc
from itertools import takewhile
from typing import Final, final

from attrs import frozen


@final
@frozen
class Told:
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


def told_in(written: str | None) -> Told:
    r"""Read a docstring.

    >>> told = told_in("Give the load.\n\nArgs:\n    host: a name\n        of a machine\n    minutes (int): how long\n")
    >>> told.summary, dict(told.parameters)
    ('Give the load.', {'host': 'a name of a machine', 'minutes': 'how long'})
    >>> dict(told_in("Give it.\n\n:param str host: a name\n:returns: it").parameters)
    {'host': 'a name'}
    """
    text = cleandoc(written or "")
    end = _END.search(text)
    return Told(text[: end.start() if end else None].strip(), _of_fields(text) | _of_section(text))


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
