"""The command, in its shortest form."""

import sys
from collections.abc import Mapping, Sequence

import pytest

from tests.benchmarks import __main__ as suite
from tests.benchmarks.bars import CASES, Case, Figures, Sample
from tests.benchmarks.workers import Client, measure, servers, started

ITSELF = [case for case in CASES if case.key in {"call", "hit", "off"}]


def test_clients_take_turns_and_return_what_they_measured() -> None:
    with servers() as urls, started(map(Client, ("bare", "httpx", "aiohttp")), urls) as workers:
        figures = measure(ITSELF, workers, urls, scale=0.05)
    assert {key: set(taken) for key, taken in figures.items()} == {
        "call": {"bare", "httpx", "aiohttp"},
        "hit": {"bare", "httpx", "aiohttp"},
        "off": {"httpx"},
    }
    hit, call = (figures[key]["httpx"][0].processor for key in ("hit", "call"))
    assert 0 < hit < call
    assert figures["off"]["httpx"][0].figure != 0


def test_a_client_that_ends_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended with 3"), started([Client("bare", ends_at_once())], {}):
        pass


def ends_at_once() -> str:
    """Return a program that ends with 3, whatever its arguments."""
    import tempfile
    from pathlib import Path

    program = Path(tempfile.mkdtemp()) / "python"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    return str(program)


CALL = CASES[0]


def outcome(ours: float) -> Figures:
    return {"call": {"bare": [Sample(1.0, 1.0)], "httpx": [Sample(ours, ours)]}}


@pytest.mark.parametrize(("second", "failing"), [(1.2, set()), (2.2, {"call"})])
def test_what_is_too_slow_is_measured_once_more(
    second: float, failing: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def again(cases: Sequence[Case], workers: Sequence[object], urls: Mapping[str, str]) -> Figures:
        asked.extend(case.key for case in cases)
        return outcome(second)

    monkeypatch.setattr(suite, "measure", again)
    assert set(suite.confirmed(outcome(2.5), [], {})) == failing
    assert asked == ["call"]


def test_what_is_fast_enough_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "measure", lambda *_: pytest.fail("measured again"))
    assert suite.confirmed(outcome(1.0), [], {}) == {}


def test_quick_leaves_out_what_takes_long() -> None:
    quick, full = (suite.cases_of(suite.options(words)) for words in (["--quick"], []))
    assert {case.key for case in full} - {case.key for case in quick} == {case.key for case in CASES if case.long}


@pytest.mark.parametrize(
    ("words", "peers"), [([], None), (["--peers"], []), (["call", "--peers", "openai"], ["openai"])]
)
def test_peers_are_none_all_or_those_named(words: list[str], peers: list[str] | None) -> None:
    assert suite.options(words).peers == peers


def test_an_unknown_case_is_an_error_that_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        suite.options(["cal"])
    assert "unknown case: cal" in capsys.readouterr().err


def test_the_command_fails_with_a_message_on_a_case_that_is_too_slow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = suite.options(["--quick", "call"])
    monkeypatch.setattr(suite, "compare_clients", lambda *_: ({}, {"call": "one call: 3.00"}, {"table": "| table |"}))
    assert suite.main(chosen) == 1
    shown = capsys.readouterr()
    assert "| table |" in shown.out
    assert "too slow: one call: 3.00" in shown.err


def test_clients_run_in_this_environment() -> None:
    assert Client("bare").command({"fast": "http://x"}) == [
        sys.executable, "-m", "tests.benchmarks.clients", "bare", "asyncio", "fast=http://x",
    ]  # fmt: skip
