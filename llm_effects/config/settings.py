"""The values of a configuration in effect, one by one, with the origin of each: for people, never with a secret."""

import os
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeGuard, cast, final

import attrs
from attrs import field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.config.loading import Document, Variable, load_config, read_document
from llm_effects.config.models import entry_of
from llm_effects.values.errors import LLMError
from llm_effects.values.secrets import MASK, Secret, reveal, scrub, secrets_of_environment, shown_url
from llm_effects.values.validation import is_table, join_path

DEFAULT: Final = "default"
"""The origin of a value that nothing sets."""


@final
@frozen
class Setting:
    """A value in effect: its ``place``, such as ``cache.url``, the ``value`` without secrets, and its ``origin``.

    A value is a text, a number, a truth value, ``None`` or a list of them. The origin is ``default``, ``variable NAME``
    or the path of a file.
    """

    place: str
    value: object
    origin: str


def config_settings(
    source: Mapping[str, object] | str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> Result[tuple[Setting, ...], LLMError]:
    """Return every value of the configuration that ``load_config`` returns for the same arguments, and its origin.

    >>> settings = config_settings(environ={"OPENAI_API_KEY": "sk-x", "LLM_CACHE_URL": "sqlite:///answers.db"}).unwrap()
    >>> for each in settings:
    ...     if each.place in {"models.gpt.api_key", "cache.url", "cache.ttl_seconds"}:
    ...         print(each.place, each.value, each.origin)
    models.gpt.api_key *** variable OPENAI_API_KEY
    cache.ttl_seconds 3600 default
    cache.url sqlite:///answers.db variable LLM_CACHE_URL
    """
    variables = os.environ if environ is None else environ
    config = load_config(source, environ=variables)
    if not is_successful(config):
        return Failure(config.failure())
    document = read_document(source, variables)  # what was valid a moment ago
    walk = _Walk(secrets_of_environment(variables))
    return document.map(lambda read: tuple(walk.record(config.unwrap(), read.values, "", _origin_of(read))))


def _origin_of(document: Document) -> str:
    """Return the origin of a value in a document: those that the environment's own template sets are defaults."""
    if document.environment:
        return DEFAULT
    return str(document.file or "the given mapping")


@final
@frozen
class _Walk:
    """Goes through a configuration and through its document, place by place."""

    secrets: tuple[str, ...] = field(repr=False)

    def record(self, record: attrs.AttrsInstance, raw: object, at: str, origin: str) -> Iterator[Setting]:
        """Yield the settings of a record."""
        table = _table_of(raw)
        for name in (each.name for each in attrs.fields(type(record))):
            if name != "api_keys":  # which become one model each
                yield from self._value(getattr(record, name), table.get(name), join_path(at, name), origin)

    def _value(self, value: object, raw: object, at: str, origin: str) -> Iterator[Setting]:
        if _is_record(value):
            yield from self.record(value, raw, at, origin)
        elif is_table(value):
            yield from self._rows(value, raw, at, origin)
        elif at.endswith(".headers"):
            headers = dict(cast("tuple[tuple[str, object], ...]", value))
            yield from self._rows(headers, raw, at, origin)
        elif value and at.rpartition(".")[2] in _LISTS:
            rows = zip(cast("tuple[attrs.AttrsInstance, ...]", value), cast("list[object]", raw), strict=True)
            for number, (record, row) in enumerate(rows):
                yield from self.record(record, row, join_path(at, number), origin)
        else:
            yield Setting(at, self._plain(value), _origin(raw, origin))

    def _rows(self, table: Mapping[Any, object], raw: object, at: str, origin: str) -> Iterator[Setting]:
        rows = _table_of(raw)
        for name, value in table.items():
            row = _row_of_model(rows, name) if at == "models" else rows.get(name)
            yield from self._value(value, row, join_path(at, name), origin)

    def _plain(self, value: object) -> object:
        """Return a value as JSON has it, without what is secret."""
        if isinstance(value, Secret):
            return shown_url(value) if "://" in reveal(value) else MASK
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, tuple):
            return [self._plain(each) for each in cast("tuple[object, ...]", value)]
        return scrub(shown_url(f"{value}"), *self.secrets)


_LISTS: Final = ("budgets", "tiers", "changes")
"""The lists of records, by the last name of their places."""


def _is_record(value: object) -> TypeGuard[attrs.AttrsInstance]:
    return attrs.has(type(value))


def _table_of(raw: object) -> Mapping[object, object]:
    return raw if is_table(raw) else {}


def _origin(raw: object, origin: str) -> str:
    """Return the origin of a value by what stands at its place in the document."""
    if raw is None:
        return DEFAULT
    if raw is _INSTALLED:
        return "installed model package"
    if isinstance(raw, Variable):
        return f"variable {raw.name}"
    name = raw.removeprefix("env:").strip() if isinstance(raw, str) and raw.startswith("env:") else ""
    return f"variable {name}, named in {origin}" if name.isidentifier() else origin


_INSTALLED: Final = object()
"""Stands for a value of the model package, in place of its text in a document."""


def _row_of_model(rows: Mapping[object, object], name: str) -> object:
    """Return the table of a model: its own, that of a model with several keys, or one of the installed model."""
    entry = entry_of(name)
    row = _table_of(rows.get(entry))
    if not row:
        return dict.fromkeys(("provider", "model_path", "last_resort"), _INSTALLED)
    if entry == name:
        return row
    keys = cast("list[object]", row.get("api_keys"))
    return {**row, "api_key": keys[int(name.rpartition("#")[2]) - 1]}
