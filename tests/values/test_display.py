"""Reprs show what is set in a line or two, notebooks get escaped Markdown, and stored values are JSON."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import TypeVar, get_args

import anyio
import attrs
import pytest

from llm_effects import (
    Allow,
    Attempt,
    Cost,
    Effect,
    FinishReason,
    Image,
    InvalidRequest,
    LLMConfig,
    LLMError,
    LLMRequest,
    LLMResponse,
    Message,
    ModelConfig,
    NetworkError,
    Preferences,
    RequestFailed,
    TaskType,
    Text,
    ToolCall,
    Usage,
    check_health,
    explain,
    generate,
    load_config,
    make_llm_manager,
    run,
    scripted_env,
    then,
    usage_report,
)
from llm_effects.config import BreakerConfig, CacheConfig, Capabilities, RoutingConfig
from llm_effects.manager import LLMManager
from llm_effects.values import Conversation, from_json, to_json
from llm_effects.values.records import CacheStats, LedgerRow, ModelHealth, Statistics

_Value = TypeVar("_Value")

NOW = datetime(2026, 11, 29, tzinfo=UTC)
KEY = "sk-live-canary"
HOSTILE = "**bold** <img src=x onerror=alert(1)> [a](http://evil.example) $x$ | cell\n# head\n\x1b[31m"

EVALUABLE = [
    LLMRequest(prompt="why?"),
    LLMRequest(
        messages=[Message("user", [Text("why?"), Image(url="https://a.example/x.png")])],
        task_type="analysis",
        preferences=Preferences(temperature=0.25, stop="\n"),
        allow=["cheaper_model", "fallback_on_refusal"],
        tags=("a",),
    ),
    Usage(input_tokens=3, estimated=True),
    Attempt(model="gpt", provider="openai", outcome="success", latency_ms=12.0, cost=Cost(Decimal("0.1"))),
    NetworkError(model="gpt", phase="refused"),
    RequestFailed(errors=(NetworkError(model="gpt"),)),
    ToolCall("c1", "look"),
    RoutingConfig(strategy="cost", breaker=BreakerConfig(enabled=False)),
    ModelConfig(provider="lm-studio", capabilities=Capabilities(tools=True)),
    LLMConfig(models={"local": ModelConfig(provider="lm-studio")}, cache=CacheConfig(enabled=False)),
    ModelHealth(model="gpt", provider="openai", reachable=True),
    Statistics(attempts=3, latency_ms=12.5),
    CacheStats(entries=1),
]


@pytest.mark.parametrize("value", EVALUABLE, ids=lambda value: type(value).__name__)
def test_a_repr_shows_what_is_set_and_can_be_evaluated(value: object) -> None:
    names: dict[str, object] = {each.__name__: each for each in (*map(type, EVALUABLE), *get_args(LLMError))}
    names |= {"Allow": Allow, "Decimal": Decimal, "TaskType": TaskType, "Cost": Cost, "Message": Message, "Text": Text}
    names |= {"Image": Image, "Preferences": Preferences, "BreakerConfig": BreakerConfig, "CacheConfig": CacheConfig}
    names |= {"Capabilities": Capabilities}
    assert eval(repr(value), names) == value
    assert "None" not in repr(value)
    assert len(repr(value)) <= 300


@pytest.mark.parametrize("kind", get_args(LLMError), ids=lambda kind: kind.__name__)
def test_the_repr_of_an_error_is_no_wall(kind: type) -> None:
    needed = {field.name: "x" for field in attrs.fields(kind) if field.default is attrs.NOTHING}
    assert repr(kind(**needed, model="gpt")).count("=") == len(needed) + 1


def answered(content: str = "Because.") -> LLMResponse:
    return run_now(generate(LLMRequest(prompt="why?")), content)


def run_now(effect: Effect[_Value], content: str = "Because.") -> _Value:
    return anyio.run(run, effect, scripted_env(lambda _: content)).unwrap()


def test_a_response_names_its_attempts_by_model_and_outcome() -> None:
    response = attrs.evolve(answered(), latency_ms=12.3456789, finish_reason=FinishReason.LENGTH)
    assert repr(response) == (
        "LLMResponse(content='Because.', model='scripted', provider='scripted', finish_reason=FinishReason.LENGTH, "
        "usage=Usage(input_tokens=10, output_tokens=1), cost=Cost(usd=Decimal('0')), latency_ms=12.3457, "
        "attempts=<scripted: success>)"
    )


def test_long_texts_and_many_items_are_cut() -> None:
    request = LLMRequest(messages=[Message("user", "word " * 1000)] * 50)
    assert "44 more" in repr(request)
    assert len(repr(request)) < 2_000
    assert len(repr(answered("long " * 1000))) < 500


def test_keys_and_passwords_stay_hidden() -> None:
    model = ModelConfig(provider="openai", api_key=KEY, headers={"x-key": KEY}, endpoint="https://a.example/v1")
    for value in (model, LLMConfig(models={"gpt": model}), ModelConfig(provider="openai", api_keys=(KEY, KEY + "2"))):
        assert KEY not in repr(value)
    with pytest.raises(TypeError) as raised:
        ModelConfig(KEY)  # type: ignore[misc]
    assert KEY not in str(raised.value)
    with pytest.raises(TypeError):
        to_json(model)


def test_a_manager_shows_its_models_or_that_it_has_none() -> None:
    assert repr(make_llm_manager(LLMConfig(models={"a": ModelConfig(provider="lm-studio")}))) == "<LLMManager: a>"
    wrong = LLMManager(load_config(environ={"LLM_CACHE_MAX_SIZE": "many"}))
    assert repr(wrong) == "<LLMManager: its configuration is wrong>"


def test_an_effect_shows_the_name_of_its_operation() -> None:
    assert repr(generate(LLMRequest(prompt="why?"))) == "<RequiresContextFutureResult: generate>"
    assert repr(then(check_health(), lambda _: check_health())) == "<RequiresContextFutureResult: then>"


# Notebooks.


SHOWN: list[Callable[[], object]] = [
    lambda: attrs.evolve(answered(HOSTILE), warnings=(HOSTILE,)),
    lambda: run_now(explain(LLMRequest(prompt="why?", task_type=HOSTILE))),
    lambda: run_now(then(generate(LLMRequest(prompt="?", owner=HOSTILE)), lambda _: usage_report(by="owner"))),
    lambda: ModelHealth(model="gpt", provider="openai", message=HOSTILE, loaded=(HOSTILE,)),
]


@pytest.mark.parametrize("make", SHOWN, ids=["response", "decision", "report", "health"])
def test_what_notebooks_show_is_escaped(make: Callable[[], object]) -> None:
    markdown = str(make()._repr_markdown_())  # type: ignore[attr-defined]
    for markup in ("<img", "**bold", "[a](", "http://", "\x1b", "$x$", "\n# head"):
        assert markup not in markdown
    assert "bold" in markdown


def test_a_response_in_a_notebook_shows_its_text_and_its_facts() -> None:
    response = attrs.evolve(answered("One.\nTwo."), latency_ms=12.3, warnings=("cut",), cached=True)
    text, facts, warnings = response._repr_markdown_().split("\n\n")
    assert text == "One\\.  \nTwo\\."
    assert facts == "*scripted · 10 \\+ 2 tokens · \\$0 · 12 ms · cached*"
    assert warnings == "- cut"


def test_a_report_in_a_notebook_is_a_table_with_its_total() -> None:
    report = run_now(then(generate(LLMRequest(prompt="why?")), lambda _: usage_report(by=("model", "task"))))
    first, rule, row, total = report._repr_markdown_().splitlines()
    assert first.startswith("| model | task | requests |")
    assert set(rule) == set("| -")
    assert row.startswith("| scripted | general | 1 | 1 | 0 | 10 |")
    assert total.startswith("| total |  | 1 |")


# JSON.


STORED = [
    LLMRequest(messages=[Message("user", [Text("why?"), Image(data=b"GIF89a" + bytes(20))])], allow=["cheaper_model"]),
    Message("assistant", [ToolCall("c1", "look")]),
    Conversation(id="c", created_at=NOW, updated_at=NOW),
    LedgerRow(
        id="1", at=NOW, call_id="1", task_type=TaskType("own"),
        attempt=Attempt(model="gpt", provider="openai", outcome="success", latency_ms=1.5),
    ),
]  # fmt: skip


@pytest.mark.parametrize("value", STORED, ids=lambda value: type(value).__name__)
def test_stored_values_come_back_from_their_json(value: object) -> None:
    assert from_json(to_json(value), type(value)).unwrap() == value


def test_a_response_comes_back_from_its_json() -> None:
    response = answered()
    assert from_json(to_json(response), LLMResponse).unwrap() == response


def test_the_json_of_an_error_has_its_tag() -> None:
    failed = RequestFailed(errors=(NetworkError(model="gpt"), InvalidRequest(message="x")))
    assert to_json(failed).startswith('{"tag":"RequestFailed",')
    assert to_json(failed).count('"tag":') == 3


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"prompt": " "}'])
def test_other_texts_are_an_invalid_request(text: str) -> None:
    assert from_json(text, LLMRequest).failure().message == "the text is no LLMRequest as to_json writes it"
