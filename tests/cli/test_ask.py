"""``ask`` and ``explain``: questions from arguments and standard input, streamed or as JSON."""

import json

import pytest

from llm_effects import AuthenticationFailed, NetworkError, RateLimitExceeded
from llm_effects.testing import Chunks
from tests.fixtures.cli import Cli


def test_an_answer_goes_to_standard_output_alone(cli: Cli) -> None:
    cli.answers(Chunks(("be", "cause")))
    done = cli.run("ask", "why?")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "because\n", "")


def test_words_are_one_question_and_options_reach_the_request(cli: Cli) -> None:
    options = ("--system", "Be brief.", "--task", "analysis", "--max-tokens", "9", "--temperature", "0.5")
    cli.run("ask", "why", "now?", *options, "--timeout", "2", "--owner", "ada", "--tag", "a", "--tag", "b")
    [request] = cli.requests
    assert (request.prompt, request.system, request.task_type) == ("why now?", "Be brief.", "analysis")
    assert (request.owner, request.tags) == ("ada", ("a", "b"))
    preferences = request.preferences
    assert (preferences.max_tokens, preferences.temperature, preferences.timeout_ms) == (9, 0.5, 2000.0)


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_a_question_is_read_from_standard_input(cli: Cli, arguments: tuple[str, ...]) -> None:
    done = cli.run("ask", *arguments, input="wärum?\n")
    assert done.stdout == "because\n"
    assert [request.prompt for request in cli.requests] == ["wärum?"]


def test_standard_input_can_stand_within_a_question(cli: Cli) -> None:
    cli.run("ask", "Review", "this:", "-", input="+ a line\n")
    [request] = cli.requests
    assert request.prompt == "Review this:\n\n+ a line"


@pytest.mark.parametrize(
    ("given", "problem"),
    [("", "prompt: "), (b"\xff\xfe", "prompt: standard input is not UTF-8 text (byte 1)")],
)
def test_an_unusable_question_is_wrong_usage(cli: Cli, given: str | bytes, problem: str) -> None:
    done = cli.run("ask", input=given)
    assert done.exit_code == 2
    assert problem in done.stderr
    assert cli.requests == ()


def test_json_has_the_fields_of_a_response(cli: Cli) -> None:
    done = cli.run("ask", "why?", "--json")
    response = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert (response["content"], response["model"], response["cost"]) == ("because", "house", {"usd": "0"})
    assert [each["outcome"] for each in response["attempts"]] == ["success"]


def test_an_explanation_comes_first_and_on_standard_error(cli: Cli) -> None:
    done = cli.run("ask", "why?", "--explain")
    assert done.stdout == "because\n"
    assert done.stderr.startswith("Task general, strategy balanced:")
    assert "1.  house" in done.stderr
    assert "tokens, $0, " in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RateLimitExceeded(quota=True), 1),
        (NetworkError(message="the cable is cut", phase="dns", should_retry=False), 1),
        (AuthenticationFailed(message="no such key"), 3),
    ],
)
def test_an_error_is_one_line_on_standard_error(cli: Cli, error: RateLimitExceeded, code: int) -> None:
    cli.answers(error)
    done = cli.run("ask", "why?")
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith(f"{error.tag} (house)")
    assert done.stderr.count("\n") == 1


def test_what_arrived_before_a_break_stays_on_a_line_of_its_own(cli: Cli) -> None:
    cli.answers(Chunks(("be",), then=NetworkError(message="reset")))
    done = cli.run("ask", "why?")
    assert (done.exit_code, done.stdout) == (1, "be\n")
    assert "NetworkError (house): reset" in done.stderr


def test_a_second_answer_comes_from_the_cache_unless_it_is_bypassed(cli: Cli) -> None:
    cli.answers("first", "second")
    assert [cli.run("ask", "why?", *more).stdout for more in ((), (), ("--no-cache",))] == [
        "first\n",
        "first\n",
        "second\n",
    ]


def test_explain_asks_no_model(cli: Cli) -> None:
    done = cli.run("explain", "why?")
    assert cli.requests == ()
    assert [line.split()[:3] for line in done.stdout.splitlines()[2:]] == [["1.", "house", "$0"]]


def test_explain_names_why_a_model_is_left_out(cli: Cli) -> None:
    cli.config.write_text(cli.config.read_text() + '[models.other]\nprovider = "ollama"\nmodel = "q"\n')
    done = cli.run("explain", "why?", "--model", "house")
    assert "not other: the request is pinned to 'house'" in done.stdout


def test_explain_as_json_is_the_decision(cli: Cli) -> None:
    decision = json.loads(cli.run("explain", "why?", "--json", "--task", "analysis").stdout)
    assert decision["task_type"] == "analysis"
    assert [each["model"] for each in decision["candidates"]] == ["house"]


def test_an_unknown_model_is_wrong_usage(cli: Cli) -> None:
    done = cli.run("ask", "why?", "--model", "nope")
    assert done.exit_code == 2
    assert done.stderr == "InvalidRequest: model: 'nope' is not configured; configured are house\n"
