"""Many requests at once: order, bounds, progress, and the cache that may stand aside."""

from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import ContentRefused, LLMEnv, LLMError, LLMRequest, LLMResponse, generate_many, run, scripted_env
from llm_effects.batches import Progress, generate_each
from llm_effects.config import LLMConfig, Price
from llm_effects.config.models import ModelConfig
from llm_effects.config.services import CacheConfig
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.testing import Delayed, Reply, run_in_virtual_time, scripted
from llm_effects.values import InvalidValue
from tests.fixtures.futures import given_by

pytestmark = pytest.mark.anyio


def ask(*prompts: str) -> list[LLMRequest]:
    return [LLMRequest(prompt=prompt) for prompt in prompts]


def says(result: Result[LLMResponse, LLMError]) -> str:
    return result.unwrap().content if is_successful(result) else result.failure().tag


def by_prompt(**replies: Reply) -> Callable[[LLMRequest], Reply]:
    return lambda request: replies[request.prompt or ""]


async def said(requests: list[LLMRequest], env: LLMEnv, concurrency: int = 8) -> list[str]:
    return [says(result) for result in (await run(generate_many(requests, concurrency), env)).unwrap()]


async def test_results_come_in_order_and_an_error_costs_only_its_own() -> None:
    env = scripted_env(by_prompt(a=Delayed(0.02, "first"), b=ContentRefused(), c="third"))
    assert await said(ask("a", "b", "c"), env) == ["first", "ContentRefused", "third"]


def test_no_more_than_so_many_are_under_way() -> None:
    async def main() -> tuple[list[str], float]:
        env = scripted_env(lambda request: Delayed(10, f"{request.prompt}!"))
        started = anyio.current_time()
        answers = await said(ask(*map(str, range(10))), env, concurrency=4)
        return answers, anyio.current_time() - started

    assert run_in_virtual_time(main) == ([f"{number}!" for number in range(10)], 30)


async def test_no_requests_give_no_results() -> None:
    assert await said([], scripted_env()) == []


@pytest.mark.parametrize("concurrency", [0, -3, 2.5, "4", None, True])
def test_a_concurrency_that_is_none_is_refused(concurrency: Any) -> None:
    with pytest.raises(InvalidValue, match=r"concurrency: must be (at least 1|a whole number)"):
        generate_many(ask("a"), concurrency)


def test_requests_are_taken_as_places_come_free() -> None:
    taken: list[int] = []

    def endless() -> Iterator[LLMRequest]:
        for number in range(1_000_000):
            taken.append(number)
            yield LLMRequest(prompt=f"{number}")

    async def main() -> None:
        with anyio.move_on_after(35):
            await run(generate_many(endless(), concurrency=2), scripted_env(Delayed(10, "ok")))

    run_in_virtual_time(main)
    assert len(taken) == 2 * 4


async def test_a_list_can_be_gone_through_again_and_a_generator_says_that_it_cannot() -> None:
    env = scripted_env("ok")
    again, once = generate_many(ask("a", "b")), generate_many(iter(ask("a", "b")))
    assert [len((await run(again, env)).unwrap()) for _ in range(2)] == [2, 2]
    assert len((await run(once, env)).unwrap()) == 2
    assert (await run(once, env)).failure().tag == "InvalidRequest"


async def test_progress_is_told_plainly_or_awaited() -> None:
    told: list[tuple[int, int | None]] = []

    def plainly(now: Progress) -> None:
        told.append((now.done, now.total))

    async def awaited(now: Progress) -> None:
        await anyio.sleep(0.001)
        told.append((now.done, now.total))

    env = scripted_env("ok")
    await run(generate_many(ask("a", "b"), progress=plainly), env)
    await run(generate_many(iter(ask("a", "b")), 1, progress=awaited), env)
    assert told == [(1, 2), (2, 2), (1, None), (2, None)]


async def test_progress_counts_failures_and_what_was_spent() -> None:
    priced = ModelConfig(provider="lm-studio", price=Price(input=1, output=1))
    env = scripted_env("ok", ContentRefused(status=400), config=LLMConfig(models={"one": priced}))
    told: list[Progress] = []
    await run(generate_many(ask("a", "b"), 1, progress=told.append), env)
    answer = next(iter(await given_by(env.ledger.rows()))).attempt
    assert answer.cost.usd
    assert told == [Progress(done=1, total=2, cost=answer.cost), Progress(done=2, failed=1, total=2, cost=answer.cost)]


async def test_a_defect_in_the_hook_comes_out_as_itself() -> None:
    def crash(now: Progress) -> None:
        raise KeyError(now.done)

    with pytest.raises(KeyError, match="1"):
        await run(generate_many(ask("a", "b"), 1, progress=crash), scripted_env("ok"))


async def test_each_result_can_be_taken_as_it_comes() -> None:
    taken: list[tuple[int, str]] = []

    async def take(number: int, answer: Result[LLMResponse, LLMError]) -> None:
        taken.append((number, says(answer)))

    env = scripted_env(by_prompt(a=Delayed(0.02, "slow"), b=ContentRefused(), c="fast"))
    ended = (await run(generate_each(ask("a", "b", "c"), take), env)).unwrap()
    assert sorted(taken) == [(0, "slow"), (1, "ContentRefused"), (2, "fast")]
    assert taken[-1] == (0, "slow")
    assert (ended.done, ended.failed, ended.total) == (3, 1, 3)


async def test_equal_requests_are_one_call_unless_the_cache_is_bypassed() -> None:
    config = LLMConfig(models={"one": ModelConfig(provider="lm-studio")}, cache=CacheConfig())
    model = scripted("heads", "tails", "heads")
    env = evolve(scripted_env(clients=model, config=config), cache=MemoryCache())
    requests = ask("toss a coin", "toss a coin", "toss a coin")
    assert await said(requests, env) == ["heads"] * 3
    assert len(model.calls) == 1
    samples = (await run(generate_many(requests, 1, cache="bypass"), env)).unwrap()
    assert [says(result) for result in samples] == ["tails", "heads", "heads"]


async def test_a_cancellation_ends_all() -> None:
    env = scripted_env(Delayed(60, "ok"))
    with anyio.move_on_after(0.01) as scope:
        await run(generate_many(ask("a", "b", "c"), 2), env)
    assert scope.cancelled_caught
    assert [row.attempt.outcome for row in await given_by(env.ledger.rows())] == ["cancelled"] * 2
