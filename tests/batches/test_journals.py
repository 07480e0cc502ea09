"""Journals: a paid answer is never requested again, whatever happened to the run, the file or the request."""

import os
import stat
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from returns.pipeline import is_successful
from returns.result import Failure, Result, Success

from llm_effects import (
    ContentRefused,
    Cost,
    LLMEnv,
    LLMError,
    LLMRequest,
    LLMResponse,
    StorageFailed,
    ToolCall,
    generate_many,
    run,
    scripted_env,
)
from llm_effects.batches import Progress, file_journal, generate_each, store_journal
from llm_effects.batches.journals import HEADER, Journal, Lookup, OpenJournal
from llm_effects.testing import Delayed, Reply, answer, scripted
from llm_effects.testing.scripted import Scripted
from tests.fixtures.batch_worker import CONCURRENCY, killed_and_resumed

pytestmark = pytest.mark.anyio

Make = Callable[[Path], Journal]
KINDS: list[Make] = [lambda folder: file_journal(folder / "run.jsonl"), lambda _: store_journal("run")]


@pytest.fixture(params=KINDS, ids=["file", "store"])
def journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    make: Make = request.param
    return make(tmp_path)


def ask(*prompts: str) -> list[LLMRequest]:
    return [LLMRequest(prompt=prompt) for prompt in prompts]


def env_of(*replies: Reply, after: LLMEnv | None = None) -> tuple[LLMEnv, Scripted]:
    """Return an environment with a new model and the conversations of an earlier one, and that model."""
    model = scripted(*replies)
    env = scripted_env(clients=model)
    return (env if after is None else evolve(env, conversations=after.conversations)), model


async def answers(env: LLMEnv, requests: list[LLMRequest], journal: Journal, **more: Any) -> list[str]:
    results = (await run(generate_many(requests, journal=journal, **more), env)).unwrap()
    return [each.unwrap().content if is_successful(each) else each.failure().tag for each in results]


async def test_a_resumed_run_sends_only_what_is_left(journal: Journal) -> None:
    env, _ = env_of("one", ContentRefused(), "three")
    reports: list[Progress] = []
    assert await answers(env, ask("a", "b", "c"), journal, concurrency=1) == ["one", "ContentRefused", "three"]
    again, model = env_of("two", "four", after=env)
    assert await answers(again, ask("a", "b", "c", "d"), journal, concurrency=1, progress=reports.append) == [
        "one",
        "two",
        "three",
        "four",
    ]
    assert [request.prompt for request in model.requests] == ["b", "d"]
    assert (reports[-1].done, reports[-1].resumed, reports[-1].failed) == (4, 2, 0)


async def test_a_stored_answer_is_restored_whole(journal: Journal) -> None:
    reply = evolve(
        answer('say "it"\n\u2028\x00 \U0001f600'),
        parts=(ToolCall("1", "look", "{}"),),
        warnings=("cut",),
        request_id="r",
    )
    env, _ = env_of(reply)
    first = (await run(generate_many(ask("a"), journal=journal), env)).unwrap()[0].unwrap()
    again, model = env_of("never", after=env)
    assert (await run(generate_many(ask("a"), journal=journal), again)).unwrap()[0].unwrap() == first
    assert first.cost == Cost.ZERO
    assert first.attempts
    assert not model.calls


async def test_a_changed_request_is_sent_again_with_a_warning(journal: Journal) -> None:
    env, _ = env_of("one", "two")
    await answers(env, ask("a", "b"), journal, concurrency=1)
    for round_ in range(2):
        reports: list[Progress] = []
        again, model = env_of("new", after=env)
        results = (await run(generate_many(ask("a", "B"), journal=journal, progress=reports.append), again)).unwrap()
        assert [each.unwrap().content for each in results] == ["one", "new"]
        assert "another request in this place" in results[1].unwrap().warnings[0]
        assert len(model.calls) == reports[-1].changed == (round_ == 0)


async def test_equal_requests_have_separate_entries(journal: Journal) -> None:
    env, model = env_of("heads", "tails")
    assert await answers(env, ask("toss", "toss"), journal, concurrency=1, cache="bypass") == ["heads", "tails"]
    assert await answers(env, ask("toss", "toss"), journal, concurrency=1, cache="bypass") == ["heads", "tails"]
    assert len(model.calls) == 2


async def test_an_answer_is_stored_before_it_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    noted: list[int] = []

    def note(now: Progress) -> None:
        noted.append(_lines(path) - now.done)

    env, _ = env_of("ok")
    await answers(env, ask("a", "b"), file_journal(path), concurrency=1, progress=note)
    assert noted == [1, 1]  # the first line is the header


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


async def test_an_answer_is_stored_even_if_the_run_is_cancelled(journal: Journal) -> None:
    env, _ = env_of("paid", Delayed(60, "never"))
    with anyio.move_on_after(0.2) as scope:
        await answers(env, ask("a", "b"), journal, concurrency=1)
    assert scope.cancelled_caught
    again, model = env_of("two", after=env)
    assert await answers(again, ask("a", "b"), journal) == ["paid", "two"]
    assert len(model.calls) == 1


async def test_owners_and_runs_are_kept_apart() -> None:
    env, model = env_of("one", "two", "three")
    for where in (
        store_journal("a", owner="alice"),
        store_journal("b", owner="alice"),
        store_journal("a", owner="bob"),
    ):
        await answers(env, ask("a"), where)
    assert len(model.calls) == 3


async def test_the_file_is_readable_only_by_its_owner(tmp_path: Path) -> None:
    path, mask = tmp_path / "run.jsonl", os.umask(0)
    try:
        await answers(scripted_env("ok"), ask("a"), file_journal(path))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_file_in_use_by_another_run_is_refused(tmp_path: Path) -> None:
    journal = file_journal(tmp_path / "run.jsonl")
    env, model = env_of("ok")
    async with journal(env) as first:
        assert is_successful(first)
        refused = (await run(generate_many(ask("a"), journal=journal), env)).failure()
    assert refused.tag == "StorageFailed"
    assert "is in use by another run" in str(refused)
    assert not model.calls
    assert await answers(env, ask("a"), journal) == ["ok"]


@pytest.mark.parametrize("content", [b"my only copy", b"{}\n", HEADER.replace(b"1", b"2"), b"\xff\xfe"])
async def test_a_file_that_is_not_a_journal_is_left_unchanged(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_bytes(content)
    refused = (await run(generate_many(ask("a"), journal=file_journal(path)), scripted_env("ok"))).failure()
    assert "is not a journal of this version" in str(refused)
    assert path.read_bytes() == content


@pytest.mark.parametrize("path", ["/no/such/folder/run.jsonl", "/", "nul\0"])
async def test_a_file_that_cannot_be_opened_fails_before_any_call(path: str) -> None:
    env, model = env_of("ok")
    refused = (await run(generate_many(ask("a"), journal=file_journal(path)), env)).failure()
    assert refused.tag == "StorageFailed"
    assert not model.calls


async def test_a_generator_is_not_started_if_the_journal_cannot_be_opened() -> None:
    taken: list[int] = []

    def requests() -> Iterator[LLMRequest]:
        for number in range(3):
            taken.append(number)
            yield LLMRequest(prompt="a")

    many = generate_many(requests(), journal=file_journal("/no/such/folder/run.jsonl"))
    for _ in range(2):
        assert (await run(many, scripted_env("ok"))).failure().tag == "StorageFailed"
    assert not taken


async def test_a_full_disk_ends_the_run_and_loses_no_reported_answer(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="this system has no file size limits")
    path, soft_hard = tmp_path / "run.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    env, model = env_of("ok")
    reported: list[int] = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, soft_hard[1]))
    try:
        each = generate_each(ask(*"abcdefgh"), lambda number, _: reported.append(number), 1, journal=file_journal(path))
        refused = (await run(each, env)).failure()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft_hard)
    assert refused.tag == "StorageFailed"
    assert "File too large" in str(refused)
    assert 0 < len(reported) < len(model.calls) < 8
    again, model = env_of("again")
    assert (await answers(again, ask(*"abcdefgh"), file_journal(path))).count("ok") == len(reported)


async def test_a_failing_journal_ends_the_run_after_the_calls_in_flight() -> None:
    env, model = env_of(lambda request: Delayed(0.01 * (request.prompt == "b"), "ok"))
    failed = (await run(generate_many(ask(*"abcdefgh"), 2, journal=broken), env)).failure()
    assert failed == StorageFailed(operation="journal")
    assert len(model.calls) == 2


async def test_cancellation_does_not_interrupt_a_write_to_the_journal() -> None:
    noted: list[int] = []

    class Slow(Broken):
        async def save(self, number: int, request: LLMRequest, answer: LLMResponse) -> Result[None, LLMError]:
            scope.cancel()
            await anyio.sleep(0.02)
            noted.append(number)
            return Success(None)

    @asynccontextmanager
    async def slow(_: LLMEnv) -> AsyncGenerator[Result[OpenJournal, LLMError]]:
        yield Success(Slow())

    with anyio.CancelScope() as scope:
        await run(generate_many(ask("a", "b"), 1, journal=slow), env_of("ok")[0])
    assert scope.cancelled_caught
    assert noted == [0]


class Broken:
    """A journal that cannot store an answer."""

    async def find(self, number: int, request: LLMRequest) -> Result[Lookup, LLMError]:
        return Success(Lookup())

    async def save(self, number: int, request: LLMRequest, answer: LLMResponse) -> Result[None, LLMError]:
        return Failure(StorageFailed(operation="journal"))


@asynccontextmanager
async def broken(_: LLMEnv) -> AsyncGenerator[Result[OpenJournal, LLMError]]:
    yield Success(Broken())


def journal_of(folder: Path, count: int) -> tuple[Path, bytes]:
    path = folder / "run.jsonl"
    anyio.run(answers, scripted_env(*map(str, range(count))), ask(*"abcdefgh"[:count]), file_journal(path))
    return path, path.read_bytes()


@pytest.fixture(scope="module")
def journal_of_three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    return journal_of(tmp_path_factory.mktemp("torn"), 3)


@given(cut=st.integers(min_value=0), noise=st.binary(max_size=30))
def test_a_torn_file_keeps_every_whole_line(cut: int, noise: bytes, journal_of_three: tuple[Path, bytes]) -> None:
    path, whole = journal_of_three
    prefix = whole[: cut % (len(whole) + 1)]
    torn = noise.replace(b"\n", b"") if prefix.startswith(HEADER) else b""
    path.write_bytes(prefix + torn)
    env, model = env_of(lambda request: f"again {request.prompt}")
    outputs = anyio.run(answers, env, ask("a", "b", "c"), file_journal(path))
    lines = max(0, prefix.count(b"\n") - 1)
    assert len(model.calls) == 3 - lines
    assert sum(each.startswith("again") for each in outputs) == 3 - lines
    assert anyio.run(answers, scripted_env("never"), ask("a", "b", "c"), file_journal(path)) == outputs


def test_a_damaged_line_is_requested_again_and_no_other(tmp_path: Path) -> None:
    path, whole = journal_of(tmp_path, 3)
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1] + lines[2].replace(b"scripted", b"scribble") + b"\xff{\n" + lines[3])
    env, model = env_of("mended")
    assert "mended" in anyio.run(answers, env, ask("a", "b", "c"), file_journal(path))
    assert len(model.calls) == 1


def test_a_long_run_keeps_no_answers_in_memory(tmp_path: Path) -> None:
    """Requests come from a generator, and answers go only to the journal and the hook."""
    in_flight = peak = 0

    def requests() -> Any:
        nonlocal in_flight, peak
        for number in range(300):
            in_flight += 1
            peak = max(peak, in_flight)
            yield LLMRequest(prompt=f"{number}")

    def take(_: int, __: object) -> None:
        nonlocal in_flight
        in_flight -= 1

    each = generate_each(requests(), take, 4, journal=file_journal(tmp_path / "run.jsonl"))
    assert anyio.run(run, each, scripted_env("ok")).unwrap().done == 300
    assert peak <= 5


@pytest.mark.parametrize("kind", ["file", "sqlite"])
def test_a_killed_run_resumes_and_pays_twice_only_for_calls_in_flight(kind: str, tmp_path: Path) -> None:
    if kind == "sqlite":
        pytest.importorskip("sqlalchemy", reason="pip install 'llm-effects[sql]'")
    journal = f"sqlite:///{tmp_path}/run.db" if kind == "sqlite" else str(tmp_path / "run.jsonl")
    paid, (count, kills) = tmp_path / "paid", (30, 2) if kind == "sqlite" else (100, 4)
    outputs = killed_and_resumed(journal, paid, count, kills)
    bills = paid.read_text().splitlines()
    assert outputs == [f"answer to question {number}" for number in range(count)]
    assert set(bills) == {f"question {number}" for number in range(count)}
    assert len(bills) - count <= kills * CONCURRENCY
