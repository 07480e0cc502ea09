# pyright: strict
"""The types of ``llm_effects.effects`` for pyright; ``test_pyright.py`` checks this file, and nothing runs it.

``assert_type`` requires the exact type. A line marked ``# rejected`` must be an error, and no other line may be one.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Never, assert_never, assert_type

from attrs import frozen
from returns.context import RequiresContextFutureResult
from returns.result import Failure, Result, Success

from llm_effects.batches.runs import generate_many
from llm_effects.config import LLMConfig
from llm_effects.conversations import open_converse
from llm_effects.effects.combinators import fallback, gather, hedge, race, retry, timeout, using
from llm_effects.effects.effect import Effect, effect, fail, from_env, from_result, rescue, run, succeed, then
from llm_effects.effects.env import LLMEnv
from llm_effects.effects.schedules import Schedule, exponential, jittered, up_to, within
from llm_effects.pipeline import open_stream
from llm_effects.values.errors import InvalidRequest, LLMError, NetworkError, RequestTimeout, is_retryable
from llm_effects.values.events import StreamEvent
from llm_effects.values.requests import LLMRequest
from llm_effects.values.responses import LLMResponse


@frozen
class App:
    llm: LLMEnv


def llm_of(app: App) -> LLMEnv:
    return app.llm


async def count(env: LLMEnv) -> Result[int, LLMError]:
    return Success(len(env.config.models))


def positive(number: int) -> Result[float, InvalidRequest]:
    return Success(number / 2) if number > 0 else Failure(InvalidRequest(message="number: must be above 0"))


def blamed(error: LLMError) -> LLMError:
    return RequestTimeout(model=error.model)


async def words_have_the_exact_type(env: LLMEnv, known: Result[str, LLMError], failed: Effect[str]) -> None:
    one = effect(count)
    assert_type(fail(RequestTimeout()), Effect[Never])
    assert_type(one, Effect[int])
    assert_type(succeed(1), Effect[int])
    assert_type(from_result(known), Effect[str])
    assert_type(from_env(lambda env: env.config), Effect[LLMConfig])
    assert_type(then(one, lambda number: succeed(str(number))), Effect[str])
    assert_type(then(one, lambda number: then(failed, lambda text: succeed((number, text)))), Effect[tuple[int, str]])
    assert_type(rescue(one, lambda error: succeed(len(error.tag))), Effect[int])
    assert_type(rescue(one, other), Effect[int | str])
    assert_type(await run(one, env), Result[int, LLMError])


@asynccontextmanager
async def opened(env: LLMEnv) -> AsyncGenerator[bytes]:
    yield str(env.config).encode()


async def combinators_have_the_exact_type(one: Effect[int], text: Effect[str], request: LLMRequest) -> None:
    patient = jittered(exponential(base=0.5)) & up_to(3) | within(10)
    assert_type(patient, Schedule)
    assert_type(retry(patient, one), Effect[int])
    assert_type(retry(up_to(1), one, when=lambda error: error.tag == "NetworkError"), Effect[int])
    assert_type(timeout(1.5, text), Effect[str])
    assert_type(fallback(one, succeed(0), fail(RequestTimeout())), Effect[int])
    assert_type(gather([one, one], limit=2), Effect[tuple[int, ...]])
    assert_type(gather(succeed(each) for each in "ab"), Effect[tuple[str, ...]])
    assert_type(race(text, text), Effect[str])
    assert_type(hedge(text, after=0.5), Effect[str])
    assert_type(using(from_env(opened), lambda content: succeed(len(content))), Effect[int])
    assert_type(using(from_env(open_stream(request)), first_event), Effect[str])
    assert_type(using(from_env(open_converse("c", "why?")), first_event), Effect[str])
    assert_type(generate_many([request], 4), Effect[tuple[Result[LLMResponse, LLMError], ...]])


def first_event(events: AsyncIterator[StreamEvent]) -> Effect[str]:
    async def run(_: LLMEnv) -> Result[str, LLMError]:
        return Success(type(await anext(events)).__name__)

    return effect(run)


def misused_combinators_are_rejected(one: Effect[int], text: Effect[str]) -> None:
    retry(3, one)  # rejected
    retry(up_to(3), one, is_retryable)  # rejected
    timeout(one, 3)  # rejected
    gather(one, one)  # rejected
    using(opened, succeed)  # rejected
    using(from_env(opened), len)  # rejected
    number: Effect[int] = race(one, text)  # rejected
    print(number)


def methods_have_the_exact_type() -> None:
    assert_type(succeed(1).map(str), Effect[str])
    assert_type(succeed(1).alt(blamed), Effect[int])
    assert_type(succeed(1).bind_result(positive), Effect[float])
    assert_type(succeed(1).modify_env(llm_of), RequiresContextFutureResult[int, LLMError, App])


def a_result_is_matched_to_the_end(result: Result[int, LLMError]) -> int | str:
    match result:
        case Success(value):
            return assert_type(value, int)
        case Failure(error):
            return assert_type(error, LLMError).tag
        case _:
            return ""


def an_error_is_matched_to_the_end(error: LLMError) -> str:
    match error:
        case RequestTimeout() | NetworkError():
            return error.phase
        case _:
            assert_never(error)  # rejected


def halved(number: int) -> float:
    return number / 2


def checked(number: int) -> Result[int, LLMError]:
    return Success(number)


def again(error: LLMError) -> Result[int, LLMError]:
    return Failure(error)


def other(error: LLMError) -> Effect[str]:
    return fail(error)


def at_once(env: LLMEnv) -> Result[int, LLMError]:
    return Success(len(env.config.models))


async def own_error(env: LLMEnv) -> Result[int, str]:
    return Failure("late" if env.config.models else "never")


async def own_env(env: int) -> Result[int, LLMError]:
    return Success(env)


async def mistakes_are_rejected(env: LLMEnv) -> None:
    then(succeed(1), halved)  # rejected
    then(succeed(1), checked)  # rejected
    then(succeed(1), lambda number: Success(number))  # rejected
    rescue(succeed(1), again)  # rejected
    rescue(succeed(1), lambda error: Failure(error))  # rejected
    effect(at_once)  # rejected
    effect(own_error)  # rejected
    effect(own_env)  # rejected
    fail("late")  # rejected
    text: Effect[str] = succeed(1)  # rejected
    await run(succeed(1))  # rejected
    await run(succeed(1), env.config)  # rejected
    run(succeed(1), env)  # rejected
    wrong: str = (await run(succeed(1), env)).unwrap()  # rejected
    print(text, wrong)
