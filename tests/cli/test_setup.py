"""``models``, ``config`` and ``config check``: what is configured, where it is from, and whether it works."""

import json

import pytest

from tests.fixtures.chaos import CANARY, Chaos, holds, problem, says
from tests.fixtures.cli import Cli, process, terminal
from tests.fixtures.servers import reply_json

LISTED = says(reply_json({"data": [{"id": "m"}]}))

FREE = "[models.{name}.price]\ninput = 0\noutput = 0\n"
SERVER = '[models.{name}]\nprovider = "openai-chat"\nmodel = "m"\nendpoint = "{endpoint}"\napi_key = "{key}"\n'
PRICE = "[models.{name}.price]\ninput = 2\noutput = 10.5\n"


def serve(cli: Cli, chaos: Chaos, **steps: object) -> None:
    """Configure one model for each step, which the chaos server takes."""
    tables = [
        SERVER.format(name=name, endpoint=chaos.endpoint(chaos.plan(step)), key=CANARY) + PRICE.format(name=name)  # type: ignore[arg-type]
        for name, step in steps.items()
    ]
    cli.config.write_text("".join(tables) + f'[storage]\nurl = "sqlite:///{cli.folder}/llm.db"\n')


REJECTED = says(problem(401, "Incorrect API key provided", code="invalid_api_key"))


def test_models_shows_state_and_price_of_each(cli: Cli, chaos: Chaos) -> None:
    serve(cli, chaos, good=LISTED, bad=REJECTED)
    done = process("models", "--config", str(cli.config))
    assert done.returncode == 0
    heading, first, second, remark = done.stdout.splitlines()
    assert heading.split() == ["model", "provider", "state", "context", "$/M", "in,", "out", "latency"]
    assert first.split()[:5] == ["good", "openai-chat", "ready", "?", "$2.00,"]
    assert second.split()[:3] == ["bad", "openai-chat", "reachable"]
    assert remark.startswith("bad: AuthenticationFailed: ")
    assert CANARY not in done.stdout + done.stderr


def test_without_a_ready_model_the_exit_code_says_so(cli: Cli) -> None:
    assert process("models", "--config", str(cli.config)).returncode == 1
    assert cli.run("models").exit_code == 0  # the scripted one is ready


def test_models_as_json(cli: Cli) -> None:
    [model] = json.loads(cli.run("models", "--json").stdout)
    assert (model["model"], model["ready"], model["error"]) == ("house", True, None)
    assert (model["usd_per_million_in"], model["context_length"]) == ("0", None)


def test_in_a_terminal_models_appear_as_they_answer(cli: Cli, chaos: Chaos) -> None:
    serve(cli, chaos, good=LISTED, slow=holds())
    with terminal("models", "--config", str(cli.config)) as shown:
        shown.wait_for("ready")
        assert shown.process.poll() is None
        assert "no answer" not in shown.text
        assert "Traceback" not in shown.text


def test_config_shows_each_value_with_its_origin(cli: Cli) -> None:
    environ = {
        "OPENAI_API_KEY": CANARY,
        "LLM_CACHE_TTL_SECONDS": "60",
        "LLM_STORAGE_URL": f"postgresql://a:{CANARY}@h/t",
    }
    shown = cli.run("config", config=False, **environ)
    rows = {row[0]: (row[1], " ".join(row[2:])) for line in shown.stdout.splitlines() if (row := line.split())}
    assert rows["models.gpt.api_key"] == ("***", "variable OPENAI_API_KEY")
    assert rows["cache.ttl_seconds"] == ("60", "variable LLM_CACHE_TTL_SECONDS")
    assert rows["storage.url"] == ("postgresql://***@h/t", "variable LLM_STORAGE_URL")
    assert rows["limits.url"] == ("memory://", "default")
    assert CANARY not in shown.output


def test_config_names_the_file(cli: Cli) -> None:
    for arguments in (("config",), ("config", "show"), ("config", "--config", str(cli.config))):
        assert f"sqlite:///{cli.folder}/llm.db" in cli.run(*arguments).stdout
    rows = json.loads(cli.run("config", "--json").stdout)
    assert {"place": "models.house.provider", "value": "lm-studio", "origin": str(cli.config)} in rows


def test_config_hides_defaults_of_models_unless_all_are_wanted(cli: Cli) -> None:
    some, everything = cli.run("config"), cli.run("config", "--all")
    assert "models.house.timeout_ms" not in some.stdout
    assert "settings of models are defaults: --all shows them" in some.stderr
    assert "models.house.timeout_ms" in everything.stdout
    assert everything.stderr == ""


def test_the_file_may_come_from_a_variable(cli: Cli) -> None:
    done = cli.run("config", config=False, LLM_CONFIG=str(cli.config))
    assert "models.house.provider" in done.stdout


@pytest.mark.parametrize("command", ["ask why?", "models", "config", "config check", "usage", "cache stats", "chat"])
def test_every_problem_of_the_configuration_is_listed(cli: Cli, command: str) -> None:
    cli.config.write_text('[models.a]\nprovider = "ollama"\nmax_token = 5\ntemperature = 9\n')
    done = cli.run(*command.split())
    assert done.exit_code == 3
    assert done.stdout == ""
    heading, *problems = done.stderr.splitlines()
    assert heading == f"ConfigurationError: {cli.config} has 2 problems:"
    assert [line.partition(":")[0] for line in problems] == ["models.a.max_token", "models.a.temperature"]


def test_a_misspelt_variable_is_a_warning(cli: Cli) -> None:
    done = cli.run("config", config=False, OPENAI_KEY=CANARY)
    assert done.stderr.count("the environment variable OPENAI_KEY is unknown: did you mean OPENAI_API_KEY?") == 1
    assert CANARY not in done.output


def test_check_finds_every_problem_at_once(cli: Cli, chaos: Chaos) -> None:
    serve(cli, chaos, good=LISTED, bad=REJECTED)
    (cli.folder / "llm.db").mkdir()
    cli.config.write_text(cli.config.read_text() + '[cache]\nurl = "ftp://host"\n')
    done = process("config", "check", "--config", str(cli.config))
    assert done.returncode == 3
    states = {row[1]: row[0] for line in done.stdout.splitlines()[1:] if (row := line.split())}
    assert states == {
        "models.good": "ok",
        "models.bad": "problem",
        "storage.url": "problem",
        "cache.url": "problem",
        "limits.url": "ok",
    }
    assert CANARY not in done.stdout + done.stderr


def test_check_is_silent_about_nothing_and_ends_well(cli: Cli) -> None:
    done = cli.run("config", "check")
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["ok"] * 4


def test_check_as_json(cli: Cli) -> None:
    checks = json.loads(cli.run("config", "check", "--json", "--storage", "ftp://host").stdout)
    [storage] = [each for each in checks if each["place"] == "storage.url"]
    assert storage["state"] == "problem"
    assert storage["message"].startswith("unknown scheme 'ftp'")
