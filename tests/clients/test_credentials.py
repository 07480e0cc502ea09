"""Keys that rotate: a function that returns one, its lifetime, rejections, and what is shown of it."""

import logging
import pickle
import re
import threading
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from attrs import evolve
from returns.result import Result

from llm_effects import (
    AuthenticationFailed,
    ConfigurationError,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    LLMResponse,
    ModelConfig,
    check_health,
    embed,
    generate,
    load_config,
    open_env,
    run,
    stream,
)
from llm_effects.clients.client import LiveClients
from llm_effects.clients.credentials import current_key
from llm_effects.clients.transport import connections
from llm_effects.config import CacheConfig, Capabilities, RoutingConfig
from llm_effects.config.settings import config_settings
from llm_effects.effects.env import wall_clock
from llm_effects.providers import target as targets
from llm_effects.providers.registry import target_of
from llm_effects.providers.target import hide_keys, redact
from llm_effects.telemetry.spans import mask_of
from llm_effects.values import RotatingKey
from llm_effects.values.errors import LLMError, RequestTimeout
from llm_effects.values.secrets import FreshKey, KeySource
from tests.fixtures.servers import Behave, Peer, Server, answering, reply_json, serving

pytestmark = pytest.mark.anyio

ASK = LLMRequest(prompt="why?")
START = datetime(2026, 11, 29, tzinfo=UTC)
WHOLE = {
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "because"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}
WRONG = reply_json({"error": {"message": "token-1 is no valid key"}}, "401 Unauthorized")


def config_of(server: Server, key: KeySource | RotatingKey, **settings: Any) -> LLMConfig:
    model = ModelConfig(provider="openai-compatible", model="m", endpoint=server.url, api_key=key)
    routing = RoutingConfig(max_retries=0, **settings)
    return LLMConfig(models={"gpt": model}, routing=routing, cache=CacheConfig(enabled=False))


class Tokens:
    """A source of numbered tokens."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self.asked = 0

    def __call__(self) -> FreshKey:
        self.asked += 1
        token = f"token-{self.asked}"
        return token if self.seconds is None else (token, self.seconds)


def keys_of(server: Server) -> list[str]:
    return [
        found[1] for each in server.requests if (found := re.search(r"(?i)authorization: Bearer (\S+)", each.decode()))
    ]


def rejecting(*keys: str) -> Behave:
    """Answer, but reject some keys."""

    async def behave(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            wrong = any(f"Bearer {key}\r".encode() in request for key in keys)
            await peer.send(WRONG if wrong else reply_json(WHOLE))

    return behave


async def ask(config: LLMConfig) -> Result[LLMResponse, LLMError]:
    async with open_env(config) as env:
        return await run(generate(ASK), env)


def set_clock(env: LLMEnv, clock: list[datetime]) -> None:
    assert isinstance(env.clients, LiveClients)
    env.clients.now = lambda: clock[0]


async def test_fault_194_a_key_is_asked_for_again_at_the_end_of_its_lifetime() -> None:
    tokens, clock = Tokens(60.0), [START]
    with serving(rejecting()) as server:
        async with open_env(config_of(server, tokens)) as env:
            set_clock(env, clock)
            for seconds in (0, 59, 60, 119, 121):
                clock[0] = START + timedelta(seconds=seconds)
                assert (await run(generate(ASK), env)).unwrap().content == "because"
    assert keys_of(server) == ["token-1", "token-1", "token-2", "token-2", "token-3"]


async def test_fault_194_an_async_function_streams_embeddings_and_health_checks_use_the_key_of_the_moment() -> None:
    async def fresh() -> tuple[str, float]:
        await anyio.lowlevel.checkpoint()
        return "token-1", 3600.0

    async def ignore(_: object) -> None:
        pass

    with serving(answering(reply_json(WHOLE))) as server:
        config = config_of(server, RotatingKey(fresh))
        vectors = evolve(config.models["gpt"], capabilities=Capabilities(embeddings=True))
        async with open_env(evolve(config, models={**config.models, "vectors": vectors})) as env:
            assert (await run(stream(ASK, ignore), env)).unwrap().content == "because"
            await run(embed(["a"]), env)
            await run(check_health(), env)
    assert len(server.requests) == 4
    assert set(keys_of(server)) == {"token-1"}
    assert len(keys_of(server)) == len(server.requests)


async def test_fault_195_a_health_check_asks_for_a_fresh_key_once() -> None:
    for wrong, answered in ((("token-1",), True), (("token-1", "token-2"), False)):
        tokens = Tokens(3600.0)
        with serving(rejecting(*wrong)) as server:
            async with open_env(config_of(server, tokens)) as env:
                [health] = (await run(check_health(), env)).unwrap()
        assert tokens.asked == 2
        assert (health.error != "AuthenticationFailed") is answered


async def test_fault_194_a_key_without_a_lifetime_is_asked_for_once() -> None:
    tokens = Tokens()
    with serving(rejecting()) as server:
        async with open_env(config_of(server, tokens)) as env:
            for _ in range(3):
                await run(generate(ASK), env)
    assert (tokens.asked, len(server.requests)) == (1, 3)


async def test_fault_194_a_configured_header_goes_before_the_key() -> None:
    tokens = Tokens()
    with serving(rejecting()) as server:
        config = config_of(server, tokens)
        model = evolve(config.models["gpt"], headers={"Authorization": "Bearer own-key"})
        assert (await ask(evolve(config, models={"gpt": model}))).unwrap().content == "because"
    assert (keys_of(server), tokens.asked) == (["own-key"], 0)


async def test_fault_195_a_rejected_key_is_renewed_and_both_attempts_are_recorded() -> None:
    tokens = Tokens(3600.0)
    with serving(rejecting("token-1")) as server:
        response = (await ask(config_of(server, tokens))).unwrap()
    assert [attempt.outcome for attempt in response.attempts] == ["AuthenticationFailed", "success"]
    assert keys_of(server) == ["token-1", "token-2"]


async def test_fault_195_a_second_rejection_is_the_error() -> None:
    tokens = Tokens()
    with serving(rejecting("token-1", "token-2", "token-3", "token-4")) as server:
        async with open_env(config_of(server, tokens)) as env:
            error = (await run(generate(ASK), env)).failure()
            assert isinstance(error, AuthenticationFailed)
            assert (error.status, len(error.attempts)) == (401, 2)
    assert (keys_of(server), tokens.asked) == (["token-1", "token-2"], 2)


async def test_fault_195_the_attempts_of_the_call_bound_it_too() -> None:
    tokens = Tokens()
    with serving(rejecting("token-1")) as server:
        assert isinstance((await ask(config_of(server, tokens, max_attempts=1))).failure(), AuthenticationFailed)
    assert keys_of(server) == ["token-1"]


async def test_fault_195_a_static_key_is_not_sent_again() -> None:
    with serving(rejecting("token-1")) as server:
        config = config_of(server, Tokens())
        model = evolve(config.models["gpt"], api_key="token-1")
        assert isinstance((await ask(evolve(config, models={"gpt": model}))).failure(), AuthenticationFailed)
    assert keys_of(server) == ["token-1"]


async def test_fault_196_calls_at_once_ask_once_also_after_a_common_rejection() -> None:
    tokens = Tokens()

    async def slow() -> FreshKey:
        await anyio.sleep(0.02)
        return tokens()

    answers = list[Result[LLMResponse, LLMError]]()
    with serving(rejecting("token-1")) as server:
        async with open_env(config_of(server, slow)) as env, anyio.create_task_group() as group:

            async def one() -> None:
                answers.append(await run(generate(ASK), env))

            for _ in range(20):
                group.start_soon(one)
    assert [answer.unwrap().content for answer in answers] == ["because"] * 20
    assert tokens.asked == 2


def test_fault_196_threads_and_loops_share_one_call_of_the_function() -> None:
    tokens, asked, go = Tokens(), threading.Event(), threading.Event()

    def slow() -> FreshKey:
        asked.set()
        assert go.wait(30)
        return tokens()

    key, found = RotatingKey(slow), list[str]()

    def use(backend: str) -> None:
        found.append(anyio.run(current_key, key, wall_clock, backend=backend).unwrap().reveal())

    threads = [threading.Thread(target=use, args=(each,)) for each in ("asyncio", "trio") * 4]
    for thread in threads:
        thread.start()
    assert asked.wait(30)
    go.set()
    for thread in threads:
        thread.join(30)
    assert (found, tokens.asked) == (["token-1"] * 8, 1)


async def test_fault_196_a_cancelled_caller_leaves_its_place_to_another() -> None:
    tokens, waiting = Tokens(), anyio.Event()

    async def hang_once() -> FreshKey:
        key = tokens()
        if tokens.asked == 1:
            waiting.set()
            await anyio.sleep_forever()
        return key

    key, found = RotatingKey(hang_once), list[str]()
    first = anyio.CancelScope()

    async def lead() -> None:
        with first:
            await current_key(key, wall_clock)

    async def follow() -> None:
        found.append((await current_key(key, wall_clock)).unwrap().reveal())

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await waiting.wait()
        group.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        first.cancel()
    assert found == ["token-2"]


async def test_fault_196_callers_at_once_share_a_failure() -> None:
    calls = list[int]()

    async def broken() -> FreshKey:
        calls.append(1)
        await anyio.wait_all_tasks_blocked()
        raise OSError("no route")

    key, tags = RotatingKey(broken), list[str]()

    async def one() -> None:
        tags.append((await current_key(key, wall_clock)).failure().tag)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(one)
    assert (tags, len(calls)) == (["AuthenticationFailed"] * 5, 1)


async def test_fault_197_a_function_that_raises_is_an_error_without_an_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "hunter2-hunter2")

    def broken() -> str:
        raise OSError("login failed for hunter2-hunter2")

    with serving(rejecting()) as server:
        error = (await ask(config_of(server, broken))).failure()
    assert isinstance(error, AuthenticationFailed)
    assert error.message == "api_key: the function raised OSError: login failed for ***"
    assert (error.model, error.attempts, server.requests) == ("gpt", (), [])


@pytest.mark.parametrize(
    ("returned", "remedy"),
    [
        (None, "returned nothing: return a text, or a pair of a text and its lifetime in seconds"),
        (b"token", "returned a value of type bytes: return a text"),
        (("token", 60, 1), "returned a value of type tuple: return a text"),
        ("", "returned a key that must not be blank"),
        ("to ken", "returned a key that contains a space"),
        (("token", 0), "returned a lifetime that is no number above 0: give the seconds from now on"),
        (("token", float("nan")), "returned a lifetime that is no number above 0"),
        (("token", "60"), "returned a lifetime that is no number above 0"),
    ],
)
async def test_fault_197_a_function_that_returns_nonsense_is_a_mistake_with_its_remedy(
    returned: Any, remedy: str
) -> None:
    with serving(rejecting()) as server:
        error = (await ask(config_of(server, lambda: returned))).failure()
    assert isinstance(error, ConfigurationError)
    assert error.message.startswith(f"models.gpt.api_key: the function {remedy}")
    assert server.requests == []


async def test_fault_197_a_function_that_hangs_ends_with_the_deadline() -> None:
    async def hang() -> FreshKey:
        await anyio.sleep_forever()
        return ""

    with serving(rejecting()) as server:
        error = (await ask(config_of(server, hang, timeout_ms=100))).failure()
    assert isinstance(error, RequestTimeout)
    assert server.requests == []


async def test_fault_197_a_failure_is_not_kept() -> None:
    tokens = Tokens()

    def once() -> FreshKey:
        key = tokens()
        if tokens.asked == 1:
            raise OSError
        return key

    with serving(rejecting()) as server:
        async with open_env(config_of(server, once)) as env:
            assert isinstance((await run(generate(ASK), env)).failure(), AuthenticationFailed)
            assert (await run(generate(ASK), env)).unwrap().content == "because"


async def test_fault_198_the_current_and_the_previous_key_are_masked() -> None:
    keys = iter(("canary-key-7f3e9d-1", "canary-key-7f3e9d-2"))
    config = LLMConfig(models={"gpt": ModelConfig(provider="openai-chat", model="m", api_key=lambda: next(keys))})
    key = config.models["gpt"].api_key
    target, mask = target_of("gpt", config.models["gpt"]).unwrap(), mask_of(config)
    assert isinstance(key, RotatingKey)
    seen = "<canary-key-7f3e9d-1><canary-key-7f3e9d-2>"
    for _ in range(2):
        key.reject((await current_key(key, wall_clock)).unwrap(), datetime.now(UTC) - timedelta(seconds=1))
    assert redact(target, seen) == mask(seen) == "<***><***>"
    assert "canary" not in hide_keys(target, seen)


async def test_fault_198_no_key_is_in_a_repr_an_error_a_log_or_a_cache(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = Tokens()
    with serving(rejecting("token-1", "token-2")) as server:
        config = config_of(server, tokens)
        error = (await ask(config)).failure()
    mapping = {"models": {"gpt": {"provider": "openai-chat", "model": "m", "api_key": tokens}}}
    settings = config_settings(mapping, environ={}).unwrap()
    assert [each.value for each in settings if each.place == "models.gpt.api_key"] == ["***"]
    shown = f"{config!r} {config.models['gpt'].api_key} {error!r} {error} {settings} {caplog.text}"
    assert "token-" not in shown
    assert "api_key=RotatingKey('***')" in shown


async def test_fault_198_the_headers_that_are_kept_hold_no_key_that_rotates() -> None:
    kept = (targets._headers, targets._secrets, targets._keys, connections._fixed_headers)  # pyright: ignore[reportPrivateUsage]
    tokens, clock = Tokens(60.0), [START]
    with serving(rejecting()) as server:
        async with open_env(config_of(server, tokens)) as env:
            set_clock(env, clock)
            await run(generate(ASK), env)
            before = [each.cache_info().misses for each in kept]
            for minutes in range(1, 10):
                clock[0] = START + timedelta(minutes=minutes)
                await run(generate(ASK), env)
    assert tokens.asked == 10
    assert [each.cache_info().misses for each in kept] == before


def test_fault_198_a_key_cannot_be_pickled_and_is_not_copied() -> None:
    key = RotatingKey(Tokens())
    assert deepcopy(key) is key
    with pytest.raises(TypeError, match="load the configuration again"):
        pickle.dumps(key)


def test_a_mapping_may_hold_a_function_and_a_shared_key_stays_one() -> None:
    key = RotatingKey(Tokens())
    models = {
        "a": {"provider": "openai-chat", "model": "m", "api_key": Tokens()},
        "b": {"provider": "openai-chat", "model": "m", "api_key": key},
    }
    config = load_config({"models": models}, environ={}).unwrap()
    assert isinstance(config.models["a"].api_key, RotatingKey)
    assert config.models["b"].api_key is key


def test_a_list_of_keys_holds_no_function() -> None:
    with pytest.raises(ValueError, match="api_keys: must be a text or a Secret, not Tokens"):
        ModelConfig(provider="openai-chat", model="m", api_keys=[Tokens()])  # type: ignore[list-item] # pyright: ignore[reportArgumentType]
