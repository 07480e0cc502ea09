"""Faults 131 to 134 and 171: keys and prompts never show where they do not belong.

Every other case of this folder looks for the key as well: in results, events and logs (tests/fixtures/faults.py).
"""

import copy
import json
import logging
import pickle
import traceback
from base64 import b64encode
from collections.abc import Iterator
from typing import Any, Final

import attrs
import pytest
from returns.pipeline import is_successful

from llm_effects import (
    ConfigurationError,
    LLMConfig,
    LLMRequest,
    ModelConfig,
    generate,
    load_config,
    open_env,
    run,
    stream,
)
from llm_effects.clients.transport.transport import Transport
from llm_effects.config import CacheConfig, LimitsConfig, StorageConfig, TransportKind
from llm_effects.manager import make_llm_manager
from llm_effects.providers.registry import target_of
from llm_effects.values import Secret
from tests.fixtures.chaos import CANARY, Chaos, closes, good, problem, says
from tests.fixtures.faults import ASK, RecordingSink, config_of, model, run_case

# The representation of a value does not depend on the event loop.
pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

PROMPT: Final = "a confidential prompt"


def shown(value: Any) -> str:
    """Return every representation of a value that Python has."""
    ways = [repr, str, format, lambda each: json.dumps(each, default=repr)]
    inside = attrs.asdict(value) if attrs.has(type(value)) else {}
    return "".join(way(value) for way in ways) + repr(inside) + repr(getattr(value, "__dict__", ""))


async def test_131_no_value_with_a_key_shows_it(chaos: Chaos) -> None:
    config = config_of({"first": model(chaos, closes(), headers={"x-other": f"{CANARY} too"})})
    manager = make_llm_manager(config)
    async with manager:
        error = (await manager.run(generate(ASK))).failure()
        for value in (config, config.models["first"], manager, manager.env, manager.env.clients, error):
            assert CANARY not in shown(value)
    assert CANARY not in shown(copy.deepcopy(config))
    with pytest.raises(TypeError):
        pickle.dumps(config)


async def test_131_a_traceback_with_locals_does_not_show_the_key(chaos: Chaos) -> None:
    async def broken(_: object) -> None:
        raise LookupError

    async with open_env(config_of({"first": model(chaos, good)})) as env:
        with pytest.raises(LookupError) as caught:
            await run(stream(ASK, broken), env)
    text = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
    assert CANARY not in text


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key"])
async def test_132_a_key_repeated_by_the_server_is_masked_everywhere(chaos: Chaos, name: str) -> None:
    provider = "anthropic" if name == "x-api-key" else "openai-chat"
    headers = f"x-request-id: {CANARY}", f"location: http://x/?key={CANARY}", f"retry-after: {CANARY}"
    for status in (307, 400, 401, 429, 500):
        answer = problem(status, f"{name}: {CANARY}", *headers, code=CANARY, type=CANARY, param=CANARY)
        settings: dict[str, Any] = {"headers": {name: CANARY}} if name == "api-key" else {"api_key": CANARY}
        await run_case(chaos, {"first": model(chaos, says(answer), provider=provider, **settings)}, max_retries=0)


@pytest.mark.parametrize("kind", ["httpx", "fast"])
async def test_134_prompts_and_answers_are_not_logged(
    chaos: Chaos, caplog: pytest.LogCaptureFixture, kind: TransportKind
) -> None:
    caplog.set_level(logging.DEBUG)
    request = LLMRequest(prompt=PROMPT, system=f"system of {PROMPT}")
    for step in (good, says(problem(500, "oops")), closes()):
        await run_case(
            chaos,
            {"first": model(chaos, step)},
            request=request,
            mode="streamed",
            transport=lambda: Transport(kind=kind),
            max_retries=0,
        )
    assert kind == "fast" or "send_request_headers" in caplog.text  # other loggers do log
    assert PROMPT not in caplog.text
    assert "because" not in caplog.text


async def test_134_a_repr_of_the_environment_shows_no_prompt(chaos: Chaos) -> None:
    async with open_env(config_of({"first": model(chaos, good)})) as env:
        assert is_successful(await run(generate(LLMRequest(prompt=PROMPT)), env))
        await run(stream(LLMRequest(prompt=PROMPT), RecordingSink()), env)
        assert PROMPT not in repr(env)


@pytest.mark.parametrize("kind", ["httpx", "fast"])
async def test_fault_170_no_library_logs_a_key_that_a_server_repeats(
    chaos: Chaos, caplog: pytest.LogCaptureFixture, kind: TransportKind
) -> None:
    names = f"x-request-id: {CANARY}", f"x-seen: {b64encode(CANARY.encode()).decode()}"
    answer = problem(400, "wrong", *names)
    carried = lambda: Transport(kind=kind)  # noqa: E731
    await run_case(chaos, {"first": model(chaos, says(answer))}, transport=carried, max_retries=0)
    assert kind == "fast" or "x-request-id', b'***'" in caplog.text
    assert b64encode(CANARY.encode()).decode()[:16] not in caplog.text


# Passwords of stores, and keys in the wrong place.


def parts_of(value: object, depth: int = 3) -> Iterator[object]:
    """Yield a value of ours and all that it holds."""
    yield value
    names = [*getattr(value, "__slots__", ()), *getattr(value, "__dict__", {})]
    if depth and type(value).__module__.startswith("llm_effects"):
        for name in names:
            yield from parts_of(getattr(value, name, None), depth - 1)


PASSWORD_URLS: Final = {
    "cache": CacheConfig(url=f"redis://app:{CANARY}@localhost:6379/0"),
    "storage": StorageConfig(url=f"postgresql://app:{CANARY}@localhost/talks?sslpassword={CANARY}"),
    "limits": LimitsConfig(url=f"rediss://:{CANARY}@localhost"),
}


async def test_fault_171_a_store_s_password_is_a_secret_in_every_conversion() -> None:
    config = attrs.evolve(LLMConfig(models={}), **PASSWORD_URLS)
    for value in (config, *PASSWORD_URLS.values()):
        shows = shown(value) + json.dumps(attrs.asdict(value), default=str) + repr(attrs.astuple(value))
        assert CANARY not in shows
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(value)
    assert pickle.loads(pickle.dumps(StorageConfig())) == StorageConfig()
    assert attrs.asdict(StorageConfig(url="sqlite:///talks.db"))["url"] == "sqlite:///talks.db"


async def test_fault_171_a_password_in_an_endpoint_is_refused_and_not_kept() -> None:
    config = ModelConfig(provider="openai-compatible", endpoint=f"https://app:{CANARY}@host/v1")
    assert CANARY not in shown(config) + repr(pickle.dumps(config))
    assert "must not hold a user name or password" in repr(target_of("m", config).failure())
    assert ModelConfig(provider="openai-compatible", endpoint="https://host/v1/@app").endpoint == "https://host/v1/@app"


async def test_fault_171_an_open_store_holds_its_password_as_a_secret() -> None:
    config = attrs.evolve(LLMConfig(models={}), **PASSWORD_URLS)
    async with open_env(config) as env:
        for service in (env.cache, env.conversations, env.ledger, env.limits):
            assert CANARY not in "".join(map(repr, parts_of(service)))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
async def test_fault_171_a_secret_has_no_state(protocol: int) -> None:
    secret = Secret(CANARY)
    for state in (secret.__getstate__, secret.__reduce__, lambda: secret.__reduce_ex__(protocol)):
        with pytest.raises(TypeError, match="cannot be pickled"):
            state()


@pytest.mark.parametrize(
    "variable",
    ["OPENAI_MAX_TOKENS", "OPENAI_TEMPERATURE", "LLM_ROUTING_STRATEGY", "LLM_CACHE_ENABLED", "LLM_CACHE_MAX_SIZE"],
)
async def test_fault_171_a_key_in_the_wrong_variable_is_not_repeated(variable: str) -> None:
    for key in (CANARY, "0123456789abcdefghij"):
        problem = load_config(environ={variable: key}).failure()
        assert isinstance(problem, ConfigurationError)
        assert variable in problem.message
        assert key not in repr(problem)
        assert key[:8] not in repr(problem)


@pytest.mark.parametrize(
    "source",
    [
        {"routing": {"strategy": CANARY}},
        {"models": {"gpt": {"provider": "openai", "wire_version": CANARY}}},
        {"models": {"gpt": {"provider": "openai", "api_key": f"env:{CANARY}"}}},
    ],
)
async def test_fault_171_a_key_of_the_environment_is_repeated_in_no_problem(source: dict[str, object]) -> None:
    problem = load_config(source, environ={"MY_KEY": CANARY}).failure()
    assert CANARY not in repr(problem)
