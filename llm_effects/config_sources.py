"""Read a configuration from environment variables, a mapping or a TOML file: all problems at once.

The fields, their types and their rules are those of ``llm_effects.config``: a field that is added there is read
here, and every line of an error names the place and the remedy, never a secret.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Never, TypeAlias, TypeGuard, TypeVar, final, get_args, get_origin

import attrs
from attrs import evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig, dollars
from llm_effects.config_env import SHAPE, Variable, embedded_model, filled, parsed, secret, switched_on
from llm_effects.errors import Cause, ConfigurationError, LLMError, cause_of
from llm_effects.values import InvalidValue, Secret, scrub

_Value = TypeVar("_Value")
_Record = TypeVar("_Record", bound=attrs.AttrsInstance)

Problems: TypeAlias = tuple[str, ...]
"""One line for each thing that is wrong."""

_Read: TypeAlias = Result[object, Problems]
_Pair: TypeAlias = Result[tuple[str, object], Problems]


def load_config(
    source: Mapping[str, object] | str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> Result[LLMConfig, LLMError]:
    """Read a configuration: without a ``source`` from the environment, else from a mapping or a TOML file.

    ``environ`` stands in for ``os.environ``; it also answers to keys given as ``"env:NAME"``. The failure is one
    ``ConfigurationError`` whose message lists every problem with its place and remedy, one a line. A relative
    ``model_path`` in a TOML file starts from the folder of that file.

    >>> load_config({"models": {"mini": {"provider": "openai-chat", "api_key": "env:KEY"}}}, environ={"KEY": "sk-x"})
    ... # doctest: +ELLIPSIS
    <Success: LLMConfig(models={'mini': ModelConfig(provider='openai-chat', ... api_key=Secret('***'), ...
    >>> print(load_config({"models": {"mini": {"provider": "ollama", "max_token": 5}}}).failure().message)
    The configuration has 1 problem:
    models.mini.max_token: unknown key: did you mean max_tokens?
    """
    variables = os.environ if environ is None else environ
    if source is None:
        config = _config(filled(SHAPE, variables), "The environment", variables)
        return config.map(lambda read: switched_on(read, embedded_model()))
    if isinstance(source, Mapping):
        return _config(source, "The configuration", variables)
    return _from_file(_at_home(source), variables)


def _from_file(path: Path, environ: Mapping[str, str]) -> Result[LLMConfig, LLMError]:
    try:
        given = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as problem:
        return _unusable(path, f"cannot be read ({problem.strerror}): give the path of a TOML file", problem)
    except ValueError as problem:  # bytes that are not UTF-8, a syntax error, a number of thousands of digits
        return _unusable(path, f"is not valid TOML: {problem}", problem)
    return _config(given, str(path), environ, path.absolute().parent)


def _unusable(path: Path, remedy: str, problem: Exception) -> Result[LLMConfig, LLMError]:
    return Failure(_refused(str(path), (f"{path}: {remedy}",), cause_of(problem)))


def _config(
    given: Mapping[str, object], where: str, environ: Mapping[str, str], folder: Path = Path()
) -> Result[LLMConfig, LLMError]:
    read = _record(LLMConfig, given, _Place("", environ))
    return read.map(lambda config: _located(config, folder)).alt(lambda problems: _refused(where, problems))


def _refused(where: str, problems: Problems, cause: Cause | None = None) -> ConfigurationError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigurationError(message=scrub("\n".join((f"{where} has {count}:", *problems))), cause=cause)


def _located(config: LLMConfig, folder: Path) -> LLMConfig:
    models = {
        name: evolve(model, model_path=str(folder / _at_home(model.model_path))) if model.model_path else model
        for name, model in config.models.items()
    }
    return evolve(config, models=models)


def _at_home(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # nobody of that name lives here: whoever opens the file will say so
        return Path(path)


@final
@frozen
class _Place:
    """Where in the configuration we are, and the variables that a key may name."""

    path: str
    environ: Mapping[str, str] = field(repr=False)

    def below(self, key: object) -> "_Place":
        return evolve(self, path=f"{self.path}.{_shown(key)}" if self.path else _shown(key))

    def item(self, index: int) -> "_Place":
        return evolve(self, path=f"{self.path}[{index}]")

    def problem(self, remedy: str) -> Problems:
        return (f"{self.path}: {remedy}",)

    def refuse(self, remedy: str) -> Result[Never, Problems]:
        return Failure(self.problem(remedy))

    def expected(self, wanted: str, given: object) -> Result[Never, Problems]:
        return self.refuse(f"must be {wanted}, not {type(given).__name__}")


def _shown(key: object) -> str:
    name = str(key)
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else json.dumps(name)  # as TOML itself would quote it


def _gather(results: Iterable[Result[_Value, Problems]]) -> Result[tuple[_Value, ...], Problems]:
    done = tuple(results)
    problems = tuple(line for each in done if not is_successful(each) for line in each.failure())
    return Failure(problems) if problems else Success(tuple(each.unwrap() for each in done))


def _read(kind: object, given: object, at: _Place) -> _Read:
    options: tuple[object, ...] = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if given is None and NoneType in options:
        return Success(None)
    wanted = options[0]
    if isinstance(wanted, type) and attrs.has(wanted):
        return _record(wanted, given, at)
    return _READERS.get(get_origin(wanted), _leaf)(wanted, given, at)


def _record(kind: type[_Record], given: object, at: _Place) -> Result[_Record, Problems]:
    """Read a table into an attrs class, whose fields are its keys."""
    if not _is_table(given):
        return at.expected("a table", given)
    fields = attrs.fields_dict(kind)
    required = (name for name, each in fields.items() if each.default is attrs.NOTHING)
    entries = (_entry(fields, key, value, at) for key, value in given.items())
    missing = (at.below(name).refuse("is missing: give it a value") for name in required if name not in given)
    return _gather((*entries, *missing)).map(lambda pairs: kind(**dict(pairs)))


def _entry(fields: "Mapping[str, attrs.Attribute[Any]]", key: object, given: object, at: _Place) -> _Pair:
    name = str(key)
    if name not in fields:
        return at.below(key).refuse(f"unknown key: {_suggestion(name, fields)}")
    here = evolve(at, path=given.name) if isinstance(given, Variable) else at.below(key)
    return _valid(fields[name], _read(fields[name].type, given, here), here).map(lambda value: (name, value))


def _suggestion(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, tuple(known), n=1)
    return f"did you mean {near[0]}?" if near else f"the keys here are {', '.join(known)}"


def _valid(attribute: "attrs.Attribute[Any]", read: _Read, at: _Place) -> _Read:
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


def _table(kind: object, given: object, at: _Place) -> Result[Mapping[str, object], Problems]:
    """Read a table of names that are the user's own."""
    if not _is_table(given):
        return at.expected("a table", given)
    inner = get_args(kind)[1]
    return _gather(_pair(inner, key, value, at.below(key)) for key, value in given.items()).map(dict)


def _items(kind: object, given: object, at: _Place) -> _Read:
    """Read a list; pairs of a name and a value are written as a table."""
    inner = get_args(kind)[0]
    if get_origin(inner) is tuple:
        return _table(inner, given, at).map(lambda table: tuple(table.items()))
    if not _is_list(given):
        return at.expected("a list", given)
    return _gather(_read(inner, item, at.item(index)) for index, item in enumerate(given))


def _pair(kind: object, key: object, given: object, at: _Place) -> _Pair:
    if not isinstance(key, str):
        return at.expected("named by a text", key)
    return _read(kind, given, at).map(lambda value: (key, value))


def _leaf(kind: object, given: object, at: _Place) -> _Read:
    if isinstance(given, Variable):
        return parsed(kind, given).alt(at.problem)
    accepted, wanted, make = _LEAVES.get(kind, _LEAVES[str])
    if not isinstance(given, accepted) or (isinstance(given, bool) and kind is not bool):
        return at.expected(wanted, given)
    if isinstance(given, int) and given.bit_length() > 63:
        return at.refuse("must be a number of at most 64 bits")
    return make(given, at)


def _same(given: object, _: _Place) -> _Read:
    return Success(given)


def _secret(given: object, at: _Place) -> _Read:
    return secret(given, at.environ).alt(at.problem) if isinstance(given, str) else Success(given)


_READERS: Final[Mapping[object, Callable[[object, object, _Place], _Read]]] = {Mapping: _table, tuple: _items}

_LEAVES: Final[Mapping[object, tuple[tuple[type, ...], str, Callable[[object, _Place], _Read]]]] = {
    str: ((str,), "a text", _same),  # and Literals, whose choices are their field's own rule
    bool: ((bool,), "true or false", _same),
    int: ((int,), "a whole number", _same),
    float: ((int, float), "a number", _same),
    Decimal: (
        (int, float, str, Decimal),
        "an amount of US dollars such as 0.15",
        lambda given, _: Success(dollars(str(given))),
    ),
    Secret: ((str, Secret), 'a text, or "env:NAME" for an environment variable', _secret),
}
