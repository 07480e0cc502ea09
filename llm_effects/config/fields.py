"""Converters and validators of the configuration's fields."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import attrs

from llm_effects.values.secrets import Secret
from llm_effects.values.validation import invalid, join_path, short_repr, suggestion, to_table, to_tuple


def to_dollars(value: Decimal | str | float) -> Decimal:
    """Return an amount as it is written: 0.1 is a tenth, not the nearest binary fraction."""
    try:
        return Decimal(str(value))
    except (InvalidOperation, ValueError):  # not a number, or one of thousands of digits
        return Decimal("nan")  # ``valid_amount`` rejects it, with the name of the field


def to_optional_dollars(value: Decimal | str | float | None) -> Decimal | None:
    """Return an amount as it is written, or ``None``."""
    return None if value is None else to_dollars(value)


def valid_amount(_: object, attribute: "attrs.Attribute[Any]", value: Decimal | None) -> None:
    """Reject what is not an amount of money."""
    if value is not None and not (value.is_finite() and 0 <= value < 2**63):
        invalid(attribute.name, f"must be an amount of US dollars such as 0.15, 0 or more, not {value:.6g}")


def to_date(value: date | str) -> date:
    """Return a date, parsed if it is an ISO 8601 text."""
    try:
        return date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        return date.min  # ``valid_date`` rejects it, with the name of the field


def valid_date(_: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    """Reject what is not a date; a ``datetime`` is ambiguous, because its midnight depends on a time zone."""
    if not isinstance(value, date) or isinstance(value, datetime) or value == date.min:
        invalid(attribute.name, "must be a day such as 2026-12-01")


def to_headers(value: Mapping[str, str | Secret] | tuple[tuple[str, Secret], ...]) -> tuple[tuple[str, Secret], ...]:
    """Return headers as pairs and hide their values, any of which may be a key."""
    if isinstance(value, tuple):
        return value
    headers = to_table("headers", value)
    return tuple((name, Secret(text) if isinstance(text, str) else text) for name, text in headers.items())


def valid_pairs(_: object, attribute: "attrs.Attribute[Any]", value: tuple[object, ...]) -> None:
    """Reject an item that is not a pair of a name and a value."""
    for index, pair in enumerate(value):
        match pair:
            case (str(), object()):
                continue
            case object():
                invalid(join_path(attribute.name, index), "must be a pair of a name and a value")


def to_fallback_order(value: Iterable[str]) -> tuple[str, ...]:
    """Freeze the order that follows a task's own."""
    return to_tuple("fallback_order", value)


def to_tasks(value: Mapping[str, Iterable[str]]) -> Mapping[str, tuple[str, ...]]:
    """Freeze the order of each task."""
    return {task: to_tuple(join_path("tasks", task), names) for task, names in to_table("tasks", value).items()}


def valid_orders(_: object, attribute: "attrs.Attribute[Any]", tasks: Mapping[str, tuple[object, ...]]) -> None:
    """Reject a task's order that holds anything but names."""
    for task, names in tasks.items():
        for index, name in enumerate(names):
            if not isinstance(name, str):
                invalid(join_path(join_path(attribute.name, task), index), f"must be str, not {type(name).__name__}")


def valid_names(_: object, attribute: "attrs.Attribute[Any]", models: Mapping[str, object]) -> None:
    """Reject a model without a name."""
    if not all(name.strip() for name in models):
        invalid(attribute.name, "each model needs a name that is not blank")


def unknown_names(path: str, names: Iterable[str], known: tuple[str, ...]) -> Iterator[str]:
    """Yield a problem for each name of the order at ``path`` that matches no model and no family.

    >>> list(unknown_names("routing.fallback_order", ("gpt", "cluade"), ("gpt", "claude")))
    ["routing.fallback_order[1]: 'cluade' is not a configured model or a family: did you mean claude?"]
    """
    for index, name in enumerate(names):
        if name not in known:
            remedy = suggestion(name, known, "the names")
            yield f"{join_path(path, index)}: {short_repr(name)} is not a configured model or a family: {remedy}"
