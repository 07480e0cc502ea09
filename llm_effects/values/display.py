"""Values for the eye: a repr of what is set, and Markdown for notebooks."""

import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum
from typing import Any, Final, cast

import attrs

from llm_effects.values.validation import is_a, printable

LONGEST_TEXT: Final = 200
"""Characters of a text in a repr."""

MOST_ITEMS: Final = 6
"""Items of a tuple, a table or a set in a repr."""


_FACTORY: Final[type] = cast("type", attrs.Factory)


def shown(self: object) -> str:
    """Return the repr of an attrs value: only the fields that differ from their defaults, long ones cut.

    As ``__repr__ = shown`` in a class, it also spares attrs writing one: 18 ms of the first call of a process.

    >>> from llm_effects import LLMRequest, Preferences
    >>> LLMRequest(prompt="why?", preferences=Preferences(temperature=0.2))
    LLMRequest(prompt='why?', preferences=Preferences(temperature=0.2))
    """
    fields: tuple[attrs.Attribute[object], ...] = attrs.fields(type(cast("attrs.AttrsInstance", self)))
    given = (each for each in fields if each.repr and each.init and _is_set(each, getattr(self, each.name)))
    return f"{type(self).__qualname__}({', '.join(_argument(each, getattr(self, each.name)) for each in given)})"


def _is_set(field: "attrs.Attribute[object]", value: object) -> bool:
    default: Any = field.default
    if default is attrs.NOTHING:
        return True
    made: object = default.factory() if is_a(default, _FACTORY) else default
    return value != made


def _argument(field: "attrs.Attribute[object]", value: object) -> str:
    own = field.repr
    return f"{field.alias}={own(value) if callable(own) else _short(value)}"


def _short(value: object) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, float):
        return repr(float(f"{value:.6g}"))
    if type(value) is str and len(value) > LONGEST_TEXT:
        return repr(f"{value[: LONGEST_TEXT - 1]}…")
    if isinstance(value, tuple):
        items = cast("tuple[object, ...]", value)
        return f"({_items(map(_short, items), len(items))}{',' if len(items) == 1 else ''})"
    if isinstance(value, Mapping):
        table = cast("Mapping[object, object]", value)
        return f"{{{_items((f'{key!r}: {_short(table[key])}' for key in table), len(table))}}}"
    if isinstance(value, AbstractSet):
        members = cast("AbstractSet[object]", value)
        return f"frozenset({{{_items(sorted(map(_short, members)), len(members))}}})"
    return repr(value)


def _items(texts: Iterable[str], count: int) -> str:
    first = [text for text, _ in zip(texts, range(MOST_ITEMS), strict=False)]
    return ", ".join([*first, f"... {count - MOST_ITEMS} more"] if count > MOST_ITEMS else first)


def names(items: Iterable[object]) -> str:
    """Return the repr of a field whose items have names: what a reader looks for first.

    >>> from llm_effects import Attempt
    >>> names((Attempt(model="gpt", provider="openai", outcome="TimeoutError", latency_ms=12.0),))
    '<gpt: TimeoutError>'
    """
    return f"<{', '.join(map(_name, items))}>"


def _name(item: object) -> str:
    known = (getattr(item, each, None) for each in ("model", "outcome", "reason"))
    return ": ".join(str(each) for each in known if each)


def count(items: Sequence[object]) -> str:
    """Return the repr of a long field: how many items it has."""
    return f"<{len(items)}>"


# Markdown, as notebooks show it.

_ENTITIES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escaped(text: object) -> str:
    r"""Return a text so that Markdown shows it as it is: no markup, no HTML, no links, no formulas.

    >>> escaped("**see** <img src=x>")
    '\\*\\*see\\*\\* &lt;img src\\=x&gt;'
    """
    return re.sub(r"[!-/:-@\[-`{-~]", lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), printable(str(text)))


def paragraphs(text: str) -> str:
    """Return a text of several lines, escaped, with its line breaks."""
    return "  \n".join(map(escaped, text.splitlines()))


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    r"""Return a Markdown table of escaped cells; ``None`` is an empty one.

    >>> print(table(("model", "ms"), [("gpt|4", 12.5), ("b", None)]))
    | model | ms |
    | --- | --- |
    | gpt\|4 | 12\.5 |
    | b |  |
    """
    lines = [[escaped("" if cell is None else cell) for cell in row] for row in (names, *rows)]
    ruled = (lines[0], ["---"] * len(names), *lines[1:])
    return "\n".join(f"| {' | '.join(line)} |" for line in ruled)


def milliseconds(value: float | None) -> str | None:
    """Return a duration for people, or ``None``.

    >>> milliseconds(12.345), milliseconds(1234.5), milliseconds(0.2)
    ('12 ms', '1234 ms', '0.2 ms')
    """
    return None if value is None else f"{value:.{0 if value >= 10 else 1}f} ms"
