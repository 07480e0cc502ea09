"""What goes wrong with batches at a provider: killed processes, lost answers, broken results, full queues."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import anyio
import httpx
import pytest
from attrs import evolve
from returns.pipeline import is_successful

from llm_effects import LLMEnv, generate_many, open_env, run, usage_report
from llm_effects.batches import batch_status, cancel_batch, collect_batch, file_journal, store_journal, submit_batch
from llm_effects.batches.journals import Journal
from llm_effects.providers import batch_files
from llm_effects.providers.batch_files import BatchLimits
from llm_effects.testing import run_in_virtual_time
from llm_effects.testing.virtual_time import Backend
from tests.fixtures.batch_server import PROTOCOLS, BatchServer, Job, Protocol, Reply, config_of, env_of, reaching
from tests.fixtures.provider_worker import PROMPTS, killed_at
from tests.fixtures.servers import serving

BACKENDS: tuple[Backend, ...] = ("asyncio", "trio")
ANSWERS = [f"answer to {prompt}" for prompt in PROMPTS]
SLOW_DOWN = {"error": {"type": "rate_limit_error", "message": "Rate limit reached for requests"}}

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("protocol", PROTOCOLS)]


@pytest.fixture(params=BACKENDS)
def clock(request: pytest.FixtureRequest) -> Backend:
    value: Backend = request.param
    return value


def later(env: LLMEnv, minutes: float = 2) -> LLMEnv:
    return evolve(env, now=lambda: env.now() + timedelta(minutes=minutes))


async def collected(env: LLMEnv, journal: Journal) -> list[str]:
    results = (await run(collect_batch(PROMPTS, journal), env)).unwrap()
    return [each.unwrap().content if is_successful(each) else each.failure().tag for each in results]


def waited(env: LLMEnv, clock: Backend, journal: Journal | None = None) -> tuple[list[str], float]:
    """Return the answers of a run that waits for the provider, and after how many virtual seconds."""

    async def main() -> tuple[list[str], float]:
        began = anyio.current_time()
        results = (
            await run(generate_many(PROMPTS, journal=journal or store_journal("run"), via="provider"), env)
        ).unwrap()
        answers = [each.unwrap().content if is_successful(each) else each.failure().tag for each in results]
        return answers, anyio.current_time() - began

    return run_in_virtual_time(main, backend=clock)


# Killed, or cut off.


async def test_fault_220_a_process_killed_after_its_submission_pays_once(protocol: Protocol, tmp_path: Path) -> None:
    server, journal = BatchServer(created_at=datetime.now(UTC)), file_journal(tmp_path / "run.jsonl")
    killed_at("on_created", server, protocol, tmp_path / "run.jsonl")
    assert len(server.jobs) == 1
    env = env_of(server, config_of(protocol))
    assert (await run(batch_status(journal), env)).unwrap().unknown == 1
    with serving(server.behave) as listening:
        async with open_env(config_of(protocol, listening.url)) as live:
            resumed = later(live)
            if protocol == "anthropic":  # which shows whose batch it is only once that has ended
                error = (await run(submit_batch(PROMPTS, journal), resumed)).failure()
                assert (error.tag, error.code) == ("ModelUnavailable", "batch_unsure")
                server.end(server.jobs["batch_0"])
            assert len((await run(submit_batch(PROMPTS, journal), resumed)).unwrap().jobs) == 1
            assert await collected(resumed, journal) == ANSWERS
    assert server.billed == dict.fromkeys(PROMPTS, 1)


async def test_fault_220_a_process_killed_before_its_submission_pays_once(protocol: Protocol, tmp_path: Path) -> None:
    server, journal = BatchServer(), file_journal(tmp_path / "run.jsonl")
    server.rejections.append(Reply(500))
    killed_at("on_submission", server, protocol, tmp_path / "run.jsonl")
    assert server.jobs == {}
    env = later(env_of(server, config_of(protocol)), minutes=60 * 24 * 365)
    (await run(submit_batch(PROMPTS, journal), env)).unwrap()
    assert await collected(env, journal) == ANSWERS
    assert server.billed == dict.fromkeys(PROMPTS, 1)


async def test_fault_220_a_young_intent_is_not_judged_before_the_list_shows_it(protocol: Protocol) -> None:
    server = BatchServer(lose_answers=1)
    env, journal = env_of(server, config_of(protocol)), store_journal("run")
    assert (await run(submit_batch(PROMPTS, journal), env)).failure().tag == "NetworkError"
    with anyio.move_on_after(0.05) as moved:
        await run(submit_batch(PROMPTS, journal), env)
    assert moved.cancelled_caught
    assert not any(each.startswith("GET") for each in server.asked)


async def test_fault_220_a_lost_batch_is_found_among_many(protocol: Protocol) -> None:
    server = BatchServer(lose_answers=1)
    for at in range(7):  # of other programs, before and after
        server.jobs[f"other_{at}"] = job = Job(f"other_{at}", {f"x-{at}-{each}": _body() for each in range(3)})
        job.endpoint = "" if protocol == "anthropic" else "/v1/chat/completions"
        server.end(job)
    env, journal = env_of(server, config_of(protocol)), store_journal("run")
    assert not is_successful(await run(submit_batch(PROMPTS, journal), env))
    for at in range(7, 12):
        server.jobs[f"other_{at}"] = evolve(server.jobs["other_1"], id=f"other_{at}")
    server.end(server.jobs["batch_7"])
    status = (await run(submit_batch(PROMPTS, journal), later(env))).unwrap()
    assert [job.id for job in status.jobs] == ["batch_7"]


def _body() -> dict[str, object]:
    return {"model": "m", "messages": [{"role": "user", "content": "other"}]}


class Death(BaseException):
    """The end of a process, which no code survives."""


@pytest.mark.parametrize("handled", [False, True], ids=["before it is handled", "after"])
@pytest.mark.parametrize("exchange", range(6))
def test_fault_220_wherever_a_process_dies_each_request_is_paid_once(
    protocol: Protocol, clock: Backend, exchange: int, handled: bool
) -> None:
    server, journal, exchanges = BatchServer(polls_until_end=2), store_journal("run"), count()
    env = env_of(server, config_of(protocol))

    def die(request: httpx.Request) -> httpx.Response:
        if next(exchanges) < exchange:
            return server.handle(request)
        if handled:
            server.handle(request)
        raise Death

    try:
        answers = waited(reaching(die, env), clock, journal)[0]
    except Death:
        for job in server.jobs.values():
            server.end(job)
        answers = waited(env, clock, journal)[0]
    assert answers == ANSWERS
    assert server.billed == dict.fromkeys(PROMPTS, 1)


def test_fault_221_a_submission_whose_answer_is_lost_is_looked_for(protocol: Protocol, clock: Backend) -> None:
    server = BatchServer(lose_answers=1)
    if protocol == "anthropic":
        server.on_created = lambda: server.end(server.jobs["batch_0"])
    answers, took = waited(env_of(server, config_of(protocol)), clock)
    assert answers == ANSWERS
    assert took >= 60
    assert server.billed == dict.fromkeys(PROMPTS, 1)


async def test_fault_221_a_cancelled_submission_is_looked_for(protocol: Protocol) -> None:
    server, journal = BatchServer(), store_journal("run")
    env = env_of(server, config_of(protocol))
    async with anyio.create_task_group() as group:
        server.on_created = group.cancel_scope.cancel  # the answer is read, and never noted
        server.lose_answers = 1
        await run(submit_batch(PROMPTS, journal), env)
    server.on_created = lambda: None
    server.end(server.jobs["batch_0"])
    (await run(submit_batch(PROMPTS, journal), later(env))).unwrap()
    assert await collected(env, journal) == ANSWERS
    assert server.billed == dict.fromkeys(PROMPTS, 1)


# A provider that is busy, or down.


def test_fault_222_a_rejected_submission_waits_and_is_sent_again(protocol: Protocol, clock: Backend) -> None:
    server = BatchServer()
    server.rejections.extend([Reply(429, SLOW_DOWN)] * 3)
    answers, took = waited(env_of(server, config_of(protocol)), clock)
    assert answers == ANSWERS
    assert 7 <= took < 60
    assert len(server.jobs) == 1


async def test_fault_222_a_rejected_submission_is_an_error_that_loses_nothing(protocol: Protocol) -> None:
    server, journal = BatchServer(), store_journal("run")
    server.rejections.append(Reply(429, SLOW_DOWN))
    env = env_of(server, config_of(protocol))
    assert (await run(submit_batch(PROMPTS, journal), env)).failure().tag == "RateLimitExceeded"
    (await run(submit_batch(PROMPTS, journal), env)).unwrap()
    assert await collected(env, journal) == ANSWERS


def test_fault_222_a_queue_that_is_full_is_waited_for(protocol: Protocol, clock: Backend) -> None:
    if protocol == "anthropic":
        pytest.skip("only OpenAI refuses a batch as a whole after it was submitted")
    server = BatchServer(problem={"code": "token_limit_exceeded", "message": "Enqueued token limit reached"})

    def make_room() -> None:
        server.problem = None if len(server.jobs) == 3 else server.problem

    server.on_created = make_room
    answers, took = waited(env_of(server, config_of(protocol)), clock)
    assert answers == ANSWERS
    assert took >= 1200
    assert server.billed == dict.fromkeys(PROMPTS, 1)


def test_fault_223_failed_polls_do_not_end_the_wait(protocol: Protocol, clock: Backend) -> None:
    server = BatchServer(failing_polls=20, polls_until_end=5)
    answers, took = waited(env_of(server, config_of(protocol)), clock)
    assert answers == ANSWERS
    assert took > 20 * 60 - 180
    assert server.billed == dict.fromkeys(PROMPTS, 1)


def test_fault_223_a_provider_that_stays_away_ends_the_run_and_not_the_batch(
    protocol: Protocol, clock: Backend
) -> None:
    server, journal = BatchServer(failing_polls=10_000), store_journal("run")
    env = env_of(server, config_of(protocol))

    async def main() -> str:
        return (await run(generate_many(PROMPTS, journal=journal, via="provider"), env)).failure().tag

    assert run_in_virtual_time(main, backend=clock) == "ModelUnavailable"
    server.failing_polls = 0
    assert waited(env, clock, journal)[0] == ANSWERS
    assert server.billed == dict.fromkeys(PROMPTS, 1)


def test_fault_223_results_that_are_not_ready_are_asked_for_again(protocol: Protocol, clock: Backend) -> None:
    server = BatchServer(not_ready=2)
    assert waited(env_of(server, config_of(protocol)), clock)[0] == ANSWERS


# Results.


@pytest.mark.parametrize(
    "lines",
    [
        lambda lines: lines[::-1],
        lambda lines: [*lines, *lines],
        lambda lines: [b'{"custom_id":"batch-of-another-program-1","result":{},"response":{}}', *lines],
        lambda lines: [b"", b"oops", b"[]", b'{"custom_id":7}', *lines, b""],
        lambda lines: [line.replace(b"\n", b"") + b"\r" for line in lines],
    ],
    ids=["any order", "twice", "of another program", "unreadable", "carriage returns"],
)
async def test_fault_224_each_result_comes_once_and_in_its_place(
    protocol: Protocol, lines: Callable[[list[bytes]], list[bytes]]
) -> None:
    server, journal = BatchServer(lines=lines), store_journal("run")
    env = env_of(server, config_of(protocol))
    await run(submit_batch(PROMPTS, journal), env)
    assert await collected(env, journal) == ANSWERS
    assert (await run(usage_report(), env)).unwrap().total.attempts == 3


@pytest.mark.parametrize(
    "cut", [lambda lines: lines[:-1], lambda lines: [*lines[:-1], *(line[:40] for line in lines[-1:])]]
)
async def test_fault_225_a_line_that_is_missing_costs_only_its_request(
    protocol: Protocol, cut: Callable[[list[bytes]], list[bytes]]
) -> None:
    server, journal = BatchServer(lines=cut), store_journal("run")
    env = env_of(server, config_of(protocol))
    await run(submit_batch(PROMPTS, journal), env)
    assert await collected(env, journal) == ["MalformedResponse", *ANSWERS[1:]]  # results come in reverse
    await run(submit_batch(PROMPTS, journal), env)
    assert len(server.jobs) == 1  # it may have been paid for
    server.lines = lambda lines: lines
    assert await collected(env, journal) == ANSWERS
    assert (await run(usage_report(), env)).unwrap().total.attempts == 3


def test_fault_225_a_wait_for_a_missing_line_ends(protocol: Protocol, clock: Backend) -> None:
    server = BatchServer(lines=lambda lines: lines[:-1])
    assert waited(env_of(server, config_of(protocol)), clock)[0] == ["MalformedResponse", *ANSWERS[1:]]


async def test_fault_225_results_that_break_off_are_read_again(protocol: Protocol) -> None:
    server, journal = BatchServer(reply_to=lambda prompt: prompt * 100_000), store_journal("run")
    with serving(server.behave) as listening:
        async with open_env(config_of(protocol, listening.url)) as env:
            await run(submit_batch(PROMPTS, journal), env)
            whole, server.lines = server.lines, lambda lines: lines[:1]
            first = await collected(env, journal)
            server.lines = whole
            assert [len(each) for each in await collected(env, journal)] == [100_000] * 3
    assert [len(each) for each in first] == [17, 17, 100_000]


# Batches that end early.


@pytest.mark.parametrize("state", ["expired", "cancelled"])
async def test_faults_226_227_what_ran_is_kept_and_the_rest_costs_nothing(protocol: Protocol, state: str) -> None:
    tag = {"expired": "TimeoutError", "cancelled": "ModelUnavailable"}[state]
    server, journal = BatchServer(runs=1, ends_as=state), store_journal("run")
    env = env_of(server, config_of(protocol))
    await run(submit_batch(PROMPTS, journal), env)
    assert await collected(env, journal) == ["answer to a", tag, tag]
    total = (await run(usage_report(), env)).unwrap().total
    assert (total.attempts, str(total.cost_usd)) == (1, "0.0015")
    server.runs, server.ends_as = None, "completed"
    await run(submit_batch(PROMPTS, journal), env)
    assert [len(job.items) for job in server.jobs.values()] == [3, 2]
    assert await collected(env, journal) == ANSWERS
    assert server.billed == dict.fromkeys(PROMPTS, 1)


async def test_fault_226_an_expired_batch_without_lines_for_the_rest_is_the_same(protocol: Protocol) -> None:
    server, journal = BatchServer(runs=1, ends_as="expired"), store_journal("run")
    server.lines = lambda lines: [line for line in lines if b"answer to" in line]
    env = env_of(server, config_of(protocol))
    await run(submit_batch(PROMPTS, journal), env)
    assert await collected(env, journal) == ["answer to a", "TimeoutError", "TimeoutError"]


async def test_fault_227_a_cancelled_batch_is_cancelled_from_another_process(
    protocol: Protocol, tmp_path: Path
) -> None:
    server, path = BatchServer(polls_until_end=3, runs=0), tmp_path / "run.jsonl"
    await run(submit_batch(PROMPTS, file_journal(path)), env_of(server, config_of(protocol)))
    env = env_of(server, config_of(protocol))
    states = [(await run(cancel_batch(file_journal(path)), env)).unwrap().jobs[0].state]
    while states[-1] != "cancelled":
        states.append((await run(batch_status(file_journal(path)), env)).unwrap().jobs[0].state)
    assert states == ["cancelling", "cancelling", "cancelled"]
    assert server.billed == {}


# Batches that are too large.


async def test_fault_228_batches_are_divided_by_the_limits_of_their_provider(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(batch_files._LIMITS, protocol, BatchLimits(2, 10**6))
    server, journal = BatchServer(), store_journal("run")
    env = env_of(server, config_of(protocol))
    (await run(submit_batch(PROMPTS, journal), env)).unwrap()
    assert [len(job.items) for job in server.jobs.values()] == [2, 1]
    monkeypatch.setitem(batch_files._LIMITS, protocol, BatchLimits(100, 3000))
    (await run(submit_batch(["x" * 1000, "y" * 1000, "z" * 1000], store_journal("long")), env)).unwrap()
    assert [len(job.items) for job in server.jobs.values()][2:] == [1, 1, 1]
    assert await collected(env, journal) == ANSWERS


async def test_fault_228_a_batch_that_the_server_finds_too_large_is_halved(protocol: Protocol) -> None:
    server, journal = BatchServer(most_requests=1), store_journal("run")
    env = env_of(server, config_of(protocol))
    (await run(submit_batch(PROMPTS, journal), env)).unwrap()
    assert [len(job.items) for job in server.jobs.values()] == [1, 1, 1]
    assert await collected(env, journal) == ANSWERS


async def test_fault_229_a_batch_that_is_refused_as_a_whole_says_why(protocol: Protocol) -> None:
    server, journal = BatchServer(), store_journal("run")
    env = env_of(server, config_of(protocol))
    if protocol == "openai":
        server.problem = {"code": "model_not_found", "message": "The model `m` does not support the Batch API."}
    else:
        error = {"type": "invalid_request_error", "message": "This model does not support the Batch API."}
        server.rejections.append(Reply(400, {"type": "error", "error": error}))
    refused = (await run(submit_batch(PROMPTS, journal), env)).unwrap().refused
    results = (await run(collect_batch(PROMPTS, journal), env)).unwrap()
    errors = [error for _, error in refused] or [each.failure() for each in results]
    assert len(errors) == 3
    assert all("does not support the Batch API" in getattr(each, "message", "") for each in errors)
    assert (await run(usage_report(), env)).unwrap().total.attempts == 0


async def test_fault_229_a_reservation_is_given_back(protocol: Protocol) -> None:
    from llm_effects.config.services import BudgetConfig

    config = config_of(protocol, budgets=(BudgetConfig(name="all", limit_usd=1),))
    server, journal = BatchServer(), store_journal("run")
    env = env_of(server, config)
    server.rejections.append(Reply(429, SLOW_DOWN))
    await run(submit_batch(PROMPTS, journal), env)
    assert [*env.ledger._totals.values()] == [0]  # type: ignore[attr-defined]
    server.runs, server.ends_as = 0, "expired"
    await run(submit_batch(PROMPTS, journal), env)
    assert [*env.ledger._totals.values()] > [0]  # type: ignore[attr-defined]
    await run(collect_batch(PROMPTS, journal), env)
    assert [*env.ledger._totals.values()] == [0]  # type: ignore[attr-defined]
