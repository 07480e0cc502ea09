"""Faults 1 to 19: connections that fail, break, stall, or lead elsewhere."""

import asyncio
import os
import resource
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio
import httpx
import pytest
from attrs import evolve
from returns.pipeline import is_successful

from llm_effects import Preferences, describe, generate, open_env, run
from llm_effects.clients.transport.pool import MakePool
from llm_effects.clients.transport.transport import Transport
from tests.fixtures.chaos import CANARY, HEAD, Chaos, closes, good, holds, resets, says
from tests.fixtures.faults import (
    ASK,
    MODES,
    Case,
    assert_case,
    config_of,
    leaf,
    model,
    plan_of,
    rows,
    run_case,
    wait_for_requests,
)
from tests.fixtures.servers import Peer, Server, answering, reply, sending, serving
from tests.fixtures.wires import Wire

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("carried")]


@pytest.fixture
def anyio_backend(wire: Wire) -> str:
    return wire.loop


SHORT: Final = {"timeout_ms": 60, "first_content_ms": 60}

CONNECTIONS: dict[str, Case] = {
    "003_closed_before_the_answer": Case(
        step=closes(), tag="NetworkError", tries=3, falls_back=True, fields={"phase": "reset"}
    ),
    "005_reset": Case(step=resets(), tag="NetworkError", tries=3, falls_back=True, fields={"phase": "reset"}),
    "006_no_http": Case(
        step=closes(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
        tag="NetworkError",
        tries=3,
        falls_back=True,
        fields={"phase": "protocol"},
    ),
    "007_silence": Case(
        step=holds(), tag="TimeoutError", tries=2, falls_back=True, fields={"timeout_ms": 60}, model=SHORT
    ),
    "007_a_head_and_silence": Case(
        step=holds(HEAD), tag="TimeoutError", tries=2, falls_back=True, fields={"timeout_ms": 60}, model=SHORT
    ),
}


@pytest.mark.parametrize(("case", "mode"), rows(CONNECTIONS))
async def test_a_broken_connection_is_retried_then_falls_back(chaos: Chaos, case: Case, mode: str) -> None:
    await assert_case(chaos, case, mode)


def closed_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{one.getsockname()[1]}/shut/v1"


@pytest.mark.parametrize("mode", MODES)
async def test_001_a_refused_connection_is_retried_only_at_the_last_candidate(chaos: Chaos, mode: str) -> None:
    shut = model(chaos, good, endpoint=closed_port())
    alone = await run_case(chaos, {"first": shut}, mode=mode, unreached=3)
    assert (alone.error.tag, getattr(alone.error, "phase", "")) == ("RequestFailed", "")
    assert {getattr(each, "phase", "") for each in getattr(alone.error, "errors", ())} == {"refused"}
    behind = await run_case(chaos, {"first": shut, "second": model(chaos, good)}, mode=mode, unreached=1)
    assert (behind.response.model, behind.took < 1) == ("second", True)
    assert behind.response.attempts[0].cost.usd == 0


@contextmanager
def blackhole() -> Iterator[str]:
    """Open a port that never accepts a connection, because its backlog is full."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        yield f"http://127.0.0.1:{full.getsockname()[1]}/shut/v1"
        for one in waiting:
            one.close()


async def test_002_a_connection_that_is_never_accepted_costs_only_its_own_time_out(chaos: Chaos) -> None:
    with blackhole() as nowhere:
        models = {"first": model(chaos, good, endpoint=nowhere, connect_ms=50), "second": model(chaos, good)}
        outcome = await run_case(chaos, models, unreached=1)
        alone = await run_case(chaos, {"first": models["first"]}, unreached=2)
    assert (getattr(leaf(alone.error), "phase", ""), getattr(leaf(alone.error), "timeout_ms", 0)) == ("connect", 50)
    assert [attempt.outcome for attempt in outcome.response.attempts] == ["TimeoutError", "success"]
    assert outcome.took < 1


@pytest.mark.parametrize("reset", [True, False])
async def test_004_a_stale_connection_is_replaced_without_another_attempt(chaos: Chaos, reset: bool) -> None:
    first = model(chaos, good, resets() if reset else closes(), good)
    async with open_env(config_of({"first": first}, max_retries=0)) as env:
        for number in range(2):
            request = evolve(ASK, prompt=f"why? {number}")
            response = (await run(generate(request), env)).unwrap()
            assert len(response.attempts) == 1
    assert chaos.asked[plan_of(first)] == 3


async def test_008_a_server_that_reads_nothing_times_out(chaos: Chaos) -> None:
    async def deaf(peer: Peer) -> None:
        await asyncio.sleep(2)  # it reads nothing: after some megabytes the buffers are full

    large = evolve(ASK, prompt="x" * 16 * 2**20)
    with serving(deaf) as server:
        models = {"first": model(chaos, good, endpoint=f"{server.url}/v1", **SHORT)}
        outcome = await run_case(chaos, models, request=large, unreached=2, max_retries=1)
    assert {each.tag for each in getattr(outcome.error, "errors", ())} == {"TimeoutError"}


async def test_009_a_call_queues_up_to_its_deadline_and_records_no_attempt(chaos: Chaos) -> None:
    silent = model(chaos, holds(), timeout_ms=2000)
    narrow = open_env(config_of({"first": silent}), transport=lambda: Transport(max_connections=1))
    async with narrow as env, anyio.create_task_group() as tasks:
        tasks.start_soon(run, generate(ASK), env)
        await wait_for_requests(chaos, silent)
        hasty = evolve(ASK, prompt="me too", preferences=Preferences(timeout_ms=60))
        error = (await run(generate(hasty), env)).failure()
        assert (error.tag, error.attempts, chaos.asked[plan_of(silent)]) == ("TimeoutError", (), 1)
        tasks.cancel_scope.cancel()
    assert chaos.server.settled() == 0


async def test_010_an_unresolvable_host_is_retried_then_falls_back(chaos: Chaos) -> None:
    models = {"first": model(chaos, good, endpoint="https://no-such-host.invalid/v1"), "second": model(chaos, good)}
    outcome = await run_case(chaos, models, unreached=2)
    alone = await run_case(chaos, {"first": models["first"]}, unreached=2)
    assert getattr(leaf(alone.error), "phase", "") == "dns"
    assert [attempt.outcome for attempt in outcome.response.attempts] == ["NetworkError", "NetworkError", "success"]


async def test_011_one_of_two_addresses_may_be_dead(chaos: Chaos, monkeypatch: pytest.MonkeyPatch) -> None:
    live, asked = ("127.0.0.1", chaos.server.port), list[object]()

    def two(*host_and_port: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host_and_port[0])
        dead = ("127.0.0.2", chaos.server.port)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in (dead, live)]

    first = model(chaos, good)
    named = evolve(first, endpoint=(first.endpoint or "").replace("127.0.0.1", "localhost"))
    monkeypatch.setattr(socket, "getaddrinfo", two)  # the resolver of the system cannot be passed in
    outcome = await run_case(chaos, {"first": named})
    assert (outcome.response.content, outcome.asked) == ("because", {"first": 1})
    assert asked


async def tls_refused(chaos: Chaos, server: Server, mode: str) -> str:
    """Check that a fault is neither retried nor passed to another model; return its description."""
    first = model(chaos, good, endpoint=server.url.replace("http:", "https:"))
    for models in ({"first": first}, {"first": first, "second": model(chaos, good)}):
        outcome = await run_case(chaos, models, mode=mode, unreached=1)
        assert (outcome.error.tag, sum(outcome.asked.values())) == ("ConfigurationError", 0)
    assert server.requests == []
    return describe(outcome.error)


@pytest.mark.parametrize("mode", MODES)
async def test_012_an_untrusted_certificate_is_a_configuration_error(
    chaos: Chaos, own_authority: ssl.SSLContext, mode: str
) -> None:
    with serving(answering(), tls=own_authority) as server:
        assert "certificate" in await tls_refused(chaos, server, mode)
        assert server.settled() == 0


@pytest.mark.parametrize("mode", MODES)
async def test_013_a_tls_handshake_that_is_cut_off_is_retried_then_falls_back(chaos: Chaos, mode: str) -> None:
    async def cut(peer: Peer) -> None:
        await peer.reader.read(100)

    with serving(cut) as server:
        first = model(chaos, good, endpoint=server.url.replace("http:", "https:"))
        alone = await run_case(chaos, {"first": first}, mode=mode, unreached=3)
        behind = await run_case(chaos, {"first": first, "second": model(chaos, good)}, mode=mode, unreached=3)
        assert server.settled() == 0
    assert (leaf(alone.error).tag, behind.response.model) == ("NetworkError", "second")


@pytest.mark.parametrize("mode", MODES)
async def test_014_plain_http_instead_of_tls_is_a_configuration_error(chaos: Chaos, mode: str) -> None:
    async def plain(peer: Peer) -> None:
        await peer.reader.read(100)
        await peer.send(reply(b"", "400 Bad Request"))
        await peer.gone()

    with serving(plain) as server:
        assert "does not speak TLS" in await tls_refused(chaos, server, mode)
        assert server.settled() == 0


@pytest.mark.parametrize("word", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
async def test_015_a_proxy_of_the_environment_is_not_used(
    chaos: Chaos, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setenv(word, f"http://me:{CANARY}@127.0.0.1:1")
    assert (await run_case(chaos, {"first": model(chaos, good)})).response.content == "because"


def through(proxy: str) -> MakePool:
    return lambda _: httpx.AsyncHTTPTransport(proxy=proxy, verify=False)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_015_a_proxy_that_requires_a_password_is_reported_without_the_key(chaos: Chaos, scheme: str) -> None:
    who = answering(reply(b"", "407 Proxy Authentication Required"))
    with serving(who) as proxy:
        made = through(f"http://me:{CANARY}@127.0.0.1:{proxy.port}")
        first = model(chaos, good, endpoint=f"{scheme}://127.0.0.1:9/shut/v1")
        models = {"first": first, "second": evolve(first, endpoint=f"{scheme}://127.0.0.1:9/other/v1")}
        outcome = await run_case(chaos, models, transport=lambda: Transport(make_pool=made), unreached=1)
    assert outcome.error.tag == "ConfigurationError"
    assert "a proxy on the way requires a user name and a password" in describe(outcome.error)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_016_017_a_redirect_is_not_followed_and_sends_neither_prompt_nor_key(
    chaos: Chaos, status: int, mode: str
) -> None:
    with serving(answering()) as other:
        moved = says(reply(b"", f"{status} Moved", f"location: {other.url}"))
        case = Case(step=moved, tag="ConfigurationError", tries=1, falls_back=False, fields={"status": status})
        await assert_case(chaos, case, mode)
    assert (other.accepted, other.requests) == (0, [])


async def test_018_the_next_version_of_http_is_not_offered(chaos: Chaos) -> None:
    answer = b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80"  # settings of HTTP/2
    with serving(sending(answer)) as server:
        first = model(chaos, good, endpoint=f"{server.url}/v1")
        outcome = await run_case(chaos, {"first": first}, unreached=3)
    assert {getattr(each, "phase", "") for each in getattr(outcome.error, "errors", ())} == {"protocol"}
    head = server.requests[0].split(b"\r\n\r\n")[0].lower()
    assert (b" http/1.1\r\n" in head, b"upgrade" in head) == (True, False)


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0) for _ in range(3)]  # so that no descriptor below the highest is free
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for one in taken:
            os.close(one)


async def test_019_running_out_of_descriptors_is_a_local_error(chaos: Chaos) -> None:
    async with open_env(config_of({"first": model(chaos, good)}, max_retries=0)) as env:
        with no_descriptor_left():
            gone = await run(generate(ASK), env)
        assert (gone.failure().tag, getattr(gone.failure(), "phase", "")) == ("NetworkError", "local")
        assert is_successful(await run(generate(ASK), env))
    assert chaos.server.settled() == 0
