"""Redaction: what is sent, stored and traced has placeholders, and the caller has the values."""

import json
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from attrs import define, evolve, field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from returns.pipeline import is_successful

from llm_effects import (
    LLM,
    AsyncLLM,
    ConfigurationError,
    Document,
    Image,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    Message,
    ModelConfig,
    NetworkError,
    Preferences,
    Reasoning,
    ReasoningDelta,
    Recovery,
    RequestTimeout,
    Restarted,
    Started,
    StreamEvent,
    Text,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    ToolResult,
    converse,
    embed,
    generate,
    generate_as,
    generate_many,
    load_conversation,
    make_llm_manager,
    open_converse,
    open_env,
    open_stream,
    run,
    run_tools,
    scripted_env,
    start_conversation,
    stream,
    toolkit,
)
from llm_effects.config import RoutingConfig, StorageConfig, TelemetryConfig
from llm_effects.effects.effect import Generate, layered, pipeline_name
from llm_effects.pipeline import complete, run_call, standard_pipeline, with_recording, with_routing
from llm_effects.policies.redaction import UNCOVERED, Find, Redaction, change_request, texts_of, with_redaction
from llm_effects.providers.anthropic import ANTHROPIC
from llm_effects.providers.openai_chat import OPENAI_CHAT
from llm_effects.providers.openai_responses import OPENAI_RESPONSES
from llm_effects.providers.registry import target_of
from llm_effects.stores.cache.memory import MemoryCache
from llm_effects.structured import open_stream_as
from llm_effects.structured.partial_answers import Structured
from llm_effects.testing import LAYER_CHECKS, Chunks, Reply, Scripted, answer, calling, recorded, scripted
from llm_effects.testing.strategies import requests
from llm_effects.values.conversations import History, TurnState
from llm_effects.values.messages import Citation
from llm_effects.values.placeholders import PLACEHOLDER, Finding
from llm_effects.values.records import Attributes, Measure
from llm_effects.values.requests import Tool
from llm_effects.values.validation import InvalidValue
from tests.fixtures.house import run_python
from tests.fixtures.servers import answering, reply_json, serving

pytestmark = pytest.mark.anyio

ADA, SECRET = "ada@example.org", 'pass"w0rd\n1234'
KEY = "a key for these tests"
TWO = LLMConfig(
    models={each: ModelConfig(provider="lm-studio", model=each) for each in ("one", "two")},
    routing=RoutingConfig(max_retries=0, fallback_order=("one", "two")),
)
PROTOCOLS = {"anthropic": ANTHROPIC, "openai-chat": OPENAI_CHAT, "openai-responses": OPENAI_RESPONSES}
CLAUDE = ModelConfig(provider="anthropic", model="claude-sonnet-4-5", api_key="sk-canary")
EMBEDDING = ModelConfig(provider="ollama", model="nomic-embed-text")


def find(text: str) -> list[Finding]:
    kinds = {ADA: "EMAIL", SECRET: "KEY"}
    return [
        Finding(match.start(), match.end(), kind)
        for value, kind in kinds.items()
        for match in re.finditer(re.escape(value), text)
    ]


def name_of(value: str, kind: str = "EMAIL", owner: str | None = None) -> str:
    return Redaction(find, key=KEY).known(None, owner).placeholder(value, kind)


NAME = name_of(ADA)


def redacting(*replies: Reply, config: LLMConfig | None = None, using: Find = find) -> tuple[LLMEnv, Scripted]:
    model = scripted(*replies)
    env = scripted_env(clients=model) if config is None else scripted_env(clients=model, config=config)
    return evolve(env, redact=Redaction(using, key=KEY)), model


def echo(request: LLMRequest) -> Reply:
    return f"<{request.prompt or request.messages[-1].text}>"


def in_pieces(request: LLMRequest) -> Reply:
    return Chunks(tuple(f"<{request.prompt or request.messages[-1].text}>"))


def noting() -> tuple[list[StreamEvent], Callable[[StreamEvent], Awaitable[None]]]:
    events: list[StreamEvent] = []

    async def sink(event: StreamEvent) -> None:
        events.append(event)

    return events, sink


def text_of(events: Iterable[StreamEvent]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


# The way there and back


async def test_fault_214_the_model_has_a_placeholder_and_the_caller_the_value() -> None:
    env, model = redacting(echo)
    response = (await run(generate(f"Mail {ADA}, then {ADA}."), env)).unwrap()
    assert model.requests[0].prompt == f"Mail {NAME}, then {NAME}."
    assert response.content == f"<Mail {ADA}, then {ADA}.>"
    assert response.parts == (Text(response.content),)


async def test_fault_214_every_text_of_a_request_is_redacted() -> None:
    request = LLMRequest(
        system=f"For {ADA}.",
        messages=(
            Message("user", (Text(f"I am {ADA}."), Document(f"By {ADA}".encode(), "text/plain", title=f"Of {ADA}"))),
            Message("assistant", (Reasoning(f"It is {ADA}"), ToolCall("c1", "find", f'{{"who": "{ADA}"}}'))),
            Message("tool", ToolResult("c1", f"Found {ADA}")),
        ),
        tools=(Tool("find", f"Finds {ADA}", {"type": "object", "properties": {"who": {"default": ADA}}}),),
        response_schema={"type": "string", "enum": [ADA], "pattern": ADA},
        preferences=Preferences(stop=(ADA,)),
    )
    env, model = redacting("done")
    assert (await run(generate(request), env)).unwrap().content == "done"
    sent = evolve(model.requests[0], preferences=evolve(model.requests[0].preferences, timeout_ms=None))
    named = change_request(request, lambda text: text.replace(ADA, NAME))
    assert sent == named
    assert sum(ADA in text for text in texts_of(sent)) == 0
    assert sent.response_schema == {"type": "string", "enum": [NAME], "pattern": ADA}, "names and patterns stay"


@given(requests(), st.sampled_from([ADA, SECRET]), st.data())
def test_fault_214_no_body_of_any_protocol_has_a_value(request: LLMRequest, value: str, data: st.DataObject) -> None:
    texts = texts_of(request)
    chosen = data.draw(st.sampled_from(texts))
    request = change_request(request, lambda text: f"{text} {value}!" if text == chosen else text)
    request = evolve(request, preferences=evolve(request.preferences, timeout_ms=None))
    env, model = redacting("done")
    answered = anyio.run(run, generate(request), env)
    assert is_successful(answered)
    for provider, protocol in PROTOCOLS.items():
        target = target_of("it", ModelConfig(provider=provider, model="m", api_key="sk-canary")).unwrap()
        encoded = protocol.encode(target, model.requests[0], False)
        for text in (value, json.dumps(value)[1:-1], json.dumps(json.dumps(value)[1:-1])[1:-1]):
            assert text.encode() not in encoded.map(lambda wire: wire.body).value_or(b"")


COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "stub",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": f"To {NAME}."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 12, "completion_tokens": 2, "total_tokens": 14},
}


async def test_fault_214_no_byte_of_a_value_reaches_a_server() -> None:
    with serving(answering(reply_json(COMPLETION))) as server:
        model = ModelConfig(provider="openai-compatible", model="stub", endpoint=server.url)
        async with open_env(LLMConfig(models={"stub": model})) as live:
            env = evolve(live, redact=Redaction(find, key=KEY))
            request = LLMRequest(prompt=f"Mail {ADA} {SECRET}", system=ADA, conversation=ADA, owner=ADA, tags=(ADA,))
            own = evolve(request, owner=None)
            contents = [(await run(generate(each), env)).unwrap().content for each in (request, own)]
    assert contents == [f"To {NAME}.", f"To {ADA}."], "each owner has placeholders of its own"
    sent = b"".join(server.requests)
    assert NAME.encode() in sent
    assert ADA.encode() not in sent
    assert b"w0rd" not in sent


async def test_a_value_that_is_found_in_one_text_leaves_all_of_them() -> None:
    def find_after_colon(text: str) -> list[Finding]:
        return [Finding(match.start(1), match.end(1), "NAME") for match in re.finditer(r"name: (\w+)", text)]

    env, model = redacting("done", using=find_after_colon)
    await run(generate(LLMRequest(prompt="Is Lovelace well?", system="name: Lovelace")), env)
    assert "Lovelace" not in repr(model.requests)


async def test_citations_of_a_redacted_text_are_left_out() -> None:
    cited = Text(f"By {ADA}", (Citation(start=0, end=2, quote=ADA),))
    env, model = redacting("done")
    await run(generate(LLMRequest(messages=(Message("user", "Who?"), Message("assistant", cited)))), env)
    assert model.requests[0].messages[1].parts == (Text(f"By {NAME}"),)


async def test_a_function_may_rewrite_a_text_for_good() -> None:
    env, model = redacting(echo, using=lambda text: text.replace(ADA, "someone"))
    assert (await run(generate(f"I am {ADA}"), env)).unwrap().content == "<I am someone>"
    assert model.requests[0].prompt == "I am someone"


async def test_pictures_and_pdfs_are_sent_with_a_warning() -> None:
    parts = (Text("What is this?"), Image(b"GIF89a@\1\xf0\0"), Document(b"%PDF-1.7", title=ADA))
    env, model = redacting("done", config=LLMConfig(models={"two": CLAUDE}))
    response = (await run(generate(LLMRequest(messages=(Message("user", parts),))), env)).unwrap()
    assert response.warnings == (UNCOVERED,)
    assert model.requests[0].messages[0].parts[1:] == (parts[1], evolve(parts[2], title=NAME))
    plain = Message("user", (Text("?"), Document(b"text", "text/plain")))
    assert (await run(generate(LLMRequest(messages=(plain,))), env)).unwrap().warnings == ()


async def test_owners_have_placeholders_of_their_own() -> None:
    env, model = redacting(echo)
    for owner in ("ada", "bob"):
        response = (await run(generate(LLMRequest(prompt=ADA, owner=owner)), env)).unwrap()
        assert response.content == f"<{ADA}>"
    assert [each.prompt for each in model.requests] == [name_of(ADA, owner="ada"), name_of(ADA, owner="bob")]


async def test_fault_217_only_what_is_in_the_request_is_restored() -> None:
    invented, other = "[EMAIL_abcdefghijkl]", name_of(SECRET, "KEY")
    env, _ = redacting(echo, lambda request: f"{request.prompt} {invented} {other}")
    await run(generate(f"The secret is {SECRET}"), env)
    response = (await run(generate(f"I am {ADA}"), env)).unwrap()
    assert response.content == f"I am {ADA} {invented} {other}"


async def test_fault_217_a_placeholder_in_the_question_comes_back_as_it_was() -> None:
    env, model = redacting(echo)
    question = f"{ADA} is {NAME}, is it not?"
    assert (await run(generate(question), env)).unwrap().content == f"<{question}>"
    assert model.requests[0].prompt == f"{NAME} is {name_of(NAME, 'LITERAL')}, is it not?"


async def test_citations_move_with_the_text() -> None:
    text = f"By {NAME}: yes."
    cited = Text(text, (Citation(start=text.index("yes"), end=text.index("yes") + 3, quote=NAME),))
    env, _ = redacting(evolve(answer(text), parts=(cited,)))
    (part,) = (await run(generate(f"By {ADA}?"), env)).unwrap().parts
    assert isinstance(part, Text)
    (citation,) = part.citations
    assert (part.text[citation.start : citation.end], citation.quote) == ("yes", ADA)


async def test_an_error_has_the_partial_text_of_the_consumer() -> None:
    events, sink = noting()
    env, _ = redacting(lambda request: Chunks((request.prompt[:5], f"{request.prompt[5:]} and [EM"), NetworkError()))
    error = (await run(stream(ADA, sink), env)).failure()
    assert error.partial == text_of(events) == f"{ADA} and [EM"


# Streams


@given(st.lists(st.integers(1, 60), max_size=8), st.sampled_from(["", "[", "[[EMAIL_", "](", "[EMAIL_abcdefghijkl]"]))
def test_fault_215_a_stream_is_restored_however_it_is_cut(cuts: list[int], before: str) -> None:
    question = f"{before}{ADA}{before} and {SECRET}"

    def cut(request: LLMRequest) -> Reply:
        text = request.prompt or ""
        places = sorted({0, len(text), *(place for place in cuts if place < len(text))})
        return Chunks(tuple(text[start:end] for start, end in pairwise(places)))

    events, sink = noting()
    env, _ = redacting(cut)
    response = anyio.run(run, stream(question, sink), env).unwrap()
    assert text_of(events) == response.content == question


async def test_fault_215_ordinary_text_never_waits() -> None:
    events, sink = noting()
    waiting = list[int]()

    async def noting_sink(event: StreamEvent) -> None:
        await sink(event)
        waiting.append(len(events))

    pieces = ("An [ordinary] te", "xt [with](links) and ", "[EMAIL] and [EMAIL_", "x", " x[0]")
    env, _ = redacting(Chunks(pieces))
    await run(stream(f"I am {ADA}", noting_sink), env)
    assert [event.text for event in events if isinstance(event, TextDelta)] == [
        "An [ordinary] te",
        "xt [with](links) and ",
        "[EMAIL] and ",
        "[EMAIL_x",
        " x[0]",
    ]


async def test_fault_215_text_reasoning_and_calls_are_restored_each_by_itself() -> None:
    half, rest, key = NAME[:7], NAME[7:], name_of(SECRET, "KEY")
    sent = (
        ReasoningDelta(half),
        TextDelta(half),
        ReasoningDelta(rest),
        TextDelta(rest),
        ToolCallDelta(0, "c1", "mail", f'{{"to": "{half}'),
        ToolCallDelta(1, "c2", "mail", f'{{"to": "{key[:4]}'),
        ToolCallDelta(0, "c1", "mail", f'{rest}"}}'),
        ToolCallDelta(1, "c2", "mail", f'{key[4:]}"}}'),
        TextDelta("["),
    )

    class Sending:
        def __getattr__(self, name: str) -> Any:
            return getattr(scripted("done"), name)

        async def answer(self, call: Any) -> Any:
            for event in (Started("scripted"), TextDelta("[EM"), Restarted("scripted"), *sent):
                await call.sink(event)
            return await run(generate("done"), scripted_env("done"))

    events, sink = noting()
    env = evolve(scripted_env(), clients=Sending(), redact=Redaction(find, key=KEY))
    await run(stream(f"{ADA} {SECRET}", sink), env)
    start = next(at for at, event in enumerate(events) if isinstance(event, Restarted))
    after = events[start:]
    assert "".join(event.text for event in after if isinstance(event, ReasoningDelta)) == ADA
    assert text_of(after) == f"{ADA}["
    assert text_of(events[:start]) == ""
    arguments = ["", ""]
    for event in after:
        if isinstance(event, ToolCallDelta):
            arguments[event.index] += event.arguments
    assert [json.loads(each)["to"] for each in arguments] == [ADA, SECRET]


async def test_the_pull_form_is_restored_too() -> None:
    env, _ = redacting(in_pieces)
    async with open_stream(f"I am {ADA}")(env) as events:
        assert text_of([event async for event in events]) == f"<I am {ADA}>"


@pytest.mark.parametrize("form", ["environment", "layer"])
async def test_fault_214_a_model_that_continues_a_text_has_its_placeholders(form: str) -> None:
    config = evolve(TWO, models={**TWO.models, "two": CLAUDE})
    first = NetworkError(phase="reset")
    replies = (lambda request: Chunks((f"I am {request.prompt} an",), first), Chunks(("d more",)))
    env, model = redacting(*replies, config=config)
    request = LLMRequest(prompt=ADA, recovery=Recovery.RESUME)
    events, sink = noting()
    if form == "environment":
        operation = run_call(standard_pipeline, request, sink)
    else:
        pipeline = layered(with_redaction(Redaction(find, key=KEY)), standard_pipeline)
        env, operation = evolve(env, redact=None), run_call(pipeline, request, sink)
    response = (await run(operation, env)).unwrap()
    assert text_of(events) == response.content
    assert len(model.requests) == 2
    assert ADA in text_of(events)
    assert ADA not in repr(model.requests[1])


# What is stored, traced and recorded


@define
class Memory:
    """A telemetry service that keeps what it is given."""

    seen: list[object] = field(factory=list[object])
    active: bool = True

    def begin(self, name: str, attributes: Attributes, *, client: bool = False) -> "Memory":
        self.seen.append((name, dict(attributes)))
        return self

    def end(self, attributes: Attributes, error: str | None = None) -> None:
        self.seen.append((dict(attributes), error))

    def record(self, measures: Iterable[Measure]) -> None:
        self.seen.append(tuple(measures))


@define
class Entries:
    """A cache that shows what it stores."""

    cache: MemoryCache = field(factory=lambda: MemoryCache(10))
    stored: list[bytes] = field(factory=list[bytes])

    def get(self, key: str) -> Any:
        return self.cache.get(key)

    def put(self, key: str, entry: bytes, ttl_seconds: float | None) -> Any:
        self.stored.append(entry)
        return self.cache.put(key, entry, ttl_seconds)


async def test_fault_214_the_cache_and_the_spans_hold_placeholders() -> None:
    config = LLMConfig(models=TWO.models, telemetry=TelemetryConfig(bodies=True))
    env, model = redacting(echo, config=config)
    memory, cache = Memory(), Entries()
    env = evolve(env, telemetry=memory, cache=cache)  # type: ignore[arg-type]
    answers = [(await run(generate(f"I am {ADA}"), env)).unwrap() for _ in range(2)]
    events, sink = noting()
    answers.append((await run(stream(f"I am {ADA}", sink), env)).unwrap())
    assert [each.cached for each in answers] == [False, True, True]
    assert {each.content for each in answers} == {f"<I am {ADA}>", text_of(events)}
    assert len(model.requests) == 1
    assert NAME in repr(memory.seen)
    assert ADA not in repr(memory.seen)
    (stored,) = cache.stored
    assert NAME.encode() in stored
    assert ADA.encode() not in stored


async def test_fault_214_a_recording_holds_placeholders_and_replays(tmp_path: Path) -> None:
    path = tmp_path / "redacted.jsonl"
    env, _ = redacting(echo)
    with recorded(env, path, "record") as recording:
        first = await run(generate(f"I am {ADA}"), recording)
    assert ADA not in path.read_text()
    with recorded(redacting()[0], path) as replayed:
        assert (await run(generate(f"I am {ADA}"), replayed)).unwrap().content == first.unwrap().content


def files_of(folder: Path) -> list[Path]:
    return [*folder.iterdir()]


async def stored_texts(env: LLMEnv) -> list[str]:
    history: History = (await run(load_conversation("c"), env)).unwrap()
    return [each.message.text for turn in history.turns for each in turn.messages]


async def test_fault_214_a_conversation_stores_placeholders(tmp_path: Path) -> None:
    file = tmp_path / "talks.db"
    config = LLMConfig(models=TWO.models, storage=StorageConfig(url=f"sqlite:///{file}"))
    async with open_env(config) as live:
        env = evolve(live, clients=scripted(echo), redact=Redaction(find, key=KEY))
        (await run(start_conversation("c"), env)).unwrap()
        response = (await run(converse("c", f"I am {ADA}."), env)).unwrap()
        assert response.content == f"<I am {ADA}.>"
        assert await stored_texts(env) == [f"I am {NAME}.", f"<I am {NAME}.>"]
        known = Redaction(find, key=KEY).known("c")
        assert known.restore(NAME) == NAME
        redaction = env.redact
        assert isinstance(redaction, Redaction)
        assert redaction.known("c").restore((await stored_texts(env))[0]) == f"I am {ADA}."
    assert ADA.encode() not in b"".join(each.read_bytes() for each in files_of(tmp_path))


async def test_fault_218_a_value_has_the_same_placeholder_in_every_turn() -> None:
    env, model = redacting(echo)
    (await run(start_conversation("c", system=f"For {ADA}."), env)).unwrap()
    for question in (f"I am {ADA}.", "Who?", f"And {SECRET}?", f"{ADA} and {SECRET}"):
        response = (await run(converse("c", question), env)).unwrap()
        assert response.content == f"<{question}>"
    assert not [each for each in (ADA, SECRET) if each in repr(model.requests)]
    assert model.requests[0].system == f"For {NAME}."
    for before, after in pairwise(model.requests):
        assert after.messages[: len(before.messages)] == before.messages
    assert await stored_texts(env) == [each.text for each in (*model.requests[-1].messages,)] + [
        f"<{NAME} and {name_of(SECRET, 'KEY')}>"
    ]


async def test_fault_218_a_value_inside_a_placeholder_leaves_it_whole() -> None:
    def find_word(text: str) -> list[Finding]:
        return [*find(text), *(Finding(each.start(), each.end(), "WORD") for each in re.finditer("EMAIL", text))]

    env, model = redacting(echo, using=find_word)
    (await run(start_conversation("c"), env)).unwrap()
    for question in (f"{ADA} has EMAIL", "Has it?"):
        assert (await run(converse("c", question), env)).unwrap().content == f"<{question}>"
    assert model.requests[1].messages[0] == model.requests[0].messages[0]


async def test_fault_218_a_later_answer_restores_what_an_earlier_turn_named() -> None:
    env, _ = redacting("ok", lambda request: f"You are {request.messages[0].text[5:]}")
    (await run(start_conversation("c"), env)).unwrap()
    await run(converse("c", f"I am {ADA}"), env)
    events, sink = noting()
    response = (await run(converse("c", "Who am I?", sink=sink), env)).unwrap()
    assert response.content == text_of(events) == f"You are {ADA}"


async def test_turns_that_were_stored_before_are_redacted_when_they_are_sent() -> None:
    env, model = redacting(echo)
    plain = evolve(env, redact=None)
    (await run(start_conversation("c"), plain)).unwrap()
    await run(converse("c", f"I am {ADA}"), plain)
    response = (await run(converse("c", "Again?"), env)).unwrap()
    assert response.content == "<Again?>"
    assert [each.text for each in model.requests[1].messages] == [f"I am {NAME}", f"<I am {NAME}>", "Again?"]


async def test_the_same_turn_id_finds_the_redacted_question_again() -> None:
    env, model = redacting(echo)
    (await run(start_conversation("c"), env)).unwrap()
    for using in (env, evolve(env, redact=Redaction(find, key=KEY))):
        response = (await run(converse("c", f"I am {ADA}", turn_id="t"), using)).unwrap()
        assert response.content == f"<I am {ADA}>"
    assert len(model.requests) == 1


@pytest.mark.parametrize("form", ["push", "pull"])
async def test_fault_214_an_interrupted_turn_stores_placeholders(form: str) -> None:
    env, _ = redacting(lambda request: Chunks((request.messages[0].text, " and more"), pause=0.01))
    (await run(start_conversation("c"), env)).unwrap()
    if form == "pull":
        async with open_converse("c", f"I am {ADA}")(env) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    break
    else:

        async def sink(event: StreamEvent) -> None:
            if isinstance(event, TextDelta):
                raise KeyError(event.text)

        with pytest.raises(KeyError, match=ADA):
            await run(converse("c", f"I am {ADA}", sink=sink), env)
    history: History = (await run(load_conversation("c"), env)).unwrap()
    assert history.turns[0].state is TurnState.INTERRUPTED
    assert await stored_texts(env) == [f"I am {NAME}"] * 2


async def test_a_summary_is_made_of_placeholders() -> None:
    small = evolve(TWO.models["one"], context_length=700, max_tokens=100)
    config = LLMConfig(models={"one": small}, storage=StorageConfig(window="summarise"))
    long = "The disks are full. " * 40

    def reply(request: LLMRequest) -> Reply:
        return f"Summary of {NAME}" if "summary" in request.tags else "ok"

    env, model = redacting(reply, config=config)
    (await run(start_conversation("c"), env)).unwrap()
    for _ in range(4):
        (await run(converse("c", f"{ADA}: {long}"), env)).unwrap()
    assert any("summary" in request.tags for request in model.requests)
    assert ADA not in repr(model.requests)
    history: History = (await run(load_conversation("c"), env)).unwrap()
    assert history.summary is not None
    assert history.summary.text == f"Summary of {NAME}"


# Tools, types, batches, embeddings


async def test_fault_219_tools_receive_values_and_their_results_are_redacted() -> None:
    received = list[str]()

    def mail(to: str, password: str) -> str:
        """Send mail."""
        received.extend((to, password))
        return json.dumps({"sent": to, "with": password})

    arguments = f'{{"to":"{NAME}",  "password": "{name_of(SECRET, "KEY")}"}}'
    env, model = redacting(calling(ToolCall("c1", "mail", arguments)), echo)
    run_of = run_tools(f"Mail {ADA} with {SECRET}", toolkit(mail))
    finished = (await run(run_of, env)).unwrap()
    assert received == [ADA, SECRET]
    assert not [each for each in (ADA, "w0rd") if each in repr(model.requests)]
    call, result = model.requests[1].messages[1].parts[0], model.requests[1].messages[2].parts[0]
    assert isinstance(call, ToolCall)
    assert call.arguments == arguments, "the prefix stays as the model wrote it"
    assert isinstance(result, ToolResult)
    assert json.loads(result.content) == {"sent": NAME, "with": name_of(SECRET, "KEY")}
    assert json.loads(finished.answers[0].call.arguments) == {"to": ADA, "password": SECRET}


async def test_fault_219_tools_in_a_conversation_receive_values_and_store_placeholders() -> None:
    received = list[str]()

    def mail(to: str) -> str:
        """Send mail."""
        received.append(to)
        return f"sent to {to}"

    env, model = redacting(calling(ToolCall("c1", "mail", f'{{"to": "{NAME}"}}')), "done")
    (await run(start_conversation("c"), env)).unwrap()
    (await run(run_tools(f"Mail {ADA}", toolkit(mail), conversation_id="c"), env)).unwrap()
    assert received == [ADA]
    history: History = (await run(load_conversation("c"), env)).unwrap()
    parts = [part for turn in history.turns for each in turn.messages for part in each.message.parts]
    assert ADA not in repr(parts)
    assert ToolResult("c1", f"sent to {NAME}") in parts
    assert ADA not in repr(model.requests)


@frozen
class Contact:
    """A person."""

    email: str = field()
    secret: str = ""

    @email.validator
    def _check(self, _: object, value: str) -> None:
        if "@" not in value:
            msg = "must be an address"
            raise ValueError(msg)


async def test_fault_219_a_typed_answer_is_checked_with_its_values() -> None:
    key = name_of(SECRET, "KEY")
    env, model = redacting(f'{{"email": "{NAME}", "secret": "{key}"}}')
    typed = (await run(generate_as(f"{ADA} {SECRET}", Contact), env)).unwrap()
    assert typed.value == Contact(ADA, SECRET)
    assert len(model.requests) == 1
    pieces = tuple(typed.response.content)
    env, _ = redacting(Chunks(tuple(f'{{"email": "{NAME}", "secret": "{key}"}}')))
    async with open_stream_as(f"{ADA} {SECRET}", Contact)(env) as partials:
        last = [each async for each in partials][-1]
    assert isinstance(last, Structured)
    assert last.value == Contact(ADA, SECRET), pieces


async def test_fault_219_a_repair_quotes_no_value() -> None:
    env, model = redacting(f'{{"email": "{NAME}", "secret": 3}}', f'{{"email": "{NAME}"}}')
    typed = (await run(generate_as(ADA, Contact), env)).unwrap()
    assert typed.value == Contact(ADA)
    said = model.requests[1].messages[-1].text
    assert "$.secret" in said
    assert "must be an address" not in said, "the address is one, once it is restored"
    assert ADA not in repr(model.requests)


@frozen
class Word:
    """A word that is no address."""

    word: str = field()

    @word.validator
    def _check(self, _: object, value: str) -> None:
        if "@" in value:
            msg = f"{value} is an address"
            raise ValueError(msg)


async def test_fault_219_an_answer_that_fits_only_with_its_placeholder_is_repaired_without_the_value() -> None:
    env, model = redacting(f'{{"word": "{NAME}"}}', '{"word": "yes"}')
    assert (await run(generate_as(ADA, Word), env)).unwrap().value == Word("yes")
    assert ADA not in repr(model.requests)
    assert "does not fit once its placeholders are replaced" in model.requests[1].messages[-1].text


async def test_generate_many_and_embed_are_redacted() -> None:
    env, model = redacting(echo)
    answers = (await run(generate_many([f"I am {ADA}", "Who?"]), env)).unwrap()
    assert [each.unwrap().content for each in answers] == [f"<I am {ADA}>", "<Who?>"]
    env, model = redacting(config=LLMConfig(models={"e": EMBEDDING}))
    texts = (f"I am {ADA}", f"Not {ADA}", "Who?")
    embedded = (await run(embed(texts), env)).unwrap()
    assert len(set(embedded.vectors)) == 3
    assert {part.text for each in model.requests for part in each.messages[0].parts if isinstance(part, Text)} == {
        f"I am {NAME}",
        f"Not {NAME}",
        "Who?",
    }


# The beginning of a prompt, by which providers cache it, is the same in every turn.


def find_by_context(text: str) -> list[Finding]:
    """Find the same values everywhere, of a kind that depends on the text."""
    return [evolve(each, kind="LOGIN") if text.startswith("!") else each for each in find(text)]


_PIECES = st.lists(st.sampled_from(["a word ", f"{ADA} ", f"{SECRET} ", f"x{ADA}", "[EMAIL_abcdefghijkl] ", '"'])).map(
    "".join
)
_TEXTS = st.builds(str.__add__, st.sampled_from(["!", "- "]), _PIECES)


@settings(max_examples=50, deadline=None)
@given(
    system=_TEXTS,
    tool=_TEXTS,
    steps=st.lists(st.tuples(_TEXTS, _TEXTS, _TEXTS), min_size=2, max_size=4),
    provider=st.sampled_from(sorted(PROTOCOLS)),
)
def test_fault_218_what_was_sent_before_is_sent_again_byte_for_byte(
    system: str, tool: str, steps: list[tuple[str, str, str]], provider: str
) -> None:
    talk, sent = tuple[Message, ...](), list[dict[str, Any]]()
    for at, (asked, called, returned) in enumerate(steps):
        talk = (*talk, Message("user", asked))
        request = LLMRequest(system=system, messages=talk, tools=(Tool("find", tool),), prompt_cache="off")
        env, model = redacting("done", using=find_by_context)
        assert is_successful(anyio.run(run, generate(request), env))
        sent.append(sent_body(provider, model.requests[0]))
        calls = Message("assistant", ToolCall(f"c{at}", "find", json.dumps({"what": called})))
        talk = (*talk, calls, Message("tool", ToolResult(f"c{at}", returned)))
    for before, after in pairwise(sent):
        turns = "input" if provider == "openai-responses" else "messages"
        earlier, later = before.pop(turns), after[turns]
        assert later[: len(earlier)] == earlier
        assert before == {name: value for name, value in after.items() if name != turns}


def sent_body(provider: str, request: LLMRequest) -> dict[str, Any]:
    target = target_of("it", ModelConfig(provider=provider, model="m", api_key="sk-canary")).unwrap()
    body: dict[str, Any] = json.loads(PROTOCOLS[provider].encode(target, request, False).unwrap().body)
    return body


# A function that fails


def raising(text: str) -> list[Finding]:
    raise ValueError(text)


async def raising_later(text: str) -> list[Finding]:
    await anyio.lowlevel.checkpoint()
    raise ValueError(text)


def absent(text: str) -> list[Finding]:
    msg = "install it"
    raise ModuleNotFoundError(msg)


BROKEN: list[tuple[Any, str]] = [
    (raising, "raised ValueError"),
    (raising_later, "raised ValueError"),
    (absent, "raised ModuleNotFoundError, so nothing was sent: install it"),
    (lambda text: 3, "raised TypeError"),
    (lambda text: [text], "returned something else"),
    (lambda text: [Finding(0, len(text) + 1)], "returned something else"),
    (lambda text: b"bytes", "returned something else"),
    (lambda text: (Finding(1, 0) for _ in "x"), "raised InvalidValue"),
]


@pytest.mark.parametrize(("using", "problem"), BROKEN)
async def test_fault_216_a_function_that_fails_is_an_error_and_nothing_is_sent(using: Any, problem: str) -> None:
    env, model = redacting("sent", using=using)
    models = {"e": EMBEDDING, **env.config.models}
    env = evolve(env, config=evolve(env.config, models=models))
    (await run(start_conversation("c"), env)).unwrap()
    events, sink = noting()
    for operation in (generate(ADA), stream(ADA, sink), converse("c", ADA), generate_as(ADA, str), embed([ADA])):
        error = (await run(operation, env)).failure()
        assert isinstance(error, ConfigurationError)
        assert problem in error.message
        assert ADA not in repr(error)
    assert model.requests == ()
    assert (await run(load_conversation("c"), env)).unwrap().turns == ()
    assert [type(event).__name__ for event in events] == ["Failed"]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_fault_216_a_function_that_hangs_ends_with_the_call(kind: str) -> None:
    released = threading.Event()

    def hanging(_: str) -> list[Finding]:
        released.wait(30)
        return []

    async def hanging_later(_: str) -> list[Finding]:
        await anyio.sleep_forever()
        return []

    env, model = redacting("sent", using=hanging if kind == "sync" else hanging_later)
    request = LLMRequest(prompt=ADA, preferences=Preferences(timeout_ms=50))
    error = (await run(generate(request), env)).failure()
    released.set()
    assert isinstance(error, RequestTimeout)
    assert (error.phase, error.timeout_ms, model.requests) == ("total", 50, ())


async def test_fault_216_a_slow_function_does_not_stop_the_loop() -> None:
    started, released = threading.Event(), threading.Event()

    def slow(_: str) -> list[Finding]:
        started.set()
        assert released.wait(30)
        return []

    async def release() -> None:
        await anyio.to_thread.run_sync(started.wait, 30)
        released.set()

    env, _ = redacting("done", using=slow)
    async with anyio.create_task_group() as group:
        group.start_soon(release)
        assert (await run(generate("?"), env)).unwrap().content == "done"


async def test_an_async_function_is_awaited() -> None:
    async def find_later(text: str) -> list[Finding]:
        await anyio.lowlevel.checkpoint()
        return find(text)

    for using in (find_later, lambda text: find_later(text)):
        env, model = redacting(echo, using=using)
        assert (await run(generate(ADA), env)).unwrap().content == f"<{ADA}>"
        assert model.requests[0].prompt == NAME


async def test_the_time_of_the_function_counts() -> None:
    def slow(text: str) -> list[Finding]:
        time.sleep(0.05)
        return []

    env, model = redacting("done", using=slow)
    await run(generate(LLMRequest(prompt="?", preferences=Preferences(timeout_ms=60_000))), env)
    left = model.requests[0].preferences.timeout_ms
    assert left is not None
    assert left <= 59_950


# The layer, the faces


async def test_the_layer_redacts_one_pipeline() -> None:
    redaction = Redaction(find, key=KEY)
    pipeline = layered(with_redaction(redaction), with_routing, with_recording, complete)
    model = scripted(echo)
    env = scripted_env(clients=model)
    assert (await run(run_call(pipeline, LLMRequest(prompt=ADA)), env)).unwrap().content == f"<{ADA}>"
    assert model.requests[0].prompt == NAME
    (await run(start_conversation("c"), env)).unwrap()
    assert (await run(converse("c", ADA, pipeline=pipeline), env)).unwrap().content == f"<{ADA}>"
    assert await stored_texts(env) == [ADA, f"<{ADA}>"]
    assert model.requests[1].messages[0].text == NAME


def test_the_layer_does_not_change_the_key_of_an_answer() -> None:
    layers: list[Generate] = [layered(with_redaction(Redaction(find)), standard_pipeline) for _ in range(2)]
    assert [pipeline_name(each) for each in layers] == ["", ""]


@pytest.mark.parametrize("check", LAYER_CHECKS)
async def test_the_layer_keeps_the_rules_of_layers(check: Any) -> None:
    await check(with_redaction(Redaction(find, key=KEY)))


async def test_the_attempts_of_a_redacted_layer_are_those_of_the_call() -> None:
    pipeline = layered(with_redaction(Redaction(find, key=KEY)), standard_pipeline)
    env = scripted_env(NetworkError(phase="refused"), "done", config=TWO)
    _, sink = noting()
    response = (await run(run_call(pipeline, LLMRequest(prompt=ADA), sink), env)).unwrap()
    assert [each.outcome for each in response.attempts] == ["NetworkError", "success"]


async def test_every_face_takes_a_redaction() -> None:
    redaction, model = Redaction(find, key=KEY), scripted(echo)
    env = scripted_env(clients=model)
    async with AsyncLLM(env, redact=redaction) as llm:
        assert (await llm.generate(ADA)).content == f"<{ADA}>"
    manager = make_llm_manager(TWO, lambda live: evolve(live, clients=model, redact=redaction))
    assert (await manager.run(generate(ADA))).unwrap().content == f"<{ADA}>"
    assert {each.prompt for each in model.requests} == {NAME}
    await manager.aclose()


def test_the_blocking_face_takes_a_redaction() -> None:
    model = scripted(echo)
    with LLM(scripted_env(clients=model), redact=Redaction(find, key=KEY)) as llm:
        assert llm.generate(ADA).content == f"<{ADA}>"
        assert text_of(llm.stream(ADA)) == f"<{ADA}>"
    assert {each.prompt for each in model.requests} == {NAME}


def test_mistakes_name_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"a Redaction needs a function of a text, not list"):
        Redaction([])  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match=r"key: must have at least 16 characters: make one with"):
        Redaction(find, key="short")
    with pytest.raises(TypeError, match=r"redact must be a Redaction of llm_effects.policies.redaction, not function"):
        evolve(scripted_env(), redact=find)  # type: ignore[arg-type]


async def test_nothing_shows_a_value_or_the_key() -> None:
    redaction = Redaction(find, key=KEY)
    env, _ = redacting(echo)
    env = evolve(env, redact=redaction)
    (await run(start_conversation("c"), env)).unwrap()
    await run(converse("c", ADA), env)
    shown = f"{redaction!r} {redaction.known('c')!r} {vars(redaction)} {env!r}"
    assert "Redaction(find)" in shown
    assert ADA not in shown
    assert KEY not in shown


async def test_a_random_key_is_another_one_for_each_redaction() -> None:
    names = {Redaction(find).known().placeholder(ADA, "EMAIL") for _ in range(3)}
    assert len(names) == 3


def test_placeholders_are_what_the_guide_calls_them() -> None:
    assert PLACEHOLDER.fullmatch(NAME)


def test_the_oldest_conversation_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_effects.policies.redaction.MOST_CONVERSATIONS", 1)
    redaction = Redaction(find)
    first = redaction.known("a")
    assert redaction.known("a") is first
    redaction.known("b")
    assert redaction.known("a") is not first


async def test_a_short_value_is_hidden_in_arguments_and_in_what_was_received() -> None:
    def find_ada(text: str) -> list[Finding]:
        return [Finding(match.start(1), match.end(1), "NAME") for match in re.finditer(r"I am (Ada)", text)]

    name = name_of("Ada", "NAME")
    env, model = redacting(calling(ToolCall("c1", "greet", f'{{"who":"{name}"}}')), echo, using=find_ada)
    (await run(run_tools("I am Ada", toolkit(greet)), env)).unwrap()
    assert "Ada" not in repr(model.requests)
    env, _ = redacting(Chunks((f"x{name}y", "z"), NetworkError()), using=find_ada)
    (await run(start_conversation("c"), env)).unwrap()
    _, sink = noting()
    assert (await run(converse("c", "I am Ada", sink=sink), env)).failure().partial == "xAdayz"
    assert await stored_texts(env) == [f"I am {name}", f"x{name}yz"]


def greet(who: str) -> str:
    """Greet somebody."""
    return f"Hello {who}"


def test_a_call_without_redaction_does_not_import_it() -> None:
    loaded = run_python(
        "import sys, anyio\n"
        "from llm_effects import generate, run, scripted_env\n"
        "anyio.run(run, generate('?'), scripted_env('yes'))\n"
        "print(*sys.modules)"
    ).split()
    assert "llm_effects.pipeline" in loaded
    assert {"llm_effects.policies.redaction", "llm_effects.values.placeholders"} & set(loaded) == set()
