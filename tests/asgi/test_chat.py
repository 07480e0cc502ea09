"""Chat completions in this process: what is carried to a model, and what a client reads."""

from typing import Any

import anyio
import httpx
import msgspec
import pytest
from attrs import define, evolve, field
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import (
    AuthenticationFailed,
    BudgetExceeded,
    CachePolicy,
    ConfigurationError,
    ContentRefused,
    ContextTooLarge,
    ConversationConflict,
    Cost,
    Document,
    FinishReason,
    Image,
    InvalidRequest,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    LLMResponse,
    MalformedResponse,
    Message,
    ModelConfig,
    ModelUnavailable,
    NetworkError,
    Preferences,
    RateLimitExceeded,
    Reasoning,
    RequestFailed,
    RequestTimeout,
    SchemaMismatch,
    StorageFailed,
    TaskType,
    Text,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    scripted_env,
)
from llm_effects.asgi import ChatRequest, create_app, read_chat_request, status_of
from llm_effects.asgi import answers as answers_module
from llm_effects.asgi.answers import Exchange
from llm_effects.config import Capabilities, RoutingConfig
from llm_effects.effects.effect import result_of
from llm_effects.testing import Chunks, Delayed, answer, calling
from llm_effects.testing.scripted import ONE_MODEL
from tests.fixtures.endpoint import QUESTION, ask, client_of, events_of

NO_RETRIES = evolve(ONE_MODEL, routing=RoutingConfig(max_retries=0))


def reading(fields: dict[str, Any], config: LLMConfig = ONE_MODEL) -> Any:
    return read_chat_request(msgspec.json.encode({**QUESTION, **fields}), config)


def read(**fields: Any) -> LLMRequest:
    request: LLMRequest = reading(fields).unwrap().request
    return request


def problem(**fields: Any) -> str:
    return str(reading(fields).failure().message)


# Requests.


def test_messages_of_every_role_are_carried() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]
    assert read(messages=messages).messages == (
        Message("system", "Be brief."),
        Message("user", "What is it?"),
        Message("assistant", (ToolCall("c1", "clock"),)),
        Message("tool", (ToolResult("c1", "noon"),)),
    )


def test_pictures_and_files_are_carried() -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lGODlh", "detail": "low"}},
        {"type": "file", "file": {"filename": "a.txt", "file_data": "data:text/plain;base64,aGk="}},
    ]
    ((picture, file),) = (message.parts for message in read(messages=[{"role": "user", "content": parts}]).messages)
    assert isinstance(picture, Image)
    assert isinstance(file, Document)
    assert (picture.data, file.data, file.title) == (b"GIF89a", b"hi", "a.txt")


def test_settings_are_carried() -> None:
    asked = read(
        max_tokens=5,
        temperature=0.5,
        top_p=0.9,
        stop=["a", "b"],
        seed=7,
        reasoning_effort="low",
        llm_effects={"timeout_ms": 100},
    )
    assert asked.preferences == Preferences(
        max_tokens=5, temperature=0.5, top_p=0.9, stop=("a", "b"), seed=7, reasoning_effort="low", timeout_ms=100
    )
    assert read(max_completion_tokens=9, max_tokens=5).preferences.max_tokens == 9
    assert read(stop="end").preferences.stop == ("end",)
    assert read(temperature=None, stop=None, tools=None).preferences == Preferences()


def test_tools_and_their_choice_are_carried() -> None:
    function = {"name": "clock", "description": "The time.", "parameters": {"type": "object"}, "strict": True}
    tools = [{"type": "function", "function": function}]
    asked = read(tools=tools, tool_choice={"type": "function", "function": {"name": "clock"}})
    assert [(tool.name, tool.description) for tool in asked.tools] == [("clock", "The time.")]
    assert (asked.tool_choice, read(tools=tools, tool_choice="required").tool_choice) == ("clock", "required")


def test_the_form_of_the_answer_is_carried() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    assert read(response_format=form).response_schema == schema
    assert read(response_format={"type": "json_object"}).response_schema == {"type": "object"}
    assert read(response_format={"type": "text"}).response_schema is None


def test_metadata_and_fields_of_the_library_are_carried() -> None:
    own = {"task_type": "analysis", "tags": ["nightly"], "cache": "bypass"}
    asked = read(metadata={"run": "7"}, prompt_cache_key="talk-1", llm_effects=own)
    assert (asked.metadata, asked.conversation, asked.tags) == ({"run": "7"}, "talk-1", ("nightly",))
    assert (asked.task_type, asked.cache) == (TaskType.ANALYSIS, CachePolicy.BYPASS)


def test_a_model_is_pinned_by_its_name_its_entry_or_the_name_of_its_provider() -> None:
    keys = LLMConfig(models={"gpt": ModelConfig(provider="openai", model="gpt-6-luna", api_keys=("sk-1", "sk-2"))})
    pinned = {name: reading({"model": name}, keys).unwrap().request.model for name in ("gpt", "gpt#2", "gpt-6-luna")}
    assert pinned == {"gpt": "gpt", "gpt#2": "gpt#2", "gpt-6-luna": "gpt-6-luna"}
    assert read(model="auto").model is None
    named_auto = LLMConfig(models={"auto": ModelConfig(provider="lm-studio"), "b": ModelConfig(provider="lm-studio")})
    assert reading({"model": "auto"}, named_auto).unwrap().request.model is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "messages: must be a list of at least one message"),
        ({"messages": "why?"}, "messages: must be a list of at least one message"),
        ({"messages": [{"role": "robot"}]}, "messages[0].role: must be one of"),
        ({"messages": [{"role": "user", "content": [{"type": []}]}]}, "messages[0].content[0].type: must be text"),
        ({"model": None}, "model: is missing: the names are auto, scripted"),
        ({"model": "gpt-4"}, "model: 'gpt-4' is not known here: the names are auto, scripted"),
        ({"temperature": 3}, "temperature: must be at most 2"),
        ({"max_tokens": "many"}, "max_tokens: must be a whole number"),
        ({"stop": 3}, "stop: must be a text or a list of texts, not 3"),
        ({"stream": "yes"}, "stream: must be true or false"),
        ({"stream_options": []}, "stream_options: must be an object"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage: must be true or false"),
        ({"tools": 7}, "tools: must be a list, not 7"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type: must be function, not 'custom'"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name: must not be blank"),
        ({"tools": [{"type": "function"}]}, "tools[0].function: is missing"),
        ({"tool_choice": "required"}, "tool_choice: must be auto, none"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type: must be function"),
        ({"response_format": {"type": ["xml"]}}, "response_format.type: must be text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema: is missing"),
        ({"metadata": {"a": 1}}, "metadata.a: must be str"),
        ({"llm_effects": {"tag": ["a"]}}, "llm_effects.tag: unknown key: did you mean tags?"),
        ({"llm_effects": {"cache": "never"}}, "llm_effects.cache: must be one of"),
        ({"llm_effects": {"tags": "nightly"}}, "llm_effects.tags: must be a list, not 'nightly'"),
        ({"llm_effects": {"tags": [1]}}, "llm_effects.tags[0]: must be str"),
        ({"llm_effects": {"timeout_ms": -1}}, "llm_effects.timeout_ms: must be above 0"),
        ({"max_completion_tokens": 0}, "max_completion_tokens: must be at least 1"),
        ({"prompt_cache_key": " "}, "prompt_cache_key: must not be blank"),
    ],
)
def test_fault_296_what_is_wrong_is_named_with_its_place(fields: dict[str, Any], message: str) -> None:
    assert problem(**fields).startswith(message)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", b"\xff"])
def test_a_body_that_is_no_object_is_an_error(body: bytes) -> None:
    problem = read_chat_request(body, ONE_MODEL).failure()
    assert isinstance(problem, InvalidRequest)
    assert problem.message.startswith("the body must be a JSON object")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("logprobs", True),
        ("top_logprobs", 3),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("web_search_options", {}),
        ("moderation", {"model": "m"}),
    ],
)
def test_fault_255_a_field_that_changes_what_the_answer_is_is_refused(name: str, value: object) -> None:
    assert problem(**{name: value}).startswith(f"{name}: ")


def test_fault_255_fields_without_effect_are_named_and_the_usual_values_are_none() -> None:
    usual = {"n": 1, "logprobs": False, "presence_penalty": 0, "parallel_tool_calls": True, "user": None}
    assert reading(usual).unwrap().ignored == ()
    asked = reading({"frequency_penalty": 0.5, "user": "u1", "top_k": 40, "seed": 1}).unwrap()
    assert asked.ignored == ("frequency_penalty", "user", "top_k")


KEYS = st.sampled_from(("type", "role", "content", "text", "function", "name", "url", "image_url", "file", "schema"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(
    (
        *("model", "messages", "tools", "tool_choice", "response_format", "stream", "stream_options", "stop"),
        *("n", "max_tokens", "llm_effects", "prompt_cache_key", "modalities", "reasoning_effort", "metadata"),
    )
)


@given(st.dictionaries(NAMES, JSON, max_size=5))
def test_any_json_is_a_request_or_an_error(fields: dict[str, object]) -> None:
    reading({"messages": [{"role": "user", "content": "why?"}], **fields})
    reading({**fields, "model": "auto"})


@given(JSON)
def test_any_message_is_a_request_or_an_error(message: object) -> None:
    reading({"messages": [message]})
    reading({"messages": [{"role": "user", "content": message}]})
    reading({"tools": [message, {"type": "function", "function": message}]})


# Whole answers.


@pytest.mark.anyio
async def test_an_answer_has_the_shape_of_openai() -> None:
    async with client_of(scripted_env(evolve(answer("Logs."), warnings=("seed: dropped",)))) as client:
        response = await ask(client)
    assert response.status_code == 200
    assert response.headers["x-request-id"] == response.json()["id"]
    assert response.json() == {
        "id": "chatcmpl-id-1",
        "object": "chat.completion",
        "created": 1767225600,
        "model": "scripted",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Logs.", "refusal": None},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 10,
            "completion_tokens": 1,
            "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        "llm_effects": {"cached": False, "cost_usd": "0", "warnings": ["seed: dropped"]},
    }


@pytest.mark.anyio
async def test_a_call_of_a_tool_is_answered() -> None:
    async with client_of(scripted_env(calling(ToolCall("c1", "clock", '{"a":1}')))) as client:
        (choice,) = (await ask(client)).json()["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    function = {"name": "clock", "arguments": '{"a":1}'}
    assert choice["message"]["tool_calls"] == [{"id": "c1", "type": "function", "function": function}]


@pytest.mark.anyio
async def test_ignored_fields_are_in_a_header_that_they_cannot_break() -> None:
    async with client_of(scripted_env("ok")) as client:
        plain = await ask(client, user="u1", top_k=3)
        odd = await ask(client, **{"a\r\nx-evil: 1": 1, "ä": 2, "b" * 5_000: 3}, stream=True)
        clean = await ask(client)
    assert plain.headers["x-llm-effects-warning"] == "ignored: user, top_k"
    assert odd.headers["x-llm-effects-warning"].startswith("ignored: a  x-evil: 1, \\xe4, bbb")
    assert len(odd.headers["x-llm-effects-warning"]) < 1_100
    assert "x-evil" not in odd.headers
    assert "x-llm-effects-warning" not in clean.headers


@pytest.mark.anyio
async def test_auto_is_routed_and_a_name_is_pinned() -> None:
    studio = ModelConfig(provider="lm-studio")
    config = LLMConfig(models={"a": studio, "b": evolve(studio, model="big")}, routing=RoutingConfig(max_retries=0))
    env = scripted_env(ModelUnavailable(), "second", config=config)
    async with client_of(env) as client:
        assert (await ask(client)).json()["model"] == "b"
        assert (await ask(client, model="a")).json()["model"] == "a"
        unknown = await ask(client, model="gpt-4")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    assert unknown.json()["error"]["param"] == "model"


# Streams.


@pytest.mark.anyio
async def test_a_stream_has_the_shape_of_openai() -> None:
    async with client_of(scripted_env(Chunks(("be", "cause")))) as client:
        response = await ask(client, stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, done = events_of(response.text)
    assert done == "[DONE]"
    heads = [{name: chunk[name] for name in ("id", "object", "created", "model")} for chunk in chunks]
    assert heads == [
        {"id": "chatcmpl-id-1", "object": "chat.completion.chunk", "created": 1767225600, "model": "scripted"}
    ] * len(chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "be"},
        {"content": "cause"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert chunks[-1]["llm_effects"] == {"cached": False, "cost_usd": "0", "warnings": []}
    assert "usage" not in chunks[0]


@pytest.mark.anyio
async def test_the_usage_of_a_stream_comes_last_if_it_is_asked_for() -> None:
    async with client_of(scripted_env("because")) as client:
        response = await ask(client, stream=True, stream_options={"include_usage": True})
    *chunks, last, _ = events_of(response.text)
    assert [chunk["usage"] for chunk in chunks] == [None] * len(chunks)
    assert (last["choices"], last["usage"]["total_tokens"]) == ([], 11)


@pytest.mark.anyio
async def test_a_model_with_several_keys_has_one_name() -> None:
    gpt = ModelConfig(provider="openai", model="gpt-6-luna", api_keys=("sk-1", "sk-2"))
    async with client_of(scripted_env("ok", config=LLMConfig(models={"gpt": gpt}))) as client:
        whole, streamed = await ask(client), await ask(client, stream=True)
    chunks = [chunk for chunk in events_of(streamed.text) if chunk != "[DONE]"]
    assert {whole.json()["model"], *(chunk["model"] for chunk in chunks)} == {"gpt"}


@pytest.mark.anyio
async def test_reasoning_and_tool_calls_are_streamed_with_each_id_once() -> None:
    parts = (Reasoning("hm"), Text("so"), ToolCall("c1", "clock", '{"a":1}'), ToolCall("c2", "clock"))
    thoughtful = evolve(answer("so"), parts=parts, finish_reason=FinishReason.TOOL_CALLS)
    async with client_of(scripted_env(thoughtful)) as client:
        *chunks, _ = events_of((await ask(client, stream=True)).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert {"reasoning_content": "hm"} in deltas
    assert {"content": "so"} in deltas
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert [call["id"] for call in calls if "id" in call] == ["c1", "c2"]
    assert "".join(call["function"]["arguments"] for call in calls if call["index"] == 0) == '{"a":1}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.anyio
async def test_the_id_and_the_name_of_a_call_in_pieces_are_sent_once() -> None:
    sent = list[Any]()

    async def send(message: Any) -> None:
        sent.append(message)

    exchange = Exchange(ChatRequest(LLMRequest(prompt="why?")), scripted_env(), {}, anyio.sleep_forever, send)
    for piece in ('{"a":', "1}"):
        await exchange.deliver(ToolCallDelta(0, "c1", "clock", piece))
    first, second = (events_of(message["body"].decode())[0]["choices"][0]["delta"] for message in sent[1:])
    function = {"name": "clock", "arguments": '{"a":'}
    assert first == {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": function}]}
    assert second == {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}


@pytest.mark.anyio
async def test_fault_249_an_error_before_the_first_event_has_its_own_status() -> None:
    async with client_of(scripted_env(RateLimitExceeded(retry_after=7.0), config=NO_RETRIES)) as client:
        response = await ask(client, stream=True)
    assert (response.status_code, response.headers["content-type"]) == (429, "application/json")
    assert (response.headers["retry-after"], response.json()["error"]["code"]) == ("7", "rate_limit_exceeded")


@pytest.mark.anyio
async def test_fault_249_an_error_after_the_first_event_is_the_last_one() -> None:
    async with client_of(scripted_env(Chunks(("be",), then=MalformedResponse(message="cut")))) as client:
        response = await ask(client, stream=True)
    assert response.status_code == 200
    *_, last = events_of(response.text)
    assert last["error"]["message"].startswith("MalformedResponse (scripted): cut")
    assert (last["error"]["type"], last["error"]["code"]) == ("server_error", "MalformedResponse")


@pytest.mark.anyio
async def test_fault_254_silence_of_a_model_is_bridged_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "HEARTBEAT_S", 0.01)
    async with client_of(scripted_env(Delayed(0.1, "because"), Delayed(0.1, AuthenticationFailed()))) as client:
        spoken, failed = await ask(client, stream=True), await ask(client, stream=True)
    assert spoken.text.startswith(": still there\n\n: still there\n\n")
    assert spoken.text.endswith("data: [DONE]\n\n")
    assert failed.status_code == 200  # already sent
    assert events_of(failed.text)[-1]["error"]["code"] == "AuthenticationFailed"


# Errors.


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequest(message="no"), 400, None),
        (ContextTooLarge(), 400, "context_length_exceeded"),
        (ContentRefused(), 400, "content_filter"),
        (BudgetExceeded(budget="day", spent=Cost.ZERO, limit=Cost.ZERO), 429, "insufficient_quota"),
        (RateLimitExceeded(quota=True), 429, "insufficient_quota"),
        (RateLimitExceeded(), 429, "rate_limit_exceeded"),
        (ModelUnavailable(reason="overloaded"), 503, "overloaded"),
        (ModelUnavailable(reason="unknown_model"), 404, "model_not_found"),
        (ModelUnavailable(reason="unsupported"), 400, "unsupported"),
        (AuthenticationFailed(), 502, "AuthenticationFailed"),
        (NetworkError(), 502, "NetworkError"),
        (MalformedResponse(), 502, "MalformedResponse"),
        (SchemaMismatch(problems=()), 502, "SchemaMismatch"),
        (RequestTimeout(phase="total"), 504, "TimeoutError"),
        (StorageFailed(operation="read", message="/srv/secret.db"), 500, "StorageFailed"),
        (ConfigurationError(message="models.a.api_key: is missing"), 500, "ConfigurationError"),
        (ConversationConflict(conversation_id="c"), 500, "ConversationConflict"),
        (RequestFailed(errors=(RateLimitExceeded(retry_after=2.0), NetworkError())), 429, "rate_limit_exceeded"),
        (RequestFailed(errors=(NetworkError(), RateLimitExceeded(quota=True))), 429, "insufficient_quota"),
    ],
)
async def test_an_error_has_its_status_and_code(error: Any, status: int, code: str | None) -> None:
    async with client_of(scripted_env(error, config=NO_RETRIES)) as client:
        response = await ask(client)
    body = response.json()["error"]
    assert (response.status_code, body["code"]) == (status, code)
    assert set(body) == {"message", "type", "param", "code"}
    assert "secret.db" not in response.text
    assert "api_key" not in response.text


@pytest.mark.anyio
async def test_fault_250_a_client_is_asked_to_retry_only_where_a_pause_is_known() -> None:
    async with client_of(scripted_env(RateLimitExceeded(retry_after=1.2), NetworkError(), config=NO_RETRIES)) as client:
        paused, broken = await ask(client), await ask(client)
    assert (paused.headers["retry-after"], paused.headers["retry-after-ms"]) == ("2", "1200")
    assert "x-should-retry" not in paused.headers
    assert (broken.headers["x-should-retry"], "retry-after" in broken.headers) == ("false", False)
    quota = RateLimitExceeded(quota=True, retry_after=3.0)
    async with client_of(scripted_env(quota, config=NO_RETRIES)) as client:
        assert (await ask(client)).headers["x-should-retry"] == "false"


@pytest.mark.anyio
async def test_fault_296_a_path_or_method_that_does_not_exist_is_refused_with_the_right_one() -> None:
    async with client_of(scripted_env()) as client:
        missing, wrong = await client.get("/responses"), await client.get("/chat/completions")
        without = await client.post("http://localhost/chat/completions", json=QUESTION)  # a base URL without /v1
    assert (missing.status_code, missing.json()["error"]["type"]) == (404, "invalid_request_error")
    assert without.json()["error"]["message"] == (
        "there is nothing at '/chat/completions': a base URL ends in /v1, and below it are chat/completions and models"
    )
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["message"] == "'/v1/chat/completions' takes only POST"
    assert set(wrong.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.anyio
async def test_a_defect_is_raised_for_the_log_and_a_client_sees_no_more_than_a_status() -> None:
    def broken(_: LLMRequest) -> LLMResponse:
        raise KeyError("sk-secret")

    transport = httpx.ASGITransport(create_app(scripted_env(broken)), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost/v1") as client:
        response = await ask(client)
    assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
    assert "sk-secret" not in response.text
    async with client_of(scripted_env(broken)) as client:
        with pytest.raises(KeyError):
            await ask(client)


def test_every_error_has_a_status() -> None:
    assert status_of(RequestFailed(errors=(RequestFailed(errors=(NetworkError(),)),))).status == 502


# Models.


@pytest.mark.anyio
async def test_models_are_listed() -> None:
    embedder = ModelConfig(provider="ollama", model="e", capabilities=Capabilities(embeddings=True))
    gpt = ModelConfig(provider="openai", model="gpt-6-luna", api_keys=("sk-1", "sk-2"))
    config = LLMConfig(models={"a/b": ModelConfig(provider="lm-studio"), "gpt": gpt, "e": embedder})
    async with client_of(scripted_env(config=config)) as client:
        listed = (await client.get("/models")).json()
        one, none = await client.get("/models/a/b"), await client.get("/models/e")
    assert listed["object"] == "list"
    assert [(each["id"], each["owned_by"]) for each in listed["data"]] == [
        ("auto", "llm_effects"),
        ("a/b", "lm-studio"),
        ("gpt", "openai"),
    ]
    assert one.json() == {"id": "a/b", "object": "model", "created": 0, "owned_by": "lm-studio"}
    assert (none.status_code, none.json()["error"]["code"]) == (404, "model_not_found")
    assert "the names are auto, a/b, gpt" in none.json()["error"]["message"]


# Clients that leave.


@define
class Connection:
    """The connection of a client that sends a question, and leaves once it has received this many messages."""

    most: int
    fields: dict[str, Any]
    raises: bool = False
    halts: bool = False
    gone: anyio.Event = field(factory=anyio.Event)
    messages: list[Any] = field(factory=list[Any])
    sent: bool = False

    async def receive(self) -> dict[str, Any]:
        if not self.sent:
            self.sent = True
            return {
                "type": "http.request",
                "body": msgspec.json.encode({**QUESTION, **self.fields}),
                "more_body": self.halts,
            }
        await (anyio.sleep_forever() if self.raises else self.gone.wait())
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.messages.append(message)
        if len(self.messages) == self.most:
            self.gone.set()
            if self.raises:
                raise BrokenPipeError

    async def run(self, env: LLMEnv) -> None:
        head = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "client": ("127.0.0.1", 1)}
        with anyio.fail_after(30):
            await create_app(env)({**head, "headers": [(b"host", b"localhost")]}, self.receive, self.send)


async def outcomes(env: LLMEnv) -> list[str]:
    return [row.attempt.outcome for row in (await result_of(env.ledger.rows(env.now()))).unwrap()]


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True])
async def test_fault_248_a_client_that_leaves_before_the_answer_ends_its_call(*, stream: bool) -> None:
    connection = Connection(9, {"stream": stream})

    def leave(_: LLMRequest) -> Delayed:
        connection.gone.set()
        return Delayed(60, "never")

    env = scripted_env(leave)
    await connection.run(env)
    assert [message.get("status") for message in connection.messages] == [499, None]
    assert await outcomes(env) == ["cancelled"]


@pytest.mark.anyio
@pytest.mark.parametrize("raises", [False, True])  # as some servers do for a client that has left
async def test_fault_248_a_client_that_leaves_within_a_stream_ends_its_call(*, raises: bool) -> None:
    env = scripted_env(Chunks(("x",) * 1_000, pause=0.005))
    connection = Connection(4, {"stream": True}, raises)
    await connection.run(env)
    assert len(connection.messages) < 10
    assert await outcomes(env) == ["cancelled"]


@pytest.mark.anyio
async def test_a_client_that_leaves_while_it_sends_is_no_defect() -> None:
    connection = Connection(9, {}, halts=True)
    connection.gone.set()
    await connection.run(scripted_env("never"))
    assert connection.messages[0]["status"] == 499
