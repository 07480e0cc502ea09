"""``storage``: erasing from the command line."""

import json
import sqlite3
from contextlib import closing

import pytest

from llm_effects.stores.sql.scripts import NEWEST
from tests.fixtures.cli import Cli


@pytest.fixture
def used(cli: Cli) -> Cli:
    cli.add_cache()
    cli.run("chat", "--conversation", "talk", "--owner", "alice", input="why?\n")
    return cli


def test_an_owner_is_erased_with_a_receipt(used: Cli) -> None:
    assert "pass --yes" in used.run("storage", "erase-owner", "alice").stderr
    done = used.run("storage", "erase-owner", "alice", "--yes")
    assert done.exit_code == 0, done.stderr
    assert ["conversations", "1"] in [line.split() for line in done.stdout.splitlines()]
    receipt = json.loads(used.run("storage", "erase-owner", "alice", "--yes", "--json").stdout)
    assert receipt["erased"]["conversations"] == 0
    assert receipt["owner"] == "alice"
    assert any("providers" in each for each in receipt["outside"])


def test_what_is_left_is_a_warning_and_an_exit_code(cli: Cli) -> None:
    done = cli.run("storage", "erase-owner", "alice", "--yes")
    assert done.exit_code == 1
    assert "cache: not erased: it is in the memory of each process" in done.stderr


def test_what_is_too_old_is_pruned(used: Cli) -> None:
    assert "set storage.retention" in used.run("storage", "prune").stderr
    used.config.write_text(f"{used.config.read_text()}[storage.retention]\nconversations_days = 1\nledger_days = 1\n")
    done = used.run("storage", "prune")
    assert done.exit_code == 0, done.stderr
    assert ["ledger", "rows", "0"] in [line.split() for line in done.stdout.splitlines()]


def test_tables_are_migrated_and_their_version_is_shown(cli: Cli) -> None:
    before = cli.run("storage", "status")
    assert before.exit_code == 1
    assert before.stdout.splitlines()[:2] == [f"version 0 of {NEWEST}", "pending: conversations"]
    assert not (cli.folder / "llm.db").exists()
    cli.config.write_text(cli.config.read_text() + "migrate = false\n")
    assert cli.run("usage").exit_code == 3
    assert cli.run("storage", "migrate").exit_code == 0
    assert cli.run("storage", "status").stdout == f"version {NEWEST} of {NEWEST}\n"
    assert json.loads(cli.run("storage", "status", "--json").stdout)["pending"] == []
    assert cli.run("usage").exit_code == 0


def test_the_sql_of_a_migration_is_printed(cli: Cli) -> None:
    script = cli.run("storage", "migrate", "--sql").stdout
    with closing(sqlite3.connect(cli.folder / "llm.db", isolation_level=None)) as file:
        file.executescript(script)
    assert cli.run("storage", "status").exit_code == 0
    assert cli.run("storage", "migrate", "--sql").stdout == ""
    on_server = cli.run("storage", "migrate", "--sql", "--dialect", "postgresql", "--from", "1").stdout
    assert "CREATE TABLE llm_ledger" in on_server
    assert "CREATE TABLE llm_conversations" not in on_server
    assert cli.run("storage", "migrate", "--sql", "--dialect", "oracle").exit_code == 2


def test_fault_285_a_version_that_does_not_exist_is_refused(cli: Cli) -> None:
    for more in ((), ("--dialect", "postgresql")):
        done = cli.run("storage", "migrate", "--sql", "--from", "99", *more)
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"there is no version 99: name one from 0 to {NEWEST}" in done.stderr
    assert cli.run("storage", "migrate", "--sql", "--from", str(NEWEST)).exit_code == 0


def test_a_storage_in_memory_has_no_tables(cli: Cli) -> None:
    for command in (("status",), ("migrate",), ("migrate", "--sql")):
        done = cli.run("storage", *command, "--storage", "memory://")
        assert done.exit_code == 3
        assert "has no tables" in done.stderr


def test_the_grants_of_a_role_are_printed(cli: Cli) -> None:
    script = cli.run("storage", "grants", 'the "role"').stdout
    assert 'TO "the ""role""";' in script
    assert "llm_messages" not in script
    assert "llm_messages" in cli.run("storage", "grants", "role", "--conversations").stdout
