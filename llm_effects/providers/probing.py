"""How to see whether a server is ready: paths to ask, and readers of what comes back, as rows of data."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, final

import msgspec
from attrs import frozen

from llm_effects.providers.targets import Target
from llm_effects.wire import WireResponse


@final
@frozen(kw_only=True)
class Reading:
    """What a server said of itself: ``loaded`` models, whether the wanted one is ``ready``, its window in tokens."""

    ready: bool
    loaded: tuple[str, ...] = ()
    context_length: int | None = None
    message: str = ""


Reader: TypeAlias = Callable[[Any, str | None], Reading]
"""From decoded JSON and the wanted model to a reading; raises ``LookupError`` or ``TypeError`` on another shape."""


@final
@frozen
class Probe:
    """A path below the server's root, and who reads the answer."""

    path: str
    read: Reader


def read_lm_studio(body: Any, wanted: str | None) -> Reading:  # noqa: ANN401 - JSON from outside
    """Read ``GET /api/v1/models`` of LM Studio 0.4 and later: each model tells its loaded instances.

    >>> body = {"models": [{"key": "q", "loaded_instances": [{"id": "q", "config": {"context_length": 8192}}]}]}
    >>> read_lm_studio(body, None)
    Reading(ready=True, loaded=('q',), context_length=8192, message='')
    """
    instances = {model["key"]: model["loaded_instances"] for model in body["models"] if model["loaded_instances"]}
    chosen = instances.get(wanted) if wanted else next(iter(instances.values()), None)
    window = chosen[0].get("config", {}).get("context_length") if chosen else None
    return _reading(tuple(instances), wanted, window)


def read_lm_studio_v0(body: Any, wanted: str | None) -> Reading:  # noqa: ANN401 - JSON from outside
    """Read ``GET /api/v0/models`` of older LM Studios: each model tells its state."""
    loaded = {model["id"]: model for model in body["data"] if model["state"] == "loaded"}
    chosen = loaded.get(wanted) if wanted else next(iter(loaded.values()), None)
    window = (chosen.get("loaded_context_length") or chosen.get("max_context_length")) if chosen else None
    return _reading(tuple(loaded), wanted, window)


def read_ollama(body: Any, wanted: str | None) -> Reading:  # noqa: ANN401 - JSON from outside
    """Read ``GET /api/tags`` of Ollama: what is pulled is loaded on demand, so it is ready."""
    pulled = tuple(model["name"] for model in body["models"])
    return _reading(pulled, wanted if wanted is None or ":" in wanted else f"{wanted}:latest", None)


def read_llama_cpp(body: Any, wanted: str | None) -> Reading:  # noqa: ANN401, ARG001 - one model, whatever its name
    """Read ``GET /props`` of llama.cpp's server: one model, answering whatever name is asked."""
    window = body["default_generation_settings"]["n_ctx"]
    return Reading(
        ready=True, loaded=(str(body.get("model_alias") or body.get("model_path", "")),), context_length=window
    )


def read_models(body: Any, wanted: str | None) -> Reading:  # noqa: ANN401 - JSON from outside
    """Read ``GET /v1/models`` as OpenAI, Anthropic and their like speak it.

    >>> read_models({"data": [{"id": "a"}]}, "b").message
    "'b' is not there: the server has a"
    """
    return _reading(tuple(str(model["id"]) for model in body["data"]), wanted, None)


def _reading(there: tuple[str, ...], wanted: str | None, window: int | None) -> Reading:
    if not there:
        return Reading(ready=False, message="no model is loaded: load one in the server")
    if wanted is not None and wanted not in there:
        return Reading(
            ready=False, loaded=there, message=f"{wanted!r} is not there: the server has {', '.join(there[:8])}"
        )
    return Reading(ready=True, loaded=there, context_length=window)


_MODELS: Final = Probe("/v1/models", read_models)

PROBES: Final[Mapping[str, tuple[Probe, ...]]] = {
    "lm-studio": (Probe("/api/v1/models", read_lm_studio), Probe("/api/v0/models", read_lm_studio_v0), _MODELS),
    "llama-cpp": (Probe("/props", read_llama_cpp), _MODELS),
    "ollama": (Probe("/api/tags", read_ollama), _MODELS),
}
"""Probes by preset, the most telling first."""


def probes_of(target: Target) -> tuple[Probe, ...]:
    """Give the probes of a server, the most telling first."""
    return PROBES.get(target.preset.name, (_MODELS,))


def root_of(endpoint: str) -> str:
    """Give the server's root below which the probes lie.

    >>> root_of("http://localhost:1234/v1"), root_of("https://api.anthropic.com")
    ('http://localhost:1234', 'https://api.anthropic.com')
    """
    return endpoint.removesuffix("/v1")


def read(probe: Probe, response: WireResponse, wanted: str | None) -> Reading | None:
    """Read an answer, or ``None`` if it is not what this probe reads."""
    if response.status != 200:
        return None
    try:
        return probe.read(msgspec.json.decode(response.body), wanted)
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError):
        return None
