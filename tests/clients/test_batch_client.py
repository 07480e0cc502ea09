"""The live clients' batches: keys that rotate, long results, requests that take too long."""

import json
from collections import deque
from typing import Any

import anyio
import pytest
from attrs import evolve

from llm_effects import LLMConfig, LLMRequest, open_env
from llm_effects.clients import batch_client
from llm_effects.clients.batch_client import batch_jobs_of
from llm_effects.effects.effect import Answer, result_of
from llm_effects.effects.env import BatchJobs
from llm_effects.testing import scripted
from llm_effects.values import caps
from llm_effects.values.records import BatchJob
from tests.fixtures.batch_server import BatchServer, Job, config_of
from tests.fixtures.servers import Peer, answering, chunked, reply_json, serving

pytestmark = pytest.mark.anyio


def jobs_of(clients: Any) -> BatchJobs:
    jobs = batch_jobs_of(clients)
    assert jobs is not None
    return jobs


async def test_a_key_that_rotates_is_renewed_once() -> None:
    server, keys = BatchServer(key="fresh-key-2"), deque(["stale-key-1", "fresh-key-2"])
    server.jobs["batch_0"] = job = _submitted(server)
    with serving(server.behave) as listening:
        model = config_of("anthropic", listening.url).models["anthropic"]
        config = LLMConfig(models={"anthropic": evolve(model, api_key=lambda: keys.popleft())})
        async with open_env(config) as env:
            found = await result_of(jobs_of(env.clients).status("anthropic", job.id))
            read = await result_of(jobs_of(env.clients).results(found.unwrap(), {}, _ignore))
    assert found.unwrap().requests == 1
    assert read.unwrap() is None
    assert not keys


async def test_a_key_that_is_rejected_before_the_results_is_renewed_too() -> None:
    server, keys = BatchServer(key="first-key-1"), deque(["first-key-1", "fresh-key-2"])
    server.jobs["batch_0"] = job = _submitted(server)
    with serving(server.behave) as listening:
        model = config_of("anthropic", listening.url).models["anthropic"]
        async with open_env(LLMConfig(models={"anthropic": evolve(model, api_key=lambda: keys.popleft())})) as env:
            found = await result_of(jobs_of(env.clients).status("anthropic", job.id))
            server.key = "fresh-key-2"
            read = await result_of(jobs_of(env.clients).results(found.unwrap(), {}, _ignore))
    assert read.unwrap() is None
    assert not keys


def _submitted(server: BatchServer) -> Job:
    job = Job("batch_0", {"x": {"model": "m", "messages": [{"role": "user", "content": "a"}]}})
    server.end(job)
    return job


async def _ignore(custom_id: str, answer: Answer) -> None:
    """Ignore a result."""


async def test_a_model_that_is_not_configured_any_more_is_an_error() -> None:
    async with open_env(config_of("openai")) as env:
        error = (await result_of(jobs_of(env.clients).status("gone", "batch_0"))).failure()
    assert (error.tag, error.model) == ("ConfigurationError", "gone")


async def test_a_server_that_never_answers_is_left_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_client, "ASKING_S", 0.05)

    async def hold(peer: Peer) -> None:
        await peer.request()
        await peer.gone()

    with serving(hold) as listening:
        async with open_env(config_of("openai", listening.url)) as env:
            error = (await result_of(jobs_of(env.clients).status("openai", "batch_0"))).failure()
    assert (error.tag, error.model) == ("TimeoutError", "openai")


async def test_lines_are_read_across_chunks_and_overlong_ones_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caps, "ANSWER_BYTES", 1000)
    lines = [json.dumps({"custom_id": name, "error": {"code": "batch_expired"}}).encode() for name in "abc"]
    body = b"\n".join([lines[0], b"x" * 5000, lines[1], b"y" * 5000 + lines[2], lines[2]])

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(chunked(*(body[at : at + 7] for at in range(0, len(body), 7))))

    taken: list[str] = []

    async def take(custom_id: str, answer: Answer) -> None:
        taken.append(f"{custom_id} {answer.failure().code}")

    with serving(behave) as listening:
        async with open_env(config_of("openai", listening.url)) as env:
            job = BatchJob(id="b", model="openai", files=("out",))
            requests = {name: LLMRequest(prompt=name) for name in "abc"}
            assert (await result_of(jobs_of(env.clients).results(job, requests, take))).unwrap() is None
    assert taken == ["a batch_expired", "b batch_expired", "c batch_expired"]


async def test_results_that_are_cut_off_are_an_error_and_keep_what_came() -> None:
    line = json.dumps({"custom_id": "a", "error": {"code": "batch_expired"}}).encode()

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(chunked(line + b"\n" + line[:20], end=False))

    taken: list[str] = []

    async def take(custom_id: str, _: Answer) -> None:
        taken.append(custom_id)

    with serving(behave) as listening:
        async with open_env(config_of("openai", listening.url)) as env:
            job = BatchJob(id="b", model="openai", files=("out",))
            read = await result_of(jobs_of(env.clients).results(job, {"a": LLMRequest(prompt="a")}, take))
    assert (read.failure().tag, taken) == ("NetworkError", ["a"])


async def test_an_upload_that_fails_has_submitted_nothing() -> None:
    with serving(answering(reply_json({}, "500 X"))) as listening:
        async with open_env(config_of("openai", listening.url)) as env:
            error = (await result_of(jobs_of(env.clients).submit("openai", [], "submission"))).failure()
    assert (error.status, error.code) == (500, batch_client.UPLOAD)


def test_clients_may_have_batches_of_their_own() -> None:
    model = scripted("ok")
    assert batch_jobs_of(model) is model.batches
    assert batch_jobs_of(object()) is None  # type: ignore[arg-type]


async def test_a_search_ends_after_so_many_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_client, "MOST_PAGES", 2)
    server = BatchServer()
    job = _submitted(server)
    server.jobs.update({f"b{at}": evolve(job, id=f"b{at}", endpoint="/v1/chat/completions") for at in range(9)})
    with serving(server.behave) as listening:
        async with open_env(config_of("openai", listening.url)) as env:
            with anyio.fail_after(30):
                found = await result_of(jobs_of(env.clients).find("openai", "mine", 1, server.created_at))
    assert found.failure().code == "batch_unsure"
