"""Approvals across processes: killed, raced, and days apart; in a file and on a server."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_effects import run, then
from llm_effects.tools import ToolEnd, resolve_tool_call, resume_tools
from tests.fixtures.approval_worker import CALL, RUN_ID, at_once, environment, here, tools
from tests.fixtures.postgres_server import postgres_server

__all__ = ["postgres_server"]

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

KILLED = (-signal.SIGKILL, "")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "postgres":
        yield request.getfixturevalue("postgres_server").new_url()
    else:
        yield f"sqlite:///{tmp_path / 'runs.db'}"


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    file = tmp_path / "ledger"
    file.touch()
    return file


def happened(ledger: Path) -> list[str]:
    return ledger.read_text().split()


async def test_fault_230_a_run_goes_on_in_another_process_than_it_began_in(url: str, ledger: Path) -> None:
    assert at_once(url, ledger, "start") == [(0, "waiting")]
    assert at_once(url, ledger, "resume") == [(0, "waiting itself")]
    assert happened(ledger) == []
    assert at_once(url, ledger, "approve") == [(0, "decided")]
    assert happened(ledger) == []  # a decision runs nothing
    assert at_once(url, ledger, "resume") == [(0, "answered itself")]
    assert await here(url, ledger, "resume") == ["answered replayed"]
    assert happened(ledger) == ["/tmp"]


async def test_fault_230_a_refused_run_goes_on_in_another_process_too(url: str, ledger: Path) -> None:
    await here(url, ledger, "start")
    assert at_once(url, ledger, "refuse") == [(0, "decided")]
    assert await here(url, ledger, "resume") == ["answered itself"]
    assert happened(ledger) == []


async def test_fault_231_of_two_decisions_at_once_one_counts(url: str, ledger: Path) -> None:
    await here(url, ledger, "start")
    ended = at_once(url, ledger, "approve", "refuse", "approve", "refuse")
    outcomes = [outcome for _, outcome in ended]
    assert outcomes in (["decided", "InvalidRequest"] * 2, ["InvalidRequest", "decided"] * 2)
    await here(url, ledger, "resume")
    assert happened(ledger) == (["/tmp"] if outcomes[0] == "decided" else [])


async def test_fault_232_of_resumers_at_once_one_runs_the_call(url: str, ledger: Path) -> None:
    await here(url, ledger, "start", "approve")
    ended = at_once(url, ledger, *["resume"] * 4)
    assert happened(ledger) == ["/tmp"]
    assert [code for code, _ in ended] == [0] * 4
    assert [outcome for _, outcome in ended].count("answered itself") == 1
    assert {outcome for _, outcome in ended} <= {"answered itself", "answered replayed", "unknown itself"}
    assert await here(url, ledger, "resume") == ["answered replayed"]


async def test_fault_232_a_resumer_beside_a_decision_waits_or_runs(url: str, ledger: Path) -> None:
    await here(url, ledger, "start")
    ended = at_once(url, ledger, "approve", "resume", "resume")
    assert len(happened(ledger)) == [outcome for _, outcome in ended].count("answered itself") <= 1
    await here(url, ledger, "resume")
    assert happened(ledger) == ["/tmp"]


@pytest.mark.parametrize(("action", "point"), [("approve", "decided"), ("resume", "cleared")])
async def test_fault_233_a_kill_between_approval_and_run_loses_nothing(
    action: str, point: str, url: str, ledger: Path
) -> None:
    await here(url, ledger, "start", *(["approve"] if action == "resume" else []))
    assert at_once(url, ledger, action, point=point) == [KILLED]
    assert happened(ledger) == []
    assert await here(url, ledger, "resume") == ["answered itself"]
    assert happened(ledger) == ["/tmp"]


@pytest.mark.parametrize("point", ["begun", "happened"])
async def test_fault_233_a_kill_in_the_call_repeats_nothing(point: str, url: str, ledger: Path) -> None:
    await here(url, ledger, "start", "approve")
    assert at_once(url, ledger, "resume", point=point) == [KILLED]
    before = happened(ledger)
    assert await here(url, ledger, "resume", "resume") == ["unknown itself"] * 2
    assert happened(ledger) == before

    env = environment(url)
    resolved = resolve_tool_call(RUN_ID, 1, CALL, "looked: it is gone", owner="alice")
    finished = await run(then(resolved, lambda _: resume_tools(RUN_ID, tools(ledger), owner="alice")), env)
    assert finished.unwrap().end is ToolEnd.ANSWERED
    assert happened(ledger) == before
    await env.conversations.aclose()
