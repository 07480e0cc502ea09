"""``chat``: stored turns, which a later start continues; in a terminal Ctrl-C ends only the answer."""

import pytest

from llm_effects import NetworkError
from tests.fixtures.chaos import HEAD, Chaos, chunk, good, holds, piece
from tests.fixtures.cli import Cli, terminal


def said(cli: Cli) -> list[list[str]]:
    return [[message.text for message in request.messages] for request in cli.requests]


def test_every_line_is_a_turn_and_a_later_start_continues(cli: Cli) -> None:
    cli.answers("Hello Ada.")
    first = cli.run("chat", "--conversation", "talk", "--system", "Be kind.", input="I am Ada.\n\nWho am I?\n")
    assert (first.exit_code, first.stdout) == (0, "Hello Ada.\nHello Ada.\n")
    assert "A new conversation, 'talk'." in first.stderr
    second = cli.run("chat", "-c", "talk", input="And now?")
    assert "Continuing 'talk' after 2 turns." in second.stderr
    assert said(cli)[-1] == ["I am Ada.", "Hello Ada.", "Who am I?", "Hello Ada.", "And now?"]
    assert {request.system for request in cli.requests} == {"Be kind."}


def test_the_end_says_how_to_continue(cli: Cli) -> None:
    url = f"sqlite:///{cli.folder}/other.db"
    done = cli.run("chat", "-c", "my talk", "--owner", "ada", "--storage", url, input="hi\n")
    words = f"llm-effects chat --conversation 'my talk' --config {cli.config} --storage {url} --owner ada"
    assert done.stderr.splitlines()[-1] == f"Continue with: {words}"
    assert "Continuing 'my talk'" in cli.run("chat", "-c", "my talk", "--owner", "ada", "--storage", url).stderr


def test_a_chat_in_memory_says_so(cli: Cli) -> None:
    done = cli.run("chat", "--storage", "memory://", input="hi\n")
    assert done.exit_code == 0
    assert done.stderr.splitlines()[-1].startswith("Not stored: set LLM_STORAGE_URL")


def test_a_password_of_the_storage_is_not_shown(cli: Cli) -> None:
    done = cli.run("chat", "-c", "a", "--storage", "postgresql://a:canary-4711@127.0.0.1:9/talks", input="hi\n")
    assert done.exit_code == 1
    assert "StorageFailed" in done.stderr
    assert "canary-4711" not in done.stderr


def test_an_error_ends_a_chat_without_a_terminal(cli: Cli) -> None:
    cli.answers(NetworkError(message="cut", should_retry=False))
    done = cli.run("chat", "-c", "talk", input="hi\nand?\n")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("NetworkError") == 1
    assert "Continue with: " in done.stderr


@pytest.mark.parametrize("conversation", ["", "a" * 1000])
def test_an_invalid_id_is_wrong_usage(cli: Cli, conversation: str) -> None:
    assert cli.run("chat", "-c", conversation, input="hi\n").exit_code == 2


def test_in_a_terminal_ctrl_c_stops_an_answer_and_then_the_chat(cli: Cli, chaos: Chaos) -> None:
    name = chaos.plan(holds(HEAD + chunk(piece("Once upon"))), good)
    cli.config.write_text(
        f'[models.house]\nprovider = "openai-compatible"\nmodel = "m"\nendpoint = "{chaos.endpoint(name)}"\n'
        f'[storage]\nurl = "sqlite:///{cli.folder}/llm.db"\n'
    )
    with terminal("chat", "-c", "talk", "--config", str(cli.config)) as shown:
        shown.wait_for("> ")
        shown.type("a story\n")
        shown.wait_for("Once upon")
        shown.interrupt()
        shown.wait_for("(stopped)")
        shown.type("and?\n")
        shown.wait_for("because")
        shown.wait_for("house, 3 + 1 tokens")
        shown.wait_for("\n> ", times=3)
        assert shown.end_by_interrupts() == 130
    assert "Continue with: llm-effects chat --conversation talk" in shown.text
    assert "Traceback" not in shown.text
    stored = cli.run("conversations", "show", "talk").stdout
    assert [line for line in stored.splitlines() if line in {"a story", "Once upon", "and?", "because"}] == [
        "a story",
        "Once upon",
        "and?",
        "because",
    ]


def test_in_a_terminal_an_error_ends_only_its_turn(cli: Cli) -> None:
    with terminal("chat", "--config", str(cli.config)) as shown:
        shown.wait_for("> ")
        shown.type("hi\n")
        shown.wait_for("NetworkError")
        shown.wait_for("\n> ", times=2)
        shown.type("\x04")
        assert shown.end() == 0
