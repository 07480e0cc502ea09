"""``approvals``: what waits, and the decision about it."""

import json
from pathlib import Path

import anyio
import pytest
from attrs import evolve

from llm_effects import ToolCall, succeed
from llm_effects.cli.display import moment
from llm_effects.testing.scripted import EPOCH
from tests.fixtures.approval_worker import at_once, here
from tests.fixtures.approvals import go_on, wait
from tests.fixtures.cli import Cli, process, terminal

CALL = ToolCall("a", "erase", '{"path": "/tmp\u202e"}')


def test_calls_that_wait_are_listed_with_what_people_must_see(cli: Cli) -> None:
    [approval] = wait(cli, CALL)
    columns, row = cli.run("approvals", "list").stdout.splitlines()
    assert columns.split() == ["id", "tool", "arguments", "reason", "asked"]
    assert row.split("  ")[:2] == [approval.id[:12], "erase"]
    assert r'{"path":"/tmp\u202e","note":""}' in row
    assert row.endswith(moment(EPOCH))


def test_long_arguments_are_cut_in_the_list_only(cli: Cli) -> None:
    [approval] = wait(cli, ToolCall("a", "erase", json.dumps({"path": "/tmp", "note": " " * 200 + "and /"})))
    assert "… (" in cli.run("approvals", "list").stdout
    assert approval.arguments in cli.run("approvals", "show", approval.id).stdout
    assert json.loads(cli.run("approvals", "list", "--json").stdout)[0]["arguments"] == approval.arguments


def test_an_approved_call_runs_once_its_program_goes_on(cli: Cli) -> None:
    [approval] = wait(cli, CALL)
    done = cli.run("approvals", "approve", approval.id[:4], "--yes", "--by", "ann")
    assert (done.exit_code, done.stderr) == (0, "approved: the run nightly can go on\n")
    assert r'{"path":"/tmp\u202e","note":""}' in done.stdout  # shown before it is approved
    assert cli.run("approvals", "list").stderr == "No call waits for approval.\n"
    assert "approved by ann" in cli.run("approvals", "list", "--all").stdout
    assert "approved by ann" in cli.run("approvals", "show", approval.id).stdout
    assert go_on(cli).answers[0].result.content == "erased /tmp\u202e"


def test_the_model_sees_the_reason_of_a_refusal(cli: Cli) -> None:
    [approval] = wait(cli, CALL)
    assert cli.run("approvals", "refuse", approval.id, "--reason", " ").exit_code == 2
    assert cli.run("approvals", "refuse", approval.id, "--reason", "not before Monday").exit_code == 0
    assert go_on(cli).answers[0].result.content == "refused: not before Monday"
    late = cli.run("approvals", "approve", approval.id, "--yes")
    assert (late.exit_code, "was refused by" in late.stderr) == (2, True)


def test_an_id_must_mean_one_approval(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    [approval] = wait(cli, CALL)
    for unknown in ("", approval.id[:3], "none"):
        assert cli.run("approvals", "approve", unknown, "--yes").exit_code == 2
    assert approval.id[:12] in cli.run("approvals", "list").stdout
    both = (approval, evolve(approval, id=approval.id[:8] + "0" * 24))
    monkeypatch.setattr("llm_effects.cli.approvals.list_approvals", lambda **_: succeed(both))
    unclear = cli.run("approvals", "show", approval.id[:8])
    assert (unclear.exit_code, f"2 begin with '{approval.id[:8]}'" in unclear.stderr) == (2, True)


def test_an_owner_sees_only_its_own(cli: Cli) -> None:
    [approval] = wait(cli, CALL, owner="alice")
    assert cli.run("approvals", "list").stdout == ""
    wrong = cli.run("approvals", "approve", approval.id, "--yes")
    assert (wrong.exit_code, "pass --owner" in wrong.stderr) == (2, True)
    assert cli.run("approvals", "approve", approval.id, "--yes", "--owner", "alice").exit_code == 0
    assert go_on(cli, "alice").response.content == "Done."


def test_without_a_terminal_only_yes_approves(cli: Cli) -> None:
    [approval] = wait(cli, CALL)
    assert cli.run("approvals", "approve", approval.id).exit_code == 2
    assert approval.id[:12] in cli.run("approvals", "list").stdout


def test_a_terminal_asks_before_it_approves(tmp_path: Path) -> None:
    url, ledger = f"sqlite:///{tmp_path / 'runs.db'}", tmp_path / "ledger"
    ledger.touch()
    anyio.run(here, url, ledger, "start")
    [waiting] = json.loads(process("approvals", "list", "--json", "--owner", "alice", "--storage", url).stdout)
    for answer, code in (("n", 1), ("y", 0)):
        with terminal("approvals", "approve", waiting["id"], "--owner", "alice", "--storage", url) as shown:
            shown.wait_for("Approve this call of erase?")
            assert '{"path":"/tmp"}' in shown.text
            shown.type(f"{answer}\n")
            assert shown.end() == code
        assert ("nothing was decided" in shown.text) is (answer == "n")
    assert at_once(url, ledger, "resume") == [(0, "answered itself")]
    assert ledger.read_text() == "/tmp\n"


def test_memory_keeps_nothing() -> None:
    done = process("approvals", "list")
    assert (done.returncode, "nothing is kept" in done.stderr) == (0, True)
