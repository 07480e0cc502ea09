"""Probes of whether a server is ready: paths and readers of their answers, as rows of data."""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias, final
from urllib.parse import quote

from attrs import evolve, field, frozen

from llm_effects.providers.target import Target
from llm_effects.providers.wire import WireResponse
from llm_effects.values.json import as_count, as_list, as_object, as_string, parse


@final
@frozen(kw_only=True)
class Readiness:
    """The state of a server: its ``loaded`` models, whether the expected one is ``ready``, its window in tokens.

    ``known`` is whether the server says what is ready: some list models without their state, or not all their names.
    """

    ready: bool
    loaded: tuple[str, ...] = ()
    context_length: int | None = None
    message: str = ""
    known: bool = field(default=True, repr=False)


Reader: TypeAlias = Callable[[object, str | None], Readiness | None]
"""A function from decoded JSON and the expected model to the readiness, or to ``None`` for other JSON."""


@final
@frozen
class Probe:
    """A path below the server's root, and the reader of its answer."""

    path: str
    read: Reader


@final
@frozen
class _Model:
    """An available model: its name, another name that it answers to, its window in tokens."""

    name: str
    alias: str = ""
    window: int | None = None


def read_lm_studio(body: object, expected: str | None) -> Readiness | None:
    """Read ``GET /api/v1/models`` of LM Studio 0.4 and later: each model lists its loaded instances.

    A request names an instance by its own id or by its model's key; models that only embed are skipped.

    >>> body = {"models": [{"key": "q", "loaded_instances": [{"id": "q:2", "config": {"context_length": 8192}}]}]}
    >>> read_lm_studio(body, "q")
    Readiness(ready=True, loaded=('q:2',), context_length=8192, message='')
    """
    models = _rows(body, "models")
    return None if models is None else _readiness([each for model in models for each in _instances(model)], expected)


def _instances(model: dict[str, object]) -> list[_Model]:
    loaded = [] if _embeds(model) else [as_object(each) for each in as_list(model.get("loaded_instances"))]
    key = as_string(model.get("key"))
    return [
        _Model(as_string(each.get("id")) or key, key, as_count(as_object(each.get("config")).get("context_length")))
        for each in loaded
    ]


def read_lm_studio_v0(body: object, expected: str | None) -> Readiness | None:
    """Read ``GET /api/v0/models`` of older LM Studios: each model has a state."""
    models = _rows(body, "data")
    if models is None or not all("state" in model for model in models):
        return None
    loaded = [model for model in models if model.get("state") == "loaded" and not _embeds(model)]
    return _readiness([_Model(as_string(model.get("id")), window=_window_v0(model)) for model in loaded], expected)


def _window_v0(model: dict[str, object]) -> int | None:
    return as_count(model.get("loaded_context_length")) or as_count(model.get("max_context_length"))


def _embeds(model: dict[str, object]) -> bool:
    return as_string(model.get("type")).startswith("embedding")


def read_ollama(body: object, expected: str | None) -> Readiness | None:
    """Read ``GET /api/tags`` of Ollama: a pulled model is loaded on demand, so it is ready."""
    models = _rows(body, "models")
    pulled = None if models is None else [as_string(model.get("name")) for model in models]
    return (
        None
        if pulled is None
        else _readiness([_Model(name, name.removesuffix(":latest")) for name in pulled], expected)
    )


def read_llama_cpp(body: object, expected: str | None) -> Readiness | None:  # noqa: ARG001 - one model, whatever its name
    """Read ``GET /props`` of llama.cpp's server: one model, which answers to any name."""
    props = as_object(body)
    settings = as_object(props.get("default_generation_settings"))
    name = as_string(props.get("model_alias")) or as_string(props.get("model_path"))
    if "n_ctx" not in settings:
        return None
    return Readiness(ready=True, loaded=(name,) if name else (), context_length=as_count(settings["n_ctx"]))


def read_models(body: object, expected: str | None) -> Readiness | None:
    """Read ``GET /v1/models`` as OpenAI, Anthropic and compatible servers answer it.

    >>> read_models({"data": [{"id": "a"}]}, "b").message
    "'b' is not there: the server has a"
    """
    models = _rows(body, "data")
    if models is None:
        return None
    readiness = _readiness([_Model(as_string(model.get("id"))) for model in models], expected)
    return evolve(readiness, known=readiness.ready or not readiness.loaded)  # a list may lack aliases and deployments


def read_listed(body: object, expected: str | None) -> Readiness | None:
    """Read ``GET /v1/models`` of a server that may also list models on disk, so that the loaded ones are unknown.

    >>> read_listed({"data": [{"id": "a"}]}, "a").ready
    False
    """
    readiness = read_models(body, expected)
    if readiness is None or not readiness.ready:
        return readiness if readiness is None else evolve(readiness, loaded=())
    unknown = (
        f"the server lists {_first_few(readiness.loaded)}, but not what is loaded: check it, or send a small request"
    )
    return Readiness(ready=False, message=unknown, known=False)


def read_one(body: object, expected: str | None) -> Readiness | None:  # noqa: ARG001 - the path names it
    """Read ``GET /v1/models/{id}`` of Anthropic, where an alias returns its model."""
    name = as_string(as_object(body).get("id"))
    return Readiness(ready=True, loaded=(name,)) if name else None


def _rows(body: object, name: str) -> list[dict[str, object]] | None:
    """Return a list of objects, or ``None`` if there is no such list."""
    fields = as_object(body)
    return [as_object(row) for row in as_list(fields[name])] if isinstance(fields.get(name), list) else None


def _readiness(models: list[_Model], expected: str | None) -> Readiness:
    names = tuple(model.name for model in models if model.name)
    chosen = next((model for model in models if expected in {None, model.name, model.alias}), None)
    if not names:
        return Readiness(ready=False, message="no chat model is loaded: load one in the server")
    if chosen is None:
        return Readiness(
            ready=False, loaded=names, message=f"{expected!r} is not there: the server has {_first_few(names)}"
        )
    return Readiness(ready=True, loaded=names, context_length=chosen.window)


def _first_few(names: tuple[str, ...]) -> str:
    return ", ".join(name[:80] for name in names[:8])


_MODELS: Final = Probe("/v1/models", read_models)
_LISTED: Final = Probe("/v1/models", read_listed)

PROBES: Final[Mapping[str, tuple[Probe, ...]]] = {
    "lm-studio": (Probe("/api/v1/models", read_lm_studio), Probe("/api/v0/models", read_lm_studio_v0), _LISTED),
    "llama-cpp": (Probe("/props", read_llama_cpp), _MODELS),
    "ollama": (Probe("/api/tags", read_ollama), _MODELS),
}
"""Probes by preset, the most informative first."""


def probes_of(target: Target) -> tuple[Probe, ...]:
    """Return the probes of a server, the most informative first."""
    if target.preset.wire == "anthropic" and target.wire_model is not None:  # its list comes in pages, without aliases
        return (Probe(f"/v1/models/{quote(target.wire_model, safe='')}", read_one),)
    return PROBES.get(target.preset.name, (_MODELS,))


def root_of(endpoint: str) -> str:
    """Return the server's root URL, below which the probes are.

    >>> root_of("http://localhost:1234/v1"), root_of("https://api.anthropic.com")
    ('http://localhost:1234', 'https://api.anthropic.com')
    """
    return endpoint.removesuffix("/v1")


def read(probe: Probe, response: WireResponse, expected: str | None) -> Readiness | None:
    """Read an answer; return ``None`` if it is not one of this probe."""
    return probe.read(parse(response.body), expected) if response.status == 200 else None
