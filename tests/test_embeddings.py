"""``embed``: batches, distinct texts, caching, recording and limits; over HTTP and with the in-process model."""

import base64
import json
import struct
from typing import Any

import anyio
import httpx
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from pytest_httpx import HTTPXMock
from returns.pipeline import is_successful
from returns.result import Result

from llm_effects import (
    AuthenticationFailed,
    BudgetExceeded,
    Cost,
    LLMConfig,
    LLMEnv,
    LLMError,
    LLMRequest,
    ModelConfig,
    ModelUnavailable,
    NetworkError,
    RateLimitExceeded,
    StorageFailed,
    embed,
    generate,
    open_env,
    run,
    scripted_env,
    timeout,
)
from llm_effects.config import BudgetConfig, CacheConfig, Capabilities, Price, RoutingConfig
from llm_effects.config.services import LimitsConfig
from llm_effects.embeddings import Embeddings, VectorCache, batches_of, decode_entry, encode_entry, tokens_of
from llm_effects.providers.openai_embeddings import encode, read
from llm_effects.providers.presets import PRESETS
from llm_effects.providers.registry import target_of
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.testing import Delayed, Reply, run_in_virtual_time, scripted
from llm_effects.testing.scripted import Scripted, vector_of
from llm_effects.values import InvalidValue, Vector
from tests.fixtures.futures import given_by
from tests.fixtures.llama_server import model_or_skip
from tests.fixtures.slow_stores import Slow

pytestmark = pytest.mark.anyio

SMALL = ModelConfig(provider="ollama", model="nomic-embed-text", price=Price(input=1, output=0))
CHAT = ModelConfig(provider="lm-studio")
ONE = LLMConfig(models={"chat": CHAT, "small": SMALL}, routing=RoutingConfig(max_retries=2))
GPT = ModelConfig(provider="openai", model="text-embedding-3-small", api_key="sk-canary-123456")


def env_of(*replies: Reply, config: LLMConfig = ONE) -> tuple[LLMEnv, Scripted]:
    model = scripted(*replies)
    return evolve(scripted_env(clients=model, config=config), cache=MemoryCache()), model


def texts_in(model: Scripted) -> list[list[str]]:
    return [[part.text for part in request.messages[0].parts] for request in model.requests]  # type: ignore[union-attr]


async def embedded(env: LLMEnv, *texts: str, **more: Any) -> Embeddings:
    return (await run(embed(texts, **more), env)).unwrap()


async def test_vectors_are_in_the_order_of_the_texts_and_each_text_is_sent_once() -> None:
    env, model = env_of()
    result = await embedded(env, "cat", "dog", "cat", "bird")
    assert result.vectors == tuple(vector_of(text) for text in ("cat", "dog", "cat", "bird"))
    assert texts_in(model) == [["cat", "dog", "bird"]]
    assert (result.model, result.cached, len(result.attempts)) == ("small", 0, 1)


async def test_many_texts_are_sent_in_concurrent_batches_and_keep_their_order() -> None:
    env, model = env_of(lambda request: Delayed(0.001 * (64 - len(request.messages[0].parts)), "ok"))
    texts = [f"text {number}" for number in range(200)]
    result = await embedded(env, *texts, concurrency=2)
    assert result.vectors == tuple(map(vector_of, texts))
    assert sorted(len(each) for each in texts_in(model)) == [8, 64, 64, 64]
    assert result.usage.input_tokens == sum(each.usage.input_tokens or 0 for each in result.attempts)


def test_concurrency_limits_the_batches_in_flight() -> None:
    async def main() -> float:
        env, _ = env_of(Delayed(10, "ok"))
        started = anyio.current_time()
        await embedded(env, *(f"{number}" for number in range(64 * 6)), concurrency=2)
        return anyio.current_time() - started

    assert run_in_virtual_time(main) == 30


async def test_cached_texts_are_not_sent_again() -> None:
    env, model = env_of()
    await embedded(env, "cat", "dog")
    result = await embedded(env, "dog", "bird", "cat")
    assert texts_in(model) == [["cat", "dog"], ["bird"]]
    assert result.cached == 2
    assert result.vectors == tuple(map(vector_of, ("dog", "bird", "cat")))
    again = await embedded(env, "dog")
    assert (again.cost, again.attempts, again.usage.input_tokens) == (Cost.ZERO, (), 0)


async def test_the_cache_separates_models_dimensions_and_owners() -> None:
    config = evolve(ONE, models={**ONE.models, "large": evolve(SMALL, model="large-embed")})
    env, model = env_of(config=config)
    for more in ({}, {"model": "large"}, {"dimensions": 3}, {"owner": "alice"}):
        await embedded(env, "cat", **more)
    assert len(model.calls) == 4
    assert len((await embedded(env, "cat", dimensions=3)).vectors[0]) == 3
    assert len(model.calls) == 4


@pytest.mark.parametrize(("policy", "calls"), [("use", 1), ("refresh", 2), ("bypass", 2), ("only", 1)])
async def test_each_cache_policy_is_followed(policy: str, calls: int) -> None:
    env, model = env_of()
    await embedded(env, "cat")
    await embedded(env, "cat", cache=policy)
    assert len(model.calls) == calls


async def test_the_policy_only_never_calls_a_model() -> None:
    env, model = env_of()
    assert (await run(embed(["cat"], cache="only"), env)).failure().tag == "StorageFailed"
    assert not model.calls


async def test_a_disabled_cache_is_not_used() -> None:
    env, model = env_of(config=evolve(ONE, cache=CacheConfig(enabled=False)))
    await embedded(env, "cat")
    await embedded(env, "cat")
    assert len(model.calls) == 2


async def test_a_text_with_a_damaged_entry_is_sent_again() -> None:
    env, model = env_of()
    result = await embedded(env, "cat")
    key = key_of(env, "cat")
    entry = await given_by(env.cache.get(key))
    assert entry is not None
    await given_by(env.cache.put(key, entry[:-1] + b"?", None))
    assert (await embedded(env, "cat")).vectors == result.vectors
    assert len(model.calls) == 2


def key_of(env: LLMEnv, text: str) -> str:
    target = target_of("small", SMALL).unwrap()
    return VectorCache(env, target, None, None, writable=True).key(text)


async def test_vectors_of_different_lengths_are_an_error() -> None:
    env, _ = env_of()
    await given_by(env.cache.put(key_of(env, "cat"), encode_entry(vector_of("cat", 3)), None))
    error = (await run(embed(["cat", "dog"]), env)).failure()
    assert (error.tag, error.model, len(error.attempts)) == ("MalformedResponse", "small", 1)
    assert "cache='refresh'" in str(error)
    assert len((await embedded(env, "cat", "dog", cache="refresh")).vectors[0]) == 8
    assert (await embedded(env, "cat", "dog")).cached == 2


async def test_a_server_that_uses_whatever_is_loaded_is_not_cached() -> None:
    loaded = evolve(CHAT, capabilities=Capabilities(embeddings=True))
    env, model = env_of(config=evolve(ONE, models={"loaded": loaded}))
    assert [(await embedded(env, "cat")).cached for _ in range(2)] == [0, 0]
    assert len(model.calls) == 2


async def test_clients_without_embed_still_generate() -> None:
    class Plain:
        complete, probe = Scripted(("ok",)).complete, Scripted(()).probe

    env = scripted_env(clients=Plain(), config=ONE)
    assert (await run(generate(LLMRequest(prompt="why?")), env)).unwrap().content == "ok"
    assert (await run(embed(["cat"]), env)).failure().tag == "ConfigurationError"


async def test_a_failing_cache_is_a_warning_and_loses_no_vectors() -> None:
    failure = StorageFailed(operation="get", message="it is gone")
    cache: Any = Slow(failing={"get": 1000}, error=failure, store=MemoryCache())
    result = await embedded(evolve(env_of()[0], cache=cache), *(f"{number}" for number in range(100)))
    assert len(result.vectors) == 100
    assert result.warnings == ("the cache could not be read: StorageFailed: get: it is gone",)
    assert len(cache.done) < 10


async def test_each_attempt_is_recorded_under_the_task_embeddings() -> None:
    env, _ = env_of(RateLimitExceeded(retry_after=0.001, status=429), "ok")
    result = await embedded(env, "cat", owner="alice", tags=["nightly"])
    rows = await given_by(env.ledger.rows())
    assert [(row.attempt.outcome, str(row.task_type), row.owner, row.tags) for row in rows] == [
        ("RateLimitExceeded", "embeddings", "alice", ("nightly",)),
        ("success", "embeddings", "alice", ("nightly",)),
    ]
    assert result.cost == rows[0].attempt.cost + rows[1].attempt.cost
    assert result.cost.usd
    assert [each.outcome for each in result.attempts] == ["RateLimitExceeded", "success"]


async def test_a_retry_uses_the_same_model_and_never_another() -> None:
    config = evolve(ONE, models={"small": SMALL, "other": evolve(SMALL, model="other-embed")})
    env, model = env_of(ModelUnavailable(), "ok", config=config)
    await embedded(env, "cat")
    assert [call.model for call in model.calls] == ["small", "small"]
    env, model = env_of(AuthenticationFailed(), config=config)
    error = (await run(embed(["cat"]), env)).failure()
    assert (error.tag, error.model, len(error.attempts)) == ("AuthenticationFailed", "small", 1)
    assert [call.model for call in model.calls] == ["small"]


async def test_batches_before_an_error_are_not_paid_twice() -> None:
    env, model = env_of("ok", AuthenticationFailed(), "ok")
    texts = [f"{number}" for number in range(128)]
    failed = (await run(embed(texts, concurrency=1), env)).failure()
    assert len(failed.attempts) == 2
    assert (await embedded(env, *texts)).cached == 64
    assert len(model.calls) == 3


def test_rate_limits_apply() -> None:
    patient = LimitsConfig(queue_seconds=100)
    config = evolve(ONE, models={"small": evolve(SMALL, requests_per_minute=1)}, limits=patient)

    async def main() -> float:
        env, _ = env_of(config=config)
        started = anyio.current_time()
        await embedded(env, *(f"{number}" for number in range(65)))
        return anyio.current_time() - started

    assert 60 <= run_in_virtual_time(main) <= 62


async def test_budgets_apply() -> None:
    budgets = (BudgetConfig(name="embeddings", limit_usd="0.0000001", scope="task:embeddings"),)
    env, model = env_of(config=evolve(ONE, budgets=budgets))
    assert isinstance((await run(embed(["a long text" * 10]), env)).failure(), BudgetExceeded)
    assert not model.calls


async def test_a_timeout_cancels_the_batches() -> None:
    env, _ = env_of(Delayed(60, "ok"))
    assert (await run(timeout(0.1, embed(["cat"])), env)).failure().tag == "TimeoutError"
    assert [row.attempt.outcome for row in await given_by(env.ledger.rows())] == ["cancelled"]


async def test_only_a_model_that_embeds_is_used() -> None:
    async def refused(config: LLMConfig, model: str | None) -> LLMError:
        return (await run(embed(["cat"], model=model), env_of(config=config)[0])).failure()

    assert "'chat' is not known to embed" in str(await refused(ONE, "chat"))
    assert "'smal' is not configured" in str(await refused(ONE, "smal"))
    assert (await refused(LLMConfig(models={"chat": CHAT}), None)).tag == "ConfigurationError"
    assert (await refused(LLMConfig(models={}), None)).tag == "ConfigurationError"
    capable = LLMConfig(models={"chat": evolve(CHAT, capabilities=Capabilities(embeddings=True))})
    assert (await embedded(env_of(config=capable)[0], "cat")).model == "chat"


async def test_a_model_that_embeds_is_not_used_for_answers() -> None:
    env, model = env_of("because")
    assert (await run(generate(LLMRequest(prompt="why?")), env)).unwrap().model == "chat"
    refused = (await run(generate(LLMRequest(prompt="why?", model="small")), env)).failure()
    assert "it returns embeddings, not answers" in str(refused)
    assert len(model.calls) == 1


async def test_no_texts_give_no_vectors_and_cost_nothing() -> None:
    env, model = env_of()
    result = await embedded(env)
    assert (result.vectors, result.cost, result.attempts) == ((), Cost.ZERO, ())
    assert not model.calls


@pytest.mark.parametrize(
    ("texts", "message"), [([" "], "texts[0]: must not be blank"), (["a", 3], "texts[1]: must be a text, not int")]
)
async def test_an_invalid_text_is_an_error_value(texts: list[Any], message: str) -> None:
    assert message in str((await run(embed(texts), env_of()[0])).failure())


@pytest.mark.parametrize("arguments", [{"dimensions": 0}, {"concurrency": 0}, {"cache": "maybe"}, {"tags": "ab"}])
def test_invalid_arguments_raise_at_once(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        embed(["cat"], **arguments)


def test_a_single_string_is_refused() -> None:
    with pytest.raises(InvalidValue, match="texts"):
        embed("cat")


@given(st.lists(st.text("ab你", min_size=1), max_size=40), st.integers(1, 9), st.integers(1, 40))
def test_batches_hold_every_text_in_order_within_their_limits(texts: list[str], count: int, tokens: int) -> None:
    preset = evolve(PRESETS["vllm"], embedded_texts=count, embedded_tokens=tokens)
    batches = list(batches_of(texts, preset))
    assert [text for batch in batches for text in batch] == texts
    assert all(len(batch) <= count for batch in batches)
    assert all(sum(map(tokens_of, batch)) <= tokens or len(batch) == 1 for batch in batches)


FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@given(st.lists(FLOATS, min_size=1, max_size=20))
def test_a_vector_keeps_its_numbers(numbers: list[float]) -> None:
    vector = Vector.of(numbers)
    assert list(vector) == numbers
    assert [vector[at] for at in range(-len(numbers), len(numbers))] == numbers * 2
    with pytest.raises(IndexError):
        vector[len(numbers)]
    assert vector[1:] == tuple(numbers[1:])
    assert decode_entry(encode_entry(vector)) == vector
    assert hash(vector) == hash(Vector.of(numbers))


@pytest.mark.parametrize("value", [b"abc", [1.0], "abcd"])
def test_a_vector_needs_bytes_of_whole_numbers(value: Any) -> None:
    with pytest.raises(InvalidValue, match="packed: must be bytes"):
        Vector(value)


@given(st.binary(max_size=40))
def test_any_bytes_decode_to_a_vector_or_none(entry: bytes) -> None:
    vector = decode_entry(entry)
    assert vector is None or encode_entry(vector) == entry


TARGET = target_of("gpt", GPT).unwrap()


def body_of(*data: object, **more: object) -> dict[str, object]:
    return {"object": "list", "data": list(data), "model": "text-embedding-3-small", **more}


def item(numbers: object, **more: object) -> dict[str, object]:
    return {"object": "embedding", "embedding": numbers, **more}


def base64_of(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


def test_only_openai_is_asked_for_base64() -> None:
    assert json.loads(encode(TARGET, ("a",), 256).body) == {
        "model": "text-embedding-3-small",
        "input": ["a"],
        "dimensions": 256,
        "encoding_format": "base64",
    }
    studio = target_of("studio", ModelConfig(provider="lm-studio")).unwrap()
    assert json.loads(encode(studio, ("a",), None).body) == {"input": ["a"]}


@pytest.mark.parametrize(
    "data",
    [
        (item([1.0, 0.0]), item([0.0, 1.0])),
        (item([0.0, 1.0], index=1), item([1.0, 0.0], index=0)),
        (item(base64_of(1.0, 0.0)), item([0, 1])),
        (item([1.0, 0.0], index=0), item([0.0, 1.0], index=0)),
    ],
)
def test_lists_and_base64_are_read_in_the_order_of_the_texts(data: tuple[object, ...]) -> None:
    result = read(TARGET, body_of(*data, usage={"prompt_tokens": 4, "total_tokens": 4}), 2, None).unwrap()
    assert [list(vector) for vector in result.vectors] == [[1.0, 0.0], [0.0, 1.0]]
    assert (result.usage.total_tokens, result.served_model) == (4, "text-embedding-3-small")


@pytest.mark.parametrize(
    "body",
    [
        body_of(item([1.0])),
        body_of(item([1.0]), item([])),
        body_of(item([1.0]), item([1.0, 2.0])),
        body_of(item([1.0]), item([float("inf")])),
        body_of(item([1.0]), item([1e300])),
        body_of(item([1.0]), item(["1.0"])),
        body_of(item([1.0]), item("not base64!")),
        body_of(item([1.0]), item("AAA=")),
        body_of(item([1.0]), item([1.0]), item([1.0])),
        body_of(item([1.0]), None),
        {"data": {"embedding": [1.0]}},
        [],
        None,
    ],
)
def test_a_body_without_a_vector_for_each_text_is_malformed(body: object) -> None:
    assert read(TARGET, body, 2, None).failure().tag == "MalformedResponse"


def test_an_unexpected_length_is_refused() -> None:
    error = read(TARGET, body_of(item([1.0, 2.0])), 1, 3).failure()
    assert error.tag == "InvalidRequest"
    assert "dimensions: gpt returned 2, not 3" in str(error)


async def embed_live(*texts: str, model: ModelConfig = GPT, **more: Any) -> Result[Embeddings, LLMError]:
    config = LLMConfig(models={"gpt": model}, routing=RoutingConfig(max_retries=1))
    async with open_env(config) as env:
        return await run(embed(texts, **more), env)


async def test_openai_embeddings_over_http(httpx_mock: HTTPXMock) -> None:
    body = body_of(item(base64_of(0.5, -0.5), index=0), usage={"prompt_tokens": 3, "total_tokens": 3})
    httpx_mock.add_response(json=body, headers={"x-request-id": "req_1"})
    result = (await embed_live("cat")).unwrap()
    assert [list(vector) for vector in result.vectors] == [[0.5, -0.5]]
    assert (result.usage.input_tokens, result.usage.estimated, result.served_model) == (
        3,
        False,
        "text-embedding-3-small",
    )
    sent = httpx_mock.get_request()
    assert sent is not None
    assert str(sent.url) == "https://api.openai.com/v1/embeddings"
    assert sent.headers["authorization"] == "Bearer sk-canary-123456"


async def test_missing_usage_is_estimated(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(json=body_of(item([1.0])))
    usage = (await embed_live("cat")).unwrap().usage
    assert usage.estimated
    assert usage.input_tokens


@pytest.mark.parametrize(
    ("status", "body", "tag"),
    [
        (401, {"error": {"message": "Incorrect API key provided: sk-canary-123456"}}, "AuthenticationFailed"),
        (404, {"error": {"message": "The model `x` does not exist", "code": "model_not_found"}}, "ModelUnavailable"),
        (400, {"error": {"message": "maximum context length is 8192 tokens"}}, "ContextTooLarge"),
        (200, {"error": {"message": "no", "code": "insufficient_quota"}}, "RateLimitExceeded"),
        (400, {"error": {"message": "'$.input' is invalid"}}, "InvalidRequest"),
    ],
)
async def test_http_errors_are_values(status: int, body: object, tag: str, httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_response(status_code=status, json=body)
    error = (await embed_live("cat")).failure()
    assert (error.tag, error.model, error.provider) == (tag, "gpt", "openai")
    assert "canary" not in repr(error)


async def test_a_lost_connection_is_retried(httpx_mock: HTTPXMock) -> None:
    httpx_mock.add_exception(httpx.ReadError("gone"))
    httpx_mock.add_response(json=body_of(item([1.0])))
    assert [each.outcome for each in (await embed_live("cat")).unwrap().attempts] == [NetworkError.tag, "success"]


async def test_a_slow_server_times_out_after_the_time_of_its_model(httpx_mock: HTTPXMock) -> None:
    async def slow(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(5)
        return httpx.Response(200)

    httpx_mock.add_callback(slow, is_reusable=True)
    error = (await embed_live("cat", model=evolve(GPT, timeout_ms=20))).failure()
    assert (error.tag, error.model) == ("TimeoutError", "gpt")


async def test_a_protocol_without_embeddings_is_refused() -> None:
    claude = ModelConfig(
        provider="anthropic", model="claude-opus-5", api_key="sk-x", capabilities=Capabilities(embeddings=True)
    )
    assert "anthropic has no embeddings" in str((await embed_live("cat", model=claude)).failure())


@pytest.fixture(scope="module")
def tiny() -> ModelConfig:
    return ModelConfig(
        provider="llama",
        model_path=str(model_or_skip()),
        context_length=256,
        slots=2,
        threads=1,
        capabilities=Capabilities(embeddings=True),
    )


async def test_the_in_process_model_embeds(tiny: ModelConfig) -> None:
    texts = ("A cat sat on the mat.", "A kitten sat on a rug.", "Interest rates rose by two percent.", "你好")
    config = LLMConfig(models={"tiny": tiny})
    async with open_env(config) as env:
        result = (await run(embed(texts, concurrency=2), env)).unwrap()
        again = (await run(embed(reversed(texts)), env)).unwrap()
        rows = await given_by(env.ledger.rows())
        long = await run(embed(["word " * 400]), env)
        sized = await run(embed(["cat"], dimensions=3), env)
    cat, kitten, rates, _ = result.vectors
    assert (again.cached, again.vectors[::-1]) == (4, result.vectors)
    assert {len(vector) for vector in result.vectors} == {576}
    assert similarity(cat, cat) == pytest.approx(1, abs=1e-5)
    assert similarity(cat, kitten) > similarity(cat, rates)
    assert (result.cost, result.usage.estimated, len(rows)) == (Cost.ZERO, False, 1)
    assert not is_successful(long)
    assert (long.failure().tag, len(long.failure().attempts)) == ("ContextTooLarge", 1)
    assert "dimensions" in str(sized.failure())


def similarity(one: Vector, other: Vector) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
