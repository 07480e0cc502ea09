"""One conversation over several models: sealed thinking returns to its own provider, everything else to all."""

import json
from collections.abc import Callable

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import (
    FinishReason,
    Image,
    LLMConfig,
    LLMEnv,
    LLMRequest,
    LLMResponse,
    Message,
    ModelConfig,
    Preferences,
    Reasoning,
    Text,
    ToolCall,
    ToolResult,
    converse,
    run,
    scripted_env,
    start_conversation,
)
from llm_effects.config import StorageConfig
from llm_effects.conversations import append_messages
from llm_effects.conversations.window import extend_digest, opening_digest, without_stale_thinking
from llm_effects.providers.registry import provider_of, target_of
from llm_effects.testing import Reply
from llm_effects.testing.scripted import answer
from llm_effects.values import Origin, Provenance, StoredMessage, Tool
from tests.fixtures.histories import AT

pytestmark = pytest.mark.anyio

THOUGHT = '{"type":"thinking","thinking":"Hm…  two\\u0020spaces","signature":"EqQB+/=="}'
SEALED = '{"type":"reasoning","id":"rs_1","encrypted_content":"gAAAA==","summary":[]}'

MODELS = {
    "claude": ModelConfig(provider="anthropic", model="claude-opus-5-5", api_key="sk-x"),
    "gpt": ModelConfig(provider="openai-responses", model="gpt-6-luna", api_key="sk-x"),
    "studio": ModelConfig(provider="lm-studio", model="qwen"),
    "llama": ModelConfig(provider="llama", model_path="/models/smol.gguf"),
    "deepseek": ModelConfig(provider="deepseek", model="deepseek-v4", api_key="sk-x"),
    "gemini": ModelConfig(provider="gemini", model="gemini-3-pro", api_key="sk-x"),
}
CONFIG = LLMConfig(models=MODELS, storage=StorageConfig(window="drop"))


def body(env: LLMEnv, call: int = -1) -> str:
    """Return the body that would be sent."""
    sent = env.clients.calls[call]
    target = target_of(sent.model, MODELS[sent.model]).unwrap()
    return provider_of(target, sent.request).encode(target, sent.request, False).unwrap().body.decode()


def thinking(text: str) -> LLMResponse:
    parts = (Reasoning("Hm", THOUGHT, Origin("anthropic", "claude-opus-5-5")), Text(text))
    return evolve(answer(text), parts=parts)


def sealed(text: str) -> LLMResponse:
    return evolve(answer(text), parts=(Reasoning("", SEALED, Origin("openai-responses", "gpt-6-luna")), Text(text)))


async def say(env: LLMEnv, model: str, text: str = "and?", **options: object) -> None:
    (await run(converse("c", LLMRequest(prompt=text, model=model, **options)), env)).unwrap()


async def env_with_conversation(*replies: Reply, config: LLMConfig = CONFIG) -> LLMEnv:
    env = scripted_env(*replies, config=config)
    (await run(start_conversation("c", system="Be brief."), env)).unwrap()
    return env


async def test_thinking_returns_byte_for_byte_to_its_own_provider_only() -> None:
    env = await env_with_conversation(thinking("one"), sealed("two"), "three", "four", "five", "six")
    await say(env, "claude")
    for model in ("gpt", "studio", "llama"):
        await say(env, model)
        assert "EqQB" not in body(env)
    await say(env, "claude")
    assert THOUGHT in body(env)
    assert "gAAAA" not in body(env)
    await say(env, "gpt")
    assert SEALED in body(env)
    assert "EqQB" not in body(env)


CHANGES: list[Callable[[LLMEnv], object]] = [
    lambda env: say(env, "claude", "with a tool", tools=(Tool("time"),)),
    lambda env: say(env, "claude", "in another tone", system="Be long."),
]


@pytest.mark.parametrize("change", CHANGES)
async def test_thinking_is_stripped_when_the_prompt_before_it_has_changed(change: Callable[[LLMEnv], object]) -> None:
    env = await env_with_conversation(thinking("one"), "two", "three")
    await say(env, "claude")
    await change(env)  # type: ignore[misc]
    assert "EqQB" not in body(env)
    await say(env, "claude")
    assert THOUGHT in body(env)


async def test_thinking_is_stripped_when_older_turns_were_left_out() -> None:
    small = evolve(MODELS["claude"], context_length=1200, max_tokens=200)
    env = await env_with_conversation(
        thinking("one"), "two", "three", config=evolve(CONFIG, models={**MODELS, "claude": small})
    )
    await run(append_messages("c", (Message("user", "x" * 1200), Message("assistant", "y" * 1200))), env)
    await say(env, "claude", "z" * 800)
    await say(env, "claude")
    assert THOUGHT in body(env)
    await say(env, "claude", "z" * 1200)
    assert "xxx" not in body(env)
    assert "one" in body(env)
    assert "EqQB" not in body(env)


async def test_thinking_before_a_tool_call_is_sent_back_with_the_result() -> None:
    call = ToolCall("toolu_1", "time", '{"zone": "UTC"}')
    parts = (Reasoning("Hm", THOUGHT, Origin("anthropic", "claude-opus-5-5")), call)
    env = await env_with_conversation(evolve(answer(""), parts=parts, finish_reason=FinishReason.TOOL_CALLS), "noon")
    tools = (Tool("time"),)
    await say(env, "claude", "time?", tools=tools)
    result = LLMRequest(messages=(Message("tool", ToolResult("toolu_1", "noon")),), model="claude", tools=tools)
    (await run(converse("c", result), env)).unwrap()
    turns = json.loads(body(env))["messages"]
    assert [block["type"] for block in turns[1]["content"]] == ["thinking", "tool_use"]
    assert turns[2]["content"][0]["tool_use_id"] == "toolu_1"
    assert THOUGHT in body(env)


CONTENT = '{"reasoning_content":"Hm…  \\"two\\" \\n"}'
SIGNATURE = '{"tool_call_id":"c1","extra_content":{"google":{"thought_signature":"CpQB+/=="}}}'
CHAT_SEALS = [
    ("deepseek", "deepseek-v4", CONTENT, CONTENT[1:-1]),
    ("gemini", "gemini-3-pro", SIGNATURE, SIGNATURE[21:-1]),
]


@pytest.mark.parametrize(("name", "served", "opaque", "sent"), CHAT_SEALS)
async def test_fault_180_thinking_of_chat_completions_returns_to_its_own_model_only(
    name: str, served: str, opaque: str, sent: str
) -> None:
    parts = (Reasoning("Hm", opaque, Origin(name, served)), ToolCall("c1", "time", "{}"))
    first = evolve(answer(""), parts=parts, finish_reason=FinishReason.TOOL_CALLS)
    env = await env_with_conversation(first, "noon", "and", "so", "it", "goes", "on")
    tools = (Tool("time"),)
    await say(env, name, "time?", tools=tools)
    result = LLMRequest(messages=(Message("tool", ToolResult("c1", "noon")),), model=name, tools=tools)
    (await run(converse("c", result), env)).unwrap()
    assert sent in body(env)
    for other in MODELS.keys() - {name}:
        await say(env, other, tools=tools)
        assert sent not in body(env)
        assert "Hm" not in body(env)


@pytest.mark.parametrize(("name", "served", "opaque", "sent"), CHAT_SEALS)
async def test_fault_180_thinking_that_does_not_depend_on_its_prompt_is_kept_when_that_changes(
    name: str, served: str, opaque: str, sent: str
) -> None:
    parts = (Reasoning("Hm", opaque, Origin(name, served)), ToolCall("c1", "time", "{}"))
    history = (Message("user", "time?"), Message("assistant", parts), Message("tool", ToolResult("c1", "noon")))
    env = await env_with_conversation("one", "two")
    await run(append_messages("c", history), env)
    await say(env, name, system="Be long.")
    assert sent in body(env)


PICTURE = Image(b"\x89PNG", "image/png")
CARRIED = {
    "claude": ('"system":"Be brief."', '"type":"tool_use"', '"tool_use_id":"call_1"', '"media_type":"image/png"'),
    "gpt": ('"instructions":"Be brief."', '"type":"function_call"', '"function_call_output"', "data:image/png;base64,"),
    "studio": ('"role":"system"', '"tool_calls"', '"tool_call_id":"call_1"', "data:image/png;base64,"),
    "llama": ('"role":"system"', '"tool_calls"', '"tool_call_id":"call_1"', "data:image/png;base64,"),
}


@pytest.mark.parametrize("model", CARRIED)
async def test_system_text_images_and_calls_reach_every_provider(model: str) -> None:
    images = {name: evolve(each, capabilities=evolve(each.capabilities, images=True)) for name, each in MODELS.items()}
    env = await env_with_conversation("ok", config=evolve(CONFIG, models=images))
    before = (
        Message("user", (Text("what is this?"), PICTURE)),
        Message("assistant", ToolCall("call_1", "look", '{"at": 1}')),
        Message("tool", ToolResult("call_1", "a cat")),
        Message("assistant", "A cat."),
    )
    (await run(append_messages("c", before), env)).unwrap()
    await say(env, model)
    assert [each for each in CARRIED[model] if each not in body(env)] == []


async def test_roles_alternate_for_every_provider_after_a_broken_turn() -> None:
    from llm_effects import MalformedResponse

    once = evolve(CONFIG, routing=evolve(CONFIG.routing, max_retries=0))
    env = await env_with_conversation("one", MalformedResponse(), "two", config=once)
    await say(env, "claude", "first")
    await run(converse("c", LLMRequest(prompt="broken", model="claude")), env)
    await say(env, "claude", "third", preferences=Preferences(max_tokens=9))
    assert [turn["role"] for turn in json.loads(body(env))["messages"]] == ["user", "assistant", "user"]


def dialogue(thoughts: list[bool], opening: bytes) -> tuple[StoredMessage, ...]:
    """Return answers with and without thinking, each with the digest of the prompt before it."""
    digest, made = opening, list[StoredMessage]()
    for at, thinks in enumerate(thoughts):
        question = Message("user", f"q{at}")
        parts = (Reasoning("", THOUGHT, Origin("anthropic", "m")),) if thinks else ()
        reply = Message("assistant", (*parts, Text(f"a{at}")))
        prefix = extend_digest(digest, question)
        source = Provenance(model="m", provider="anthropic", prefix=prefix.hex())
        made.append(StoredMessage(id=f"q{at}", message=question, at=AT))
        made.append(StoredMessage(id=f"a{at}", message=reply, at=AT, provenance=source))
        digest = extend_digest(prefix, reply)
    return tuple(made)


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.data())
def test_thinking_stays_exactly_while_everything_before_it_is_unchanged(
    thoughts: list[bool], data: st.DataObject
) -> None:
    opening = opening_digest(LLMRequest(prompt="?", system="s"))
    stored = dialogue(thoughts, opening)
    assert without_stale_thinking(stored, opening, whole=True) == tuple(each.message for each in stored)
    cut = data.draw(st.integers(1, len(thoughts))) * 2
    for kept in (stored[cut:], stored[:1] + stored[2:]):
        sent = without_stale_thinking(kept, opening, whole=False)
        assert not any(isinstance(part, Reasoning) for each in sent for part in each.parts)
        assert [each.text for each in sent] == [each.message.text for each in kept]
