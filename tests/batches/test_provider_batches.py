"""Batches at a provider: each request is paid for once, at half price, and its result comes in its place."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import anyio
import pytest
from attrs import evolve
from returns.future import FutureResult
from returns.pipeline import is_successful

from llm_effects import LLMEnv, LLMRequest, StorageFailed, generate_many, run, usage_report
from llm_effects.batches import (
    BatchStatus,
    Progress,
    batch_status,
    cancel_batch,
    collect_batch,
    file_journal,
    store_journal,
    submit_batch,
)
from llm_effects.batches.journals import HEADER, Journal
from llm_effects.config.services import BudgetConfig
from tests.fixtures.batch_server import PROTOCOLS, BatchServer, Protocol, config_of, env_of, model_of

pytestmark = pytest.mark.anyio

PROMPTS = ["a", "b", "c"]


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> Protocol:
    value: Protocol = request.param
    return value


Make = Callable[[Path], Journal]
KINDS: list[Make] = [lambda folder: file_journal(folder / "run.jsonl"), lambda _: store_journal("run")]


@pytest.fixture(params=KINDS, ids=["file", "store"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    make: Make = request.param
    return make(tmp_path)


async def submitted(env: LLMEnv, journal: Journal, prompts: list[str] = PROMPTS) -> BatchStatus:
    return (await run(submit_batch(prompts, journal), env)).unwrap()


async def collected(env: LLMEnv, journal: Journal, prompts: list[str] = PROMPTS) -> list[str]:
    results = (await run(collect_batch(prompts, journal), env)).unwrap()
    return [each.unwrap().content if is_successful(each) else each.failure().tag for each in results]


async def test_a_batch_is_submitted_polled_and_collected_in_order(protocol: Protocol, journal: Journal) -> None:
    server = BatchServer(polls_until_end=2, failed_prompts=frozenset({"b"}))
    env = env_of(server, config_of(protocol))
    status = await submitted(env, journal)
    assert [(job.model, job.state, job.requests, job.ended) for job in status.jobs] == [
        (protocol, "in_progress", 3, False)
    ]
    assert (await run(batch_status(journal), env)).unwrap().ended
    assert await collected(env, journal) == ["answer to a", "InvalidRequest", "answer to c"]
    after = (await run(batch_status(journal), env)).unwrap()
    assert (after.jobs, after.collected, after.ended) == ((), 1, True)
    assert server.billed == {"a": 1, "c": 1}


async def test_it_costs_half_in_the_answer_and_the_ledger(protocol: Protocol, journal: Journal) -> None:
    env = env_of(BatchServer(failed_prompts=frozenset({"b"})), config_of(protocol))
    requests = [LLMRequest(prompt=prompt, owner="alice", tags=("night",)) for prompt in PROMPTS]
    await run(submit_batch(requests, journal), env)
    first = (await run(collect_batch(requests, journal), env)).unwrap()[0].unwrap()
    half = (1000 * Decimal(2) + 100 * Decimal(10)) / 1_000_000 / 2
    assert (first.cost.usd, first.usage.service_tier, first.attempts[0].cost.usd) == (half, "batch", half)
    report = (await run(usage_report(by="owner"), env)).unwrap()
    assert [(row.group, row.cost_usd, row.successes, dict(row.failures)) for row in report.rows] == [
        (("alice",), 2 * half, 2, {"InvalidRequest": 1})
    ]
    assert report.total.latency_ms is None  # of a queue, not of a model


async def test_submitting_again_submits_nothing(protocol: Protocol, journal: Journal) -> None:
    server = BatchServer(polls_until_end=9)
    env = env_of(server, config_of(protocol))
    for _ in range(3):
        status = await submitted(env, journal)
        env = env_of(server, config_of(protocol), after=env)  # another process
    assert (len(status.jobs), len(server.jobs)) == (1, 1)
    assert await collected(env, journal) == ["ModelUnavailable"] * 3
    server.polls_until_end = 1
    assert await collected(env, journal) == [f"answer to {prompt}" for prompt in PROMPTS]
    assert await collected(env, journal) == [f"answer to {prompt}" for prompt in PROMPTS]
    assert (await submitted(env, journal)).collected == 1
    assert len(server.jobs) == 1


async def test_more_requests_and_failed_ones_make_another_batch(protocol: Protocol, journal: Journal) -> None:
    server = BatchServer(failed_prompts=frozenset({"b"}))
    env = env_of(server, config_of(protocol))
    await submitted(env, journal)
    await collected(env, journal)
    server.failed_prompts = frozenset()
    await submitted(env, journal, [*PROMPTS, "d"])
    assert [list(server.billed), len(server.jobs["batch_1"].items)] == [["a", "b", "c", "d"], 2]
    assert await collected(env, journal, [*PROMPTS, "d"]) == [f"answer to {each}" for each in "abcd"]


async def test_requests_of_several_models_make_a_batch_each(journal: Journal) -> None:
    server = BatchServer()
    config = config_of("openai")
    config = evolve(config, models={**config.models, "claude": model_of("anthropic", "http://127.0.0.1:9/v1")})
    env = env_of(server, config)
    requests = [LLMRequest(prompt=prompt, model=("openai", "claude")[at % 2]) for at, prompt in enumerate(PROMPTS)]
    status = (await run(submit_batch(requests, journal), env)).unwrap()
    assert sorted((job.model, job.requests) for job in status.jobs) == [("claude", 1), ("openai", 2)]
    results = (await run(collect_batch(requests, journal), env)).unwrap()
    assert [each.unwrap().model for each in results] == ["openai", "claude", "openai"]


async def test_what_cannot_be_submitted_says_why(journal: Journal) -> None:
    env = env_of(BatchServer(), config_of("openai"))
    requests = ["a", " ", LLMRequest(prompt="b", model="absent")]
    refused = (await run(submit_batch(requests, journal), env)).unwrap().refused
    assert [number for number, _ in refused] == [1, 2]
    results = (await run(collect_batch([*requests, "later"], journal), env)).unwrap()
    assert [is_successful(each) or each.failure().tag for each in results] == [True, *["InvalidRequest"] * 3]


async def test_a_local_model_takes_no_batch(journal: Journal) -> None:
    local = config_of("openai")
    local = evolve(local, models={"mini": evolve(local.models["openai"], provider="lm-studio")})
    server = BatchServer()
    refused = (await submitted(env_of(server, local), journal)).refused
    assert [error.tag for _, error in refused] == ["ConfigurationError"] * 3
    assert server.asked == []


async def test_a_changed_request_is_submitted_on_its_own(protocol: Protocol, journal: Journal) -> None:
    server = BatchServer(polls_until_end=9)
    env = env_of(server, config_of(protocol))
    await submitted(env, journal)
    await submitted(env, journal, ["a", "changed", "c"])
    assert [len(job.items) for job in server.jobs.values()] == [3, 1]
    server.polls_until_end = 1
    assert await collected(env, journal, ["a", "changed", "c"]) == [
        f"answer to {each}" for each in ("a", "changed", "c")
    ]


async def test_generate_many_waits_for_the_provider(protocol: Protocol, journal: Journal) -> None:
    server = BatchServer(polls_until_end=1)
    env, reports = env_of(server, config_of(protocol)), list[Progress]()
    many = generate_many(PROMPTS, journal=journal, via="provider", progress=reports.append)
    results = (await run(many, env)).unwrap()
    assert [each.unwrap().content for each in results] == [f"answer to {prompt}" for prompt in PROMPTS]
    assert (reports[-1].done, reports[-1].total, str(reports[-1].cost)) == (3, 3, "$0.0045")
    again = (await run(many, env_of(server, config_of(protocol), after=env))).unwrap()
    assert again == results
    assert (reports[-1].resumed, len(server.jobs)) == (3, 1)


async def test_a_journal_serves_calls_and_batches(journal: Journal) -> None:
    server = BatchServer()
    env = env_of(server, config_of("openai"))
    await run(generate_many(PROMPTS, journal=journal, via="provider"), env)
    resumed = (await run(generate_many(PROMPTS, journal=journal), env)).unwrap()
    assert [each.unwrap().content for each in resumed] == [f"answer to {prompt}" for prompt in PROMPTS]


async def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(ValueError, match="via: must be one of calls, provider"):
        generate_many(PROMPTS, via="pigeon")  # type: ignore[arg-type]


async def test_budgets_hold_the_estimate_until_the_cost_is_known(protocol: Protocol, journal: Journal) -> None:
    half = Decimal("0.0015")
    budgets = (BudgetConfig(name="all", limit_usd=1), BudgetConfig(name="each", limit_usd=1, scope="owner:*"))
    config = config_of(protocol, budgets=budgets)
    env = env_of(BatchServer(failed_prompts=frozenset({"b"})), config)
    requests = [LLMRequest(prompt=prompt, owner=owner) for prompt, owner in zip(PROMPTS, "xyx", strict=True)]
    await run(submit_batch(requests, journal), env)
    totals = env.ledger._totals  # type: ignore[attr-defined]
    assert all(amount > 0 for amount in totals.values())
    assert len(totals) == 3
    await run(collect_batch(requests, journal), env)
    assert sorted(totals.values()) == [0, 2 * half, 2 * half]


async def test_a_budget_that_cannot_cover_a_batch_refuses_it(protocol: Protocol, journal: Journal) -> None:
    server = BatchServer()
    config = config_of(protocol, budgets=(BudgetConfig(name="all", limit_usd=Decimal("0.001")),))
    env = env_of(server, config)
    refused = (await submitted(env, journal)).refused
    assert [error.tag for _, error in refused] == ["BudgetExceeded"] * 3
    assert (server.jobs, [*env.ledger._totals.values()]) == ({}, [])  # type: ignore[attr-defined]


async def test_a_price_that_is_unknown_is_refused_where_a_budget_applies(journal: Journal) -> None:
    server = BatchServer()
    config = config_of("openai", budgets=(BudgetConfig(name="all", limit_usd=1),))
    config = evolve(config, models={"openai": evolve(config.models["openai"], price=None)})
    assert [error.tag for _, error in (await submitted(env_of(server, config), journal)).refused] == [
        "BudgetExceeded"
    ] * 3
    assert server.asked == []


async def test_cancelling_keeps_what_has_run(protocol: Protocol, journal: Journal) -> None:
    server = BatchServer(polls_until_end=2, runs=1)
    env = env_of(server, config_of(protocol))
    await submitted(env, journal)
    assert [job.state for job in (await run(cancel_batch(journal), env)).unwrap().jobs] == ["cancelling"]
    assert await collected(env, journal) == ["answer to a", "ModelUnavailable", "ModelUnavailable"]
    assert (await run(cancel_batch(journal), env)).unwrap().jobs == ()
    server.runs = None
    await submitted(env, journal)
    assert await collected(env, journal) == [f"answer to {prompt}" for prompt in PROMPTS]
    assert set(server.billed.values()) == {1}


async def test_cancelling_what_has_ended_changes_nothing(protocol: Protocol, journal: Journal) -> None:
    server = BatchServer()
    env = env_of(server, config_of(protocol))
    await submitted(env, journal)
    server.end(server.jobs["batch_0"])
    assert [job.state for job in (await run(cancel_batch(journal), env)).unwrap().jobs] == ["completed"]


async def test_clients_without_batches_say_so(journal: Journal) -> None:
    class Plain:
        complete = probe = None

    env = evolve(env_of(BatchServer(), config_of("openai")), clients=Plain())  # type: ignore[arg-type]
    assert (await run(batch_status(journal), env)).failure().tag == "ConfigurationError"


async def test_a_second_run_with_one_store_journal_submits_nothing() -> None:
    server, journal = BatchServer(polls_until_end=9), store_journal("run")
    env = env_of(server, config_of("openai"))
    results = list[str]()

    async def submit() -> None:
        result = await run(submit_batch(PROMPTS, journal), env)
        results.append(result.map(lambda _: "submitted").value_or("refused"))

    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(submit)
    assert len(server.jobs) == 1
    assert "submitted" in results


async def test_no_key_is_in_the_journal(protocol: Protocol, tmp_path: Path) -> None:
    server, path = BatchServer(), tmp_path / "run.jsonl"
    await submitted(env_of(server, config_of(protocol)), file_journal(path))
    assert server.key not in path.read_text()


async def test_a_rejected_key_is_an_error_that_ends_the_run(protocol: Protocol, journal: Journal) -> None:
    env = env_of(BatchServer(key="another"), config_of(protocol))
    assert [error.tag for _, error in (await submitted(env, journal)).refused] == ["AuthenticationFailed"] * 3


async def test_a_hold_outlives_the_process(protocol: Protocol, tmp_path: Path) -> None:
    config = config_of(protocol, budgets=(BudgetConfig(name="all", limit_usd=1),))
    env, journal = env_of(BatchServer(), config), file_journal(tmp_path / "run.jsonl")
    server = BatchServer()
    env = env_of(server, config)
    await submitted(env, journal)
    later = evolve(env_of(server, config, after=env), now=lambda: env.now() + timedelta(hours=20))
    assert await collected(later, journal) == [f"answer to {prompt}" for prompt in PROMPTS]
    assert sorted(env.ledger._totals.values()) == [Decimal("0.0045")]  # type: ignore[attr-defined]


# Journals and providers that fail.


async def test_a_text_is_no_list_of_requests(journal: Journal) -> None:
    with pytest.raises(ValueError, match="must be a list of texts or requests, not one text"):
        submit_batch("why?", journal)
    with pytest.raises(ValueError, match="must be a list of texts or requests, not one text"):
        collect_batch("why?", journal)


async def test_a_journal_that_cannot_be_opened_submits_nothing() -> None:
    server = BatchServer()
    env = env_of(server, config_of("openai"))
    nowhere = file_journal("/no/such/folder/run.jsonl")
    for operation in (submit_batch(PROMPTS, nowhere), batch_status(nowhere), collect_batch(PROMPTS, nowhere)):
        assert (await run(operation, env)).failure().tag == "StorageFailed"  # type: ignore[arg-type]
    assert server.asked == []


@pytest.mark.parametrize("note", ['{"note":"batch/0","intent":{"id":7}}', '{"note":"batch/0/end","intent":{}}'])
async def test_a_journal_of_another_version_submits_nothing(note: str, tmp_path: Path) -> None:
    server, path = BatchServer(), tmp_path / "run.jsonl"
    path.write_bytes(HEADER + note.encode() + b"\n")
    failed = (await run(submit_batch(PROMPTS, file_journal(path)), env_of(server, config_of("openai")))).failure()
    assert (failed.tag, server.asked) == ("StorageFailed", [])


class Failing:
    """A store of conversations whose operation ``name`` fails after so many times."""

    def __init__(self, store: object, name: str, after: int) -> None:
        self.store, self.name, self.left = store, name, after

    def __getattr__(self, name: str) -> object:
        if name == self.name:
            self.left -= 1
            if self.left < 0:
                return lambda *_: FutureResult.from_failure(StorageFailed(operation=name))
        return getattr(self.store, name)


@pytest.mark.parametrize(
    ("name", "after"),
    [("journal", 0), ("intend", 0), ("intend", 3), ("conclude", 0), ("intend", 4), ("conclude", 1), ("intend", 8)],
)
async def test_a_journal_that_fails_loses_and_repeats_nothing(protocol: Protocol, name: str, after: int) -> None:
    server, journal = BatchServer(), store_journal("run")
    server.on_created = lambda: server.end(server.jobs["batch_0"])
    env = env_of(server, config_of(protocol))
    broken = evolve(env, conversations=Failing(env.conversations, name, after))  # type: ignore[arg-type]
    failures = [
        result.failure().tag
        for result in (
            await run(submit_batch(PROMPTS, journal), broken),
            await run(collect_batch(PROMPTS, journal), broken),
        )
        if not is_successful(result)
    ]
    assert failures
    assert set(failures) == {"StorageFailed"}
    well = evolve(env, now=lambda: env.now() + timedelta(minutes=2))
    await submitted(well, journal)
    assert await collected(well, journal) == [f"answer to {prompt}" for prompt in PROMPTS]
    assert server.billed == dict.fromkeys(PROMPTS, 1)


async def test_a_provider_that_does_not_answer_is_an_error(protocol: Protocol, journal: Journal) -> None:
    server = BatchServer()
    env = env_of(server, config_of(protocol))
    await submitted(env, journal)
    server.failing_polls = 3
    assert (await run(batch_status(journal), env)).failure().tag == "ModelUnavailable"
    assert (await run(submit_batch(PROMPTS, journal), env)).failure().tag == "ModelUnavailable"
    results = (await run(collect_batch(PROMPTS, journal), env)).unwrap()
    assert [each.failure().status for each in results] == [503] * 3
    assert await collected(env, journal) == [f"answer to {prompt}" for prompt in PROMPTS]


async def test_a_batch_that_is_gone_is_not_submitted_again(protocol: Protocol, journal: Journal) -> None:
    server = BatchServer()
    env = env_of(server, config_of(protocol))
    await submitted(env, journal)
    kept = server.jobs.copy()
    server.jobs.clear()
    results = (await run(generate_many(PROMPTS, journal=journal, via="provider"), env)).unwrap()
    assert [each.failure().status for each in results] == [404] * 3
    assert server.jobs == {}
    server.jobs.update(kept)
    assert await collected(env, journal) == [f"answer to {prompt}" for prompt in PROMPTS]


async def test_a_submission_that_was_cut_off_is_cancelled_too(protocol: Protocol, journal: Journal) -> None:
    server = BatchServer(lose_answers=1, polls_until_end=5)
    env = env_of(server, config_of(protocol))
    await run(submit_batch(PROMPTS, journal), env)
    later = evolve(env, now=lambda: env.now() + timedelta(minutes=2))
    cancelled = await run(cancel_batch(journal), later)
    if protocol == "anthropic":
        assert cancelled.failure().code == "batch_unsure"
    else:
        assert [job.state for job in cancelled.unwrap().jobs] == ["cancelling"]
