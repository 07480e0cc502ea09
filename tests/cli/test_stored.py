"""``usage``, ``conversations`` and ``cache``: what earlier commands stored."""

import csv
import json
from decimal import Decimal
from io import StringIO

import pytest

from llm_effects import ContentRefused
from llm_effects.cli.display import moment, new_console
from llm_effects.cli.stored import usage_view
from llm_effects.reports import UsageReport, UsageRow
from llm_effects.testing.scripted import EPOCH
from tests.fixtures.cli import Cli, terminal

PRICED = (
    '[models.dear]\nprovider = "lm-studio"\nendpoint = "http://127.0.0.1:9/v1"\nprice = { input = 1000, output = 0 }\n'
)


def rows_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.fixture
def used(cli: Cli) -> Cli:
    """A ledger with two answers of one model, an expensive one of another, and a failure."""
    cli.config.write_text(cli.config.read_text() + PRICED)
    cli.run("ask", "one?", "--model", "house", "--tag", "night")
    cli.run("ask", "two?", "--model", "house", "--task", "analysis")
    cli.run("ask", "three?", "--model", "dear")
    cli.answers(ContentRefused(message="no"))
    cli.run("ask", "four?", "--model", "dear")
    return cli


def test_usage_is_a_table_with_bars(used: Cli) -> None:
    done = used.run("usage")
    heading, columns, *rows = done.stdout.splitlines()
    assert heading.startswith("Usage since 2025-12-02 00:00 UTC")
    assert columns.split() == ["model", "calls", "failed", "in", "out", "cost", "p50", "p95", "of", "cost"]
    dear, house, total, unknown, failed = (row.split() for row in rows)
    assert dear[:3] == ["dear", "2", "50%"]
    assert dear[-1] == "█" * 10
    assert house[:3] == ["house", "2", "-"]
    assert total[:3] == ["total", "4", "25%"]
    assert unknown[:4] == ["*", "without", "1", "of"]
    assert failed == ["failed", "attempts:", "1", "ContentRefused"]


@pytest.mark.parametrize(("by", "groups"), [("task", {"general", "analysis"}), ("tag", {"night", "-"})])
def test_usage_groups_by_any_dimension(used: Cli, by: str, groups: set[str]) -> None:
    rows = rows_of(used.run("usage", "--by", by).stdout)
    assert {row[0] for row in rows[2:4]} == groups


def test_usage_groups_by_several_dimensions(used: Cli) -> None:
    rows = rows_of(used.run("usage", "--by", "day, model").stdout)
    assert [row[:2] for row in rows[2:4]] == [["2026-01-01", "dear"], ["2026-01-01", "house"]]


def test_usage_as_csv_and_as_json(used: Cli) -> None:
    rows = list(csv.DictReader(StringIO(used.run("usage", "--csv").stdout)))
    assert {row["model"]: row["requests"] for row in rows} == {"dear": "2", "house": "2"}
    report = json.loads(used.run("usage", "--json").stdout)
    assert report["total"]["attempts"] == 4
    assert [row["group"] for row in report["rows"]] == [["dear"], ["house"]]
    assert report["since"].startswith("2025-12-02T00:00")


def test_usage_as_a_page(used: Cli) -> None:
    file = used.folder / "usage.html"
    done = used.run("usage", "--html", str(file), "--since", "all")
    assert (done.exit_code, done.stdout) == (0, "")
    page = file.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "dear" in page
    wrong = used.run("usage", "--html", str(used.folder))
    assert (wrong.exit_code, "Is a directory" in wrong.stderr) == (2, True)
    assert used.run("usage", "--html", str(file), "--since", "soon").exit_code == 2


def test_a_backtest_compares_old_and_new(used: Cli) -> None:
    new = used.folder / "new.toml"
    new.write_text(used.config.read_text())
    lines = used.run("backtest", str(new)).stdout.splitlines()
    assert lines[0].startswith("4 calls, ")
    assert lines[1].split() == ["old", "new", "change"]
    assert lines[2].startswith("answered")
    assert any("not in the ledger" in line for line in lines)
    assert json.loads(used.run("backtest", str(new), "--json").stdout)["calls"] == 4
    page = used.folder / "backtest.html"
    assert used.run("backtest", str(new), "--html", str(page)).exit_code == 0
    assert "old against new" in page.read_text(encoding="utf-8")
    assert used.run("backtest", str(new), "--since", "2026-02-01").exit_code == 2
    assert used.run("backtest", str(used.folder / "none.toml")).exit_code == 3


def test_a_backtest_of_a_ledger_that_is_not_kept_says_so(used: Cli) -> None:
    done = used.run("backtest", str(used.config), "--storage", "memory://")
    assert done.exit_code == 2
    assert "nothing is kept. Set LLM_STORAGE_URL, storage.url or --storage." in done.stderr


@pytest.mark.parametrize(
    ("options", "calls"),
    [
        (("--since", "1h"), 4),
        (("--since", "all"), 4),
        (("--since", "2026-01-01"), 4),
        (("--since", "2026-01-02"), 0),
        (("--until", "2025-12-31"), 0),
        (("--until", "2026-01-01T00:00:01+00:00"), 4),
    ],
)
def test_usage_of_a_period(used: Cli, options: tuple[str, str], calls: int) -> None:
    report = json.loads(used.run("usage", "--json", *options).stdout)
    assert report["total"]["requests"] == calls


def test_an_empty_ledger_says_so(cli: Cli) -> None:
    done = cli.run("usage", "--since", "all")
    assert (done.stdout, done.stderr) == ("No calls.\n", "")
    assert "nothing is kept" in cli.run("usage", "--storage", "memory://").stderr


@pytest.mark.parametrize("options", [("--since", "yesterday"), ("--until", "9" * 30 + "d"), ("--by", "modle")])
def test_wrong_options_of_usage_are_wrong_usage(cli: Cli, options: tuple[str, str]) -> None:
    done = cli.run("usage", *options)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"InvalidRequest: {options[0][2:]}: ")


def test_bars_are_plain_where_the_terminal_has_no_blocks() -> None:
    row = UsageRow(group=("a",), attempts=1, successes=1, output_tokens=5, cost_usd=Decimal(1))
    console = new_console()
    with console.capture() as captured:
        console.print(usage_view(UsageReport(by=("model",), rows=(row,), total=row), ascii_only=True))
    assert "#" * 10 in captured.get()


def test_names_from_outside_cannot_steer_the_terminal(cli: Cli) -> None:
    cli.run("chat", "-c", "[red]talk[/red]", input="hi \x1b[31m\n")
    cli.run("ask", "hi", "--tag", "\x1b[2Jtag")
    for command in (("conversations", "list"), ("conversations", "show", "[red]talk[/red]"), ("usage", "--by", "tag")):
        assert "\x1b" not in cli.run(*command).stdout
    assert "[red]talk[/red]" in cli.run("conversations", "list").stdout


@pytest.fixture
def talk(cli: Cli) -> Cli:
    cli.answers("Hello Ada.")
    cli.run("chat", "-c", "talk", "--system", "Be kind.", input="I am Ada.\n")
    cli.run("chat", "-c", "other", "--owner", "bob", input="I am Bob.\n")
    return cli


def test_conversations_are_listed_by_owner(talk: Cli) -> None:
    assert [row[:3] for row in rows_of(talk.run("conversations", "list").stdout)[1:]] == [["talk", "1", "house"]]
    [bobs] = json.loads(talk.run("conversations", "list", "--owner", "bob", "--json").stdout)
    assert (bobs["id"], bobs["owner"], bobs["turns"], bobs["last_model"]) == ("other", "bob", 1, "house")


def test_a_list_goes_on_after_an_id(talk: Cli) -> None:
    talk.run("chat", "-c", "zoo", input="hi\n")
    first = talk.run("conversations", "list", "--limit", "1")
    assert "there may be more: --after talk" in first.stderr
    assert [row[0] for row in rows_of(talk.run("conversations", "list", "--after", "talk").stdout)] == ["id", "zoo"]


def test_no_conversations(cli: Cli) -> None:
    assert cli.run("conversations", "list").stderr == "No conversations.\n"
    assert "nothing is kept" in cli.run("conversations", "list", "--storage", "memory://").stderr
    assert cli.run("conversations", "list", "--json").stdout == "[]\n"


def test_a_conversation_is_shown_with_its_models(talk: Cli) -> None:
    lines = [line for line in talk.run("conversations", "show", "talk").stdout.splitlines() if line]
    assert lines == ["system", "Be kind.", "user", "I am Ada.", f"assistant (house, {moment(EPOCH)})", "Hello Ada."]


def test_the_newest_turns_are_shown_with_the_number_of_earlier_ones(talk: Cli) -> None:
    talk.run("chat", "-c", "talk", input="And now?\n")
    done = talk.run("conversations", "show", "talk", "--newest", "1")
    assert "I am Ada." not in done.stdout
    assert done.stderr == "(1 earlier turns)\n"


def test_an_exported_conversation_is_a_document(talk: Cli) -> None:
    document = json.loads(talk.run("conversations", "export", "talk").stdout)
    assert (document["format"], document["conversation"]["id"]) == ("llm_effects.conversation", "talk")
    file = talk.folder / "talk.json"
    assert talk.run("conversations", "export", "talk", "--output", str(file)).stdout == ""
    assert json.loads(file.read_text()) == document
    wrong = talk.run("conversations", "export", "talk", "--output", str(talk.folder))
    assert (wrong.exit_code, "Is a directory" in wrong.stderr) == (2, True)


def test_deleting_asks_first(talk: Cli) -> None:
    refused = talk.run("conversations", "delete", "talk")
    assert refused.exit_code == 2
    assert "pass --yes" in refused.stderr
    assert talk.run("conversations", "delete", "talk", "--yes").exit_code == 0
    assert talk.run("conversations", "list").stderr == "No conversations.\n"


@pytest.mark.parametrize(("key", "code"), [("n\n", 1), ("\x04", 130), ("y\n", 0)])
def test_in_a_terminal_deleting_asks(talk: Cli, key: str, code: int) -> None:
    with terminal("conversations", "delete", "talk", "--config", str(talk.config)) as shown:
        shown.wait_for("[y/N]")
        shown.type(key)
        assert shown.end() == code
    assert "Traceback" not in shown.text
    assert ("talk" in talk.run("conversations", "list").stdout) == (code != 0)


@pytest.mark.parametrize("command", ["show", "export", "delete"])
def test_a_missing_conversation_is_an_error(talk: Cli, command: str) -> None:
    done = talk.run("conversations", command, "other")  # which is another owner's
    assert done.exit_code == 2
    assert "there is no conversation 'other'" in done.stderr


def test_the_cache_is_counted_and_cleared(cli: Cli) -> None:
    cli.add_cache()
    cli.run("ask", "why?")
    assert json.loads(cli.run("cache", "stats", "--json").stdout)["entries"] == 1
    shown = rows_of(cli.run("cache", "stats").stdout)
    assert shown[0] == ["cache", f"sqlite:///{cli.folder}/cache.db"]
    assert shown[1] == ["entries", "1"]
    assert cli.run("cache", "clear").exit_code == 2
    assert cli.run("cache", "clear", "--yes").exit_code == 0
    assert json.loads(cli.run("cache", "stats", "--json").stdout)["entries"] == 0


def test_a_cache_in_memory_says_so(cli: Cli) -> None:
    done = cli.run("cache", "stats", config=False, LM_STUDIO_ENDPOINT="http://127.0.0.1:9/v1")
    assert "The cache is in memory" in done.stderr


@pytest.mark.parametrize(
    ("saved", "line"), [("0.26", "prompt caches saved $0.26"), ("-0.01", "prompt caches cost $0.010 more"), ("0", "")]
)
def test_usage_says_what_prompt_caches_saved(saved: str, line: str) -> None:
    row = UsageRow(group=("claude",), requests=1, attempts=1, successes=1, cache_saved_usd=Decimal(saved))
    console = new_console()
    with console.capture() as captured:
        console.print(usage_view(UsageReport(by=("model",), rows=(row,), total=row)))
    assert ("prompt caches" in captured.get()) is bool(line)
    assert line in captured.get()
