"""Requests: task types, preferences, tools and whole requests."""

import copy
import math
import pickle
from types import MappingProxyType

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.values.messages import Message, Text
from llm_effects.values.requests import (
    Allow,
    CachePolicy,
    LLMRequest,
    Preferences,
    Recovery,
    TaskType,
    Tool,
    request_messages,
)
from llm_effects.values.validation import InvalidValue


@given(st.text())
def test_a_task_type_equals_its_name(name: str) -> None:
    task = TaskType(name)
    assert task == name
    assert hash(task) == hash(name)
    assert task == TaskType(name)
    assert isinstance(pickle.loads(pickle.dumps(task)), TaskType)
    assert copy.deepcopy(task) == task


def test_the_four_built_in_task_types_have_names() -> None:
    built_in = [TaskType.ANALYSIS, TaskType.UI_GENERATION, TaskType.CONFIG_MANAGEMENT, TaskType.GENERAL]
    assert built_in == ["analysis", "ui_generation", "config_management", "general"]
    assert repr(TaskType.ANALYSIS) == "TaskType('analysis')"
    assert LLMRequest(prompt="x").task_type is TaskType.GENERAL


def test_a_custom_task_type_is_valid() -> None:
    assert LLMRequest(prompt="x", task_type="triage").task_type == TaskType("triage")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_tokens", bad) for bad in (0, -1, 1.5, True, "5", math.nan)),
        *(("temperature", bad) for bad in (-0.1, 2.1, math.nan, math.inf, "hot", False)),
        *(("top_p", bad) for bad in (0, 1.1, math.nan)),
        *(("timeout_ms", bad) for bad in (0, -5, math.inf, math.nan)),
        *((name, bad) for name in ("max_tokens", "seed", "timeout_ms") for bad in (10**400, 2**63)),
        pytest.param("seed", -(10**5000), id="huge"),
        ("seed", 1.0),
        ("stop", 5),
        ("reasoning_effort", "hard"),
        ("stop", ["a", 1]),
    ],
)
def test_an_invalid_preference_is_rejected_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidValue, match=rf"^{field}(\[1\])?: must be "):
        Preferences(**{field: value})  # type: ignore[arg-type]


@given(st.text())
def test_a_single_stop_text_becomes_a_tuple(stop: str) -> None:
    assert Preferences(stop=stop) == Preferences(stop=[stop])
    assert Preferences(stop=stop).stop == (stop,)


LOOK = Tool("look", "look around")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "prompt: give either prompt or messages"),
        ({"prompt": "x", "messages": [Message("user", "y")]}, "prompt: give either prompt or messages, not both"),
        ({"prompt": " "}, "prompt: must not be blank"),
        ({"messages": ["hello"]}, r"messages\[0\]: must be Message, not str"),
        ({"messages": "hello"}, "messages: must be several messages, not one str"),
        ({"messages": 5}, "messages: must be several values, not int"),
        ({"prompt": 5}, "prompt: must be a text, not int"),
        ({"prompt": "x", "system": 5}, "system: must be a text, not int"),
        ({"prompt": "x", "task_type": 5}, "task_type: must be a text, not int"),
        (
            {"prompt": "x", "preferences": {"max_tokens": -4}},
            "preferences: must be Preferences, not dict: write Preferences(...)",
        ),
        ({"prompt": "x", "preferences": None}, "preferences: must be Preferences, not NoneType"),
        ({"prompt": "x", "cache": "bogus"}, "cache: must be one of use, refresh, bypass, only, not 'bogus'"),
        ({"prompt": "x", "recovery": "x"}, "recovery: must be one of fail, restart, resume, not 'x'"),
        ({"prompt": "x", "allow": ("bogus",)}, "allow: must be one of fallback_on_refusal, cheaper_model, not 'bogus'"),
        ({"prompt": "x", "allow": [[]]}, "allow: must be one of fallback_on_refusal, cheaper_model, not list"),
        ({"prompt": "x", "allow": "cheaper_model"}, "allow: must be several values, not the single text"),
        ({"prompt": "x", "allow": 5}, "allow: must be several values, not int"),
        ({"prompt": "x", "tools": None}, "tools: must be several values, not NoneType"),
        ({"prompt": "x", "tool_choice": ["look"]}, "tool_choice: must be a text, not list"),
        ({"prompt": "x", "response_schema": "nope"}, "response_schema: must be a JSON object, not str"),
        ({"prompt": "x", "response_schema": {"a": [object()]}}, r"response_schema\.a\[0\]: must be JSON, not object"),
        ({"prompt": "x", "metadata": 5}, "metadata: must be a table, not int"),
        ({"prompt": "x", "metadata": {"a": 5}}, "metadata.a: must be str, not int"),
        ({"prompt": "x", "metadata": {5: "a"}}, "metadata: each key must be a text, not int"),
        ({"prompt": "x", "tags": [1]}, r"tags\[0\]: must be str, not int"),
        ({"prompt": "x", "task_type": " "}, "task_type: must not be blank"),
        ({"prompt": "x", "tools": [LOOK, LOOK]}, "tools: names must be unique"),
        ({"prompt": "x", "tools": ["look"]}, r"tools\[0\]: must be Tool, not str"),
        ({"prompt": "x", "tool_choice": "required"}, "tool_choice: must be auto, none, required or the name of a tool"),
        ({"prompt": "x", "tools": [LOOK], "tool_choice": "jump"}, "tool_choice: must be .* not 'jump'"),
        ({"prompt": "x", "tags": "urgent"}, "tags: must be several values"),
    ],
)
def test_an_invalid_request_names_the_field_and_the_remedy(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValue, match=f"^{message}"):
        LLMRequest(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": None}, "name: must be a text, not NoneType"),
        ({"name": "look", "description": 5}, "description: must be a text, not int"),
        ({"name": "look", "parameters": []}, "parameters: must be a JSON object, not list"),
        ({"name": "look", "parameters": {"a": {5: 1}}}, "parameters.a: each key must be a text, not int"),
    ],
)
def test_an_invalid_tool_names_the_field_and_the_remedy(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValue, match=f"^{message}$"):
        Tool(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", [None, "auto", "none", "required", "look"])
def test_every_tool_choice_is_valid_with_tools(choice: str | None) -> None:
    assert LLMRequest(prompt="x", tools=(LOOK,), tool_choice=choice).tool_choice == choice


def test_a_request_and_its_collections_are_frozen() -> None:
    request = LLMRequest(prompt="x", tools=[LOOK], tags=["a"], allow={Allow.CHEAPER_MODEL})
    assert (request.tools, request.tags, request.allow) == ((LOOK,), ("a",), frozenset({Allow.CHEAPER_MODEL}))
    assert (request.cache, request.recovery) == (CachePolicy.USE, Recovery.FAIL)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        request.prompt = "y"  # type: ignore[misc]


def test_a_repr_omits_metadata() -> None:
    assert "alice" not in repr(LLMRequest(prompt="x", metadata={"user": "alice"}))


@given(st.text(min_size=1).filter(str.strip))
def test_a_prompt_is_one_user_message(prompt: str) -> None:
    messages = (Message("user", (Text(prompt),)),)
    assert request_messages(LLMRequest(prompt=prompt)) == messages
    assert request_messages(LLMRequest(messages=messages)) == messages


SCHEMA = {"type": "object", "required": ["a"]}  # a variable, whose type is narrower than JSON's


def test_a_schema_is_copied_as_plain_json() -> None:
    required = ["a"]
    frozen = MappingProxyType({"type": "object", "required": required})
    request = LLMRequest(prompt="x", response_schema=frozen, tools=[Tool("look", parameters=frozen)])
    required.append("b")
    assert request.response_schema == request.tools[0].parameters == SCHEMA
    assert type(request.response_schema) is type(request.tools[0].parameters) is dict
    assert LLMRequest(prompt="x", response_schema=SCHEMA).response_schema == SCHEMA
    assert Tool("look", parameters=SCHEMA).parameters == SCHEMA


def test_metadata_is_copied() -> None:
    metadata = {"user": "alice"}
    request = LLMRequest(prompt="x", metadata=metadata)
    metadata.clear()
    assert request.metadata == {"user": "alice"}


@pytest.mark.parametrize("policy", CachePolicy)
@pytest.mark.parametrize("recovery", Recovery)
@pytest.mark.parametrize("permission", Allow)
def test_choices_may_be_given_by_their_texts(policy: CachePolicy, recovery: Recovery, permission: Allow) -> None:
    spelled = LLMRequest(prompt="x", cache=policy.value, recovery=recovery.value, allow=[permission.value])
    assert spelled == LLMRequest(prompt="x", cache=policy, recovery=recovery, allow=[permission])


@pytest.mark.parametrize("kind", [LLMRequest, Preferences])
def test_defaults_are_valid_as_they_are(kind: type) -> None:
    request = LLMRequest(prompt="why?")
    value = request if kind is LLMRequest else request.preferences
    for each in attrs.fields(kind):
        given = getattr(value, each.name)
        assert each.converter is None or each.converter(given) == given
        if each.validator is not None:
            each.validator(value, each, given)


def test_only_what_is_given_is_checked_and_it_always_is() -> None:
    names = [each.name for each in attrs.fields(LLMRequest)]
    for name in set(names) - {"metadata"}:
        with pytest.raises(InvalidValue, match=name):
            LLMRequest(**{"prompt": "why?", name: object()})  # type: ignore[arg-type]
    assert LLMRequest(prompt="why?").metadata is not LLMRequest(prompt="why?").metadata
    assert LLMRequest(prompt="why?").preferences is LLMRequest(prompt="why?").preferences
