"""Data that stays on this machine: whatever is asked and whatever fails, no byte of it is sent to another one."""

import base64
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Final, TypeAlias

import anyio
import httpx
import pytest
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from returns.future import FutureResult
from returns.pipeline import is_successful
from sqlalchemy.engine import make_url

from llm_effects import (
    LLM,
    AsyncLLM,
    ConfigurationError,
    Document,
    Effect,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    MalformedResponse,
    Message,
    ModelConfig,
    Text,
    ToolCall,
    Toolkit,
    ToolResult,
    converse,
    effect,
    embed,
    explain,
    fallback,
    generate,
    generate_as,
    generate_many,
    load_conversation,
    make_llm_manager,
    make_model_router,
    open_env,
    run,
    run_tools,
    scripted_env,
    start_conversation,
    stream,
    tool,
    toolkit,
    usage_report,
)
from llm_effects.batches import file_journal, store_journal
from llm_effects.clients.transport.transport import Transport
from llm_effects.config import CacheConfig, Capabilities, RoutingConfig, StorageConfig
from llm_effects.config.routing import HedgingConfig
from llm_effects.conversations.operations import (
    append_messages,
    export_conversation,
    fork_conversation,
    import_conversation,
)
from llm_effects.effects import Call, Generate
from llm_effects.effects.call import AttemptContext
from llm_effects.effects.effect import Answer, result_of
from llm_effects.effects.env import Embedder
from llm_effects.effects.files import read_document
from llm_effects.manager import new_memory
from llm_effects.pipeline import complete, layer, layered, run_call, standard_pipeline, with_recording
from llm_effects.policies.cache import cache_key, is_cached, look_up, request_key
from llm_effects.providers.registry import models_here
from llm_effects.reports.exports import to_csv
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.stores.open import open_storage
from llm_effects.stores.sql.database import is_here, sqlite_engines
from llm_effects.stores.sql.tables import MIGRATIONS, migrate
from llm_effects.telemetry.spans import request_bodies, response_body
from llm_effects.testing import Chunks, Delayed, calling, run_in_virtual_time, scripted
from llm_effects.testing.scripted import EPOCH, Scripted, answer
from llm_effects.testing.stored_chat import Chat, new_message, new_turn, value_of
from llm_effects.testing.virtual_time import Backend
from llm_effects.tools import (
    Approved,
    ToolEnd,
    ToolOutcome,
    Verdict,
    ask_later,
    decide_approval,
    list_approvals,
    resume_tools,
)
from llm_effects.values import InvalidValue, Secret
from llm_effects.values.conversations import StoredMessage, TurnState
from llm_effects.values.errors import LLMError, StorageFailed
from llm_effects.values.events import StreamEvent
from llm_effects.values.records import LedgerRow
from llm_effects.values.requests import Recovery, TaskType
from llm_effects.values.responses import Attempt
from tests.fixtures.postgres_server import Postgres, postgres_server

__all__ = ["postgres_server"]

SECRET: Final = "payroll-7f3a-of-ada"
HIDDEN: Final = (SECRET.encode(), base64.b64encode(SECRET.encode()))
PRIVATE: Final = ("private",)
HERE: Final = frozenset({"127.0.0.1", "localhost", "::1"})

Fault: TypeAlias = str
FAULTS: Final[tuple[Fault, ...]] = ("ok", "ok", "tool", "500", "429", "garbage", "refused", "cut", "too long", "slow")


@frozen
class Wire:
    """A stand-in for every server, which fails as told, and tells what it was sent."""

    faults: Iterator[Fault]
    sent: list[tuple[str, bytes]]

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()
        self.sent.append((request.url.host, body))
        knows = any(each in body for each in HIDDEN)
        return await reply(next(self.faults, "ok"), request, json.loads(body or b"{}"), knows=knows)

    @property
    def leaks(self) -> list[bytes]:
        return [body for host, body in self.sent if host not in HERE and any(each in body for each in HIDDEN)]


async def reply(fault: Fault, request: httpx.Request, body: dict[str, Any], *, knows: bool) -> httpx.Response:
    match fault:
        case "500":
            return httpx.Response(500, json={"error": {"message": "down"}})
        case "429":
            return httpx.Response(429, json={"error": {"message": "slow down"}}, headers={"retry-after": "1"})
        case "garbage":
            return httpx.Response(200, content=b"<html>")
        case "refused":
            raise httpx.ConnectError("refused")
        case "cut":
            return httpx.Response(200, content=b'{"choices": [{"message": {"content": "half')
        case "too long":
            return httpx.Response(400, json={"error": {"message": "too long", "code": "context_length_exceeded"}})
        case "slow":
            await anyio.sleep(400)
    if "input" in body and "embeddings" in request.url.path:
        vectors = [{"index": at, "embedding": [0.5, 0.25]} for at, _ in enumerate(body["input"])]
        return httpx.Response(200, json={"data": vectors, "model": "v"})
    said = f"{SECRET} again" if knows else "nothing known"  # a model repeats what it has read
    call = fault == "tool" and bool(body.get("tools"))
    names = (
        tuple(each for each in ("read_payroll", "search_web") if each in json.dumps(body.get("tools"))) if call else ()
    )
    answer = claude(said, names) if "/messages" in request.url.path else gpt(said, names)
    return streamed(answer, body) if body.get("stream") and "choices" in answer else httpx.Response(200, json=answer)


def gpt(said: str, names: Sequence[str]) -> dict[str, Any]:
    calls = [
        {"id": f"c{at}", "type": "function", "function": {"name": name, "arguments": json.dumps({"name": said})}}
        for at, name in enumerate(names)
    ]
    message = {"role": "assistant", "content": None if calls else said, **({"tool_calls": calls} if calls else {})}
    return {
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "tool_calls" if calls else "stop", "message": message}],
    }


def claude(said: str, names: Sequence[str]) -> dict[str, Any]:
    calls = [
        {"type": "tool_use", "id": f"c{at}", "name": name, "input": {"name": said}} for at, name in enumerate(names)
    ]
    usage = {"input_tokens": 3, "output_tokens": 2}
    content = calls or [{"type": "text", "text": said}]
    known = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None, "usage": usage}
    return {**known, "content": content, "stop_reason": "tool_use" if calls else "end_turn"}


def streamed(answer: dict[str, Any], body: dict[str, Any]) -> httpx.Response:
    """Break a stream off after its first words, unless the last message asks for the rest of it."""
    said = answer["choices"][0]["message"].get("content") or ""
    chunk = {"choices": [{"index": 0, "delta": {"content": said}}]}
    whole = body["messages"][-1]["role"] == "assistant"
    ending = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n' if whole else ""
    content = f"data: {json.dumps(chunk)}\n\n{ending}"
    return httpx.Response(200, content=content.encode(), headers={"content-type": "text/event-stream"})


def config_of(window: Any, task: Sequence[str], summary_model: str | None = None) -> LLMConfig:
    local, small = "http://127.0.0.1:1234/v1", Capabilities(context_length=600, prefill=True, tools=True)
    models = {
        "gpt": ModelConfig(provider="openai-chat", model="gpt-4.1", api_key="sk-12345678", capabilities=small),
        "claude": ModelConfig(provider="anthropic", model="claude-sonnet-4-5", api_key="sk-87654321"),
        "studio": ModelConfig(provider="openai-compatible", model="a", endpoint=local, capabilities=small),
        "spare": ModelConfig(provider="openai-compatible", model="b", endpoint=local, capabilities=small),
        "far": ModelConfig(provider="openai", model="text-embedding-3-small", api_key="sk-12345678"),
        "near": ModelConfig(provider="ollama", model="nomic-embed-text", endpoint="http://127.0.0.1:11434/v1"),
    }
    hedging = HedgingConfig(enabled=True, min_attempts=1, budget=1.0)
    routing = RoutingConfig(tasks={"work": tuple(task)}, max_retries=1, hedging=hedging)
    return LLMConfig(models=models, routing=routing, storage=StorageConfig(window=window, summary_model=summary_model))


# What may be asked. Every request holds something that must stay.


def ask(**fields: Any) -> LLMRequest:
    return LLMRequest(**{"task_type": "work", "tags": PRIVATE, **fields})


def labelled(role: Any = "user") -> Message:
    return Message(role, Text(f"{SECRET} earns 7", stays="machine"))


def read_payroll(name: str) -> str:
    """Return what somebody earns."""
    return f"{name} or {SECRET}: 7"


SEARCHED: Final[list[str]] = []


def search_web(name: str) -> str:
    """Search the web."""
    SEARCHED.append(name)
    return "nothing"


async def ignore(_: StreamEvent) -> None:
    pass


PAYROLL: Final = toolkit(tool(read_payroll, stays="machine"))
WEB: Final = toolkit(tool(search_web, leaves_machine=True))
DOCUMENT: Final = Document(SECRET.encode(), "text/plain", stays="machine")
RESULT: Final = (
    Message("user", "?"),
    Message("assistant", ToolCall("c0", "read_payroll")),
    Message("tool", ToolResult("c0", SECRET, stays="machine")),
)
MORE: Final = Message("user", "word " * 300)


def turns(conversation: str, *messages: Message | LLMRequest) -> Effect[Any]:
    async def chat(env: LLMEnv) -> Any:
        results = [await run(converse(conversation, each), env) for each in messages]
        return results[-1]

    return effect(chat)


OPERATIONS: Final[dict[str, Callable[[], Effect[Any]]]] = {
    "prompt": lambda: generate(ask(prompt=SECRET, stays="machine")),
    "part": lambda: generate(ask(messages=(labelled(),))),
    "system": lambda: generate(ask(messages=(labelled("system"), Message("user", "?")))),
    "document": lambda: generate(ask(messages=(Message("user", (DOCUMENT, Text("?"))),))),
    "tool result": lambda: generate(ask(messages=RESULT)),
    "pinned": lambda: generate(ask(messages=(labelled(),), model="gpt")),
    "fallback": lambda: fallback(*(generate(ask(messages=(labelled(),), model=each)) for each in ("spare", "claude"))),
    "stream": lambda: stream(ask(messages=(labelled(),), recovery=Recovery.RESUME), ignore),
    "restart": lambda: stream(ask(messages=(labelled(),), recovery=Recovery.RESTART), ignore),
    "typed": lambda: generate_as(ask(messages=(labelled(),)), list[int]),
    "tools": lambda: run_tools(ask(prompt="what does Ada earn?", tags=()), PAYROLL, 3),
    "tools of a chat": lambda: run_tools(ask(prompt="and Bob?", tags=()), PAYROLL, 3, conversation_id="open"),
    "tools elsewhere": lambda: run_tools(ask(prompt="what does Ada earn?", tags=()), PAYROLL | WEB, 3),
    "many": lambda: generate_many([ask(prompt=SECRET, stays="machine"), ask(messages=(labelled(),))]),
    "by a provider": lambda: generate_many([ask(prompt=SECRET, stays="machine")], via="provider"),
    "embed": lambda: embed([SECRET, "x"], stays="machine", tags=PRIVATE),
    "turn": lambda: turns("open", ask(messages=(labelled(),)), MORE, MORE, ask(prompt="again?", tags=())),
    "chat": lambda: turns("closed", Message("user", SECRET), MORE, MORE, MORE),
}


async def perform(names: Sequence[str], wire: Wire, config: LLMConfig) -> list[tuple[bool | None, tuple[str, ...]]]:
    transport = Transport(make_pool=lambda _: httpx.MockTransport(wire))
    async with open_env(config, transport=lambda: transport) as env:
        await run(start_conversation("open", system="be brief"), env)
        await run(start_conversation("closed", system=SECRET, stays="machine"), env)
        for name in names:
            await run(OPERATIONS[name](), env)
        rows = (await result_of(env.ledger.rows())).unwrap()
    return [(row.left_machine, row.tags) for row in rows]


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=4),
    faults=st.lists(st.sampled_from(FAULTS), max_size=14),
    window=st.sampled_from((("drop", None), ("summarise", None), ("summarise", "gpt"))),
    task=st.permutations(("gpt", "claude", "studio", "spare")),
    backend=st.sampled_from(("asyncio", "trio")),
)
def test_fault_207_no_byte_of_data_that_stays_is_sent_to_another_machine(
    names: list[str], faults: list[Fault], window: tuple[str, str | None], task: list[str], backend: Backend
) -> None:
    SEARCHED.clear()
    wire = Wire(iter(faults), [])
    config = config_of(window[0], task, window[1])
    rows = run_in_virtual_time(perform, names, wire, config, backend=backend)
    assert wire.leaks == []
    assert [each for each in SEARCHED if SECRET in each] == []
    assert {left for left, tags in rows if "private" in tags} <= {False}


def test_every_operation_of_the_property_asks_a_model_where_it_may() -> None:
    for name in OPERATIONS:
        wire = Wire(iter(("tool",)), [])
        rows = run_in_virtual_time(perform, [name], wire, config_of("summarise", ("gpt", "studio")), backend="asyncio")
        assert rows or name in {"pinned", "by a provider"}


# Routing: it leaves out the models on other machines, and says so.


@pytest.mark.anyio
async def test_fault_207_the_decision_and_the_error_say_why_and_what_helps() -> None:
    request = ask(messages=(labelled(),))
    decision = (await run(explain(request), scripted_env(config=config_of("drop", ("gpt",))))).unwrap()
    assert [each.model for each in decision.candidates] == ["studio", "spare"]
    reasons = {each.model: each.reason for each in decision.excluded}
    assert reasons["gpt"] == reasons["claude"] == "it is on another machine, and this request stays on this machine"
    pinned = (await run(explain(evolve(request, model="gpt")), scripted_env(config=config_of("drop", ())))).failure()
    assert isinstance(pinned, ConfigurationError)
    assert pinned.message == (
        "stays: this data must stay on this machine (gpt: it is on another machine): use a model on this machine, by a "
        "literal loopback address such as http://127.0.0.1:1234/v1 or in this process, or remove the label where the "
        "data may leave"
    )
    vectors = (
        await run(embed([SECRET], model="far", stays="machine"), scripted_env(config=config_of("drop", ())))
    ).failure()
    assert isinstance(vectors, ConfigurationError)
    assert "(far: it is on another machine)" in vectors.message


@pytest.mark.anyio
async def test_fault_207_without_a_model_here_nothing_is_sent() -> None:
    model = scripted("because")
    far = LLMConfig(models={"gpt": ModelConfig(provider="openai-chat", model="m", api_key="sk-12345678")})
    env = scripted_env(config=far, clients=model)
    assert (await run(generate(ask(messages=(labelled(),))), env)).failure().tag == "ConfigurationError"
    assert (await run(embed([SECRET], stays="machine"), env)).failure().tag == "ConfigurationError"
    assert (await run(generate(ask(messages=(Message("user", "?"),))), env)).unwrap().content == "because"
    assert len(model.calls) == 1


def test_fault_207_a_label_that_is_no_label_is_refused() -> None:
    with pytest.raises(InvalidValue, match="stays: must be 'machine' or None, not 'house'"):
        Text("x", stays="house")  # type: ignore[arg-type]


# The client: the last place before a byte is sent.


@layer
async def with_a_model_of_its_own(next: Generate, call: Call, env: LLMEnv) -> Answer:
    return await run(next(call.with_attempt(AttemptContext(model="gpt"))), env)


@pytest.mark.anyio
@pytest.mark.parametrize("streams", [False, True])
async def test_fault_208_a_layer_that_picks_a_model_elsewhere_sends_nothing(streams: bool) -> None:
    careless = layered(with_a_model_of_its_own, with_recording, complete)
    wire = Wire(iter(()), [])
    transport = Transport(make_pool=lambda _: httpx.MockTransport(wire))
    async with open_env(config_of("drop", ()), transport=lambda: transport) as env:
        call = run_call(careless, ask(messages=(labelled(),)), ignore if streams else None)
        error = (await run(call, env)).failure()
        assert isinstance(error, ConfigurationError)
        assert "(gpt: it is on another machine)" in error.message
        assert error.attempts == ()
        assert (await result_of(env.ledger.rows())).unwrap() == []
        assert wire.sent == []
        await run(run_call(careless, ask(prompt="why?")), env)
        assert [row.left_machine for row in (await result_of(env.ledger.rows())).unwrap()] == [True]
    assert len(wire.sent) == 1


@pytest.mark.anyio
async def test_fault_208_a_batch_of_vectors_for_a_model_elsewhere_is_not_sent() -> None:
    wire = Wire(iter(()), [])
    transport = Transport(make_pool=lambda _: httpx.MockTransport(wire))
    async with open_env(config_of("drop", ()), transport=lambda: transport) as env:
        call = Call(id="1", request=ask(messages=(labelled(),)), attempt=AttemptContext(model="far"))
        assert isinstance(env.clients, Embedder)
        error = (await result_of(env.clients.embed(call, (SECRET,), None))).failure()
    assert error.tag == "ConfigurationError"
    assert wire.sent == []


# The label passes to what is made of the data.


@pytest.mark.anyio
async def test_fault_209_an_answer_and_its_parts_stay() -> None:
    env = scripted_env(calling(ToolCall("c1", "look")))
    answer = (await run(generate(ask(prompt="?", stays="machine")), env)).unwrap()
    assert answer.stays == "machine"
    assert [part.stays for part in answer.parts] == ["machine"]
    again = ask(messages=(Message("user", "?"), Message("assistant", answer.parts)))
    assert again.stays == "machine"
    assert evolve(again, messages=(Message("user", "?"),)).stays == "machine"  # a copy keeps it
    assert (await run(generate("?"), env)).unwrap().stays is None


@pytest.mark.anyio
async def test_fault_209_a_layer_cannot_lose_the_label_of_an_answer() -> None:
    @layer
    async def with_shouting(next: Generate, call: Call, env: LLMEnv) -> Answer:
        result = await run(next(call), env)
        return result.map(lambda each: evolve(each, content="LOUD", parts=(Text("LOUD"),), stays=None))

    pipeline = layered(with_shouting, standard_pipeline)
    answer = (await run(run_call(pipeline, ask(prompt="?", stays="machine")), scripted_env("quiet"))).unwrap()
    assert answer.parts == (Text("LOUD", stays="machine"),)


@pytest.mark.anyio
async def test_fault_209_stored_turns_stay_and_so_does_what_is_exported_and_forked() -> None:
    env = scripted_env("Noted.", "Yes.")
    await run(start_conversation("c"), env)
    await run(converse("c", ask(prompt=SECRET, stays="machine")), env)
    await run(converse("c", "again?"), env)
    history = (await run(load_conversation("c"), env)).unwrap()
    first, second = history.turns
    assert [each.message.parts[0].stays for each in first.messages] == ["machine", "machine"]
    assert [each.message.parts[0].stays for each in second.messages] == [None, "machine"]
    document = (await run(export_conversation("c"), env)).unwrap()
    await run(import_conversation(document, new_id="d"), env)
    await run(fork_conversation("d", new_id="e"), env)
    copied = (await run(load_conversation("e"), env)).unwrap()
    assert copied.turns[0].messages[0].message == first.messages[0].message
    replayed = (await run(converse("c", "again?", turn_id=second.id), env)).unwrap()
    assert (replayed.cached, replayed.stays) == (True, "machine")


@pytest.mark.anyio
async def test_fault_209_every_message_of_a_labelled_request_is_stored_with_its_label() -> None:
    env = scripted_env("7")
    await run(start_conversation("c"), env)
    await run(converse("c", ask(messages=(Message("user", "?"), Message("user", "??")), stays="machine")), env)
    (turn,) = (await run(load_conversation("c"), env)).unwrap().turns
    assert [each.message.parts[0].stays for each in turn.messages] == ["machine"] * 3


@pytest.mark.anyio
async def test_fault_209_all_of_a_labelled_conversation_stays() -> None:
    model = scripted("Hello.")
    env = scripted_env(config=config_of("drop", ("gpt",)), clients=model)
    await run(start_conversation("c", system=SECRET, stays="machine"), env)
    await run(append_messages("c", (Message("user", "I am Ada."), Message("assistant", "Hello."))), env)
    answer = (await run(converse("c", "who?"), env)).unwrap()
    assert (answer.model, answer.stays) == ("studio", "machine")
    history = (await run(load_conversation("c"), env)).unwrap()
    assert history.conversation.stays == "machine"
    assert {part.stays for turn in history.turns for each in turn.messages for part in each.message.parts} == {
        "machine"
    }


@pytest.mark.anyio
async def test_fault_209_an_interrupted_answer_and_a_summary_stay() -> None:
    broken = Chunks(("half",), then=MalformedResponse())
    env = scripted_env(broken, config=config_of("summarise", ()))
    await run(start_conversation("c"), env)
    await run(converse("c", ask(prompt=SECRET, stays="machine"), sink=ignore), env)
    kept = (await run(load_conversation("c"), env)).unwrap().turns[0]
    assert [each.message.parts[0].stays for each in kept.messages] == ["machine", "machine"]
    talkative = scripted_env("Noted.", config=config_of("summarise", ()))
    await run(start_conversation("c"), talkative)
    await run(converse("c", ask(prompt=SECRET, stays="machine")), talkative)
    for _ in range(3):
        await run(converse("c", MORE), talkative)
    summary = (await run(load_conversation("c"), talkative)).unwrap().summary
    assert summary is not None
    assert summary.stays == "machine"
    assert isinstance(talkative.clients, Scripted)
    assert {request.stays for request in talkative.clients.requests} == {"machine"}


@pytest.mark.anyio
@pytest.mark.parametrize("run_id", [None, "nightly"])
async def test_fault_209_the_result_of_a_tool_that_stays_does(run_id: str | None) -> None:
    asks = ToolCall("c1", "read_payroll", '{"name": "Ada"}')
    model = scripted(calling(asks), "7")
    env = scripted_env(config=config_of("drop", ("gpt",)), clients=model)
    request = ask(prompt="what does Ada earn?")
    finished = (await run(run_tools(request, PAYROLL, run_id=run_id), env)).unwrap()
    assert [call.model for call in model.calls] == ["gpt", "studio"]
    assert finished.answers[0].result.stays == "machine"
    assert finished.response.stays == "machine"
    if run_id is not None:
        replayed = (await run(run_tools(request, PAYROLL, run_id=run_id), env)).unwrap()
        assert (replayed.answers[0].result.stays, replayed.response.stays) == ("machine", "machine")


@pytest.mark.anyio
async def test_fault_209_a_tool_may_label_what_it_returns_and_a_labelled_call_labels_its_result() -> None:
    def find(name: str) -> Text:
        """Find a person."""
        return Text(f"{name}: 7", stays="machine" if name == "Ada" else None)

    def result_of_call(name: str, stays: Any = None) -> Any:
        call = ToolCall("c1", "find", json.dumps({"name": name}), stays=stays)
        env = scripted_env(calling(call), "done")
        return run(run_tools("?", toolkit(tool(find))), env)

    private, public = (await result_of_call("Ada")).unwrap(), (await result_of_call("Bob")).unwrap()
    assert (private.answers[0].result.content, private.answers[0].result.stays) == ("Ada: 7", "machine")
    assert public.answers[0].result.stays is None
    assert (await result_of_call("Bob", "machine")).unwrap().answers[0].result.stays == "machine"


@pytest.mark.anyio
@pytest.mark.parametrize("run_id", [None, "nightly"])
async def test_fault_245_a_tool_elsewhere_gets_nothing_that_is_made_of_what_stays(run_id: str | None) -> None:
    SEARCHED.clear()
    public, private = ToolCall("c1", "search_web", '{"name": "Ada"}'), ToolCall("c3", "search_web", '{"name": "7"}')
    asks = ToolCall("c2", "read_payroll", '{"name": "Ada"}')
    model = scripted(calling(public), calling(asks), calling(private, evolve(asks, id="c4")), "7")
    env = scripted_env(config=config_of("drop", ("gpt",)), clients=model)
    tools = PAYROLL | toolkit(tool(search_web, leaves_machine=True, dangerous=True))
    asked: list[ToolCall] = []

    async def approve(call: ToolCall) -> Verdict:
        asked.append(call)
        return Approved()

    for _ in range(1 if run_id is None else 2):  # the second time from the journal
        finished = (await run(run_tools("?", tools, run_id=run_id, approve=approve), env)).unwrap()
        searched, _, refused, local = finished.answers
        assert (searched.outcome, refused.outcome, local.outcome) == (
            ToolOutcome.DONE,
            ToolOutcome.REFUSED,
            ToolOutcome.DONE,
        )
        assert refused.result.content == (
            "refused: this tool sends its arguments to another machine, and they are made of content that stays on "
            "this one"
        )
        assert (refused.result.is_error, refused.result.stays) == (True, "machine")
        assert (finished.end, finished.response.content) == (ToolEnd.ANSWERED, "7")
    assert SEARCHED == ["Ada"]
    assert asked == [public]  # a person cannot approve of it either


@pytest.mark.anyio
async def test_fault_245_a_labelled_conversation_or_request_keeps_tools_elsewhere_from_running() -> None:
    SEARCHED.clear()
    call = calling(ToolCall("c1", "search_web", '{"name": "Ada"}'))
    env = scripted_env(call, "done", call, "done", config=config_of("drop", ()))
    await run(start_conversation("c", stays="machine"), env)
    for request, conversation in ((ask(prompt="?"), "c"), (ask(prompt="?", stays="machine"), None)):
        finished = (await run(run_tools(request, WEB, conversation_id=conversation), env)).unwrap()
        assert [each.outcome for each in finished.answers] == [ToolOutcome.REFUSED]
    assert SEARCHED == []


@pytest.mark.anyio
async def test_fault_245_a_tool_that_was_allowed_runs() -> None:
    SEARCHED.clear()
    env = scripted_env(calling(ToolCall("c1", "search_web", '{"name": "Ada"}')), "done", config=config_of("drop", ()))
    allowed = Toolkit(tuple(evolve(each, leaves_machine=False) for each in WEB.functions))
    await run(run_tools(ask(prompt="?", stays="machine"), allowed), env)
    assert SEARCHED == ["Ada"]


@pytest.mark.anyio
async def test_fault_209_calls_that_wait_for_approval_and_their_runs_stay(tmp_path: Path) -> None:
    storage = open_storage(StorageConfig(url=f"sqlite:///{tmp_path}/runs.db"), new_memory()).unwrap()
    erases = ToolCall("c1", "read_payroll", '{"name": "Ada"}')
    model = scripted(calling(erases), "7")
    env = scripted_env(config=config_of("drop", ("gpt",)), clients=model)
    env = evolve(env, conversations=storage.conversations)
    tools = toolkit(tool(read_payroll, dangerous=True))
    asks = run_tools(ask(prompt=SECRET, stays="machine"), tools, approve=ask_later, run_id="nightly")
    waiting = (await run(asks, env)).unwrap()
    (kept,) = (await run(list_approvals(), env)).unwrap()
    assert (waiting.end, waiting.response.stays, kept.call.stays) == (ToolEnd.WAITING, "machine", "machine")
    decided = (await run(decide_approval(kept.id, Approved()), env)).unwrap()
    assert decided.call.stays == "machine"
    finished = (await run(resume_tools("nightly", tools), env)).unwrap()
    assert (finished.answers[0].result.stays, finished.response.stays) == ("machine", "machine")
    assert [call.model for call in model.calls] == ["studio", "studio"]
    await env.conversations.aclose()


@pytest.mark.anyio
async def test_fault_209_vectors_and_batches_stay() -> None:
    env = scripted_env("because", config=config_of("drop", ()))
    assert (await run(embed([SECRET], stays="machine"), env)).unwrap().stays == "machine"
    with NamedTemporaryFile() as file:
        for _ in range(2):  # the second time from the journal
            many = generate_many([ask(prompt="?", stays="machine"), ask(prompt="?")], journal=file_journal(file.name))
            private, public = (await run(many, env)).unwrap()
            assert (private.unwrap().stays, public.unwrap().stays) == ("machine", None)


# Calls that are alike but for their label share nothing.


@pytest.mark.anyio
async def test_fault_210_labelled_calls_have_flights_and_entries_of_their_own() -> None:
    env = evolve(scripted_env(Delayed(1, "one"), Delayed(1, "two"), config=config_of("drop", ())), cache=MemoryCache(9))
    answers = dict[str | None, Any]()

    async def one(stays: Any) -> None:
        answers[stays] = (await run(generate(ask(prompt="?", stays=stays)), env)).unwrap()

    async with anyio.create_task_group() as group:
        group.start_soon(one, None)
        group.start_soon(one, "machine")
    assert {answers[None].content, answers["machine"].content} == {"one", "two"}
    for stays, first in [*answers.items()]:
        await one(stays)
        entry = (await look_up(env, cache_key(ask(prompt="?", stays=stays), env.config))).unwrap()
        assert entry is not None
        assert (entry.response.stays, entry.response.parts[0].stays) == (stays, stays)
        assert (answers[stays].content, answers[stays].cached, answers[stays].stays) == (first.content, True, stays)


# What looks like this machine.

ELSEWHERE: Final = [
    *("evil.localhost", "localhost.", "127.1", "2130706433", "0x7f000001", "0.0.0.0", "[::ffff:127.0.0.1]"),
    *("10.0.0.7", "[::]", "gpu", "127.0.0.1.example.com"),
]


@pytest.mark.parametrize("host", ELSEWHERE)
def test_fault_211_only_literal_loopback_addresses_are_this_machine(host: str) -> None:
    model = ModelConfig(provider="openai-compatible", model="m", endpoint=f"http://{host}:8000/v1")
    config = LLMConfig(models={"m": model, "file": ModelConfig(provider="llama", model_path="/m.gguf")})
    assert models_here(config, proxied=False) == {"file"}


@pytest.mark.parametrize("model", ["gpt-oss:120b-cloud", "kimi-k2.5:cloud", "glm:9b:CLOUD"])
def test_fault_211_a_model_that_ollama_runs_in_its_cloud_is_not_here(model: str) -> None:
    config = LLMConfig(models={"o": ModelConfig(provider="ollama", model=model)})
    assert (
        make_model_router(config)(ask(prompt="?", stays="machine"))
        .failure()
        .message.startswith(
            f"stays: this data must stay on this machine (o: its server passes '{model}' on to another machine)"
        )
    )
    assert models_here(LLMConfig(models={"o": ModelConfig(provider="ollama", model="cloud-7b:8b")}), proxied=False)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("proxy", "proxied"),
    [
        (None, False),
        ("http://127.0.0.1:3128", False),
        ("http://me:hunter2@proxy.example:3128", True),
        (Secret("http://10.0.0.1:3128"), True),
        ("localhost:3128", True),
    ],
)
async def test_fault_211_a_request_through_a_proxy_elsewhere_is_not_local(proxy: Any, proxied: bool) -> None:
    wire = Wire(iter(()), [])
    transport = Transport(make_pool=lambda _: httpx.MockTransport(wire), proxy=proxy)
    async with open_env(config_of("drop", ()), transport=lambda: transport) as env:
        result = await run(generate(ask(messages=(labelled(),))), env)
        await run(generate(ask(prompt="?", model="studio")), env)
        rows = (await result_of(env.ledger.rows())).unwrap()
    assert is_successful(result) is not proxied
    assert rows[-1].left_machine is proxied
    if proxied:
        assert "studio: requests go through a proxy on another machine" in result.failure().message  # type: ignore[union-attr]
        assert len(wire.sent) == 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("addresses", "problem"),
    [
        (["127.0.0.1", "::1"], None),
        (["127.0.0.1", "10.0.0.7"], "localhost is at 10.0.0.7, which is not a loopback address"),
        (None, "localhost has no address"),
    ],
)
async def test_fault_211_localhost_counts_where_it_is_a_loopback_address(
    addresses: list[str] | None, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(host: str, _: object) -> list[Any]:
        assert host == "localhost"
        if addresses is None:
            raise OSError
        return [(0, 0, 0, "", (each, 0)) for each in addresses]

    monkeypatch.setattr(anyio, "getaddrinfo", resolve)
    wire = Wire(iter(()), [])
    transport = Transport(make_pool=lambda _: httpx.MockTransport(wire))
    config = LLMConfig(models={"studio": ModelConfig(provider="lm-studio", model="m")})
    async with open_env(config, transport=lambda: transport) as env:
        result = await run(generate(ask(messages=(labelled(),))), env)
    assert len(wire.sent) == (problem is None)
    if problem is not None:
        assert problem in result.failure().message  # type: ignore[union-attr]


# The ledger says what left.


@pytest.mark.anyio
async def test_fault_212_a_report_shows_what_left_the_machine(storage_url: str) -> None:
    config = evolve(config_of("drop", ("gpt",)), storage=StorageConfig(url=storage_url))
    storage = open_storage(config.storage, new_memory()).unwrap()
    env = evolve(scripted_env("because", config=config), ledger=storage.ledger)
    await run(generate(ask(prompt="why?")), env)
    await run(generate(ask(prompt=SECRET, stays="machine")), env)
    env.ledger.record(LedgerRow(id="old", at=EPOCH, call_id="old", task_type=TaskType.GENERAL, attempt=OLD))
    report = (await run(usage_report(by=("left_machine", "model")), env)).unwrap()
    assert {row.group for row in report.rows} == {("yes", "gpt"), ("no", "studio"), ("", "old")}
    rows = (await result_of(env.ledger.rows())).unwrap()
    assert "left_machine" in to_csv(rows).splitlines()[0]
    await env.ledger.aclose()


OLD: Final = Attempt(model="old", provider="p", outcome="success", latency_ms=1.0)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_server").new_url())
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/ledger.db"


# Stores and traces on other machines.


def test_fault_213_a_cache_elsewhere_is_not_used_for_what_stays() -> None:
    urls = {"redis://cache.example": False, "redis://127.0.0.1:6379": True, "memory://": True, "sqlite:///x.db": True}
    for url, used in urls.items():
        config = LLMConfig(models={}, cache=CacheConfig(url=url))
        assert is_cached(ask(prompt="?", stays="machine"), config) is used
        assert is_cached(ask(prompt="?"), config)


@pytest.mark.anyio
async def test_fault_213_a_database_elsewhere_refuses_what_stays(postgres_server: Postgres) -> None:
    url = postgres_server.new_url().replace("127.0.0.1", "127.1")  # the same server, by no literal address
    storage = open_storage(StorageConfig(url=url), new_memory()).unwrap()
    model = scripted('Say "stays":"machine".')
    env = evolve(scripted_env(clients=model), conversations=storage.conversations)
    await run(start_conversation("c"), env)
    assert is_successful(await run(converse("c", 'Say "stays":"machine".'), env))  # a text is no label
    private = ask(prompt=SECRET, stays="machine")
    for operation in (
        converse("c", private),
        start_conversation("d", stays="machine"),
        append_messages("c", (labelled(), Message("assistant", "7"))),
        generate_many([private], journal=store_journal("batch")),
        run_tools(private, toolkit(), run_id="nightly"),
    ):
        result: Any = await run(operation, env)
        assert "storage.url is on another one" in result.failure().message
    documents = [str(postgres_server.execute(f"SELECT * FROM llm_{table}", url.rpartition("/")[2])) for table in TABLES]
    hidden = (SECRET, request_key(private)[:16])  # whoever guesses the text knows its digest
    assert not [each for each in documents for text in hidden if text in each]
    assert len(model.calls) == 1
    await env.conversations.aclose()


@pytest.mark.anyio
async def test_fault_213_a_database_elsewhere_refuses_calls_that_wait_and_stay(postgres_server: Postgres) -> None:
    url = postgres_server.new_url().replace("127.0.0.1", "127.1")
    storage = open_storage(StorageConfig(url=url), new_memory()).unwrap()
    call = calling(ToolCall("c1", "read_payroll", '{"name": "Ada"}'))
    env = evolve(scripted_env(call), conversations=storage.conversations)
    dangerous = toolkit(tool(read_payroll, dangerous=True))
    for request, tools in (
        (ask(prompt=SECRET, stays="machine"), dangerous),
        (ask(prompt="?"), PAYROLL),  # from the second step on
    ):
        asks = run_tools(request, tools, 3, run_id=str(request.stays), approve=ask_later)
        result: Any = await run(asks, env)
        assert "storage.url is on another one" in result.failure().message
    assert (await run(list_approvals(decided=True), env)).unwrap() == ()
    stored = [str(postgres_server.execute(f"SELECT * FROM llm_{table}", url.rpartition("/")[2])) for table in TABLES]
    assert not [each for each in stored if SECRET in each]
    assert "Ada" in stored[-1]  # the call of the unlabelled first step
    await env.conversations.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("closed", [True, False])
async def test_fault_213_an_end_that_is_refused_holds_up_no_other(
    postgres_server: Postgres, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    url = postgres_server.new_url().replace("127.0.0.1", "127.1")
    store: Any = open_storage(StorageConfig(url=url), new_memory()).unwrap().conversations
    chats = [await Chat(store).start() for _ in range(2)]
    turns = [await chat.begin(new_turn("why?")) for chat in chats]
    refused = evolve(new_message("?"), message=Message("assistant", Text(SECRET, stays="machine")))
    answer_of = evolve(new_message("?"), message=Message("assistant", "Because."))

    async def finish(number: int, message: StoredMessage) -> str:
        chat = chats[number]
        ended = store.finish_turn(chat.id, chat.owner, turns[number].id, TurnState.FINISHED, (message,))
        error: LLMError = (await result_of(ended)).failure()
        return error.tag

    assert await finish(0, refused) == "ConfigurationError"
    with monkeypatch.context() as broken:
        gone = FutureResult.from_failure(StorageFailed(operation="finish_turn"))
        broken.setattr(store.database, "write", lambda *_, **__: gone)
        broken.setattr(store.database, "post", lambda *_, **__: False)
        assert await finish(1, answer_of) == "StorageFailed"
    other: Any = open_storage(StorageConfig(url=url), new_memory()).unwrap().conversations
    if closed:
        await store.aclose()
    with anyio.fail_after(30):
        while not (await value_of(other.load(chats[1].id, chats[1].owner))).turns[0].answered:
            assert not closed
            await value_of(store.page("x", 1))  # what waits is written with the next operation
    await other.aclose()
    await store.aclose()


TABLES: Final = ("conversations", "turns", "messages", "journal")


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("postgresql://127.0.0.1/x", True),
        ("postgresql://localhost/x", True),
        ("postgresql:///x?host=/run/postgresql", True),
        ("postgresql:///x", True),
        ("postgresql://127.0.0.1/x?hostaddr=10.0.0.1", False),
        ("postgresql:///x?host=127.0.0.1,db.example", False),
        ("postgresql:///x?host=127.0.0.1&host=db.example", False),
        ("postgresql://db.example/x", False),
        ("postgresql:///x?service=prod", False),
    ],
)
def test_fault_213_where_a_database_is(url: str, here: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGHOSTADDR", "PGSERVICE"):
        monkeypatch.delenv(name, raising=False)
    assert is_here(make_url(url)) is here
    monkeypatch.setenv("PGHOST", "db.example")
    assert not is_here(make_url("postgresql:///x"))


def test_fault_213_traces_hold_no_body_of_what_stays() -> None:
    config = config_of("drop", ())
    assert request_bodies(ask(messages=(labelled(),)), config) == {}
    assert response_body(evolve(answer(SECRET), stays="machine"), config) == {}


# The other faces, files, and ledgers of before.


def test_fault_209_the_blocking_face_takes_the_label(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(SECRET)
    model = scripted("7")
    with LLM(scripted_env(config=config_of("drop", ("gpt",)), clients=model)) as llm:
        assert llm.generate("?", task_type="work").model == "gpt"
        assert llm.generate("?", task_type="work", stays="machine").stays == "machine"
        assert llm.embed([SECRET], stays="machine").stays == "machine"
        llm.start_conversation("c", stays="machine")
        assert llm.converse("c", "?", task_type="work").stays == "machine"
        document = llm.run(read_document(tmp_path / "a.txt", stays="machine"))
        assert document.stays == "machine"
    assert [call.model for call in model.calls] == ["gpt", "studio", "near", "studio"]


@pytest.mark.anyio
async def test_fault_209_the_async_face_and_the_manager_take_the_label() -> None:
    env = scripted_env("7", config=config_of("drop", ("gpt",)))
    async with AsyncLLM(env) as llm:
        await llm.start_conversation("c", stays="machine")
        assert (await llm.converse("c", "?")).stays == "machine"
        assert (await llm.embed([SECRET], stays="machine")).stays == "machine"
    manager = make_llm_manager(env.config, lambda _: env)
    assert (await manager.generate(ask(prompt=SECRET, stays="machine"))).unwrap()._inner_value.model == "studio"


def test_fault_212_rows_of_before_are_unknown(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    engines = sqlite_engines(path)
    migrate(engines.reading, engines.writing, MIGRATIONS[:3])
    engines.dispose()
    texts = ("2026-01-01T00:00:00.000000+00:00", "a.1", "a", "t", "[]", "m", "p", "success")
    values = (*map(repr, texts), *"11000000")
    names = "at, id, call_id, task, tags, model, provider, outcome, latency_ms, wait_ms, cache_read_tokens, "
    rest = "cache_write_tokens, reasoning_tokens, estimated, input_tokens, output_tokens"
    with closing(sqlite3.connect(path)) as file, file:
        file.execute(f"INSERT INTO llm_ledger ({names}{rest}) VALUES ({', '.join(values)})")

    async def groups() -> list[Any]:
        ledger = open_storage(StorageConfig(url=f"sqlite:///{path}"), new_memory()).unwrap().ledger
        report = (await run(usage_report(by="left_machine"), evolve(scripted_env(), ledger=ledger))).unwrap()
        await ledger.aclose()
        return [row.group for row in report.rows]

    assert anyio.run(groups) == [("",)]
