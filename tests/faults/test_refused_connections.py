"""Refused connections: what the docs say, what a call does, and what a machine without any model is told to do."""

from pathlib import Path

import pytest
from attrs import evolve

from llm_effects import (
    Image,
    LLMConfig,
    LLMRequest,
    Message,
    ModelConfig,
    describe,
    explain,
    generate,
    load_config,
    open_env,
    run,
)
from llm_effects.config import Capabilities
from llm_effects.effects.effect import result_of
from llm_effects.values import errors
from llm_effects.values.extras import install_command
from tests.fixtures.chaos import Chaos, good
from tests.fixtures.faults import MODES, config_of, model, run_case
from tests.fixtures.redis_server import free_port
from tests.fixtures.wires import Wire

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("carried")]


@pytest.fixture
def anyio_backend(wire: Wire) -> str:
    return wire.loop


GUIDE = Path(__file__).parents[2] / "docs/guides/errors.md"
ASK = LLMRequest(prompt="why?", cache="bypass")


def nobody_listens() -> ModelConfig:
    return ModelConfig(provider="lm-studio", endpoint=f"http://127.0.0.1:{free_port()}/v1")


@pytest.mark.parametrize("mode", MODES)
async def test_fault_147_a_refused_connection_is_retried_only_if_no_other_candidate_is_left(
    chaos: Chaos, mode: str
) -> None:
    refused = refusing(chaos)
    with_another = await run_case(chaos, {"first": refused, "second": model(chaos, good)}, mode=mode, unreached=1)
    alone = await run_case(chaos, {"first": refused}, mode=mode, unreached=3)
    assert [each.outcome for each in with_another.response.attempts] == ["NetworkError", "success"]
    assert [each.outcome for each in alone.error.attempts] == ["NetworkError"] * 3


def refusing(chaos: Chaos) -> ModelConfig:
    return model(chaos, good, endpoint=f"http://127.0.0.1:{free_port()}/{chaos.plan(good)}/v1")


def test_fault_147_the_docs_say_when_a_refused_connection_is_retried() -> None:
    [row] = [line for line in GUIDE.read_text().splitlines() if line.startswith("| `NetworkError`")]
    assert "refused: only if no other candidate is left" in row
    assert "refused if no other is left" in (errors.__doc__ or "")


async def test_fault_187_without_any_model_the_error_says_the_remedy_once() -> None:
    environ = {"LM_STUDIO_ENDPOINT": f"http://127.0.0.1:{free_port()}/v1"}
    config = load_config(environ=environ).map(only_servers).unwrap()
    async with open_env(config) as env:
        sentence = describe((await run(generate(ASK), env)).failure())
    assert sentence.count("refused the connection") == 1
    assert install_command("local") in sentence
    assert "OPENAI_API_KEY" in sentence


async def test_fault_297_a_model_that_cannot_take_the_request_is_named_with_the_reason() -> None:
    words = Capabilities(images=False)
    here = {"studio": nobody_listens(), "words": evolve(nobody_listens(), capabilities=words)}
    picture = LLMRequest(messages=(Message("user", (Image(data=b"GIF89a", media_type="image/gif"),)),), cache="bypass")
    async with open_env(LLMConfig(models=here)) as env:
        sentence = describe((await run(generate(picture), env)).failure())
    assert sentence.count("No other model can take this request: words: it does not take images") == 1
    assert "pip install" not in sentence


async def test_fault_297_a_model_of_embeddings_is_no_other_model() -> None:
    vectors = evolve(nobody_listens(), capabilities=Capabilities(embeddings=True))
    async with open_env(LLMConfig(models={"studio": nobody_listens(), "vectors": vectors})) as env:
        sentence = describe((await run(generate(ASK), env)).failure())
    assert install_command("local") in sentence
    assert "vectors" not in sentence


def only_servers(config: LLMConfig) -> LLMConfig:
    """Return the configuration of an installation without a model package."""
    return LLMConfig(models={name: each for name, each in config.models.items() if each.provider != "llama"})


async def test_fault_187_a_remote_model_needs_no_such_remedy(chaos: Chaos) -> None:
    remote = ModelConfig(provider="openai", api_key="sk-test", endpoint=f"https://127.0.0.1:{free_port()}/v1")
    config = LLMConfig(models={"gpt": remote, "away": ModelConfig(provider="vllm", endpoint="https://192.0.2.1/v1")})
    async with open_env(config) as env:
        pinned = LLMRequest(prompt="why?", cache="bypass", model="gpt")
        assert "pip install" not in describe((await run(generate(pinned), env)).failure())


async def test_fault_188_a_refused_local_server_costs_one_failed_attempt_not_one_a_call(chaos: Chaos) -> None:
    async with open_env(config_of({"studio": nobody_listens(), "gpt": model(chaos, good)})) as env:
        answers = [(await run(generate(ASK), env)).unwrap() for _ in range(20)]
        rows = (await result_of(env.ledger.rows())).unwrap()
        last = (await run(explain(ASK), env)).unwrap().candidates[-1]
    assert [answer.model for answer in answers] == ["gpt"] * 20
    assert [len(answer.attempts) for answer in answers] == [2] + [1] * 19
    assert [row.attempt.model for row in rows if row.attempt.outcome != "success"] == ["studio"]
    assert last.model == "studio"
    assert 0 < last.cooldown_s <= 30
