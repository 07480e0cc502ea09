"""The protocol of the in-process model, on plain texts and with the real engine."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import httpx
import pytest
from attrs import evolve
from returns.pipeline import is_successful
from returns.result import Failure, Result

from llm_effects.clients.local_engine import Engine
from llm_effects.config.models import ModelConfig
from llm_effects.providers.draft import Draft
from llm_effects.providers.llama import LLAMA
from llm_effects.providers.registry import provider_of, target_of
from llm_effects.providers.sse import ServerEvent
from llm_effects.providers.target import Target
from llm_effects.providers.wire import WireResponse
from llm_effects.values.errors import ContextTooLarge, InvalidRequest, LLMError, MalformedResponse, ModelUnavailable
from llm_effects.values.events import TextDelta
from llm_effects.values.messages import Message, ToolCall
from llm_effects.values.requests import LLMRequest, Preferences, Tool
from llm_effects.values.responses import FinishReason, LLMResponse
from llm_effects.values.validation import JSONObject
from tests.fixtures.llama_server import llama_server, model_file, model_or_skip, start

FIXTURES = (llama_server,)

SCHEMA: JSONObject = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}


def target_at(path: str) -> Target:
    config = ModelConfig(provider="llama", model_path=path, context_length=1024, slots=2, threads=1)
    return target_of("tiny", config).unwrap()


TARGET = target_at("/models/Tiny-1B.Q4_1.gguf")
SHORT = Preferences(max_tokens=8, temperature=0, seed=1)


def chunk(delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> str:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    return json.dumps({"choices": choices, "model": "/models/Tiny-1B.Q4_1.gguf", "id": "chatcmpl-1", **more})


START = chunk({"role": "assistant", "content": None})
PROGRESS = chunk({"role": "assistant", "content": None}, prompt_progress={"total": 900, "processed": 128})
USAGE = json.dumps({"choices": [], "usage": {"prompt_tokens": 31, "completion_tokens": 2}})


def read(texts: Iterable[str], target: Target = TARGET) -> tuple[Result[LLMResponse, LLMError], list[object]]:
    """Decode all chunks as the client does, and return the result and the emitted events."""
    draft, events = Draft(target=target), list[object]()
    for text in texts:
        body_error = LLAMA.decode_event(draft, ServerEvent("message", text))
        if not is_successful(body_error):
            return Failure(body_error.failure()), events
        events.extend(body_error.unwrap())
    return LLAMA.finish(draft), events


class TestEncode:
    def test_a_request_is_a_stream_of_chat_completions_without_a_url(self) -> None:
        wire = LLAMA.encode(TARGET, LLMRequest(prompt="hi", system="Be brief.", preferences=SHORT), False).unwrap()
        assert (wire.url, wire.headers, wire.warnings) == ("", (), ())
        assert json.loads(wire.body) == {
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
            "max_tokens": 8,
            "temperature": 0,
            "seed": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
            "cache_prompt": True,
            "return_progress": True,
        }

    def test_tools_and_schema_are_encoded(self) -> None:
        request = LLMRequest(prompt="hi", tools=(Tool("look"),), tool_choice="required", response_schema=SCHEMA)
        body = json.loads(LLAMA.encode(TARGET, request, True).unwrap().body)
        assert body["tools"][0]["function"]["name"] == "look"
        assert body["tool_choice"] == "required"
        assert body["response_format"]["json_schema"]["schema"] == SCHEMA

    def test_messages_that_cannot_be_sent_are_an_invalid_request(self) -> None:
        request = LLMRequest(messages=(Message("user", ToolCall("c1", "look")),))
        error = LLAMA.encode(TARGET, request, True).failure()
        assert isinstance(error, InvalidRequest)

    def test_the_registry_returns_this_protocol(self) -> None:
        assert provider_of(TARGET) is LLAMA


class TestDecode:
    def test_a_stream_with_a_finish_reason_is_decoded(self) -> None:
        result, events = read(
            [PROGRESS, START, chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk({}, "stop"), USAGE]
        )
        response = result.unwrap()
        assert response.content == "Hello"
        assert response.finish_reason is FinishReason.STOP
        assert (response.usage.input_tokens, response.usage.output_tokens) == (31, 2)
        assert events == [TextDelta("Hel"), TextDelta("lo")]

    def test_a_stream_without_a_finish_reason_is_malformed(self) -> None:
        error = read([START, chunk({"content": "Hel"}), USAGE])[0].failure()
        assert isinstance(error, MalformedResponse)
        assert error.partial == "Hel"

    def test_the_path_of_the_model_file_is_not_shown(self) -> None:
        response = read([START, chunk({"content": "Hi"}), chunk({}, "stop")])[0].unwrap()
        assert response.served_model == "Tiny-1B.Q4_1"
        assert "/models" not in repr(response)
        assert response.warnings == ()

    def test_a_model_named_as_its_file_causes_no_warning(self) -> None:
        named = evolve(TARGET, config=evolve(TARGET.config, model="tiny-1b.q4_1"))
        assert read([chunk({"content": "Hi"}, "stop")], named)[0].unwrap().warnings == ()

    def test_a_whole_answer_is_decoded(self) -> None:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Hi"}}
        body = json.dumps({"choices": [choice], "model": "/models/Tiny-1B.Q4_1.gguf"}).encode()
        response = LLAMA.decode(TARGET, WireResponse(status=200, body=body)).unwrap()
        assert (response.content, response.served_model) == ("Hi", "Tiny-1B.Q4_1")

    def test_an_empty_stream_is_malformed(self) -> None:
        assert isinstance(read([])[0].failure(), MalformedResponse)


class TestErrors:
    def test_a_prompt_beyond_the_window_is_context_too_large_with_both_numbers(self) -> None:
        body_error = {
            "code": 400,
            "message": "request (6031 tokens) exceeds the available context size (1024 tokens), try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 6031,
            "n_ctx": 1024,
        }
        error = read([json.dumps({"error": body_error})])[0].failure()
        assert isinstance(error, ContextTooLarge)
        assert (error.token_count, error.limit, error.model) == (6031, 1024, "tiny")

    def test_a_window_that_fills_up_keeps_the_partial_text(self) -> None:
        body_error = {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}
        error = read([START, chunk({"content": "Hel"}), json.dumps({"error": body_error})])[0].failure()
        assert isinstance(error, ContextTooLarge)
        assert error.partial == "Hel"

    def test_a_loading_model_is_unavailable(self) -> None:
        body_error = {"code": 503, "message": "Loading model", "type": "unavailable_error"}
        error = read([json.dumps({"error": body_error})])[0].failure()
        assert isinstance(error, ModelUnavailable)
        assert error.reason == "loading"

    def test_an_invalid_setting_is_an_invalid_request(self) -> None:
        body_error = {
            "code": 400,
            "message": "Field 'temperature': type must be number",
            "type": "invalid_request_error",
        }
        assert isinstance(read([json.dumps({"error": body_error})])[0].failure(), InvalidRequest)
        body = json.dumps({"error": body_error}).encode()
        assert isinstance(LLAMA.classify(TARGET, WireResponse(status=400, body=body)), InvalidRequest)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(target_at(str(model_or_skip())))
    yield engine
    engine.close()


async def ask_engine(engine: Engine, request: LLMRequest) -> Result[LLMResponse, LLMError]:
    texts: list[str] = []

    async def deliver(text: str) -> None:
        texts.append(text)

    target = target_at(str(model_file()))
    ran = await engine.run(LLAMA.encode(target, request, True).unwrap().body, deliver)
    assert is_successful(ran)
    return read(texts, target)[0]


@pytest.mark.anyio
class TestWithTheEngine:
    async def test_the_engine_answers(self, engine: Engine) -> None:
        response = (await ask_engine(engine, LLMRequest(prompt="Say hello.", preferences=SHORT))).unwrap()
        assert response.content
        assert response.served_model == "SmolLM2-135M-Instruct.Q4_1"
        assert response.finish_reason in {FinishReason.STOP, FinishReason.LENGTH}
        assert response.usage.prompt_tokens
        assert response.usage.output_tokens
        assert response.warnings == ()

    async def test_the_next_turn_processes_only_the_new_tokens(self, engine: Engine) -> None:
        talk: tuple[Message, ...] = (Message("user", "Name a fruit that is red, sweet and grows on trees."),)
        first = (await ask_engine(engine, LLMRequest(messages=talk, preferences=SHORT))).unwrap()
        talk = (*talk, Message("assistant", first.content), Message("user", "Another."))
        second = (await ask_engine(engine, LLMRequest(messages=talk, preferences=SHORT))).unwrap()
        assert second.usage.cache_read_tokens > (first.usage.prompt_tokens or 0) // 2

    async def test_a_slot_that_served_others_still_knows_the_conversation(self) -> None:
        engine = Engine(target_of("tiny", evolve(target_at(str(model_or_skip())).config, slots=1)).unwrap())
        talks = [(Message("user", f"Name a {kind} " + "that is very nice " * 20),) for kind in ("fruit", "tree")]
        firsts = [(await ask_engine(engine, LLMRequest(messages=talk, preferences=SHORT))).unwrap() for talk in talks]
        again = (*talks[0], Message("assistant", firsts[0].content), Message("user", "Another."))
        second = (await ask_engine(engine, LLMRequest(messages=again, preferences=SHORT))).unwrap()
        assert second.usage.cache_read_tokens >= (firsts[0].usage.prompt_tokens or 0)
        engine.close()

    async def test_an_answer_follows_its_schema(self, engine: Engine) -> None:
        request = LLMRequest(
            prompt="What is the capital of France? Answer in JSON.",
            response_schema=SCHEMA,
            preferences=Preferences(max_tokens=40, temperature=0),
        )
        response = (await ask_engine(engine, request)).unwrap()
        assert set(json.loads(response.content)) == {"city"}

    async def test_a_long_prompt_is_context_too_large(self, engine: Engine) -> None:
        error = (await ask_engine(engine, LLMRequest(prompt="word " * 1100, preferences=SHORT))).failure()
        assert isinstance(error, ContextTooLarge)
        assert (error.limit, error.model, error.provider) == (1024, "tiny", "llama")
        assert error.token_count
        assert error.token_count > 1100


class TestTheServerForOtherTests:
    def test_the_server_answers_over_http(self, llama_server: str) -> None:
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
        with httpx.Client(trust_env=False) as client:
            answer = client.post(f"{llama_server}/chat/completions", json=body, timeout=20)
            assert answer.status_code == 200
            assert answer.json()["choices"][0]["message"]["content"]

    def test_the_server_requires_its_key_and_stops_at_the_end(self) -> None:
        with httpx.Client(trust_env=False) as client:
            with start(api_key="sk-test", slots=1, context_length=256) as url:
                assert client.post(f"{url}/chat/completions", json={}, timeout=20).status_code == 401
            with pytest.raises(httpx.ConnectError):
                client.get(f"{url}/models", timeout=20)
