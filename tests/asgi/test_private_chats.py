"""Chat completions of what is redacted, and of what stays on this machine, through the endpoint."""

import json
import re
from typing import Any

import pytest
from attrs import evolve

from llm_effects import LLMConfig, LLMEnv, LLMRequest, ModelConfig, NetworkError, ToolCall, scripted_env
from llm_effects.config import RoutingConfig
from llm_effects.effects.effect import result_of
from llm_effects.policies.redaction import Redaction
from llm_effects.testing import Chunks, Reply, Scripted, calling, scripted
from llm_effects.values.placeholders import Finding
from tests.fixtures.endpoint import ask, client_of, events_of

pytestmark = pytest.mark.anyio

ADA = "ada@example.org"
TWO = LLMConfig(
    models={
        "gpt": ModelConfig(provider="openai-chat", model="m", api_key="sk-12345678"),
        "studio": ModelConfig(provider="lm-studio", model="a"),
    },
    routing=RoutingConfig(tasks={"general": ("gpt", "studio")}, max_retries=0),
)
PRIVATE = {"stays": "machine"}


def find(text: str) -> list[Finding]:
    return [Finding(each.start(), each.end(), "EMAIL") for each in re.finditer(r"\w+@example\.org", text)]


def redacting(*replies: Reply) -> tuple[LLMEnv, Scripted]:
    model = scripted(*replies)
    return evolve(scripted_env(clients=model), redact=Redaction(find, key="a key for these tests")), model


def mail(content: str = f"Mail {ADA}") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def echo(request: LLMRequest) -> str:
    return f"<{request.messages[-1].text}>"


# Redaction.


async def test_fault_214_a_client_reads_values_and_the_model_placeholders() -> None:
    env, model = redacting(echo)
    async with client_of(env) as client:
        answered = (await ask(client, **mail())).json()
    assert answered["choices"][0]["message"]["content"] == f"<Mail {ADA}>"
    assert ADA not in repr(model.requests)


async def test_fault_215_a_streamed_answer_has_values_however_it_is_cut() -> None:
    env, model = redacting(lambda request: Chunks(tuple(echo(request))))
    async with client_of(env) as client:
        events = events_of((await ask(client, **mail(), stream=True)).text)
    deltas = [choice["delta"] for event in events[:-1] for choice in event["choices"]]
    assert "".join(each.get("content") or "" for each in deltas) == f"<Mail {ADA}>"
    assert ADA not in repr(model.requests)


@pytest.mark.parametrize("streamed", [False, True])
async def test_fault_219_calls_of_the_clients_tools_have_values(streamed: bool) -> None:
    env, model = redacting(
        lambda request: calling(ToolCall("c1", "send", json.dumps({"to": request.messages[0].text[5:]})))
    )
    tool = {"type": "function", "function": {"name": "send", "parameters": {"type": "object", "properties": {}}}}
    async with client_of(env) as client:
        answered = await ask(client, **mail(), tools=[tool], stream=streamed)
    if streamed:
        events = [choice["delta"] for each in events_of(answered.text)[:-1] for choice in each["choices"]]
        calls = [call for each in events for call in each.get("tool_calls", ())]
    else:
        calls = answered.json()["choices"][0]["message"]["tool_calls"]
    assert json.loads("".join(each["function"]["arguments"] for each in calls)) == {"to": ADA}
    assert ADA not in repr(model.requests)


async def test_fault_216_a_redaction_that_fails_says_nothing_of_the_text() -> None:
    def broken(text: str) -> list[Finding]:
        raise ValueError(text)

    env = evolve(scripted_env(), redact=Redaction(broken))
    async with client_of(env) as client:
        answered = await ask(client, **mail())
    assert answered.status_code == 500
    assert ADA not in answered.text


# What stays on this machine.


@pytest.mark.parametrize("streamed", [False, True])
async def test_fault_207_a_client_labels_its_request(streamed: bool) -> None:
    model = scripted("7000")
    env = scripted_env(config=TWO, clients=model)
    async with client_of(env) as client:
        labelled = await ask(client, llm_effects=PRIVATE, stream=streamed)
        plain = await ask(client, stream=streamed)
    assert [call.model for call in model.calls] == ["studio", "gpt"]
    endings = [events_of(each.text)[-2] if streamed else each.json() for each in (labelled, plain)]
    assert [each["llm_effects"].get("stays") for each in endings] == ["machine", None]
    rows = (await result_of(env.ledger.rows())).unwrap()
    assert [row.left_machine for row in rows] == [False, True]


@pytest.mark.parametrize("streamed", [False, True])
async def test_fault_207_a_client_learns_that_no_model_here_can_answer(streamed: bool) -> None:
    model = scripted("7000")
    async with client_of(scripted_env(config=TWO, clients=model)) as client:
        pinned = await ask(client, model="gpt", llm_effects=PRIVATE, stream=streamed)
    assert (pinned.status_code, pinned.headers["x-should-retry"]) == (400, "false")
    assert pinned.json()["error"]["code"] == "must_stay"
    assert "gpt: it is on another machine" in pinned.json()["error"]["message"]
    assert model.calls == []


async def test_fault_207_a_model_here_that_is_down_is_not_replaced() -> None:
    model = scripted(NetworkError())
    async with client_of(scripted_env(config=TWO, clients=model)) as client:
        assert (await ask(client, llm_effects=PRIVATE)).status_code == 502
    assert [call.model for call in model.calls] == ["studio"]


async def test_fault_207_another_label_is_refused() -> None:
    async with client_of(scripted_env(config=TWO)) as client:
        refused = await ask(client, llm_effects={"stays": "house"})
    assert refused.status_code == 400
    assert "stays: must be 'machine' or None, not 'house'" in refused.json()["error"]["message"]
