"""A time-out, or several errors, inside ``retry`` and ``fallback`` (virtual time)."""

import anyio
import pytest

from llm_effects import (
    AuthenticationFailed,
    LLMError,
    LLMRequest,
    NetworkError,
    Preferences,
    RequestFailed,
    RequestTimeout,
    fail,
    fallback,
    generate,
    rescue,
    retry,
    run,
    scripted_env,
    succeed,
    timeout,
    up_to,
)
from llm_effects.testing import Delayed, run_in_virtual_time, scripted

SLOW = Delayed(60, "late")
QUESTION = generate(LLMRequest(prompt="why?", cache="bypass")).map(lambda answer: answer.content)
OVER_TIME = RequestTimeout(timeout_ms=5_000, phase="total")


def test_fault_146_a_nested_time_out_is_fallen_back_from() -> None:
    assert (
        run_in_virtual_time(run, fallback(timeout(5, QUESTION), succeed("grey")), scripted_env(SLOW)).unwrap() == "grey"
    )


def test_fault_146_a_nested_time_out_is_retried_as_often_as_the_schedule_allows() -> None:
    models = scripted(SLOW, SLOW, SLOW, "red")
    assert (
        run_in_virtual_time(run, retry(up_to(3), timeout(5, QUESTION)), scripted_env(clients=models)).unwrap() == "red"
    )
    assert len(models.calls) == 4


def test_fault_146_the_deadline_of_a_nested_call_is_fallen_back_from() -> None:
    hurried = generate(LLMRequest(prompt="why?", cache="bypass", preferences=Preferences(timeout_ms=2_000)))
    answered = fallback(hurried.map(lambda answer: answer.content), succeed("grey"))
    assert run_in_virtual_time(run, answered, scripted_env(SLOW)).unwrap() == "grey"


def test_fault_146_an_outer_limit_ends_all_tries() -> None:
    async def main() -> tuple[LLMError, float]:
        error = (await run(timeout(12, retry(up_to(9), timeout(5, QUESTION))), scripted_env(SLOW))).failure()
        return error, anyio.current_time()

    error, took = run_in_virtual_time(main)
    assert error == RequestTimeout(timeout_ms=12_000, phase="total")
    assert took == pytest.approx(12)


@pytest.mark.parametrize(
    ("errors", "runs"),
    [
        ((AuthenticationFailed(), NetworkError()), 4),
        ((AuthenticationFailed(), OVER_TIME), 4),
        ((AuthenticationFailed(), RequestFailed(errors=(NetworkError(),))), 4),
        ((AuthenticationFailed(), AuthenticationFailed()), 1),
    ],
)
def test_fault_146_retry_looks_inside_request_failed(errors: tuple[LLMError, ...], runs: int) -> None:
    ran = 0

    def counted(error: LLMError) -> LLMError:
        nonlocal ran
        ran += 1
        return error

    failing = rescue(fail(RequestFailed(errors=errors)), lambda error: fail(counted(error)))
    result = run_in_virtual_time(run, retry(up_to(3), failing), scripted_env())
    assert (result.failure(), ran) == (RequestFailed(errors=errors), runs)
