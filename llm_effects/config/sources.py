"""Read a configuration from environment variables, a mapping or a TOML file: all problems at once.

The fields, their types and their rules are those of ``llm_effects.config``: a field that is added there is read
here, and every line of an error names the place and the remedy, never a secret.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from attrs import evolve
from returns.result import Failure, Result

from llm_effects.config import LLMConfig
from llm_effects.config.readers import Place, Problems, record
from llm_effects.config.variables import SHAPE, embedded_model, filled, switched_on
from llm_effects.errors import Cause, ConfigurationError, LLMError
from llm_effects.exceptions import cause_of
from llm_effects.secrets import scrub


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
