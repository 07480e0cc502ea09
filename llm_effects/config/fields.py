"""How the fields of the configuration are taken, and their own rules."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import attrs

from llm_effects.values.secrets import Secret, to_headers
from llm_effects.values.validation import inside, invalid, shown, suggestion, to_table, to_tuple


def dollars(given: Decimal | str | float) -> Decimal:
    """Take an amount as it is written: 0.1 is a tenth, not the nearest binary fraction."""
    try:
        return Decimal(str(given))
    except (InvalidOperation, ValueError):  # no number, or one of thousands of digits
        return Decimal("nan")  # for ``amount`` to refuse, which knows the field's name


def amount(_: object, attribute: "attrs.Attribute[Any]", given: Decimal | None) -> None:
    """Refuse what is no amount of money."""
    if given is not None and not (given.is_finite() and 0 <= given < 2**63):
        invalid(attribute.name, f"must be an amount of US dollars such as 0.15, 0 or more, not {given:.6g}")


def day(given: date | str) -> date:
    """Take a day as it is, or as ISO 8601 writes it."""
    try:
        return date.fromisoformat(given) if isinstance(given, str) else given
    except ValueError:
        return date.min  # for ``is_day`` to refuse, which knows the field's name


def is_day(_: object, attribute: "attrs.Attribute[Any]", given: object) -> None:
    """Refuse what is no day, and a day with a time, of which nobody knows whose midnight is meant."""
    if not isinstance(given, date) or isinstance(given, datetime) or given == date.min:
        invalid(attribute.name, "must be a day such as 2026-12-01")


def hidden(given: Mapping[str, str | Secret] | tuple[tuple[str, Secret], ...]) -> tuple[tuple[str, Secret], ...]:
    """Take headers as a table or as pairs, and hide their values."""
    return to_headers(given if isinstance(given, tuple) else to_table("headers", given))


def pairs(_: object, attribute: "attrs.Attribute[Any]", given: tuple[object, ...]) -> None:
    """Refuse what is no pair of a name and a value."""
    for index, pair in enumerate(given):
        match pair:
            case (str(), object()):
                continue
            case object():
                invalid(inside(attribute.name, index), "must be a pair of a name and a value")


def to_order(given: Iterable[str]) -> tuple[str, ...]:
    """Freeze the order that follows a task's own."""
    return to_tuple("fallback_order", given)


def to_tasks(given: Mapping[str, Iterable[str]]) -> Mapping[str, tuple[str, ...]]:
    """Freeze the order of each task."""
    return {task: to_tuple(inside("tasks", task), names) for task, names in to_table("tasks", given).items()}


def orders(_: object, attribute: "attrs.Attribute[Any]", tasks: Mapping[str, tuple[object, ...]]) -> None:
    """Refuse a task's order that holds anything but names."""
    for task, names in tasks.items():
        for index, name in enumerate(names):
            if not isinstance(name, str):
                invalid(inside(inside(attribute.name, task), index), f"must be str, not {type(name).__name__}")


def named(_: object, attribute: "attrs.Attribute[Any]", models: Mapping[str, object]) -> None:
    """Refuse a model without a name."""
    if not all(name.strip() for name in models):
        invalid(attribute.name, "each model needs a name that is not blank")


def strangers(path: str, names: Iterable[str], known: tuple[str, ...]) -> Iterator[str]:
    """Tell each name of the order at ``path`` that no model answers to.

    >>> list(strangers("routing.fallback_order", ("gpt", "cluade"), ("gpt", "claude")))
    ["routing.fallback_order[1]: 'cluade' is no configured model and no family: did you mean claude?"]
    """
    for index, name in enumerate(names):
        if name not in known:
            remedy = suggestion(name, known, "the names")
            yield f"{inside(path, index)}: {shown(name)} is no configured model and no family: {remedy}"
