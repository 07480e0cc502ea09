"""Recorded traffic: its requests can be sent with this library, in fields that the vendors document."""

import base64
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_effects.config.models import ModelConfig
from llm_effects.providers.message_encoding import unpaired_call
from llm_effects.providers.presets import PRESETS
from llm_effects.providers.registry import provider_of, target_of
from llm_effects.providers.target import Target
from llm_effects.values.messages import Image, Message, Origin, Part, Reasoning, Text, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest, Preferences, Tool
from llm_effects.values.validation import InvalidValue

CORPUS = Path(__file__).resolve().parents[3] / "shared" / "corpus"
Json = dict[str, Any]

pytestmark = pytest.mark.skipif(not CORPUS.exists(), reason=f"no recorded traffic at {CORPUS}")

# The fields of each protocol by path. A path that ends in * holds user data: a schema, or arguments.
FIELDS = {
    "chat": """
        model max_tokens max_completion_tokens temperature top_p stop seed random_seed reasoning_effort
        stream stream_options stream_options.include_usage
        messages messages.role messages.content messages.content.type messages.content.text
        messages.content.image_url messages.content.image_url.url messages.tool_call_id
        messages.tool_calls messages.tool_calls.id messages.tool_calls.type messages.tool_calls.function
        messages.tool_calls.function.name messages.tool_calls.function.arguments
        messages.reasoning_content messages.reasoning_details messages.reasoning_details.*
        tools tools.type tools.function tools.function.name tools.function.description tools.function.parameters.*
        tool_choice tool_choice.type tool_choice.function tool_choice.function.name
        response_format response_format.type response_format.json_schema response_format.json_schema.name
        response_format.json_schema.strict response_format.json_schema.schema.*
    """,
    "responses": """
        model instructions max_output_tokens temperature top_p store stream include
        reasoning reasoning.effort reasoning.summary
        input input.type input.role input.content input.content.type input.content.text input.content.image_url
        input.call_id input.name input.arguments input.output
        input.id input.status input.summary input.summary.type input.summary.text input.encrypted_content
        text text.format text.format.type text.format.name text.format.strict text.format.schema.*
        tools tools.type tools.name tools.description tools.strict tools.parameters.*
        tool_choice tool_choice.type tool_choice.name
    """,
    "messages": """
        model system max_tokens temperature top_p stop_sequences stream
        system.type system.text system.cache_control system.cache_control.type system.cache_control.ttl
        thinking thinking.type thinking.display thinking.budget_tokens
        output_config output_config.effort output_config.format output_config.format.type output_config.format.schema.*
        messages messages.role messages.content messages.content.type messages.content.text
        messages.content.source messages.content.source.type messages.content.source.media_type
        messages.content.source.data messages.content.source.url
        messages.content.id messages.content.name messages.content.input.*
        messages.content.tool_use_id messages.content.content messages.content.is_error
        messages.content.thinking messages.content.signature messages.content.data
        messages.content.cache_control messages.content.cache_control.type messages.content.cache_control.ttl
        tools tools.name tools.description tools.input_schema.* tool_choice tool_choice.type tool_choice.name
        tools.cache_control tools.cache_control.type tools.cache_control.ttl
    """,
}
DOCUMENTED = {endpoint: frozenset(fields.split()) for endpoint, fields in FIELDS.items()}
_KNOWN = {"chat": "openai-chat", "responses": "openai-responses", "messages": "anthropic"}


class ForeignError(Exception):
    """A recorded request that this library cannot express."""


def rows() -> Iterator[Json]:
    for path in sorted(CORPUS.glob("*.jsonl")) if CORPUS.exists() else ():
        for line in filter(None, path.read_text("utf-8").split("\n")):
            row = json.loads(line)
            requested = row.get("request", {}).get("body")
            if isinstance(requested, str) and requested.startswith("{"):
                requested = json.loads(requested)
            if row.get("endpoint") in DOCUMENTED and isinstance(requested, dict) and requested.get("model"):
                yield {**row, "asked": requested}


# From a recorded body to a request


def listed(content: Any) -> list[Json]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or []


def parts_of(content: Any, origin: Origin) -> Iterator[Part]:
    for block in listed(content):
        match block:
            case {"type": "text" | "input_text" | "output_text", "text": str(text)}:
                yield Text(text)
            case {"type": "image_url", "image_url": {"url": str(url)}} | {"type": "input_image", "image_url": str(url)}:
                yield Image(url=url)
            case {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}:
                yield Image(data=base64.b64decode(data), media_type=kind)
            case {"type": "image", "source": {"type": "url", "url": url}}:
                yield Image(url=url)
            case {"type": "thinking", "thinking": str(thought)}:
                yield Reasoning(thought, json.dumps(block), origin)
            case {"type": "redacted_thinking"}:
                yield Reasoning("", json.dumps(block), origin)
            case {"type": "tool_use", "id": str(call), "name": str(name)}:
                yield ToolCall(call, name, json.dumps(block["input"]))
            case {"type": "tool_result", "tool_use_id": str(call)}:
                text = "".join(part.text for part in parts_of(block.get("content"), origin) if isinstance(part, Text))
                yield ToolResult(call, text, bool(block.get("is_error")))
            case _:
                raise ForeignError(block.get("type"))


def turn(role: str, parts: Iterator[Part] | list[Part]) -> Iterator[Message]:
    collected = tuple(parts)
    if collected:
        yield Message("system" if role == "developer" else role, collected)  # type: ignore[arg-type]


SEALED = ("reasoning_content", "reasoning_details")


def chat_turns(requested: Json, origin: Origin) -> Iterator[Message]:
    for message in requested["messages"]:
        if not isinstance(message, dict):
            raise ForeignError(message)
        if message["role"] == "tool":
            text = "".join(part.text for part in parts_of(message["content"], origin) if isinstance(part, Text))
            yield Message("tool", ToolResult(message["tool_call_id"], text))
            continue
        calls: list[Part] = [
            ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or ()
        ]
        sealed = {name: message[name] for name in SEALED if message.get(name)}
        thought = [Reasoning("", json.dumps(sealed), origin)] if sealed else []
        yield from turn(message["role"], [*thought, *parts_of(message.get("content"), origin), *calls])


def input_turns(requested: Json, origin: Origin) -> Iterator[Message]:
    items = requested.get("input")
    for item in [{"role": "user", "content": items}] if isinstance(items, str) else items or []:
        match item:
            case {"role": str(role), "content": content}:
                yield from turn(role, parts_of(content, origin))
            case {"type": "function_call", "call_id": str(call), "name": str(name), "arguments": str(arguments)}:
                yield Message("assistant", ToolCall(call, name, arguments))
            case {"type": "function_call_output", "call_id": str(call), "output": str(output)}:
                yield Message("tool", ToolResult(call, output))
            case {"type": "reasoning"}:
                yield Message("assistant", Reasoning("", json.dumps(item), origin))
            case _:
                raise ForeignError(item.get("type"))


def merged(turns: Iterator[Message]) -> Iterator[Message]:
    """Merge successive assistant messages: an answer may be recorded as several items."""
    last: Message | None = None
    for message in turns:
        if last is not None and last.role == message.role == "assistant":
            last = Message("assistant", (*last.parts, *message.parts))
            continue
        if last is not None:
            yield last
        last = message
    if last is not None:
        yield last


def tool_of(recorded: Json) -> Tool:
    function = recorded.get("function", recorded)
    schema = function.get("parameters") or function.get("input_schema")
    if recorded.get("type", "function") not in {"function", "custom"} or not isinstance(schema, dict):
        raise ForeignError(recorded.get("type"))
    return Tool(function["name"], function.get("description") or "", schema)


def choice_of(recorded: Any) -> str | None:
    match recorded:
        case {"function": {"name": str(name)}} | {"name": str(name)}:
            return name
        case {"type": "any"} | "any":
            return "required"
        case {"type": "auto" | "none" as plain}:
            return str(plain)
        case _:
            return recorded if isinstance(recorded, str) else None


def schema_of(requested: Json) -> Json | None:
    options = requested.get("text") or requested.get("output_config") or {"format": requested.get("response_format")}
    form = options.get("format") or {}
    schema = form.get("schema") or (form.get("json_schema") or {}).get("schema")
    return schema if isinstance(schema, dict) else None


def preferences_of(requested: Json) -> Preferences:
    limit = requested.get("max_tokens") or requested.get("max_completion_tokens") or requested.get("max_output_tokens")
    options = requested.get("reasoning") or requested.get("output_config") or {}
    effort = requested.get("reasoning_effort") or options.get("effort")
    return Preferences(
        max_tokens=limit,
        temperature=requested.get("temperature"),
        top_p=requested.get("top_p"),
        stop=requested.get("stop") or requested.get("stop_sequences") or (),
        seed=requested.get("seed"),
        reasoning_effort=effort,
    )


def request_of(row: Json, target: Target) -> LLMRequest:
    requested = row["asked"]
    origin = Origin(target.preset.name, target.wire_model or "")
    turns = input_turns if row["endpoint"] == "responses" else chat_turns
    system = requested.get("instructions") or "".join(block["text"] for block in listed(requested.get("system")))
    tools = tuple(tool_of(tool) for tool in requested.get("tools") or ())
    return LLMRequest(
        messages=tuple(merged(turns(requested, origin))),
        system=system or None,
        tools=tools,
        tool_choice=choice_of(requested.get("tool_choice")) if tools else None,
        response_schema=schema_of(requested),
        preferences=preferences_of(requested),
    )


def target_for(row: Json) -> Target:
    provider = row["provider"] if row["provider"] in PRESETS and row["endpoint"] == "chat" else _KNOWN[row["endpoint"]]
    provider = "openai-chat" if provider == "openai" else provider
    version = row["request"]["headers"].get("anthropic-version", "2023-06-01")
    return target_of(
        "m",
        ModelConfig(
            provider=provider,
            model=row["asked"]["model"],
            api_key="test-key",
            endpoint="https://x.example/v1",
            wire_version=version,
        ),
    ).unwrap()


# The encoded request


def paths(value: Any, at: str, free: frozenset[str]) -> Iterator[str]:
    if f"{at}.*" in free:
        yield f"{at}.*"
    elif isinstance(value, dict):
        if at:
            yield at
        for name, inner in value.items():
            yield from paths(inner, f"{at}.{name}".lstrip("."), free)
    elif isinstance(value, list):
        yield at
        for inner in value:
            yield from (paths(inner, at, free) if isinstance(inner, dict) else ())
    else:
        yield at


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(inner)


def test_recorded_requests_are_sent_in_documented_fields_only() -> None:
    seen: Counter[str] = Counter()
    for row in rows():
        target = target_for(row)
        try:
            request = request_of(row, target)
        except (ForeignError, InvalidValue):
            seen[f"{row['endpoint']}: not expressible"] += 1
            continue
        encoded = provider_of(target).encode(target, request, row["stream"])
        if unpaired_call(request) is not None:  # it continues an answer stored at the server
            assert "result" in encoded.failure().message, row["id"]
            seen[f"{row['endpoint']}: continued"] += 1
            continue
        body = json.loads(encoded.unwrap().body)
        documented = DOCUMENTED[row["endpoint"]]
        assert set(paths(body, "", documented)) <= documented, row["id"]
        sent = "\n".join(strings(body))
        parts = [part for message in request.messages for part in message.parts]
        assert all(part.text.strip() in sent for part in parts if isinstance(part, Text)), row["id"]
        seen[f"{row['endpoint']}: sent"] += 1
    print(dict(seen))
    assert min(seen[f"{endpoint}: sent"] for endpoint in DOCUMENTED) > 100


def test_fault_180_recorded_thinking_is_sent_back_as_it_was_recorded() -> None:
    checked = 0
    for row in rows():
        if row["endpoint"] != "chat" or not any(name in json.dumps(row["asked"]) for name in SEALED):
            continue
        target = target_for(row)
        recorded = [message for message in row["asked"]["messages"] if message["role"] == "assistant"]
        request = request_of(row, target)
        body = json.loads(provider_of(target).encode(target, request, False).unwrap().body)
        sent = [message for message in body["messages"] if message["role"] == "assistant"]
        for before, after in zip(recorded, sent, strict=True):
            checked += any(name in before for name in SEALED)
            assert [before.get(name) for name in SEALED] == [after.get(name) for name in SEALED]
    assert checked >= 10


@pytest.mark.parametrize(
    ("provider", "absent", "present"),
    [
        ("mistral", {"seed", "stream_options", "max_completion_tokens"}, {"random_seed", "max_tokens"}),
        ("gemini", {"seed", "random_seed"}, {"stream_options", "max_tokens"}),
        ("deepseek", {"max_completion_tokens"}, {"seed", "stream_options", "max_tokens"}),
        ("openrouter", {"max_completion_tokens"}, {"seed", "stream_options", "max_tokens"}),
        ("groq", {"max_tokens"}, {"seed", "stream_options", "max_completion_tokens"}),
        ("azure", {"max_tokens"}, {"seed", "stream_options", "max_completion_tokens"}),
    ],
)
def test_each_server_gets_its_own_field_names(provider: str, absent: set[str], present: set[str]) -> None:
    endpoint = "https://x.example/openai/v1"
    config = ModelConfig(provider=provider, model="m", api_key="k", endpoint=endpoint)
    target = target_of("m", config).unwrap()
    request = LLMRequest(prompt="hi", preferences=Preferences(max_tokens=100, seed=7))
    wire = provider_of(target).encode(target, request, True).unwrap()
    assert present <= set(json.loads(wire.body))
    assert not absent & set(json.loads(wire.body))
    assert bool(wire.warnings) is (provider == "gemini")
