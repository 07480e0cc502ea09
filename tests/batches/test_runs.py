"""``generate_many`` and ``generate_each``: order, concurrency, progress and the cache."""

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


def outcome(result: Result[LLMResponse, LLMError]) -> str:
    return result.unwrap().content if is_successful(result) else result.failure().tag


def by_prompt(**replies: Reply) -> Callable[[LLMRequest], Reply]:
    return lambda request: replies[request.prompt or ""]


async def outcomes(requests: list[LLMRequest], env: LLMEnv, concurrency: int = 8) -> list[str]:
    return [outcome(result) for result in (await run(generate_many(requests, concurrency), env)).unwrap()]


async def test_results_are_in_order_and_an_error_affects_only_its_request() -> None:
    env = scripted_env(by_prompt(a=Delayed(0.02, "first"), b=ContentRefused(), c="third"))
    assert await outcomes(ask("a", "b", "c"), env) == ["first", "ContentRefused", "third"]


def test_concurrency_limits_the_requests_in_flight() -> None:
    async def main() -> tuple[list[str], float]:
        env = scripted_env(lambda request: Delayed(10, f"{request.prompt}!"))
        started = anyio.current_time()
        answers = await outcomes(ask(*map(str, range(10))), env, concurrency=4)
        return answers, anyio.current_time() - started

    assert run_in_virtual_time(main) == ([f"{number}!" for number in range(10)], 30)


async def test_no_requests_give_no_results() -> None:
    assert await outcomes([], scripted_env()) == []


@pytest.mark.parametrize("concurrency", [0, -3, 2.5, "4", None, True])
def test_an_invalid_concurrency_is_refused(concurrency: Any) -> None:
    with pytest.raises(InvalidValue, match=r"concurrency: must be (at least 1|a whole number)"):
        generate_many(ask("a"), concurrency)


def test_requests_are_read_as_workers_become_free() -> None:
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


async def test_a_list_can_run_again_and_a_generator_cannot() -> None:
    env = scripted_env("ok")
    again, once = generate_many(ask("a", "b")), generate_many(iter(ask("a", "b")))
    assert [len((await run(again, env)).unwrap()) for _ in range(2)] == [2, 2]
    assert len((await run(once, env)).unwrap()) == 2
    assert (await run(once, env)).failure().tag == "InvalidRequest"


async def test_the_progress_hook_may_be_sync_or_async() -> None:
    reports: list[tuple[int, int | None]] = []

    def note(now: Progress) -> None:
        reports.append((now.done, now.total))

    async def note_later(now: Progress) -> None:
        await anyio.sleep(0.001)
        reports.append((now.done, now.total))

    env = scripted_env("ok")
    await run(generate_many(ask("a", "b"), progress=note), env)
    await run(generate_many(iter(ask("a", "b")), 1, progress=note_later), env)
    assert reports == [(1, 2), (2, 2), (1, None), (2, None)]


async def test_progress_counts_failures_and_cost() -> None:
    priced = ModelConfig(provider="lm-studio", price=Price(input=1, output=1))
    env = scripted_env("ok", ContentRefused(status=400), config=LLMConfig(models={"one": priced}))
    reports: list[Progress] = []
    await run(generate_many(ask("a", "b"), 1, progress=reports.append), env)
    answer = next(iter(await given_by(env.ledger.rows()))).attempt
    assert answer.cost.usd
    assert reports == [
        Progress(done=1, total=2, cost=answer.cost),
        Progress(done=2, failed=1, total=2, cost=answer.cost),
    ]


async def test_an_exception_in_the_hook_is_raised_unchanged() -> None:
    def crash(now: Progress) -> None:
        raise KeyError(now.done)

    with pytest.raises(KeyError, match="1"):
        await run(generate_many(ask("a", "b"), 1, progress=crash), scripted_env("ok"))


async def test_each_result_is_passed_on_as_it_arrives() -> None:
    taken: list[tuple[int, str]] = []

    async def take(number: int, answer: Result[LLMResponse, LLMError]) -> None:
        taken.append((number, outcome(answer)))

    env = scripted_env(by_prompt(a=Delayed(0.02, "slow"), b=ContentRefused(), c="fast"))
    finished = (await run(generate_each(ask("a", "b", "c"), take), env)).unwrap()
    assert sorted(taken) == [(0, "slow"), (1, "ContentRefused"), (2, "fast")]
    assert taken[-1] == (0, "slow")
    assert (finished.done, finished.failed, finished.total) == (3, 1, 3)


async def test_equal_requests_share_one_call_unless_the_cache_is_bypassed() -> None:
    config = LLMConfig(models={"one": ModelConfig(provider="lm-studio")}, cache=CacheConfig())
    model = scripted("heads", "tails", "heads")
    env = evolve(scripted_env(clients=model, config=config), cache=MemoryCache())
    requests = ask("toss a coin", "toss a coin", "toss a coin")
    assert await outcomes(requests, env) == ["heads"] * 3
    assert len(model.calls) == 1
    samples = (await run(generate_many(requests, 1, cache="bypass"), env)).unwrap()
    assert [outcome(result) for result in samples] == ["tails", "heads", "heads"]


async def test_cancellation_ends_every_request() -> None:
    env = scripted_env(Delayed(60, "ok"))
    with anyio.move_on_after(0.01) as scope:
        await run(generate_many(ask("a", "b", "c"), 2), env)
    assert scope.cancelled_caught
    assert [row.attempt.outcome for row in await given_by(env.ledger.rows())] == ["cancelled"] * 2


async def test_texts_are_requests_and_a_wrong_one_affects_only_itself() -> None:
    requests: list[Any] = ["why?", " ", {"prompt": "why?"}, LLMRequest(prompt="why?")]
    results = (await run(generate_many(requests, cache="bypass"), scripted_env("because"))).unwrap()
    assert [outcome(result) for result in results] == ["because", "InvalidRequest", "InvalidRequest", "because"]


def test_one_text_is_no_list_of_requests() -> None:
    with pytest.raises(InvalidValue, match="requests: must be a list of texts or requests, not one request"):
        generate_many(LLMRequest(prompt="Why?"))  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="requests: must be a list of texts or requests, not one text: use generate"):
        generate_many("why?")
