"""Token counts of chat completions, from the many ways in which servers tell them."""

from typing import Final

from llm_effects.providers.reading import record, whole
from llm_effects.responses import Usage

_PROMPT: Final = ("prompt_tokens", "input_tokens")
_ANSWER: Final = ("completion_tokens", "output_tokens")
_READ: Final = ("cached_tokens", "prompt_cache_hit_tokens", "cache_read_input_tokens", "num_cached_tokens")
_WRITTEN: Final = ("cache_write_tokens", "cache_creation_input_tokens")


def usage_of(told: dict[str, object]) -> Usage:
    """Sort the counts into disjoint buckets; what is not told stays unknown.

    >>> usage_of({"prompt_tokens": 100, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 80}})
    Usage(input_tokens=20, cache_read_tokens=80, cache_write_tokens=0, output_tokens=5, reasoning_tokens=0, \
estimated=False)
    """
    prompt, answer = _first(told, _PROMPT), _first(told, _ANSWER)
    asked = {**told, **_numbers(told.get("prompt_tokens_details"))}
    thought = _first({**told, **_numbers(told.get("completion_tokens_details"))}, ("reasoning_tokens",)) or 0
    # some servers count more cached tokens than the prompt has, or thinking beyond the answer: buckets stay disjoint
    read = min(_first(asked, _READ) or 0, prompt or 0)
    written = min(_first(asked, _WRITTEN) or 0, (prompt or 0) - read)
    output = _with_thinking(told, prompt, answer, thought)
    return Usage(
        input_tokens=None if prompt is None else prompt - read - written,
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=output,
        reasoning_tokens=min(thought, output or 0),
    )


def _with_thinking(told: dict[str, object], prompt: int | None, answer: int | None, thought: int) -> int | None:
    """Most servers count thinking among the answer's tokens; where the total says otherwise, it is added."""
    if prompt is None or answer is None:
        return answer
    return answer + thought if whole(told.get("total_tokens")) == prompt + answer + thought else answer


def _first(told: dict[str, object], names: tuple[str, ...]) -> int | None:
    counts = (whole(told.get(name)) for name in names)
    return next((number for number in counts if number is not None), None)


def _numbers(told: object) -> dict[str, object]:
    return {name: value for name, value in record(told).items() if value is not None}
