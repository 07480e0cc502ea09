"""What models can do: rows by name, the configuration first."""

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llm_effects.config.models import Capabilities, ModelConfig
from llm_effects.providers.capabilities import EFFORTS, capabilities_of, claude_rules, gpt_rules
from llm_effects.providers.presets import PRESETS


def able(provider: str, model: str | None, **config: object) -> Capabilities:
    return capabilities_of(PRESETS[provider], ModelConfig(provider=provider, model=model, **config))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "window", "output"),
    [
        ("claude-fable-5-2", 1_000_000, 128_000),
        ("claude-mythos-5-2", 1_000_000, 128_000),
        ("claude-opus-5-5", 1_000_000, 128_000),
        ("claude-opus-5", 1_000_000, 128_000),
        ("claude-haiku-5-5", 1_000_000, 128_000),
        ("claude-sonnet-4-6", 1_000_000, 128_000),
        ("claude-haiku-4-5-20251001", 200_000, 64_000),
    ],
)
def test_claude_windows(model: str, window: int, output: int) -> None:
    found = able("anthropic", model)
    assert (found.context_length, found.max_output) == (window, output)


@pytest.mark.parametrize(
    ("model", "window"),
    [
        ("gpt-6.2-astra", 1_050_000),
        ("gpt-6-luna", 1_050_000),
        ("gpt-5.6-terra", 1_050_000),
        ("gpt-5.5", 1_000_000),
        ("gpt-5.4", 1_050_000),
        ("gpt-5.4-mini", 400_000),
        ("gpt-4.1-mini", 1_000_000),
        ("gpt-4o", None),
    ],
)
def test_gpt_windows(model: str, window: int | None) -> None:
    assert able("openai", model).context_length == window


@pytest.mark.parametrize(
    ("model", "sampling"),
    [
        ("claude-opus-4-7", False),
        ("claude-sonnet-5", False),
        ("claude-haiku-5-5", False),
        ("claude-fable-5-1", False),
        ("claude-sonnet-4-6", True),
        ("claude-haiku-4-5", True),
        ("claude-sonnet-4-20250514", True),
    ],
)
def test_sampling_depends_on_the_model_and_the_version_spoken(model: str, sampling: bool) -> None:
    assert able("anthropic", model, wire_version="2023-06-01").sampling is sampling
    assert able("anthropic", model, wire_version="2026-10-21").sampling is False


@pytest.mark.parametrize(("model", "sampling"), [("gpt-5", False), ("gpt-5.4", True), ("gpt-6-sol", False)])
def test_gpt_sampling(model: str, sampling: bool) -> None:
    assert able("openai-chat", model).sampling is sampling


ALWAYS_THINK = ["gpt-6-astra", "gpt-6.1-sol", "gpt-6.2-astra", "gpt-6.2-sol"]


@pytest.mark.parametrize("model", ALWAYS_THINK)
def test_models_that_always_think_take_tools_over_responses_only(model: str) -> None:
    assert able("openai-chat", model).tools is False
    assert [able(provider, model).tools for provider in ("openai", "openai-responses", "azure")] == [True] * 3


@pytest.mark.parametrize("model", ["gpt-6.1-terra", "gpt-6-luna", "gpt-5.6-sol", "gpt-5.4", "gpt-4.1"])
@pytest.mark.parametrize("provider", ["openai", "openai-chat", "openai-responses"])
def test_others_take_them_over_both(provider: str, model: str) -> None:
    assert able(provider, model).tools is True


@pytest.mark.parametrize(
    ("model", "responses"),
    [
        *((model, "tools") for model in ALWAYS_THINK),
        ("gpt-6-luna", "thinking_tools"),
        ("gpt-5.6-sol", "thinking_tools"),
        ("gpt-5.4-mini-2026-03-17", "thinking_tools"),
        ("openai/gpt-5.5", "thinking_tools"),
        ("gpt-5.2", "never"),
        ("gpt-5", "never"),
        ("gpt-4.1", "never"),
        ("o3", "never"),
        ("gpt-5-pro-2025-10-06", "always"),
        ("gpt-5.1-codex-max", "always"),
        ("codex-mini-latest", "always"),
        ("o3-deep-research", "always"),
        ("o3-pro", "always"),
        ("my-deployment", "never"),
        ("mistral-pro", "never"),
    ],
)
def test_what_a_model_needs_responses_for(model: str, responses: str) -> None:
    assert gpt_rules(model).responses == responses


@pytest.mark.parametrize(
    ("model", "least", "most"),
    [
        ("gpt-6.2-sol", "low", "max"),
        ("gpt-6-luna", "none", "max"),
        ("gpt-5.4", "none", "max"),
        ("gpt-5", "minimal", "high"),
        ("o3", "low", "high"),
        ("gpt-5-pro", "high", "high"),
        ("my-deployment", "none", "max"),
    ],
)
def test_which_efforts_a_model_takes(model: str, least: str, most: str) -> None:
    efforts = gpt_rules(model).efforts
    assert (efforts[0], efforts[-1]) == (least, most)
    assert list(efforts) == [effort for effort in EFFORTS if effort in efforts]


def test_minimal_is_gone_since_gpt_5_6() -> None:
    assert "minimal" not in gpt_rules("gpt-5.6-sol").efforts


@pytest.mark.parametrize(("model", "prefill"), [("claude-haiku-4-5", True), ("claude-opus-4-6", False)])
def test_new_claudes_do_not_continue_an_answer(model: str, prefill: bool) -> None:
    assert able("anthropic", model).prefill is prefill


@pytest.mark.parametrize("provider", ["ollama", "lm-studio", "openai-compatible", "llama"])
def test_little_is_presumed_of_other_servers(provider: str) -> None:
    documents = None if provider == "openai-compatible" else False
    images = False if provider == "llama" else None
    nothing = Capabilities(documents=documents, images=images)
    assert able(provider, "gpt-6-luna") == nothing
    assert able(provider, "m", context_length=4096) == evolve(nothing, context_length=4096)


@given(
    st.sampled_from(["context_length", "max_output", "tools", "images", "schema", "sampling", "reasoning", "prefill"]),
    st.sampled_from(["claude-haiku-4-5", "claude-opus-5-5", "unheard-of"]),
    st.booleans(),
)
def test_what_is_configured_wins_field_by_field(field: str, model: str, flag: bool) -> None:
    value = 77 if field in {"context_length", "max_output"} else flag
    found = able("anthropic", model, capabilities=Capabilities(**{field: value}))  # type: ignore[arg-type]
    usual = able("anthropic", model)
    fields = Capabilities.__attrs_attrs__
    differing = {each.name for each in fields if getattr(found, each.name) != getattr(usual, each.name)}
    assert getattr(found, field) == value
    assert differing <= {field}


@pytest.mark.parametrize(
    ("model", "off", "forced"),
    [
        ("claude-opus-5-5", None, False),
        ("claude-fable-5", None, True),
        ("claude-sonnet-5-5", "between_tools", False),
        ("claude-haiku-5-5", "disabled", True),
        ("claude-opus-5-20260601", "disabled", True),
        ("anthropic/claude-mythos-5-2", None, False),
        ("claude-tomorrow-9", "disabled", True),
    ],
)
def test_how_thinking_is_switched_off_and_where_a_tool_may_be_forced(model: str, off: str | None, forced: bool) -> None:
    assert (claude_rules(model).off, claude_rules(model).forced_choice) == (off, forced)
