"""The batch protocols as plain functions: what is submitted, and what a server may send back."""

import json
from typing import Any

import pytest
from returns.pipeline import is_successful

from llm_effects import LLMRequest, ModelConfig
from llm_effects.providers.batch_files import (
    BatchLimits,
    answer_of,
    anthropic_batch_request,
    batch_limits,
    line_of,
    list_path,
    openai_batch_request,
    read_file_id,
    read_job,
    read_page,
    read_result,
    result_paths,
    split_lines,
    upload_request,
)
from llm_effects.providers.registry import target_of
from llm_effects.providers.target import Target
from llm_effects.providers.wire import WireResponse
from llm_effects.values import Preferences, Tool

WHY = LLMRequest(prompt="why?")


def target(provider: str, model: str = "m", **more: Any) -> Target:
    return target_of("mine", ModelConfig(provider=provider, model=model, api_key="sk-secret-1", **more)).unwrap()


def response(value: object) -> WireResponse:
    return WireResponse(status=200, body=json.dumps(value).encode())


GPT, CLAUDE = target("openai"), target("anthropic")


@pytest.mark.parametrize("provider", ["openai", "openai-chat", "openai-responses", "anthropic"])
def test_some_servers_take_batches(provider: str) -> None:
    assert batch_limits(target(provider)) is not None


@pytest.mark.parametrize("provider", ["groq", "azure", "mistral", "openrouter", "deepseek"])
def test_others_take_none(provider: str) -> None:
    more = {"endpoint": "https://x.openai.azure.com"} if provider == "azure" else {}
    assert batch_limits(target(provider, **more)) is None


def test_requests_with_tools_may_need_another_operation() -> None:
    gpt = target("openai", "gpt-6-luna")
    lines = [line_of(gpt, f"{at}", request).unwrap() for at, request in enumerate((WHY, with_tool(), WHY))]
    assert [line.path for line in lines] == ["/chat/completions", "/responses", "/chat/completions"]
    parts = [[line.custom_id for line in part] for part in split_lines(lines, BatchLimits(10, 10**6))]
    assert parts == [["0", "2"], ["1"]]


def with_tool() -> LLMRequest:
    return LLMRequest(prompt="how warm is it?", tools=[Tool("thermometer")])


def test_a_request_of_responses_is_answered_by_responses() -> None:
    gpt = target("openai", "gpt-6-luna")
    item = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Warm."}]}
    body = {"object": "response", "status": "completed", "model": "gpt-6-luna", "output": [item]}
    line = {"custom_id": "a", "response": {"status_code": 200, "body": body}, "error": None}
    result = read_result(gpt, json.dumps(line).encode())
    assert result is not None
    assert answer_of(gpt, with_tool(), result).unwrap().content == "Warm."


def test_no_request_is_streamed_and_an_upload_holds_every_line() -> None:
    lines = [line_of(GPT, f"id-{at}", LLMRequest(prompt=f"line\nbreak {at}")).unwrap() for at in range(2)]
    wire = upload_request(GPT, lines, "submission")
    assert wire.url == "https://api.openai.com/v1/files"
    assert dict(wire.headers)["content-type"] == "multipart/form-data; boundary=llm-effects-submission"
    sent = [json.loads(line) for line in wire.body.splitlines() if line.startswith(b"{")]
    assert [(each["custom_id"], each["method"], each["url"]) for each in sent] == [
        ("id-0", "POST", "/v1/chat/completions"),
        ("id-1", "POST", "/v1/chat/completions"),
    ]
    assert [each["body"]["messages"][0]["content"] for each in sent] == ["line\nbreak 0", "line\nbreak 1"]
    assert not any("stream" in each["body"] for each in sent)


def test_openai_starts_a_batch_over_a_file() -> None:
    wire = openai_batch_request(GPT, "file-1", "/chat/completions", "submission")
    assert wire.url == "https://api.openai.com/v1/batches"
    assert json.loads(wire.body) == {
        "input_file_id": "file-1",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"llm_effects_submission": "submission"},
    }


def test_anthropic_takes_the_lines_themselves() -> None:
    wire = anthropic_batch_request(CLAUDE, [line_of(CLAUDE, "id-0", WHY).unwrap()])
    assert wire.url == "https://api.anthropic.com/v1/messages/batches"
    [item] = json.loads(wire.body)["requests"]
    assert (item["custom_id"], item["params"]["model"]) == ("id-0", "m")
    assert dict(wire.headers)["anthropic-version"]


def test_the_limits_hold_for_what_is_sent() -> None:
    limits = BatchLimits(1000, 5000)
    for chosen in (GPT, CLAUDE):
        lines = [line_of(chosen, f"{'x' * 24}-{at}", LLMRequest(prompt="y" * (at + 1))).unwrap() for at in range(200)]
        parts = list(split_lines(lines, limits))
        assert sum(map(len, parts)) == 200
        wires = (
            upload_request(chosen, part, "s") if chosen is GPT else anthropic_batch_request(chosen, part)
            for part in parts
        )
        assert max(len(wire.body) for wire in wires) <= 5000


def test_a_page_of_batches_goes_on_from_an_id() -> None:
    assert list_path(GPT, "") == "/batches?limit=100"
    assert list_path(GPT, "batch_1") == "/batches?limit=100&after=batch_1"
    assert list_path(CLAUDE, "msgbatch_1") == "/v1/messages/batches?limit=100&after_id=msgbatch_1"
    page = {"data": [{"id": "batch_1"}, {"id": "../x"}, 7], "has_more": True}
    jobs, more = read_page(GPT, response(page)).unwrap()
    assert ([job.id for job in jobs], more) == (["batch_1"], True)
    assert read_page(GPT, response({"data": "none"})).failure().tag == "MalformedResponse"


@pytest.mark.parametrize(
    "body", [{}, [], {"id": ""}, {"id": "../../v1/keys"}, {"id": "a b"}, {"id": 7}, {"id": "x" * 300}]
)
def test_an_id_that_could_not_stand_in_a_path_is_none(body: object) -> None:
    for chosen in (GPT, CLAUDE):
        assert read_job(chosen, response(body)).failure().tag == "MalformedResponse"
    assert read_file_id(GPT, response(body)).failure().tag == "MalformedResponse"


@pytest.mark.parametrize("at", [10**30, -1, "soon", None, 2**40])
def test_a_time_that_cannot_be_is_unknown(at: object) -> None:
    for chosen in (GPT, CLAUDE):
        assert read_job(chosen, response({"id": "b", "created_at": at})).unwrap().created_at is None


@pytest.mark.parametrize(
    ("status", "state"),
    [
        *((each, each) for each in ("validating", "in_progress", "finalizing", "completed", "expired", "cancelling")),
        *((each, each) for each in ("cancelled", "failed")),
        ("a new state", "in_progress"),
    ],
)
def test_the_states_of_openai(status: str, state: str) -> None:
    job = read_job(GPT, response({"id": "b", "status": status})).unwrap()
    assert (job.state, job.ended) == (state, state in {"completed", "expired", "cancelled", "failed"})


@pytest.mark.parametrize(
    ("status", "counts", "state"),
    [
        ("in_progress", {"processing": 2}, "in_progress"),
        ("canceling", {"processing": 2}, "cancelling"),
        ("ended", {"succeeded": 1, "errored": 1}, "completed"),
        ("ended", {"succeeded": 1, "expired": 1}, "expired"),
        ("ended", {"expired": 1, "canceled": 1}, "cancelled"),
    ],
)
def test_the_states_of_anthropic(status: str, counts: dict[str, int], state: str) -> None:
    body = {"id": "b", "processing_status": status, "request_counts": counts, "results_url": "https://evil.invalid/x"}
    job = read_job(CLAUDE, response(body)).unwrap()
    assert (job.state, job.requests) == (state, 2)
    assert result_paths(CLAUDE, job) == ("/v1/messages/batches/b/results",)  # never another host


def test_what_failed_shows_no_key() -> None:
    errors = {"data": [{"code": "invalid", "message": "sk-secret-1 is wrong"}]}
    job = read_job(GPT, response({"id": "b", "status": "failed", "errors": errors})).unwrap()
    assert (job.code, job.message) == ("invalid", "*** is wrong")


@pytest.mark.parametrize("line", [b"", b"oops", b"[]", b"{}", b'{"custom_id":', b'{"custom_id":7}', b"[" * 10_000])
def test_a_line_without_a_result_is_none(line: bytes) -> None:
    assert read_result(GPT, line) is None
    assert read_result(CLAUDE, line) is None


@pytest.mark.parametrize(
    ("line", "tag"),
    [
        ({"response": {"status_code": 400, "body": {"error": {"message": "no"}}}}, "InvalidRequest"),
        ({"response": {"status_code": 429, "body": {"error": {"message": "slow down"}}}}, "RateLimitExceeded"),
        ({"response": {"status_code": 200, "body": {"choices": "none"}}}, "MalformedResponse"),
        ({"error": {"code": "batch_expired"}}, "TimeoutError"),
        ({"error": {"code": "batch_cancelled"}}, "ModelUnavailable"),
        ({"error": {"code": "request_timeout", "message": "The model timed out"}}, "TimeoutError"),
        ({}, "ModelUnavailable"),
    ],
)
def test_the_results_of_openai_that_are_errors(line: dict[str, object], tag: str) -> None:
    result = read_result(GPT, json.dumps({"custom_id": "a", **line}).encode())
    assert result is not None
    assert answer_of(GPT, WHY, result).failure().tag == tag


@pytest.mark.parametrize(
    ("result", "tag"),
    [
        ({"type": "errored", "error": {"type": "error", "error": {"type": "invalid_request_error"}}}, "InvalidRequest"),
        ({"type": "errored", "error": {"type": "error", "error": {"type": "api_error"}}}, "ModelUnavailable"),
        ({"type": "canceled"}, "ModelUnavailable"),
        ({"type": "expired"}, "TimeoutError"),
        ({"type": "succeeded", "message": {}}, "MalformedResponse"),
        ({"type": "something new"}, "ModelUnavailable"),
    ],
)
def test_the_results_of_anthropic_that_are_errors(result: dict[str, object], tag: str) -> None:
    read = read_result(CLAUDE, json.dumps({"custom_id": "a", "result": result}).encode())
    assert read is not None
    assert answer_of(CLAUDE, WHY, read).failure().tag == tag


def test_what_was_dropped_from_a_request_is_in_its_answer() -> None:
    message = {
        "type": "message",
        "model": "m",
        "content": [{"type": "text", "text": "Logs."}],
        "stop_reason": "end_turn",
    }
    line = json.dumps({"custom_id": "a", "result": {"type": "succeeded", "message": message}}).encode()
    result = read_result(CLAUDE, line)
    assert result is not None
    answered = answer_of(CLAUDE, LLMRequest(prompt="why?", preferences=Preferences(seed=7)), result)
    assert is_successful(answered)
    assert answered.unwrap().warnings == ("seed: dropped, the provider has none",)
