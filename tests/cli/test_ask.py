"""``ask`` and ``explain``: questions from arguments and standard input, streamed or as JSON."""

import json
import re

import pytest
from attrs import evolve

from llm_effects import AuthenticationFailed, NetworkError, RateLimitExceeded, TaskType
from llm_effects.cli.ask import decision_view
from llm_effects.cli.display import new_console
from llm_effects.routing import Candidate, RoutingDecision
from llm_effects.testing import Chunks, answer
from tests.fixtures.chaos import Chaos, good
from tests.fixtures.cli import Cli, terminal


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
    cli.add_cache()
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


def test_a_decision_shows_everything_that_moved_a_model() -> None:
    troubled = Candidate(
        model="gpt", provider="openai", family="gpt", attempts=4, error_rate=0.5, cooldown_s=9, open_s=3, in_flight=2
    )
    last = Candidate(model="small", provider="llama", family="local", last_resort=True, expected_latency_ms=1500)
    decision = RoutingDecision(
        task_type=TaskType("triage"),
        strategy="performance",
        candidates=(troubled, last),
        exploring=True,
        warnings=("task_type: 'triage' is unknown",),
    )
    console = new_console()
    with console.capture() as captured:
        console.print(decision_view(decision))
    heading, _, first, second, warning = (line.rstrip() for line in captured.get().splitlines())
    assert heading == "Task triage, strategy performance, trying a model that may have improved first:"
    assert first.endswith("50% of 4  gpt model, pauses for 9 s, fails too often: closed for 3 s, 2 calls in flight")
    assert second.split() == ["2.", "small", "?", "1.5", "s", "none", "yet", "local", "model,", "last", "resort"]
    assert warning == "warning: task_type: 'triage' is unknown"


def test_a_doubtful_answer_has_its_warnings_on_standard_error(cli: Cli) -> None:
    cli.answers(evolve(answer("because"), warnings=("the server dropped seed",)))
    done = cli.run("ask", "why?")
    assert (done.stdout, done.stderr) == ("because\n", "warning: the server dropped seed\n")


def test_in_a_terminal_the_end_names_model_cost_and_time(cli: Cli, chaos: Chaos) -> None:
    endpoint = chaos.endpoint(chaos.plan(good))
    cli.config.write_text(f'[models.house]\nprovider = "openai-compatible"\nmodel = "m"\nendpoint = "{endpoint}"\n')
    with terminal("ask", "why?", "--config", str(cli.config)) as shown:
        assert shown.end() == 0
    assert "waiting for the model" in shown.text
    assert re.search(r"because\r\n\S*house, 3 \+ 1 tokens, \$0, [\d.]+ m?s", shown.text), shown.text
