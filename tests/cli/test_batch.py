"""``batch``: JSON lines in and out, in order, resumed by its journal."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llm_effects import ContentRefused, LLMRequest
from llm_effects.testing import Delayed
from llm_effects.testing.scripted import Reply
from tests.fixtures.chaos import Chaos, good, holds
from tests.fixtures.cli import Cli, clean_environ

LINES = '"one?"\n\n{"id": "b", "prompt": "two?", "tags": ["night"], "preferences": {"max_tokens": 5}}\n'


def echo(request: LLMRequest) -> Reply:
    return Delayed(0.02, "one") if request.prompt == "one?" else "two"


@pytest.fixture
def source(cli: Cli) -> Path:
    path = cli.folder / "in.jsonl"
    path.write_text(LINES)
    return path


def test_answers_are_lines_in_the_order_of_the_input(cli: Cli, source: Path) -> None:
    cli.answers(echo)
    done = cli.run("batch", str(source), str(cli.folder / "out.jsonl"))
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "2 of 2 done, 0 failed, $0\n"
    first, second = map(json.loads, (cli.folder / "out.jsonl").read_text().splitlines())
    assert (first["number"], first["response"]["content"]) == (0, "one")
    assert (second["number"], second["id"], second["response"]["content"]) == (1, "b", "two")
    assert {request.prompt: (request.tags, request.preferences.max_tokens) for request in cli.requests} == {
        "one?": ((), None),
        "two?": (("night",), 5),
    }


def test_a_run_without_an_output_reads_and_writes_standard_streams(cli: Cli) -> None:
    done = cli.run("batch", "-", input='"why?"\n')
    assert json.loads(done.stdout)["response"]["content"] == "because"
    assert list(cli.folder.glob("*.journal")) == []


def test_a_failed_request_is_a_line_too_and_has_an_exit_code_of_its_own(cli: Cli) -> None:
    cli.answers(ContentRefused(message="no"), "yes")
    done = cli.run("batch", "-", "--concurrency", "1", "--no-cache", input='"a?"\n"b?"\n')
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["error"] == {"tag": "ContentRefused", "model": "house", "message": "ContentRefused (house): no"}
    assert second["response"]["content"] == "yes"
    assert done.exit_code == 5
    assert "2 of 2 done, 1 failed" in done.stderr


def test_a_second_run_asks_only_what_failed(cli: Cli, source: Path) -> None:
    out = str(cli.folder / "out.jsonl")
    cli.answers("one", ContentRefused())
    assert cli.run("batch", str(source), out, "--concurrency", "1").exit_code == 5
    cli.answers("two")
    again = cli.run("batch", str(source), out)
    assert again.stderr == "2 of 2 done, 0 failed, 1 from the journal, $0\n"
    assert [request.prompt for request in cli.requests] == ["two?"]
    contents = [json.loads(line)["response"]["content"] for line in Path(out).read_text().splitlines()]
    assert contents == ["one", "two"]


def test_every_wrong_line_is_named_before_anything_is_sent(cli: Cli) -> None:
    lines = ["oops", "7", '{"promt": "x"}', '{"prompt": " "}', '"good"']
    done = cli.run("batch", "-", input="\n".join(lines))
    assert done.exit_code == 2
    assert cli.requests == ()
    heading, *problems = done.stderr.splitlines()
    assert heading == "InvalidRequest: input: 4 lines are wrong, and nothing was sent"
    assert [problem.partition(":")[0] for problem in problems] == ["line 1", "line 2", "line 3", "line 4"]
    assert "promt" in problems[2]


def test_only_the_first_wrong_lines_are_listed(cli: Cli) -> None:
    done = cli.run("batch", "-", input="oops\n" * 100)
    assert done.stderr.splitlines()[-1] == "and 80 more"


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (("nope.jsonl", "-"), "No such file"),
        (("in.jsonl", "no/such/out.jsonl"), "No such file"),
        (("in.jsonl", "in.jsonl"), "it is the input too"),
    ],
)
def test_unusable_files_are_wrong_usage(cli: Cli, source: Path, names: tuple[str, str], problem: str) -> None:
    done = cli.run("batch", *(name if name == "-" else str(cli.folder / name) for name in names))
    assert done.exit_code == 2
    assert problem in done.stderr
    assert source.read_text() == LINES


def test_a_journal_in_use_leaves_the_output_alone(cli: Cli, source: Path) -> None:
    out = cli.folder / "out.jsonl"
    out.write_text("earlier\n")
    (cli.folder / "out.jsonl.journal").write_text("not a journal\n")
    done = cli.run("batch", str(source), str(out))
    assert done.exit_code == 1
    assert "is not a journal" in done.stderr
    assert out.read_text() == "earlier\n"


def test_batches_of_a_provider_are_waited_for(cli: Cli, source: Path) -> None:
    cli.config.write_text('[models.gpt]\nprovider = "openai"\nmodel = "gpt-6-luna"\napi_key = "sk-x"\n')
    cli.answers(echo)
    arguments = ("batch", str(source), str(cli.folder / "out.jsonl"), "--via", "provider")
    done = cli.run(*arguments)
    assert (done.exit_code, len(cli.clients.batches.submitted)) == (0, 1)
    lines = [json.loads(line) for line in (cli.folder / "out.jsonl").read_text().splitlines()]
    assert [line["response"]["usage"]["service_tier"] for line in lines] == ["batch", "batch"]
    assert "2 from the journal" in cli.run(*arguments).stderr
    assert len(cli.clients.batches.submitted) == 1


def test_a_batch_of_a_provider_needs_a_journal(cli: Cli, source: Path) -> None:
    done = cli.run("batch", str(source), "--via", "provider")
    assert done.exit_code == 2
    assert "journal: --via provider needs one" in done.stderr
    assert cli.requests == ()


def test_ctrl_c_says_how_to_resume_and_the_next_run_pays_only_for_the_rest(
    cli: Cli, chaos: Chaos, source: Path
) -> None:
    name, out = chaos.plan(good, holds(), good), cli.folder / "out.jsonl"
    cli.config.write_text(
        f'[models.house]\nprovider = "openai-compatible"\nmodel = "m"\nendpoint = "{chaos.endpoint(name)}"\n'
    )
    arguments = ("batch", str(source), str(out), "--concurrency", "1", "--config", str(cli.config))
    command = [sys.executable, "-m", "llm_effects", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean_environ()) as running:
        while chaos.asked[name] < 2:
            assert running.poll() is None
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert said.splitlines() == [f"stopped; run the same command again to resume from {out}.journal"]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environ(), timeout=60, check=True)
    assert "2 of 2 done, 0 failed, 1 from the journal" in done.stderr
    assert chaos.asked[name] == 3
