"""A call on its way through the layers: what is frozen, what is shared, and what each attempt has of its own."""

import math

import anyio
import pytest
from anyio.lowlevel import checkpoint
from attrs import evolve
from attrs.exceptions import FrozenInstanceError

from llm_effects import LLMRequest, NetworkError
from llm_effects.effects.call import AttemptContext, Call, CallHistory, scope_until

CALL = Call(id="1", request=LLMRequest(prompt="why?"), attempt=AttemptContext(model="one", wait_ms=3.0))


def test_a_call_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        CALL.deadline = 5.0  # type: ignore[misc]


def test_another_attempt_keeps_the_call_and_its_history() -> None:
    again = CALL.again(wait_ms=20.0)
    assert (again.model, again.attempt.wait_ms, CALL.attempt.wait_ms) == ("one", 20.0, 3.0)
    assert again.history is CALL.history
    assert again.id == CALL.id


def test_each_attempt_has_a_record_of_its_own() -> None:
    again = CALL.again()
    again.attempt.record.queued_s = 2.0
    assert CALL.attempt.record.queued_s == 0.0


def test_a_longer_wait_of_the_same_attempt_keeps_its_record() -> None:
    waited = CALL.with_attempt(evolve(CALL.attempt, wait_ms=50.0))
    assert waited.attempt.record is CALL.attempt.record


@pytest.mark.parametrize(("contents", "delivered", "committed"), [(0, 0, False), (1, 0, True), (2, 2, False)])
def test_content_of_this_candidate_commits_the_call(contents: int, delivered: int, committed: bool) -> None:
    attempt = AttemptContext(model="one", delivered=delivered)
    assert evolve(CALL, history=CallHistory(contents=contents), attempt=attempt).committed is committed


def test_an_error_is_recorded_once_for_each_candidate() -> None:
    history, constant = CallHistory(), NetworkError()
    history.errors.append(constant)  # with_retries recorded it
    history.note(constant, since=0)
    history.note(constant, since=len(history.errors))  # the next candidate failed with the same object
    assert history.errors == [constant, constant]


@pytest.mark.anyio
async def test_a_scope_is_one_of_the_running_event_loop_and_ends_at_its_deadline() -> None:
    with scope_until(anyio.current_time()) as scope, anyio.CancelScope(shield=True):
        with scope_until(-math.inf) as inner:
            await anyio.sleep_forever()
        assert inner.cancelled_caught
    assert type(scope) is type(anyio.CancelScope())
    with scope_until() as endless:
        await checkpoint()
    assert (endless.deadline, endless.cancel_called) == (math.inf, False)


@pytest.mark.anyio
async def test_a_scope_ends_a_wait_at_its_deadline() -> None:
    with scope_until(anyio.current_time() + 0.001) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
