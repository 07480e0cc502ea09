"""A pipeline of small steps: ask, parse, decide; a failed step has a fallback, and every error is a value."""

import re
import sys

import anyio
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects import (
    Effect,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    MalformedResponse,
    Preferences,
    create_default_llm_manager,
    describe,
    effect,
    fail,
    generate,
    rescue,
    run,
    succeed,
    then,
)

UNSURE = 5


def severity_request(event: str) -> LLMRequest:
    """Build a request for a single number."""
    return LLMRequest(
        system="You rate incidents of servers. Answer with one number from 1 (harmless) to 9 (outage), nothing else.",
        prompt=event,
        preferences=Preferences(max_tokens=8, temperature=0.0, seed=7),
    )


def parse_severity(response: LLMResponse) -> Result[int, LLMError]:
    """Parse the first digit of the answer."""
    digit = re.search(r"[1-9]", response.content)
    if digit is None:
        return Failure(MalformedResponse(model=response.model, message=f"no number in {response.content!r}"))
    return Success(int(digit.group()))


def rate(event: str) -> Effect[int]:
    """Rate an event; an answer without a number counts as unsure, and any other error is returned."""
    return rescue(generate(severity_request(event)).bind_result(parse_severity), unsure)


def unsure(error: LLMError) -> Effect[int]:
    """Fall back to the middle of the scale if the answer could not be parsed."""
    return succeed(UNSURE) if isinstance(error, MalformedResponse) else fail(error)


def advise(severity: int) -> Effect[str]:
    """Choose what to do; harmless events need no second call."""
    if severity < UNSURE:
        return succeed(f"severity {severity}: keep an eye on it")
    question = LLMRequest(
        prompt="A server is failing. Name one first step, briefly.", preferences=Preferences(max_tokens=40)
    )
    return generate(question).map(lambda response: f"severity {severity}: {response.content.strip()}")


async def main(env: LLMEnv) -> Result[str, LLMError]:
    """Rate an event and advise on it."""
    return await run(then(rate("Half of all requests fail with status 500."), advise), env)


async def live() -> Result[str, LLMError]:
    """Run with the models of the environment variables."""
    async with create_default_llm_manager() as manager:
        return await manager.run(effect(main))


if __name__ == "__main__":
    answer = anyio.run(live)
    print(answer.unwrap()) if is_successful(answer) else sys.exit(describe(answer.failure()))
