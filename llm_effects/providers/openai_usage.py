"""Token counts in OpenAI's protocols, under the many names that servers use."""

from __future__ import annotations

from typing import Final

from llm_effects.values.json import as_object, as_tokens
from llm_effects.values.responses import Usage

_PROMPT: Final = ("prompt_tokens", "input_tokens")
_OUTPUT: Final = ("completion_tokens", "output_tokens")
_CACHE_READ: Final = ("cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens", "num_cached_tokens")
_CACHE_WRITE: Final = ("cache_write_tokens", "cache_creation_input_tokens")


def openai_usage(usage: dict[str, object]) -> Usage:
    """Sort the counts into disjoint buckets; a missing count stays unknown.

    >>> openai_usage({"prompt_tokens": 100, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 80}})
    Usage(input_tokens=20, cache_read_tokens=80, output_tokens=5)
    """
    prompt, output = _first_count(usage, _PROMPT), _first_count(usage, _OUTPUT)
    details = {**usage, **_present(usage.get("prompt_tokens_details"))}
    thinking = _first_count({**usage, **_present(usage.get("completion_tokens_details"))}, ("reasoning_tokens",)) or 0
    # Some servers count more cached tokens than the prompt has, or more thinking than output: keep buckets disjoint.
    read = min(_first_count(details, _CACHE_READ) or 0, prompt or 0)
    written = min(_first_count(details, _CACHE_WRITE) or 0, (prompt or 0) - read)
    output = _with_thinking(usage, prompt, output, thinking)
    return Usage(
        input_tokens=None if prompt is None else prompt - read - written,
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=output,
        reasoning_tokens=min(thinking, output or 0),
    )


def _with_thinking(usage: dict[str, object], prompt: int | None, output: int | None, thinking: int) -> int | None:
    """Add the thinking where the total shows that the output does not include it, as it does on most servers."""
    if prompt is None or output is None:
        return output
    return output + thinking if as_tokens(usage.get("total_tokens")) == prompt + output + thinking else output


def _first_count(usage: dict[str, object], names: tuple[str, ...]) -> int | None:
    for name in names:  # a plain loop: a generator costs as much again, four times an answer
        number = as_tokens(usage[name]) if name in usage else None
        if number is not None:
            return number
    return None


def _present(details: object) -> dict[str, object]:
    return {name: value for name, value in as_object(details).items() if value is not None} if details else {}
