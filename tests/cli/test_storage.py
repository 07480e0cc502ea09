"""``storage``: erasing from the command line."""

import json

import pytest

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
