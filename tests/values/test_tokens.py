"""Token estimates: every valid request has one."""

from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.values.messages import Image, Message, Part, Reasoning, Text, ToolCall, ToolResult
from llm_effects.values.requests import LLMRequest, Tool
from llm_effects.values.tokens import IMAGE_TOKENS, MESSAGE_OVERHEAD, EstimatedTokens, estimate_tokens

SCHEMA = {"type": "object", "required": ["a"]}


@given(st.text(min_size=1).filter(str.strip), st.text())
def test_a_longer_prompt_never_has_fewer_tokens(prompt: str, more: str) -> None:
    assert estimate_tokens(LLMRequest(prompt=prompt)) <= estimate_tokens(LLMRequest(prompt=prompt + more))
    assert EstimatedTokens().estimate(LLMRequest(prompt=prompt)) == estimate_tokens(LLMRequest(prompt=prompt))


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        (Text("x" * 40), 10),
        (Image(url="https://example.org/a.png"), IMAGE_TOKENS),
        (Reasoning("x" * 4, opaque="x" * 40), 10),
        (ToolCall("1", "look", "x" * 36), 10),
        (ToolResult("1", "x" * 40), 10),
    ],
)
def test_every_kind_of_part_counts(part: Part, tokens: int) -> None:
    assert estimate_tokens(LLMRequest(messages=[Message("user", part)])) == MESSAGE_OVERHEAD + tokens


def test_system_tools_and_schemas_count() -> None:
    bare = estimate_tokens(LLMRequest(prompt="x"))
    assert estimate_tokens(LLMRequest(prompt="x", system="x" * 40)) == bare + 10
    with_schema = estimate_tokens(LLMRequest(prompt="x", response_schema=SCHEMA))
    with_tool = estimate_tokens(LLMRequest(prompt="x", tools=[Tool("look", "around", SCHEMA)]))
    assert bare < with_schema < with_tool


@pytest.mark.parametrize(
    "schema", [MappingProxyType(SCHEMA), {"description": "\ud83d"}, {"maximum": 10**300}, {"enum": ("a", "b")}]
)
def test_every_schema_of_a_valid_request_has_an_estimate(schema: dict[str, object]) -> None:
    assert estimate_tokens(LLMRequest(prompt="x", response_schema=schema)) > MESSAGE_OVERHEAD
    assert estimate_tokens(LLMRequest(prompt="x", tools=[Tool("look", "", schema)])) > MESSAGE_OVERHEAD
