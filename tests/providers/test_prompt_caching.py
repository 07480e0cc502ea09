"""Prompt caching: where Claude's marks stand, which key GPT gets, and that prefixes stay the same."""

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import anyio
import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_effects import LLMConfig, LLMEnv, run, run_tools, scripted_env, start_conversation, toolkit
from llm_effects.config.models import ModelConfig
from llm_effects.conversations import converse
from llm_effects.policies.cache import cache_key
from llm_effects.policies.repair import corrected
from llm_effects.providers.anthropic import ANTHROPIC
from llm_effects.providers.base import Provider
from llm_effects.providers.openai_chat import OPENAI_CHAT
from llm_effects.providers.openai_responses import OPENAI_RESPONSES
from llm_effects.providers.prompt_caching import describe_caching
from llm_effects.providers.registry import target_of
from llm_effects.providers.target import Target
from llm_effects.testing import Reply, answer, calling, scripted
from llm_effects.values.messages import Document, Image, Message, Part, Text, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest, PromptCache, Tool

Json = dict[str, Any]

LONG = "The disks of the shop are full on Fridays. " * 60  # about 650 tokens
FOR_5_MINUTES = {"type": "ephemeral"}
FOR_AN_HOUR = {"type": "ephemeral", "ttl": "1h"}
FREE = Tool("free", LONG)


def claude(model: str = "claude-opus-5-5", **config: Any) -> Target:
    given_config = {"provider": "anthropic", "model": model, "api_key": "sk-canary", **config}
    return target_of("claude", ModelConfig(**given_config)).unwrap()


def gpt(provider: str = "openai", **config: Any) -> Target:
    given_config = {"provider": provider, "model": "gpt-6-luna", "api_key": "sk-canary", **config}
    return target_of("gpt", ModelConfig(**given_config)).unwrap()


def body(request: LLMRequest, target: Target | None = None, protocol: Provider = ANTHROPIC) -> Json:
    decoded: Json = json.loads(protocol.encode(target or claude(), request, False).unwrap().body)
    return decoded


def marks(encoded: Json) -> list[str]:
    """Return where the marks of a body are, in the order in which the provider reads it."""
    system = encoded.get("system", "")
    blocks = [
        *((f"tools[{at}]", tool) for at, tool in enumerate(encoded.get("tools", ()))),
        *((f"system[{at}]", each) for at, each in enumerate(system if isinstance(system, list) else ())),
        *(
            (f"messages[{at}][{place}]", block)
            for at, turn in enumerate(encoded["messages"])
            for place, block in enumerate(turn["content"])
        ),
    ]
    return [name for name, block in blocks if "cache_control" in block]


def chat(*texts: str | Part) -> tuple[Message, ...]:
    return tuple(Message(("user", "assistant")[at % 2], text) for at, text in enumerate(texts))


# Where the marks are


def test_the_exact_body_of_a_conversation() -> None:
    request = LLMRequest(messages=chat(LONG, "Since when?", "Why?"), system=LONG, tools=(FREE,), conversation="c")
    text = {"type": "text"}
    assert body(request) == {
        "model": "claude-opus-5-5",
        "max_tokens": 8192,
        "tools": [
            {
                "name": "free",
                "description": LONG,
                "input_schema": {"type": "object", "properties": {}},
                "cache_control": FOR_5_MINUTES,
            }
        ],
        "system": [{**text, "text": LONG, "cache_control": FOR_5_MINUTES}],
        "messages": [
            {"role": "user", "content": [{**text, "text": LONG, "cache_control": FOR_5_MINUTES}]},
            {"role": "assistant", "content": [{**text, "text": "Since when?"}]},
            {"role": "user", "content": [{**text, "text": "Why?", "cache_control": FOR_5_MINUTES}]},
        ],
    }


def test_the_results_of_a_tool_loop_are_the_end_of_its_prefix() -> None:
    call, result = ToolCall("c1", "free", "{}"), ToolResult("c1", LONG)
    request = LLMRequest(messages=(Message("user", LONG), Message("assistant", call), Message("tool", result)))
    assert body(request)["messages"][-1]["content"] == [
        {"type": "tool_result", "tool_use_id": "c1", "content": LONG, "cache_control": FOR_5_MINUTES}
    ]


def test_fault_193_one_prompt_has_no_marks_however_long() -> None:
    long = LONG * 50
    for request in (
        LLMRequest(prompt=long, system=long, tools=(FREE,)),
        LLMRequest(messages=(Message("user", long),), system=long),
        LLMRequest(messages=(Message("user", long), Message("assistant", "The disks"))),  # an answer to continue
    ):
        assert marks(body(request, claude("claude-haiku-4-5"))) == []


def test_fault_193_an_answer_that_is_sent_back_once_writes_nothing() -> None:
    again = corrected(LLMRequest(prompt=LONG * 10), answer("many"), ("$: is not JSON",))
    assert marks(body(again)) == []
    marked = LLMRequest(messages=(Message("user", (Text(LONG, cache=True), Text("How many?"))),))
    assert "messages[0][0]" in marks(body(corrected(marked, answer("many"), ("$: is not JSON",))))


@pytest.mark.parametrize(
    ("model", "characters", "is_marked"),
    [
        ("claude-opus-5", 900, False),
        ("claude-opus-5", 1_200, True),
        ("claude-sonnet-4-6", 1_900, False),
        ("claude-sonnet-4-6", 2_100, True),
        ("claude-haiku-4-5", 7_900, False),
        ("claude-haiku-4-5", 8_200, True),
        ("claude-of-next-year", 1_200, True),
    ],
)
def test_a_prefix_that_is_surely_too_short_has_no_marks(model: str, characters: int, *, is_marked: bool) -> None:
    request = LLMRequest(prompt="x" * characters, conversation="c")
    assert bool(marks(body(request, claude(model)))) is is_marked


def test_fault_190_a_request_has_at_most_four_marks_and_the_last_of_its_own() -> None:
    parts = [Text(f"{at}: {LONG}", cache=True) for at in range(6)]
    request = LLMRequest(messages=(Message("user", parts),), system=LONG, conversation="c")
    assert marks(body(request)) == [f"messages[0][{at}]" for at in (2, 3, 4, 5)]
    warnings = ANTHROPIC.encode(claude(), request, False).unwrap().warnings
    assert warnings == ("cache: of 6 marks the last 4 are sent, as many as the provider accepts",)


def test_every_part_of_a_user_can_be_marked() -> None:
    parts = (
        Text("Read this.", cache=True),
        Document(b"df: 97 %", "text/plain", cache=True),
        Image(b"GIF89a", cache=True),
        Text("Why?"),
    )
    assert marks(body(LLMRequest(messages=(Message("user", parts),)))) == [f"messages[0][{at}]" for at in range(3)]
    call, result = Message("assistant", ToolCall("c1", "free")), Message("tool", ToolResult("c1", "3 %", cache=True))
    assert "messages[2][0]" in marks(body(LLMRequest(messages=(Message("user", "Why?"), call, result))))


def test_a_marked_system_message_splits_what_stays_from_what_changes() -> None:
    stable, today = Message("system", Text("Rules.", cache=True)), Message("system", "It is Friday.")
    request = LLMRequest(messages=(stable, today, Message("user", "Why?")), system="Be brief.")
    assert body(request)["system"] == [
        {"type": "text", "text": "Be brief.\n\nRules.", "cache_control": FOR_5_MINUTES},
        {"type": "text", "text": "\n\nIt is Friday."},
    ]


def test_an_hour_is_for_all_marks_of_a_request() -> None:
    request = LLMRequest(messages=chat(LONG, "Since when?", Text("Why?", cache=True)), system=LONG, conversation="c")
    for target, kept in ((claude(prompt_cache="1h"), None), (claude(), "1h")):
        encoded = body(evolve(request, prompt_cache=kept), target)
        blocks = [*encoded["system"], *(block for turn in encoded["messages"] for block in turn["content"])]
        assert [each["cache_control"] for each in blocks if "cache_control" in each] == [FOR_AN_HOUR] * 3


@pytest.mark.parametrize(("configured", "requested"), [("off", None), ("5m", "off"), ("1h", "off")])
def test_off_sends_neither_marks_nor_a_key(configured: PromptCache, requested: PromptCache | None) -> None:
    request = LLMRequest(
        messages=chat(Text(LONG, cache=True), "Since when?", "Why?"), conversation="c", prompt_cache=requested
    )
    assert "cache_control" not in json.dumps(body(request, claude(prompt_cache=configured)))
    assert "prompt_cache_key" not in body(request, gpt(prompt_cache=configured), OPENAI_CHAT)


def test_marks_are_for_claude_alone() -> None:
    request = LLMRequest(messages=chat(Text(LONG, cache=True)))
    for protocol in (OPENAI_CHAT, OPENAI_RESPONSES):
        assert "cache" not in json.dumps(body(request, gpt(), protocol))


def test_a_mark_is_no_part_of_the_question() -> None:
    config = LLMConfig(models={"claude": ModelConfig(provider="anthropic", model="claude-opus-5-5", api_key="k")})
    plain, marked = (LLMRequest(messages=chat(Text(LONG, cache=cache))) for cache in (False, True))
    assert cache_key(plain, config) == cache_key(marked, config)
    assert cache_key(evolve(plain, conversation="c", prompt_cache="1h"), config) == cache_key(plain, config)


# The key of GPT


def key(target: Target, protocol: Provider = OPENAI_CHAT, **request: Any) -> str | None:
    found: str | None = body(LLMRequest(prompt="Why?", **request), target, protocol).get("prompt_cache_key")
    return found


def test_fault_191_a_conversation_has_a_key_that_names_neither_it_nor_its_owner() -> None:
    named = partial(key, gpt(), conversation="case-4711", owner="alice@example.org")
    assert named() == named() == named(protocol=OPENAI_RESPONSES)
    found = named() or ""
    assert len(found) == 32
    assert int(found, 16)
    other_key = partial(key, gpt(api_key="sk-other"), conversation="case-4711", owner="alice@example.org")
    others = (
        key(gpt(), conversation="case-4711", owner="bob"),
        key(gpt(), conversation="case-4711"),
        key(gpt(), conversation="case-4712", owner="alice@example.org"),
        other_key(),  # so a list of likely names does not find it
    )
    assert len({found, *others}) == 5


@pytest.mark.parametrize(
    ("target", "has_key"),
    [
        (gpt(), True),
        (gpt("openai-chat"), True),
        (gpt("openai-responses"), True),
        (gpt(endpoint="https://eu.api.openai.com/v1"), True),
        (gpt("azure", endpoint="https://shop.openai.azure.com/openai/v1"), True),
        (gpt(endpoint="https://api.openai.com.example.org/v1"), False),
        (gpt(endpoint="http://localhost:4000/v1"), False),
        (gpt("openrouter"), False),
        (gpt("mistral"), False),
        (gpt("gemini"), False),
        (gpt("openai-compatible", endpoint="https://llm.example.org/v1"), False),
    ],
    ids=lambda each: each.preset.name if isinstance(each, Target) else "",
)
def test_fault_191_only_servers_that_are_known_to_take_a_key_get_one(target: Target, *, has_key: bool) -> None:
    assert (key(target, conversation="c") is not None) is has_key
    assert key(target) is None


# Prefixes that stay the same


def unmarked(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: unmarked(each) for name, each in value.items() if name != "cache_control"}
    return [*map(unmarked, value)] if isinstance(value, list) else value


def system_of(encoded: Json) -> str:
    system = encoded.get("system") or encoded.get("instructions") or ""
    return system if isinstance(system, str) else "".join(block["text"] for block in system)


def prefixes(requests: Sequence[LLMRequest]) -> Iterator[tuple[bytes, tuple[bytes, ...]]]:
    """Yield the bytes before all turns, and those of each turn, for all requests at one protocol after another."""
    for target, protocol in ((claude(), ANTHROPIC), (gpt(), OPENAI_CHAT), (gpt(), OPENAI_RESPONSES)):
        for request in requests:
            encoded = body(request, target, protocol)
            turns = unmarked(encoded.get("messages") or encoded["input"])
            opening = [unmarked(encoded.get("tools", [])), system_of(encoded)]
            yield json.dumps(opening).encode(), tuple(json.dumps(turn).encode() for turn in turns)


def assert_growing(requests: Sequence[LLMRequest]) -> None:
    every = [*prefixes(requests)]
    for at in range(3):
        encoded = every[at * len(requests) : (at + 1) * len(requests)]
        for (opening, turns), (next_opening, next_turns) in pairwise(encoded):
            assert opening == next_opening
            assert turns == next_turns[: len(turns)]
            assert len(turns) < len(next_turns)


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=30).filter(str.strip)
VALUES = st.dictionaries(st.sampled_from(["path", "b", "a", "ü"]), TEXTS | st.integers() | st.none(), max_size=3)
STEPS = st.lists(st.lists(VALUES, min_size=1, max_size=3), min_size=1, max_size=4)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=2, max_size=5), TEXTS)
@settings(max_examples=30, deadline=None)
def test_fault_189_each_turn_of_a_conversation_begins_with_the_bytes_of_the_one_before(
    turns: list[tuple[str, str]], system: str
) -> None:
    model = scripted(*(reply for _, reply in turns))

    async def talk() -> None:
        env = scripted_env(clients=model)
        (await run(start_conversation("c", system=system), env)).unwrap()
        for question, _ in turns:
            (await run(converse("c", question), env)).unwrap()

    anyio.run(talk)
    assert {request.conversation for request in model.requests} == {"c"}
    assert_growing(model.requests)


def arguments(given: dict[str, object]) -> str:
    return json.dumps({"path": str(given)})


def steps_of(steps: list[list[dict[str, object]]]) -> list[Reply]:
    calls = (
        calling(*(ToolCall(f"c{at}_{place}", "free", arguments(given)) for place, given in enumerate(step)))
        for at, step in enumerate(steps)
    )
    return [*calls, "Nearly full."]


def free_space(path: str) -> str:
    """Return how much of a place is free."""
    return f"3 % of {path}"


free_space.__name__ = "free"


@given(STEPS, TEXTS)
@settings(max_examples=30, deadline=None)
def test_fault_189_each_step_of_a_tool_loop_begins_with_the_bytes_of_the_one_before(
    steps: list[list[dict[str, object]]], question: str
) -> None:
    model = scripted(*steps_of(steps))

    async def work(env: LLMEnv) -> None:
        request = LLMRequest(prompt=question, system="Look before you answer.")
        (await run(run_tools(request, toolkit(free_space)), env)).unwrap()

    anyio.run(work, scripted_env(clients=model))
    assert len({request.conversation for request in model.requests}) == 1
    assert model.requests[0].conversation is not None
    assert_growing(model.requests)


# What explain says


@pytest.mark.parametrize(
    ("target", "request_", "tokens", "expected"),
    [
        (claude(), LLMRequest(prompt="Why?"), 9000, "no: a single prompt, for which a write costs more than it saves"),
        (claude(), LLMRequest(prompt="Why?", conversation="c"), 100, "no: about 100 tokens, it caches 512 or more"),
        (claude(), LLMRequest(prompt="Why?", conversation="c"), 9000, "yes: about 9000 tokens, for 5 minutes"),
        (
            claude(prompt_cache="1h"),
            LLMRequest(prompt="Why?", conversation="c"),
            900,
            "yes: about 900 tokens, for an hour",
        ),
        (claude(prompt_cache="off"), LLMRequest(prompt="Why?", conversation="c"), 900, "no: prompt_cache is off"),
        (gpt(), LLMRequest(prompt="Why?", conversation="c"), 9000, "yes: with a key of the conversation"),
        (gpt(), LLMRequest(prompt="Why?"), 9000, "yes: by itself"),
        (gpt(), LLMRequest(prompt="Why?"), 900, "no: about 900 tokens, it caches 1024 or more"),
        (gpt("ollama"), LLMRequest(prompt="Why?"), 9000, "unknown: the server decides"),
    ],
)
def test_the_reason_for_caching_or_not(target: Target, request_: LLMRequest, tokens: int, expected: str) -> None:
    assert describe_caching(target, request_, tokens) == expected
