"""The capabilities of models: rows by name, overridden by the configuration."""

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from llm_effects import (
    Document,
    Image,
    LLMConfig,
    LLMRequest,
    Message,
    explain,
    generate,
    run,
    scripted_env,
)
from llm_effects.config.models import Capabilities, ModelConfig
from llm_effects.providers.capabilities import EFFORTS, capabilities_of, claude_rules, gpt_rules
from llm_effects.providers.presets import PRESETS
from llm_effects.values import Part


def capabilities_for(provider: str, model: str | None, **config: object) -> Capabilities:
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
def test_claude_models_have_their_windows_and_output_limits(model: str, window: int, output: int) -> None:
    actual = capabilities_for("anthropic", model)
    assert (actual.context_length, actual.max_output) == (window, output)


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
def test_gpt_models_have_their_windows(model: str, window: int | None) -> None:
    assert capabilities_for("openai", model).context_length == window


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
def test_sampling_depends_on_the_model_and_the_protocol_version(model: str, sampling: bool) -> None:
    assert capabilities_for("anthropic", model, wire_version="2023-06-01").sampling is sampling
    assert capabilities_for("anthropic", model, wire_version="2026-10-21").sampling is False


@pytest.mark.parametrize(("model", "sampling"), [("gpt-5", False), ("gpt-5.4", True), ("gpt-6-sol", False)])
def test_sampling_of_gpt_models_is_known(model: str, sampling: bool) -> None:
    assert capabilities_for("openai-chat", model).sampling is sampling


ALWAYS_REASON = ["gpt-6-astra", "gpt-6.1-sol", "gpt-6.2-astra", "gpt-6.2-sol"]


@pytest.mark.parametrize("model", ALWAYS_REASON)
def test_models_that_always_reason_support_tools_over_responses_only(model: str) -> None:
    assert capabilities_for("openai-chat", model).tools is False
    assert [capabilities_for(provider, model).tools for provider in ("openai", "openai-responses", "azure")] == [
        True
    ] * 3


@pytest.mark.parametrize("model", ["gpt-6.1-terra", "gpt-6-luna", "gpt-5.6-sol", "gpt-5.4", "gpt-4.1"])
@pytest.mark.parametrize("provider", ["openai", "openai-chat", "openai-responses"])
def test_other_gpt_models_support_tools_over_both_protocols(provider: str, model: str) -> None:
    assert capabilities_for(provider, model).tools is True


@pytest.mark.parametrize(
    ("model", "responses"),
    [
        *((model, "tools") for model in ALWAYS_REASON),
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
def test_each_gpt_model_has_a_rule_for_responses(model: str, responses: str) -> None:
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
def test_each_gpt_model_has_its_range_of_efforts(model: str, least: str, most: str) -> None:
    efforts = gpt_rules(model).efforts
    assert (efforts[0], efforts[-1]) == (least, most)
    assert list(efforts) == [effort for effort in EFFORTS if effort in efforts]


def test_gpt_5_6_does_not_accept_the_minimal_effort() -> None:
    assert "minimal" not in gpt_rules("gpt-5.6-sol").efforts


@pytest.mark.parametrize(("model", "prefill"), [("claude-haiku-4-5", True), ("claude-opus-4-6", False)])
def test_newer_claude_models_do_not_support_prefill(model: str, prefill: bool) -> None:
    assert capabilities_for("anthropic", model).prefill is prefill


@pytest.mark.parametrize("provider", ["ollama", "lm-studio", "openai-compatible", "llama"])
def test_little_is_assumed_about_other_servers(provider: str) -> None:
    documents = None if provider == "openai-compatible" else False
    images = False if provider == "llama" else None
    nothing = Capabilities(documents=documents, images=images)
    assert capabilities_for(provider, "gpt-6-luna") == nothing
    assert capabilities_for(provider, "m", context_length=4096) == evolve(nothing, context_length=4096)


@given(
    st.sampled_from(["context_length", "max_output", "tools", "images", "schema", "sampling", "reasoning", "prefill"]),
    st.sampled_from(["claude-haiku-4-5", "claude-opus-5-5", "unheard-of"]),
    st.booleans(),
)
def test_the_configuration_takes_precedence_field_by_field(field: str, model: str, flag: bool) -> None:
    value = 77 if field in {"context_length", "max_output"} else flag
    actual = capabilities_for("anthropic", model, capabilities=Capabilities(**{field: value}))  # type: ignore[arg-type]
    default = capabilities_for("anthropic", model)
    fields = Capabilities.__attrs_attrs__
    differing = {each.name for each in fields if getattr(actual, each.name) != getattr(default, each.name)}
    assert getattr(actual, field) == value
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
def test_each_claude_model_has_rules_for_thinking_off_and_forced_tools(
    model: str, off: str | None, forced: bool
) -> None:
    assert (claude_rules(model).off, claude_rules(model).forced_choice) == (off, forced)


# Images and documents

GIF = b"GIF89a" + bytes((3, 0, 4, 0))
REPORT = Document(b"%PDF-1.7 << /Type /Page >>", title="Report", cite=True)

CLAUDE = ModelConfig(provider="anthropic", model="claude-haiku-5-5", api_key="k")
GPT = ModelConfig(provider="openai", model="gpt-6-luna", api_key="k")
CHAT = ModelConfig(provider="openai-chat", model="gpt-6-luna", api_key="k")
STUDIO = ModelConfig(provider="lm-studio")
LOCAL = ModelConfig(provider="llama", model_path="m.gguf")


def request_with(*parts: Part) -> LLMRequest:
    return LLMRequest(messages=(Message("user", parts),))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("model", "part", "reason"),
    [
        (STUDIO, REPORT, "it does not take documents except plain text"),
        (LOCAL, Image(GIF), "it does not take images"),
        (CLAUDE, Image(b"BM", "image/bmp"), "it does not take image/bmp"),
        (CLAUDE, Document(b"PK", "application/msword"), "it does not take application/msword"),
        (CLAUDE, Image(GIF + bytes(4 * 2**20)), "image/gif of 5592420 bytes, as sent, is more than its 5242880"),
        (CHAT, Document(url="https://a.example/x.pdf"), "it does not fetch documents"),
    ],
)
async def test_unsupported_media_excludes_a_model_with_the_reason(model: ModelConfig, part: Part, reason: str) -> None:
    fetches = isinstance(part, Document) and part.url
    other = GPT if fetches else ModelConfig(provider="openai-compatible", model="x", endpoint="https://a.example/v1")
    env = scripted_env("answered", config=LLMConfig(models={"unable": model, "other": other}))
    decision = (await run(explain(request_with(part)), env)).unwrap()
    assert [(each.model, each.reason) for each in decision.excluded] == [("unable", reason)]
    assert (await run(generate(request_with(part)), env)).unwrap().model == "other"


@pytest.mark.anyio
async def test_media_that_no_model_supports_is_an_invalid_request_with_the_reasons() -> None:
    env = scripted_env(config=LLMConfig(models={"local": LOCAL}))
    error = (await run(generate(request_with(Image(GIF))), env)).failure()
    assert error.tag == "InvalidRequest"
    assert "local: it does not take images" in error.message  # type: ignore[union-attr]


@pytest.mark.anyio
async def test_configured_image_support_includes_a_model_but_not_for_urls() -> None:
    with_projector = ModelConfig(provider="llama", model_path="m.gguf", capabilities=Capabilities(images=True))
    at_url = Image(url="https://a.example/x.png")
    env = scripted_env("answered", config=LLMConfig(models={"local": with_projector}))
    assert (await run(generate(request_with(Image(GIF))), env)).unwrap().content == "answered"
    error = (await run(generate(request_with(at_url)), env)).failure()
    assert "it does not fetch URLs" in error.message  # type: ignore[union-attr]
