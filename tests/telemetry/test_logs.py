"""Log records: their levels and fields, and never a prompt or a key."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal

import pytest
from attrs import evolve
from returns.future import FutureResult

from llm_effects import (
    InvalidRequest,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    LLMResponse,
    ModelConfig,
    ModelUnavailable,
    StorageFailed,
    generate,
    run,
    scripted_env,
)
from llm_effects.config import Price
from llm_effects.telemetry.logs import LOGGER

pytestmark = pytest.mark.anyio

KEY = "sk-canary-0123456789"
CANARY = "the prompt canary"
ANSWER = "the answer canary"

GPT = ModelConfig(provider="openai", model="gpt-5.6", api_key=KEY, price=Price(input=Decimal(1), output=Decimal(2)))
STUDIO = ModelConfig(provider="lm-studio", model="qwen", endpoint="http://localhost:4321/v1")
ONE = LLMConfig(models={"gpt": GPT})
TWO = LLMConfig(models={"gpt": GPT, "studio": STUDIO})

QUESTION = LLMRequest(prompt=CANARY, owner="alice")


async def ask(env: LLMEnv) -> LLMResponse:
    return (await run(generate(QUESTION), env)).unwrap()


def run_apart(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)


FAILING = (
    "import anyio\n"
    "from llm_effects import LLMRequest, ModelUnavailable, generate, run, scripted_env\n"
    "env = scripted_env(ModelUnavailable(reason='unknown_model'))\n"
    "anyio.run(run, generate(LLMRequest(prompt='the prompt canary')), env).failure()\n"
)


def test_logs_are_silent_by_default() -> None:
    done = run_apart(FAILING)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_handler_gets_the_log_records() -> None:
    done = run_apart("import logging; logging.basicConfig()\n" + FAILING)
    assert done.stderr == "WARNING:llm_effects:call failed: ModelUnavailable (scripted): unknown model\n"


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """Return the list to which a handler appends all records of the library."""
    kept: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = kept.append
    level = LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.DEBUG)
    yield kept
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(level)


OWN = {*vars(logging.makeLogRecord({})), "message"}


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in OWN}


async def test_each_attempt_is_logged_with_fields(records: list[logging.LogRecord]) -> None:
    await ask(scripted_env(ANSWER, config=ONE))
    (record,) = records
    assert (record.levelname, record.getMessage()) == ("DEBUG", "attempt: success")
    fields = fields_of(record)
    assert fields.pop("latency_ms") >= 0
    assert fields.pop("cost_usd") > 0
    assert fields == {
        "call_id": "id-1",
        "task_type": "general",
        "model": "gpt",
        "provider": "openai",
        "outcome": "success",
        "wait_ms": 0.0,
        "input_tokens": 10,
        "output_tokens": 3,
    }


async def test_a_fallback_is_logged_as_a_warning(records: list[logging.LogRecord]) -> None:
    response = await ask(scripted_env(ModelUnavailable(reason="unknown_model"), ANSWER, config=TWO))
    first, second, last = records
    assert [first.levelname, second.levelname, last.levelname] == ["INFO", "DEBUG", "WARNING"]
    fields = fields_of(last)
    assert (fields["outcome"], fields["model"], fields["instead_of"]) == (
        "fallback",
        response.model,
        response.attempts[0].model,
    )


async def test_a_failed_call_is_logged_with_its_sentence_and_without_texts_or_keys(
    records: list[logging.LogRecord],
) -> None:
    await run(generate(QUESTION), scripted_env(InvalidRequest(message=f"{CANARY} {KEY}"), config=ONE))
    assert [record.getMessage() for record in records] == [
        "attempt: InvalidRequest",
        "call failed: InvalidRequest (gpt): […] ********************",
    ]
    assert fields_of(records[-1])["attempts"] == 1
    logged = "".join(str(vars(record)) for record in records)
    assert CANARY not in logged
    assert KEY not in logged


async def test_cache_problems_are_logged_as_warnings(records: list[logging.LogRecord]) -> None:
    class Failing:
        def get(self, key: str) -> FutureResult[bytes | None, object]:
            return FutureResult.from_failure(StorageFailed(operation="get", message=CANARY))

    await ask(evolve(scripted_env(ANSWER), cache=Failing()))
    (warned,) = [record for record in records if record.levelname == "WARNING"]
    assert (warned.getMessage(), fields_of(warned)["operation"]) == ("cache failed: get", "get")


async def test_a_handler_that_raises_fails_no_call(records: list[logging.LogRecord]) -> None:
    def broken(record: logging.LogRecord) -> bool:
        raise ValueError

    LOGGER.addFilter(broken)
    try:
        assert (await ask(scripted_env(ANSWER))).content == ANSWER
    finally:
        LOGGER.removeFilter(broken)
