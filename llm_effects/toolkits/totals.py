"""What a whole run came to: the sums over its steps, in its last answer or in its error."""

from collections.abc import Iterable
from typing import Final

import anyio
from attrs import evolve

from llm_effects.errors import LLMError
from llm_effects.responses import Attempt, LLMResponse, Usage, total_cost
from llm_effects.toolkits.running import Running
from llm_effects.toolkits.steps import ToolEnd, ToolRun

_NOTES: Final = {
    ToolEnd.CUT_OFF: "tools: the last answer is not whole: nothing of it was run",
    ToolEnd.OUT_OF_STEPS: "tools: max_steps is reached: what the last answer asks for was not run",
    ToolEnd.UNKNOWN: "tools: a call may or may not have happened before: see ToolRun.unknown",
}


def run_of(running: Running, end: ToolEnd) -> ToolRun:
    """End a run: its last answer bears the sums, and what there was to warn of."""
    responses = running.responses
    warnings = (*(each for one in responses for each in one.warnings), *running.troubles)
    note = (_NOTES[end],) if end in _NOTES else ()
    response = evolve(
        responses[-1],
        attempts=attempts_of(responses),
        usage=total_usage(one.usage for one in responses),
        cost=total_cost(one.cost for one in responses),
        latency_ms=(anyio.current_time() - running.started) * 1000,
        cached=all(one.cached for one in responses),
        warnings=(*dict.fromkeys(warnings), *note),
    )
    return ToolRun(response=response, steps=tuple(running.steps), end=end, run_id=running.run_id)


def attempts_of(responses: Iterable[LLMResponse]) -> tuple[Attempt, ...]:
    """Give all attempts behind some answers, in order."""
    return tuple(attempt for one in responses for attempt in one.attempts)


def with_earlier(error: LLMError, responses: Iterable[LLMResponse]) -> LLMError:
    """Put the attempts of the answers before an error into it."""
    return evolve(error, attempts=(*attempts_of(responses), *error.attempts))


def total_usage(usages: Iterable[Usage]) -> Usage:
    """Add tokens up, bucket by bucket; one unknown number makes its sum unknown.

    >>> told = total_usage((Usage(input_tokens=3, output_tokens=1), Usage(input_tokens=5)))
    >>> told.input_tokens, told.output_tokens
    (8, None)
    """
    told = tuple(usages)
    return Usage(
        input_tokens=_sum(each.input_tokens for each in told),
        cache_read_tokens=sum(each.cache_read_tokens for each in told),
        cache_write_tokens=sum(each.cache_write_tokens for each in told),
        output_tokens=_sum(each.output_tokens for each in told),
        reasoning_tokens=sum(each.reasoning_tokens for each in told),
        estimated=any(each.estimated for each in told),
    )


def _sum(counts: Iterable[int | None]) -> int | None:
    known = tuple(counts)
    return None if None in known else sum(each for each in known if each is not None)
