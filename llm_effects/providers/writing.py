"""From a body to the request that goes out: its JSON, and its headers merged with the configured ones."""

from collections.abc import Mapping

from llm_effects.jsons import dump
from llm_effects.providers.headers import fixed_headers, key_headers
from llm_effects.providers.targets import Target
from llm_effects.wire import WireRequest


def wire_request(
    target: Target, path: str, body: Mapping[str, object], warnings: tuple[str, ...] = (), accept: str | None = None
) -> WireRequest:
    """Write a body for the operation at ``path``; the headers that a protocol wants give way to configured ones.

    >>> from llm_effects import ModelConfig
    >>> from llm_effects.providers.registry import target_of
    >>> studio = target_of("m", ModelConfig(provider="lm-studio", headers={"accept": "*/*"})).unwrap()
    >>> wire_request(studio, "/x", {"a": 1}, accept="text/html").headers
    (('content-type', 'application/json'), ('accept', Secret('***')))
    """
    own = key_headers(target)
    taken = {name for name, _ in own}
    wanted = (("content-type", "application/json"), *fixed_headers(target), *((("accept", accept),) if accept else ()))
    headers = (*(pair for pair in wanted if pair[0] not in taken), *own)
    return WireRequest(url=target.endpoint + path, headers=headers, body=dump(body), warnings=warnings)
